"""The explain command: from a run with its networks, from a table alone, and its mistakes."""

import json
import math

import numpy as np
import pytest
from absl import flags
from PIL import Image

import normjax
from benchmarks.verdict_errors import draw_line
from experiments import explain, random_labels
from normjax.controls.explain import choose_rows, explain_line
from normjax.controls.verdict import SUPPORTED
from normjax.plots import explain as explain_plots
from normjax.results.rows import on_own_labels, read_results, write_results
from tests.helpers.synthetic_lines import rows_of
from tests.helpers.synthetic_results import synthetic_rows

ARGUMENTS = (
    "--dataset=digits",
    "--train_size=60",
    "--test_size=45",
    "--corruption_levels=0.5",
    "--num_seeds=3",
    "--pretrain_epochs=1",
    "--epochs=3",
    "--batch_size=32",
    "--norms=2,spectral",
)
PANELS = ("explain", "explain_logits")


def parse(*arguments):
    values = flags.FlagValues()
    explain.define_flags(values)
    return explain.parse(["explain", *map(str, arguments)], values)


@pytest.fixture(scope="module")
def run_dir(invoke, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("explain") / "run"
    invoke(*ARGUMENTS, f"--workdir={run_dir}", main=random_labels.main)
    explain.main(parse(f"--from={run_dir}"))
    return run_dir


def test_a_run_is_explained_with_its_logits(run_dir):
    found = json.loads((run_dir / "explain.json").read_text())
    line, logits = found["line"], found["logits"]
    assert found["no_logits_because"] is None
    assert (line["selection"], line["norm"]) == ("final", "2")
    rows = [row for row in on_own_labels(read_results(run_dir)) if row.norm == "2"]
    assert [network["has_random_labels"] for network in line["networks"]] == [
        row.family == "random_labels" for row in rows
    ]
    assert (len(rows), line["num_random_labels"]) == (6, 3)
    # The logits of the loaded networks, those of true labels, give the losses of the run.
    rows = [row for row in rows if row.family != "random_labels"]
    losses = [[row.normalized_train_loss, row.normalized_test_loss] for row in rows]
    np.testing.assert_allclose(
        np.transpose(logits["points"]["product_norm"]), losses, rtol=0, atol=3e-8
    )
    assert np.ptp(losses, axis=0).min() > 1e-5  # well above that tolerance
    assert logits["fits"]["product_norm"]["r2"] == pytest.approx(
        line["fit_without_random_labels"]["r2"], abs=1e-4
    )
    assert logits["fits"]["balanced"] is not None
    # Balancing leaves the function: less norm, the same margins, so losses farther from ln K.
    excess = np.array([logits["points"][name][0] for name in ("product_norm", "balanced")])
    excess = np.abs(excess - math.log(10))
    assert (excess[1] > excess[0]).all() and (excess[1] < 1.5 * excess[0]).all()
    for name in PANELS:
        with Image.open(run_dir / "figures" / f"{name}.png") as image:
            assert np.asarray(image.convert("L")).std() > 10
        assert (run_dir / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    text = (run_dir / "explain.md").read_text()
    assert text.startswith("# Is the line real? Undecided\n")
    for heading in ("Thresholds of the verdict", "Controls from the logits", "Networks"):
        assert f"\n## {heading}\n" in text
    assert line["text"] in text


def test_norms_that_have_no_balance_say_so(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(explain.plotting, "save_figure", lambda *_: [])
    explain.main(parse(f"--from={run_dir}", "--norm=spectral", f"--workdir={tmp_path}"))
    found = json.loads((tmp_path / "explain.json").read_text())
    assert found["line"]["norm"] == "spectral"
    assert "entrywise" in found["logits"]["reasons"]["fits.balanced"]
    assert found["logits"]["fits"]["last_layer"] is not None
    assert (tmp_path / "explain.md").exists()


def test_a_table_alone_is_explained(tmp_path, capsys):
    """Any results.csv will do, by its own path too."""
    rows = rows_of(*draw_line("constant ratio, 2% noise", np.random.default_rng(0), 6, 2))
    write_results(tmp_path / "table" / "results.csv", rows)
    out = tmp_path / "out"
    explain.main(parse(f"--from={tmp_path / 'table' / 'results.csv'}", f"--workdir={out}"))
    found = json.loads((out / "explain.json").read_text())
    assert found["line"]["verdict"] == SUPPORTED
    assert found["logits"] is None and "run.json is missing" in found["no_logits_because"]
    assert "without the networks' logits" in capsys.readouterr().out
    assert not (out / "figures" / "explain_logits.png").exists()
    with Image.open(out / "figures" / "explain.png") as image:
        assert np.asarray(image.convert("L")).std() > 10


def test_what_is_explained_by_default_and_on_demand():
    rows = synthetic_rows(selections=("loss=0.0044", "final"))
    assert normjax.controls.explain.explain_line is explain_line
    assert {(row.selection, row.norm) for row in choose_rows(rows)} == {("final", "2")}
    chosen = choose_rows(rows, "loss=0.0044", "1/100")
    assert {(row.selection, row.norm) for row in chosen} == {("loss=0.0044", "1/100")}
    assert {row.norm for row in choose_rows([row for row in rows if row.norm != "2"])} == {"1/100"}
    with pytest.raises(ValueError, match="no results for norm '3'; there are: 1/100, 2"):
        choose_rows(rows, norm="3")


def test_random_labels_enter_the_fit_and_not_the_verdict():
    rows = synthetic_rows(norms=("2",))
    odd = [
        row._replace(
            member=20 + row.member,
            family="random_labels",
            labels="random",
            normalized_test_excess=1e-5 * (row.member - 1),
            normalized_test_loss=math.log(10) + 1e-5 * (row.member - 1),
        )
        for row in rows[:3]
    ]
    alone, together = explain_line(rows), explain_line([*rows, *odd])
    assert (together.num_networks, together.num_random_labels) == (15, 3)
    assert together.fit.r2 < alone.fit.r2 - 0.05
    assert together.fit_without_random_labels == alone.fit
    for name in (
        *("verdict", "because", "margin_shuffle", "prediction", "ratio", "error_ranking"),
        *("norm_permutation", "divisor_fit", "anchored_fit", "deming"),
    ):
        assert getattr(together, name) == getattr(alone, name), name
    assert together.bootstrap.slope_interval == alone.bootstrap.slope_interval
    # The line of either family is far from the other.
    assert together.left_out["family"].num_parts == 2
    assert together.left_out["family"].rmse > 10 * alone.fit.rmse


def test_diverged_networks_and_few_networks():
    rows = synthetic_rows(norms=("2",))
    rows[3] = rows[3]._replace(test_loss=math.nan)
    found = explain_line(rows)
    assert (found.num_networks, found.num_diverged) == (11, 1)
    two = explain_line(rows[:2])
    assert two.verdict == "undecided" and "2 points; at least 3" in two.reasons["fit"]
    explain_plots.plot_line(two).draw_without_rendering()
    with pytest.raises(ValueError, match="none of the 1 networks has finite losses"):
        explain_line(rows[3:4])
    with pytest.raises(ValueError, match="every product norm must be positive"):
        explain_line([row._replace(product_norm=0.0) for row in rows[:3]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--from is needed"),
        (("--from=nowhere",), "--from=nowhere: there is no such file or folder"),
        (("--from=.", "--seed=-1"), "--seed=-1: must lie in"),
        (("--from=.", "--norms=2"), "norms"),
        (("--from=.", f"--workdir={__file__}"), "is a file; a folder is needed"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(SystemExit) as stop:
        parse(*arguments)
    assert message in stop.value.code and "\n" not in stop.value.code


def test_tables_that_can_not_be_read_are_one_line(tmp_path):
    write_results(tmp_path / "results.csv", synthetic_rows())
    for arguments, message in (
        ((f"--from={tmp_path}", "--selection=best"), "no results for selection 'best'"),
        ((f"--from={tmp_path / 'empty'}",), "results.csv"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(SystemExit) as stop:
            explain.main(parse(*arguments))
        assert message in stop.value.code and "\n" not in stop.value.code
