"""The ledger: its numbers against numpy, and no row with anything but a measured value."""

import csv

import numpy as np
import pytest

from experiments.paper import ledger
from experiments.paper.figures import FIGURES
from tests.helpers.synthetic_results import synthetic_rows

# The table of the paper's figures: slope, intercept, R2, adjusted R2, RMSE.
PRINTED = {
    "4": (0.8358, 0.3783, 0.9998, 0.9998, 5.6567e-5),
    "5": (0.836, 0.377, 0.9998, 0.9998, 4.7651e-5),
    "6": (0.8117, 0.4333, 0.9660, 0.9592, 6.3624e-5),
    "10": (0.8789, 0.2795, 0.9721, 0.9721, 5.8304e-4),
    "11": (0.9642, 0.0844, 0.9999, 0.9999, 6.9797e-5),
}
NAMES = ["slope", "intercept", "R2", "adjusted R2", "RMSE"]
LOSS_NAMES = ["least training loss", "greatest training loss"]
# Training losses that the paper gives: nearest 0.006, 0.0044 +- 0.0001, or a range.
GIVEN = {
    **dict.fromkeys(("1", "2", "7", "8", "12", "13", "14", "15"), (0.006, 0.006)),
    **dict.fromkeys(("3", "9"), (0.0043, 0.0045)),
    "5": (1.5e-4, 2.5e-3),
    "6": (1.29e-3, 1.38e-3),
}


def with_random_labels(rows):
    """The networks of level 1 as networks of random labels, evaluated on both kinds of labels."""
    changed = []
    for row in rows:
        if row.level == 1:
            row = row._replace(family="random_labels", labels="random")
            changed.append(row._replace(labels="natural", normalized_test_loss=9.0))
        changed.append(row)
    return changed


def chosen(name, rows, target="0.0044"):
    return ledger.choose_networks(FIGURES[name], rows, "1/100" if name == "4" else "2", target)


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
    assert all(row.ours is row.interval is None and row.reason == "why" for row in rows)


def test_numbers_against_numpy():
    rows = synthetic_rows()
    for name, norm in (("4", "1/100"), ("5", "2")):
        points = [row for row in rows if row.norm == norm]
        x = np.array([row.normalized_train_loss for row in points])
        y = np.array([row.normalized_test_loss for row in points])
        slope, shifted = np.polyfit(x - x.mean(), y, 1)
        intercept = shifted - slope * x.mean()
        sse = np.sum((y - intercept - slope * x) ** 2)
        r2 = np.corrcoef(x, y)[0, 1] ** 2
        expected = [slope, intercept, r2, 1 - (1 - r2) * 11 / 10, np.sqrt(sse / 10)]
        losses = [row.train_loss for row in points]
        found = ledger.measured_rows(name, chosen(name, rows), ["a", "b"])
        if name == "5":
            assert [row.quantity for row in found[:2]] == LOSS_NAMES
            assert [row.ours for row in found[:2]] == [min(losses), max(losses)]
            assert [row.interval for row in found[:2]] == [None, None]
            found = found[2:]
        assert [row.quantity for row in found] == NAMES
        np.testing.assert_allclose([row.ours for row in found], expected, rtol=1e-8)
        for row in found:
            assert row.interval[0] < row.ours < row.interval[1]
            assert (row.num_networks, row.differs, row.reason) == (12, ("a", "b"), "")


