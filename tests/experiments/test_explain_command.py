"""The explain command: from a run with its networks, from a table alone, and its mistakes."""

import dataclasses
import functools
import json
import math

import numpy as np
import pytest

from benchmarks.synthetic_lines import draw_line
from experiments import explain, random_labels
from normjax.controls.explain import explain_line
from normjax.controls.run_logits import explain_run
from normjax.controls.verdict import SUPPORTED
from normjax.report.render import render
from normjax.results.table import on_own_labels, read_results, select, write_results
from tests.helpers import commands
from tests.helpers.synthetic_lines import table_of
from tests.helpers.synthetic_results import synthetic_table

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
FIGURES = ("explain", "explain_logits")


parse = functools.partial(commands.parse, explain.Config)


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
    rows = on_own_labels(select(read_results(run_dir), selection="final", norm="2"))
    is_random = rows["family"] == "random_labels"
    assert [network["has_random_labels"] for network in line["networks"]] == is_random.tolist()
    assert (len(rows), line["num_random_labels"]) == (6, 3)
    # The logits of the loaded networks, those of true labels, give the losses of the run.
    losses = rows.loc[~is_random, ["normalized_train_loss", "normalized_test_loss"]].to_numpy()
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
    for name in FIGURES:
        assert (run_dir / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (run_dir / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    text = (run_dir / "explain.md").read_text()
    assert text.startswith("# Is the line real? Undecided\n")
    for heading in ("Thresholds of the verdict", "Controls from the logits", "Networks"):
        assert f"\n## {heading}\n" in text
    assert line["because"] in text
    assert "| Divisor: root mean square of the logits |" in text
    # Every table has as many cells in each row as in its header.
    rows = [row for row in text.splitlines() if row.startswith("|")]
    assert {row.count("|") - row.count("\\|") for row in rows} == {4, 5, 7}
    assert "\n## Three questions\n" in text and f"Missing: {line['missing']}." in text


def test_norms_that_have_no_balance_say_so(run_dir):
    line = explain_line(run_dir, norm="spectral", num_draws=100)
    logits = explain_run(run_dir, line)
    assert "entrywise" in logits.reasons["fits.balanced"]
    assert logits.fits["last_layer"] is not None
    names = {"measure_names": explain.MEASURE_NAMES, "divisor_names": explain.DIVISOR_NAMES}
    page = render("explain.md", found=line, logits=logits, no_logits_because="", **names)
    assert "- fits.balanced: balancing is defined for entrywise norms only\n" in page
    assert "Divisor: norm of the last layer only" in page and "after balancing" not in page
    other = dataclasses.replace(line, num_classes=7)
    with pytest.raises(ValueError, match="the data have 10 classes, the results 7"):
        explain_run(run_dir, other)


def test_a_table_alone_is_explained(tmp_path, capsys):
    """Any results.csv will do, by its own path too."""
    table = table_of(*draw_line("constant ratio, 2% noise", np.random.default_rng(0), 6, 8))
    write_results(tmp_path / "table" / "results.csv", table)
    out = tmp_path / "out"
    explain.main(parse(f"--from={tmp_path / 'table' / 'results.csv'}", f"--workdir={out}"))
    found = json.loads((out / "explain.json").read_text())
    assert found["line"]["verdict"] == SUPPORTED
    assert found["logits"] is None and "run.json is missing" in found["no_logits_because"]
    printed = capsys.readouterr().out
    assert "no controls from logits" in printed
    assert f"Verdict: supported: {found['line']['because']}." in printed
    assert not (out / "figures" / "explain_logits.png").exists()
    assert (out / "figures" / "explain.png").exists()
    assert "\nNone: " in (out / "explain.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--from is required"),
        (("--from=nowhere",), "--from=nowhere: no such file or folder"),
        (("--from=.", "--seed=-1"), "--seed=-1: must lie in"),
        (("--from=.", "stray"), "unexpected argument 'stray'"),
        (("--from=.", "--norms=2"), "norms"),
        (("--from=.", f"--workdir={__file__}"), "a folder is needed, not a file"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(SystemExit) as stop:
        parse(*arguments)
    assert message in stop.value.code and "\n" not in stop.value.code


def test_tables_that_can_not_be_read_are_one_line(tmp_path):
    write_results(tmp_path / "results.csv", synthetic_table())
    (tmp_path / "diverged").mkdir()
    diverged = synthetic_table().assign(test_loss=math.nan)
    write_results(tmp_path / "diverged" / "results.csv", diverged)
    for arguments, message in (
        ((f"--from={tmp_path}", "--selection=best"), "no results for selection 'best'"),
        ((f"--from={tmp_path / 'empty'}",), "results.csv"),
        ((f"--from={tmp_path / 'diverged'}",), "none of the 12 networks has finite losses"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(SystemExit) as stop:
            explain.main(parse(*arguments))
        assert message in stop.value.code and "\n" not in stop.value.code
