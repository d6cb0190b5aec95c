"""`experiments.bounds` from its command line to its figure, on a tiny run on digits."""

import functools
import json
import math
import shutil

import numpy as np
import pytest

from experiments import bounds as command
from experiments import random_labels
from normjax.formatting import number
from normjax.generalization import rademacher
from normjax.results.table import on_own_labels, read_results, select, write_results
from normjax.training.finished_run import load_run
from tests.helpers import commands, reference

ARGUMENTS = (
    "--dataset=digits",
    "--train_size=60",
    "--test_size=45",
    "--corruption_levels=0",
    "--num_seeds=2",
    "--pretrain_epochs=0",
    "--epochs=3",
    "--batch_size=30",
    "--learning_rate=0.05",
    "--norms=2",
)
CLIMB = ("--num_signs=3", "--num_steps=8")


@pytest.fixture(scope="module")
def run_dir(invoke, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("bounds") / "run"
    invoke(*ARGUMENTS, f"--workdir={run_dir}", main=random_labels.main)
    return run_dir


parse = functools.partial(commands.parse, command.Config)


@pytest.fixture(scope="module")
def out_dir(run_dir, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("out")
    command.main(parse(f"--from={run_dir}", f"--workdir={out_dir}", "--delta=0.1", *CLIMB))
    return out_dir


@pytest.fixture(scope="module")
def summary(out_dir):
    return json.loads((out_dir / "bounds.json").read_text())


def own_rows(run_dir):
    return select(on_own_labels(read_results(run_dir)), norm="2")


def test_gaps_and_terms_by_another_path(run_dir, summary):
    rows = own_rows(run_dir)
    assert [n["member"] for n in summary["networks"]] == rows["member"].tolist() == [0, 1, 2, 3]
    expected = (rows["normalized_test_loss"] - rows["normalized_train_loss"]).abs().to_numpy()
    gaps = [network["gap"] for network in summary["networks"]]
    np.testing.assert_allclose(gaps, expected, rtol=0, atol=1e-12)
    assert min(gaps) > 1e-7
    assert (summary["smallest_gap"], summary["largest_gap"]) == (min(gaps), max(gaps))
    assert summary["median_gap"] == pytest.approx(sum(sorted(gaps)[1:3]) / 2, rel=1e-12)
    expected = math.sqrt(math.log(2 / 0.1) / 120)
    assert summary["confidence_term_expected"] == pytest.approx(expected, rel=1e-12)
    expected = 3 * math.sqrt(math.log(4 / 0.1) / 120)
    assert summary["confidence_term"] == pytest.approx(expected, rel=1e-12)
    right_side = summary["signs"]["two_r"] + expected
    assert summary["right_side"] == pytest.approx(right_side, rel=1e-12)
    below_chance = math.log(10) - rows["normalized_train_loss"]
    assert summary["largest_below_chance"] == pytest.approx(below_chance.max(), abs=1e-12)
    assert summary["num_below_chance"] == (below_chance > right_side).sum() == 0
    assert rows["family"].tolist()[2:] == ["random_labels"] * 2
    below = (math.log(10) - rows["normalized_train_loss"]).tolist()[2:]
    assert summary["labels"]["two_r"] == pytest.approx(np.mean(below), abs=1e-12)
    error = abs(below[0] - below[1]) / 2
    assert summary["labels"]["standard_error"] == pytest.approx(error, abs=1e-12)
    assert summary["labels"]["num_draws"] == 2 and summary["labels"]["by_step"] is None


def test_upper_bounds_by_hand(run_dir, summary):
    """The 3-layer net on 8 x 8 pixels: 36, 16 and 1 positions, windows of 9, 9 and 1."""
    x = reference.standardize(load_run(run_dir).dataset.train.images)
    squares, n = (x**2).sum(), 60
    largest = 9 * math.sqrt(squares + n * 36 / 9) / n
    logit = (math.sqrt(6 * math.log(2)) + 1) * 24 * math.sqrt(squares + n) / n
    expected = 2 * 2 * math.sqrt(10) * math.hypot(logit, largest)
    assert summary["upper"]["Golowich et al. 2018"] == pytest.approx(expected, rel=1e-5)
    patch = max((x[:, i : i + 3, j : j + 3] ** 2).sum() for i in range(6) for j in range(6))
    logit = (math.sqrt(2 * math.log(8 * 36)) + 1) * 12 * math.sqrt(patch + n) / n
    expected = 2 * 2 * math.sqrt(10) * math.hypot(logit, largest)
    assert summary["upper"]["after Galanti et al. 2023"] == pytest.approx(expected, rel=1e-5)
    loss_range = math.log(10) + math.sqrt(2) * 9 * math.sqrt(64 + 4)
    assert summary["loss_range"] == pytest.approx(loss_range, rel=1e-9)
    expected = loss_range * summary["confidence_term"]
    assert summary["confidence_term_of_range"] == pytest.approx(expected, rel=1e-9)


def test_signs_are_between_labels_and_the_upper_bounds(summary):
    signs = summary["signs"]
    assert summary["labels"]["two_r"] < signs["two_r"] < min(summary["upper"].values())
    assert signs["two_r"] > 0.1 and 0 < signs["standard_error"] < signs["two_r"]
    assert signs["num_examples"] == 60 and signs["num_draws"] == 3
    assert len(signs["by_step"]) == 9 and (np.diff(signs["by_step"]) >= 0).all()
    assert signs["by_step"][-1] == pytest.approx(signs["two_r"], rel=1e-12)
    assert signs["last_quarter"] == pytest.approx(1 - signs["by_step"][6] / signs["two_r"])
    assert signs["times_gap"] == pytest.approx(signs["two_r"] / summary["largest_gap"])
    ratio = summary["labels"]["two_r"] / signs["two_r"]
    assert summary["labels_over_signs"] == pytest.approx(ratio)
    least = summary["upper"][summary["least_upper"]]
    assert least == min(summary["upper"].values())
    assert summary["upper_over_signs"] == pytest.approx(least / signs["two_r"])


def test_text_and_table(out_dir, summary):
    text = (out_dir / "bounds.md").read_text()
    assert text.startswith("# Eq. 4 on digits, convnet3, final\n")
    assert f"| Gap, median | {number(summary['median_gap'])} | measured |" in text
    assert f"| 2 R_N, random signs | {number(summary['signs']['two_r'])} ± " in text
    assert f"| {summary['upper']['Neyshabur et al. 2015']:,.0f} | at most |" in text
    assert "The losses of the 2 networks trained on random labels" in text and "scaled" not in text
    assert {path.name for path in out_dir.iterdir()} == {"bounds.json", "bounds.md", "figures"}
    figures = {path.name for path in (out_dir / "figures").iterdir()}
    assert figures == {"bounds.png", "bounds.pdf"}


def test_fewer_images_and_a_diverged_network(run_dir, tmp_path, monkeypatch):
    """An estimate from 15 of 60 images is scaled by 1 / 2; what diverged is named."""

    def estimate(apply_fn, init_fn, inputs, labels, *_, num_signs, num_steps):
        assert inputs.shape == (15, 8, 8, 1) and labels.shape == (15,)
        by_step = np.linspace(0, 0.3, num_steps + 1)
        return rademacher.RademacherEstimate(np.array([0.3]), 15, by_step)

    monkeypatch.setattr(rademacher, "estimate_rademacher", estimate)
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    table = read_results(copy)
    names = ["normalized_train_excess", "normalized_test_excess"]
    table.loc[table["member"] == 1, names] = math.nan
    write_results(copy / "results.csv", table)
    command.main(parse(f"--from={copy}", "--num_examples=15", "--num_signs=1", "--num_steps=2"))
    summary = json.loads((copy / "bounds.json").read_text())
    assert summary["diverged"] == [1] and len(summary["networks"]) == 3
    assert summary["signs"]["two_r"] == pytest.approx(0.3, rel=1e-12)  # 2 * 0.3 / 2
    assert summary["signs"]["num_examples"] == 15 and summary["signs"]["standard_error"] is None
    text = (copy / "bounds.md").read_text()
    assert "It was estimated on 15 of the images and scaled by 1 / sqrt(N)." in text
    assert "Left out, diverged: networks 1." in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--from is required: Folder of a finished run"),
        (["--from=x", "--delta=0"], "--delta=0.0: must lie between 0 and 1"),
        (["--from=x", "--num_signs=0"], "--num_signs=0: must be at least 1"),
        (["--from=x", "--num_steps=0"], "--num_steps=0: must be at least 1"),
        (["--from=x", "--num_examples=-1"], "--num_examples=-1: must be at least 1"),
        (["--from=x", "--seed=-1"], "--seed=-1: must lie in [0, 2^32)"),
        (["--from=x", f"--workdir={__file__}"], "a folder is needed, not a file"),
        (["x"], "unexpected argument 'x'"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(SystemExit) as stop:
        parse(*arguments)
    assert message in stop.value.code and "\n" not in stop.value.code


def test_runs_that_can_not_be_read(run_dir, tmp_path):
    for source, selection, message in (
        (tmp_path, "final", "no run here (run.json is missing)"),
        (run_dir, "loss=1", "no results for selection 'loss=1'; there are: final"),
    ):
        with pytest.raises(SystemExit) as stop:
            command.main(parse(f"--from={source}", f"--selection={selection}"))
        assert stop.value.code.startswith("error: ") and message in stop.value.code
    assert not (run_dir / "bounds.json").exists()