def test_bootstrap_against_another_one():
    """R2 as a squared correlation, other resamples; percentiles agree to a fifth of the width."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=40)
    y = 0.8 * x + 0.5 * rng.normal(size=40)
    found = ledger.bootstrap_intervals(x, y)
    draws = rng.integers(40, size=(4000, 40))
    r2 = np.array([np.corrcoef(x[i], y[i])[0, 1] ** 2 for i in draws])
    sse = (1 - r2) * np.array([40 * y[i].var() for i in draws])
    others = {"r2": r2, "adjusted_r2": 1 - (1 - r2) * 39 / 38, "rmse": np.sqrt(sse / 38)}
    assert found.keys() == others.keys()
    for name, values in others.items():
        low, high = np.quantile(values, [0.025, 0.975])
        np.testing.assert_allclose(found[name], (low, high), rtol=0, atol=0.2 * (high - low))
    assert found == ledger.bootstrap_intervals(x, y)


def test_too_few_networks_for_an_interval_or_a_line():
    rows = [row for row in synthetic_rows(num_seeds=1) if row.level < 1]
    found = ledger.measured_rows("5", chosen("5", rows), [])[2:]
    assert [row.interval is None for row in found] == [False, False, True, True, True]
    two = [row for row in rows if row.level < 0.5]
    found = ledger.measured_rows("5", chosen("5", two), [])
    assert [row.ours for row in found[2:]] == [None] * 5
    assert {row.reason for row in found[2:]} == {"no line: 2 points; at least 3 are needed"}
    losses = sorted(row.train_loss for row in chosen("5", two).rows)
    assert [(row.ours, row.reason) for row in found[:2]] == [(x, "") for x in losses]
    none = ledger.measured_rows("5", ledger.Networks([], []), [])
    assert {row.ours for row in none} == {None} and all(row.reason for row in none)


def test_networks_of_each_figure():
    rows = with_random_labels(synthetic_rows(selections=("final", "loss=0.0044")))
    assert {(r.level, r.selection) for r in chosen("3", rows).rows} == {
        (level, "loss=0.0044") for level in (0, 0.1, 0.5)
    }
    assert {(r.norm, r.selection) for r in chosen("4", rows).rows} == {("1/100", "final")}
    assert len(chosen("5", rows).rows) == 9
    assert [(r.level, r.labels) for r in chosen("10", rows).rows[::3]] == [
        (0, "natural"),
        (0.1, "natural"),
        (0.5, "natural"),
        (1, "random"),
    ]
    assert {(r.level, r.family) for r in chosen("11", rows).rows} == {
        (0, "pretrain"),
        (1, "random_labels"),
    }
    assert all(chosen(name, rows).remarks == [] for name in ("3", "4", "5", "10", "11"))


def test_what_is_not_as_in_the_paper_is_remarked():
    rows = synthetic_rows(selections=("final", "loss=0.0044"))
    some = [r for r in rows if r.selection == "final" or r.member in (1, 2, 5, 9)]
    four = chosen("3", some)
    assert sorted(row.member for row in four.rows) == [1, 2, 5, 9]
    assert four.remarks == [
        "8 of 12 networks left out, never at training loss nearest 0.0044 and zero training error"
    ]
    few = chosen("3", [r for r in rows if r.selection == "final" or r.member in (1, 2)])
    assert len(few.rows) == 12 and {row.selection for row in few.rows} == {"final"}
    assert few.remarks == [
        "2 networks at training loss nearest 0.0044 and zero training error: "
        "those of the last epoch are taken"
    ]
    rows[0] = rows[0]._replace(normalized_test_loss=np.nan)
    rows[2] = rows[2]._replace(train_error=0.01)
    last = chosen("5", rows)
    assert last.remarks == [
        "1 of 12 networks left out as diverged",
        "1 of 12 networks above zero training error",
    ]
    assert {row.num_networks for row in ledger.measured_rows("5", last, [])} == {11}


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
        "workdir": "elsewhere",
        "seed": "5",
    }
    figure = FIGURES["3"]
    assert ledger.settings_that_differ(figure, paper, same) == []
    other = {
        **same,
        "epochs": "60",
        "corruption_levels": "0,1",
        "target_losses": "0.01",
        "train_size": "5000",
    }
    assert ledger.settings_that_differ(figure, paper, other) == [
        "corruption_levels 0,1 instead of 0,0.5,1",
        "epochs 60 instead of 300",
        "target_losses 0.01 instead of 0.0044",
        "train_size 5000 instead of all",
    ]
    # The last epoch has no target; figure 11 has one level, whatever else its run has.
    found = [ledger.settings_that_differ(FIGURES[name], paper, other) for name in ("10", "11")]
    assert found[0][:2] == ["corruption_levels 0,1 instead of 0,0.5,1", "epochs 60 instead of 300"]
    assert found[1] == ["epochs 60 instead of 300", "train_size 5000 instead of all"]


def test_the_files(tmp_path):
    measured = ledger.measured_rows("5", chosen("5", synthetic_rows()), ["epochs 6 instead of 300"])
    rows = [*measured, *ledger.missing_rows("6", "no data | at all"), *ledger.missing_rows("3", "")]
    ledger.write_csv(tmp_path / "ledger.csv", rows)
    lines = lines_of(tmp_path / "ledger.csv")
    assert [(line["figure"], line["quantity"]) for line in lines] == [
        *[("5", name) for name in LOSS_NAMES + NAMES],
        *[("6", name) for name in LOSS_NAMES + NAMES],
        *[("3", name) for name in [*LOSS_NAMES, "R2"]],
    ]
    assert [lines[0][name] for name in ("ours_low", "ours_high")] == ["", ""]
    for line, row in list(zip(lines, measured, strict=False))[2:]:
        assert float(line["paper"]) == row.paper and float(line["ours"]) == row.ours
        assert (float(line["ours_low"]), float(line["ours_high"])) == row.interval
        assert line["settings_that_differ"] == "epochs 6 instead of 300" and line["reason"] == ""
    for line in lines[7:]:
        assert (line["ours"], line["ours_low"], line["ours_high"]) == ("not run", "", "")
    assert lines[9]["reason"] == "no data | at all" and lines[-1]["paper"] == "not printed"

    ledger.write_markdown(tmp_path / "ledger.md", rows, [("Runs", "- one")])
    text = (tmp_path / "ledger.md").read_text()
    slope = measured[2]
    low, high = (f"{x:.5g}" for x in slope.interval)
    assert f"| 5 | slope | 0.836 | {slope.ours:.5g} | {low} to {high} | 12 | [1] |" in text
    assert "| 6 | R2 | 0.966 | not run | - | - | no data \\| at all |" in text
    assert "| 3 | R2 | not printed | not run | - | - | - |" in text
    assert "\n- [1] epochs 6 instead of 300\n" in text and text.endswith("## Runs\n\n- one\n")
    assert "bootstrap" in text and text.count("[2]") == 0


@pytest.mark.parametrize("name", ["1", "2", "9", "12", "13"])
def test_figures_without_a_line_have_their_losses_only(name):
    assert [row.quantity for row in ledger.missing_rows(name, "")] == LOSS_NAMES
    found = ledger.measured_rows(name, chosen("5", synthetic_rows()), [])
    assert [row.quantity for row in found] == LOSS_NAMES and all(row.ours for row in found)
