"""The ledger: its numbers are the explanation's, and no row has anything but a measured value."""

import csv
import dataclasses

import numpy as np
import pandas as pd
import pytest

from experiments.paper import ledger
from experiments.paper.figures import FIGURES
from experiments.paper.networks import choose_networks, settings_that_differ
from normjax.controls.explain import explain_line
from normjax.formatting import number
from normjax.results.table import select
from tests.helpers.synthetic_results import synthetic_table

# The table of the paper's figures: slope, intercept, R2, adjusted R2, RMSE.
PRINTED = {
    "4": (0.8358, 0.3783, 0.9998, 0.9998, 5.6567e-5),
    "5": (0.836, 0.377, 0.9998, 0.9998, 4.7651e-5),
    "6": (0.8117, 0.4333, 0.9660, 0.9592, 6.3624e-5),
    "10": (0.8789, 0.2795, 0.9721, 0.9721, 5.8304e-4),
    "11": (0.9642, 0.0844, 0.9999, 0.9999, 6.9797e-5),
}
NAMES = ["slope", "intercept", "R2", "adjusted R2", "RMSE"]
LOSS_NAMES = ["smallest training loss", "largest training loss"]
# Training losses that the paper gives: nearest 0.006, 0.0044 +- 0.0001, or a range.
GIVEN = {
    **dict.fromkeys(("1", "2", "7", "8", "12", "13", "14", "15"), (0.006, 0.006)),
    **dict.fromkeys(("3", "9"), (0.0043, 0.0045)),
    "5": (1.5e-4, 2.5e-3),
    "6": (1.29e-3, 1.38e-3),
}
SIX_LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


def with_random_labels(table):
    """The networks of level 1 as networks of random labels, evaluated on both kinds of labels."""
    is_last = table["level"] == 1
    own = table[is_last].assign(family="random_labels", labels="random")
    natural = own.assign(labels="natural", normalized_test_loss=9.0)
    return pd.concat([table[~is_last], natural, own])


def chosen(name, table, target="0.0044"):
    return choose_networks(FIGURES[name], table, "1/100" if name == "4" else "2", target)


def lines_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_row_for_every_printed_number():
    rows = [row for name in FIGURES for row in ledger.missing_rows(name, "why")]
    for table, names in ((PRINTED, NAMES), (GIVEN, LOSS_NAMES)):
        own = [row for row in rows if row.paper and row.quantity in names]
        assert {row.figure for row in own} == table.keys()
        for name, values in table.items():
            assert [row.quantity for row in own if row.figure == name] == names
            assert tuple(row.paper for row in own if row.figure == name) == values
    others = [(row.figure, row.quantity) for row in rows if row.paper is None]
    assert others == [(name, "R2") for name in ("3", "7", "8", "14", "15")]
    assert all(row.ours is row.ours_low is None and row.reason == "why" for row in rows)


def test_numbers_against_numpy():
    table = synthetic_table(levels=SIX_LEVELS, num_seeds=2)
    for name, norm in (("4", "1/100"), ("5", "2")):
        points = select(table, norm=norm)
        x, y = (points[f"normalized_{split}_loss"].to_numpy() for split in ("train", "test"))
        slope, shifted = np.polyfit(x - x.mean(), y, 1)
        intercept = shifted - slope * x.mean()
        sse = np.sum((y - intercept - slope * x) ** 2)
        r2 = np.corrcoef(x, y)[0, 1] ** 2
        expected = [slope, intercept, r2, 1 - (1 - r2) * 11 / 10, np.sqrt(sse / 10)]
        found = ledger.measured_rows(name, chosen(name, table), ["a", "b"], 500)
        if name == "5":
            losses = points["train_loss"]
            assert [row.quantity for row in found[:2]] == LOSS_NAMES
            assert [row.ours for row in found[:2]] == [losses.min(), losses.max()]
            assert [(row.ours_low, row.reason) for row in found[:2]] == [(None, "")] * 2
            found = found[2:]
        assert [row.quantity for row in found] == NAMES
        np.testing.assert_allclose([row.ours for row in found], expected, rtol=1e-8)
        for row in found:
            assert row.ours_low < row.ours < row.ours_high
            assert (row.networks, row.settings_that_differ, row.reason) == (12, "a; b", "")


def test_one_number_has_one_interval_everywhere():
    table = synthetic_table(levels=SIX_LEVELS, num_seeds=2)
    intervals = explain_line(select(table, norm="2")).fit.intervals
    rows = {row.quantity: row for row in ledger.measured_rows("5", chosen("5", table), [], 500)}
    for quantity, name in ledger.LINE.items():
        ends = getattr(intervals, quantity)
        assert (rows[name].ours_low, rows[name].ours_high) == ends


def test_too_few_levels_for_an_interval():
    table = synthetic_table(levels=(0.0, 0.5, 1.0))
    rows = ledger.measured_rows("5", chosen("5", table), [], 500)
    for row in rows[2:]:
        assert row.ours is not None and row.ours_low is row.ours_high is None
        assert row.reason.startswith("no interval: 3 levels; an interval needs at least 4")


def test_too_few_networks_for_a_line():
    two = synthetic_table(levels=(0.0, 0.1), num_seeds=1)
    networks = chosen("5", two)
    found = ledger.measured_rows("5", networks, [], 500)
    assert [row.ours for row in found[2:]] == [None] * 5
    assert {row.reason for row in found[2:]} == {"no line: 2 points; at least 3 are needed"}
    losses = sorted(networks.table["train_loss"])
    assert [(row.ours, row.reason) for row in found[:2]] == [(x, "") for x in losses]
    with pytest.raises(ValueError, match="no networks of default_init with norm 2"):
        chosen("6", two)
    with pytest.raises(ValueError, match="none of the 2 networks has finite losses"):
        chosen("5", two.assign(test_loss=np.nan))


def test_networks_of_each_figure():
    table = with_random_labels(synthetic_table(selections=("final", "loss=0.0044")))

    def shown(name, *columns):
        return set(chosen(name, table).table[list(columns)].itertuples(index=False, name=None))

    assert shown("3", "level", "selection") == {(x, "loss=0.0044") for x in (0, 0.1, 0.5)}
    assert shown("4", "norm", "selection") == {("1/100", "final")}
    assert len(chosen("5", table).table) == 9
    assert shown("10", "level", "labels") == {
        *((level, "natural") for level in (0, 0.1, 0.5)),
        (1, "random"),
    }
    assert shown("11", "level", "family") == {(0, "pretrain"), (1, "random_labels")}
    assert all(chosen(name, table).remarks == () for name in ("3", "4", "5", "10", "11"))


def test_what_is_not_as_in_the_paper_is_remarked():
    table = synthetic_table(selections=("final", "loss=0.0044"))

    def without(*members):
        """The table with snapshots at the target of these networks only."""
        return table[(table["selection"] == "final") | table["member"].isin(members)]

    four = chosen("3", without(1, 2, 5, 9))
    assert sorted(four.table["member"]) == [1, 2, 5, 9]
    assert four.remarks == (
        "8 of 12 networks excluded: no snapshot at training loss nearest 0.0044 and zero training "
        "error",
    )
    few = chosen("3", without(1, 2))
    assert len(few.table) == 12 and set(few.table["selection"]) == {"final"}
    assert few.remarks == (
        "2 networks at training loss nearest 0.0044 and zero training error: "
        "the last epoch is used instead",
    )
    table.loc[table["member"] == 0, "normalized_test_loss"] = np.nan
    table.loc[table["member"] == 2, "train_error"] = 0.01
    last = chosen("5", table)
    assert last.remarks == (
        "1 of 12 networks excluded: diverged",
        "1 of 12 networks have nonzero training error",
    )
    assert {row.networks for row in ledger.measured_rows("5", last, [], 500)} == {11}


def test_settings_that_differ():
    paper = {
        "dataset": "cifar10",
        "batch_norm": "true",
        "corruption_levels": "0,0.5,1",
        "epochs": "300",
        "learning_rate": "0.01",
        "target_losses": "0.0044",
        "norms": "2",
        "workdir": "runs/fig03",
    }
    same = {
        **paper,
        "batch_norm": "True",
        "corruption_levels": "0.0,0.50,1.0",
        "norms": "2,1/100",
        "stop_at_targets": "False",
        "workdir": "elsewhere",
        "seed": "5",
    }
    figure = FIGURES["3"]
    assert settings_that_differ(figure, paper, same) == []
    other = {
        **same,
        "epochs": "60",
        "corruption_levels": "0,1",
        "target_losses": "0.01",
        "stop_at_targets": "true",
        "train_size": "5000",
    }
    assert settings_that_differ(figure, paper, other) == [
        "corruption_levels 0,1 instead of 0,0.5,1",
        "epochs 60 instead of 300",
        "target_losses 0.01 instead of 0.0044",
        "train_size 5000 instead of all",
        "stop_at_targets true instead of false",
    ]
    # The last epoch has no target; figure 11 has one level, whatever else its run has.
    found = [settings_that_differ(FIGURES[name], paper, other) for name in ("10", "11")]
    assert found[0][:2] == ["corruption_levels 0,1 instead of 0,0.5,1", "epochs 60 instead of 300"]
    assert found[1][:2] == ["epochs 60 instead of 300", "train_size 5000 instead of all"]


@pytest.fixture
def rows():
    table = synthetic_table(levels=SIX_LEVELS, num_seeds=2)
    measured = ledger.measured_rows("5", chosen("5", table), ["epochs 6 instead of 300"], 5000)
    return [
        *measured,
        *ledger.missing_rows("6", "no data | at all"),
        *ledger.missing_rows("3", ""),
    ]


def test_the_table(tmp_path, rows):
    ledger.write_csv(tmp_path / "ledger.csv", rows)
    lines = lines_of(tmp_path / "ledger.csv")
    assert [*lines[0]] == [field.name for field in dataclasses.fields(ledger.LedgerRow)]
    assert [(line["figure"], line["quantity"]) for line in lines] == [
        *[("5", name) for name in LOSS_NAMES + NAMES],
        *[("6", name) for name in LOSS_NAMES + NAMES],
        *[("3", name) for name in [*LOSS_NAMES, "R2"]],
    ]
    assert [lines[0][name] for name in ("ours_low", "ours_high")] == ["", ""]
    for line, row in list(zip(lines, rows, strict=True))[2:7]:
        for name in ("paper", "ours", "ours_low", "ours_high", "networks"):
            assert float(line[name]) == getattr(row, name)
        assert line["settings_that_differ"] == "epochs 6 instead of 300" and line["reason"] == ""
    for line in lines[7:]:
        assert (line["ours"], line["ours_low"], line["ours_high"]) == ("not run", "", "")
    assert lines[9]["reason"] == "no data | at all" and lines[-1]["paper"] == "not printed"


def test_the_page(tmp_path, rows):
    runs = {
        "linear": {"experiment": "linear_margin", "wall_time_s": 3.5, "git_commit": "abc"},
        "net": {
            "experiment": "random_labels",
            "model": "convnet3",
            "networks": 14,
            "train_images": 5000,
            "dataset": "Digits",
            "devices": ["cpu", "cpu"],
            "wall_time_s": 7.0,
            "git_commit": None,
        },
    }
    ledger.write_markdown(tmp_path / "ledger.md", rows, [], "Not <known>.", runs)
    text = (tmp_path / "ledger.md").read_text()
    slope = rows[2]
    low, high = (number(x, 5) for x in (slope.ours_low, slope.ours_high))
    ours = f"{number(slope.ours, 5)} | {low} to {high}"
    assert f"| 5 | slope | 0.836 | {ours} | 5,000 | 12 | [1] |\n" in text
    assert "| 6 | R2 | 0.966 | not run | – | – | – | [2] |\n" in text
    assert f"| 6 | RMSE | {number(6.3624e-5, 5)} | not run | – | – | – | [2] |\n" in text
    assert "| 3 | R2 | not printed | not run | – | – | – | – |\n" in text
    assert "\n- [1] epochs 6 instead of 300\n- [2] no data \\| at all\n" in text
    assert "\n## When to stop\n\nNot &lt;known&gt;.\n\n## Runs\n" in text
    assert text.endswith(
        "\n- `linear`: experiments.linear_margin, 3.5 s since its last start, commit abc\n"
        "- `net`: experiments.random_labels, convnet3, 14 networks, 5,000 training images "
        "(Digits), 2 x cpu, 7 s since its last start, commit None\n"
    )
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows) and {line.count(" | ") for line in table[2:]} == {7}
    assert "\n\n\n" not in text


@pytest.mark.parametrize("name", ["1", "2", "9", "12", "13"])
def test_figures_without_a_line_have_their_losses_only(name):
    assert [row.quantity for row in ledger.missing_rows(name, "")] == LOSS_NAMES
    found = ledger.measured_rows(name, chosen("5", synthetic_table()), [], 500)
    assert [row.quantity for row in found] == LOSS_NAMES and all(row.ours for row in found)
