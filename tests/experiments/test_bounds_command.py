"""`experiments.bounds` from its command line to its figure, on a tiny run on digits."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags
from PIL import Image

from experiments import bounds as command
from experiments import random_labels
from normjax.generalization import rademacher
from normjax.plots import bounds as bound_plots
from normjax.results.rows import on_own_labels, read_results, select, write_results
from normjax.training.finished_run import load_run
from tests.helpers import reference

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


def parse(*arguments):
    values = flags.FlagValues()
    command.define_flags(values)
    return command.parse(["bounds", *map(str, arguments)], values)


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
    assert [n["member"] for n in summary["networks"]] == list(range(4)) and len(rows) == 4
    for row, network in zip(rows, summary["networks"], strict=True):
        gap = abs(row.normalized_test_loss - row.normalized_train_loss)
        assert network["gap"] == pytest.approx(gap, abs=1e-12) and gap > 1e-7
    assert summary["confidence_term"] == pytest.approx(math.sqrt(math.log(10) / 120), rel=1e-12)
    below = [math.log(10) - row.normalized_train_loss for row in rows[-2:]]
    assert [row.family for row in rows[-2:]] == ["random_labels"] * 2
    assert summary["labels"]["two_r"] == pytest.approx(np.mean(below), abs=1e-12)
    error = abs(below[0] - below[1]) / 2
    assert summary["labels"]["standard_error"] == pytest.approx(error, abs=1e-12)


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
    assert signs["num_examples"] == 60 and signs["num_signs"] == 3
    assert len(signs["by_step"]) == 9 and (np.diff(signs["by_step"]) >= 0).all()
    assert signs["by_step"][-1] == pytest.approx(signs["two_r"], rel=1e-12)


def test_text_and_table(out_dir, summary):
    text = (out_dir / "bounds.md").read_text()
    assert text.startswith("# Eq. 4 on digits, convnet3, final\n")
    assert summary["text"] in text
    gaps = [network["gap"] for network in summary["networks"]]
    for value in (np.median(gaps), min(gaps), max(gaps), summary["confidence_term"]):
        assert f"{value:.3g}" in summary["text"]
    assert f"| 2 R_N, random signs | {summary['signs']['two_r']:.3g} ± " in text
    assert f"| {summary['upper']['Neyshabur et al. 2015']:,.0f} | at most |" in text
    assert "The 2 networks trained on random labels" in text and "scaled" not in text


def test_the_figure_shows_the_terms(out_dir, summary):
    (axes,) = bound_plots.plot_bounds(summary).axes
    assert axes.get_xscale() == "log" and "Nats" in axes.get_xlabel()
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == 8 and "random signs" in names[3] and "Bartlett" in names[4]
    rows = {}
    for line in axes.lines:
        for x, y in zip(*line.get_data(), strict=False):
            rows.setdefault(y, []).append(x)
    assert sorted(rows[0])[:4] == sorted(n["gap"] for n in summary["networks"])[:4]
    expected = [
        summary["confidence_term"],
        summary["labels"]["two_r"],
        summary["signs"]["two_r"],
        *summary["upper"].values(),
    ]
    for i, value in enumerate(expected, 1):
        assert value in rows[i]
    with Image.open(out_dir / "figures" / "bounds.png") as image:
        assert np.asarray(image.convert("L")).std() > 10
    assert (out_dir / "figures" / "bounds.pdf").read_bytes().startswith(b"%PDF")


def test_fewer_images_and_a_diverged_network(run_dir, tmp_path, monkeypatch):
    """An estimate from 15 of 60 images is scaled by 1 / 2; what diverged is named."""

    def estimate(apply_fn, init_fn, inputs, labels, *_, num_signs, num_steps):
        assert inputs.shape == (15, 8, 8, 1) and labels.shape == (15,)
        values, by_step = np.array([0.3]), np.linspace(0, 0.3, num_steps + 1)
        return rademacher.RademacherEstimate(0.3, math.nan, values, 15, by_step)

    monkeypatch.setattr(rademacher, "estimate_rademacher", estimate)
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    rows = read_results(copy)
    nan = dict.fromkeys(["normalized_train_excess", "normalized_test_excess"], math.nan)
    write_results(copy / "results.csv", [r._replace(**nan) if r.member == 1 else r for r in rows])
    command.main(parse(f"--from={copy}", "--num_examples=15", "--num_signs=1", "--num_steps=2"))
    summary = json.loads((copy / "bounds.json").read_text())
    assert summary["diverged"] == [1] and len(summary["networks"]) == 3
    assert summary["signs"]["two_r"] == pytest.approx(0.3, rel=1e-12)  # 2 * 0.3 / 2
    assert summary["signs"]["num_examples"] == 15 and summary["signs"]["standard_error"] is None
    text = (copy / "bounds.md").read_text()
    assert "found on 15 of the images and scaled" in text
    assert "Left out, diverged: networks 1." in text


def a_summary(**terms):
    """A summary with a largest gap of 0.01."""
    networks = [{"member": i, "family": "pretrain", "gap": g} for i, g in enumerate((0.01, 0.005))]
    base = {
        "networks": networks,
        "num_examples": 100,
        "delta": 0.05,
        "ln_num_classes": 2.3,
        "confidence_term": 0.02,
        "loss_range": 100.0,
        "confidence_term_of_range": 2.0,
        "labels": None,
        "signs": {
            "two_r": 0.5,
            "standard_error": 0.1,
            "num_signs": 4,
            "num_examples": 100,
            "by_step": [0.0, 0.3, 0.45, 0.5],
        },
        "upper": {"A": 60.0, "B": 5.0},
    }
    return {**base, **terms}


def test_words_follow_the_numbers():
    text = command.describe(a_summary())
    assert "is 0.02 nats, 2 times the largest gap: tight." in text
    assert "at least 0.5 ± 0.1 nats by 4 draws of random signs (50 times the largest gap: " in text
    assert "largest gap: not tight)" in text and "holds for 2 of the 2 networks" in text
    assert "no networks trained on random labels" in text
    assert "the last quarter of its steps added 10%" in text
    assert "is 5 nats (B; the others up to 60), 10 times the lower estimate" in text
    text = command.describe(a_summary(confidence_term=0.04))
    assert "is 0.04 nats, 4 times the largest gap: not tight." in text
    text = command.describe(a_summary(signs={**a_summary()["signs"], "two_r": 3.0}))
    assert "300 times the largest gap: vacuous, more than ln K, the loss of chance)" in text
    small = {**a_summary()["signs"], "two_r": 0.001}
    text = command.describe(a_summary(signs=small, confidence_term=0.005))
    assert "0.1 times the largest gap: tight, if that is all)" in text
    assert "holds for 1 of the 2 networks" in text
    labels = {"two_r": 0.02, "standard_error": None, "num_networks": 1}
    text = command.describe(a_summary(labels=labels))
    assert "come 0.02 nats below ln K" in text and "2 times the largest gap. What" in text
    assert "is 0.04 of what the class can do" in text


def test_numbers_are_written_with_three_digits():
    values = (0.0173082, 11.2480, 578.9, 13404.2)
    assert [bound_plots.format_nats(v) for v in values] == ["0.0173", "11.2", "579", "13,404"]


def test_the_classes_of_the_other_networks():
    def run(model):
        dataset = SimpleNamespace(num_classes=10, image_shape=(32, 32, 3))
        return SimpleNamespace(config=SimpleNamespace(model=model), dataset=dataset)

    linear = command.class_of(run("linear"))
    assert linear == ((((1, 1, 10, 1)),), 3072, False)
    convnet3 = command.class_of(run("convnet3"))
    assert convnet3 == (((25, 784, 24, 25), (25, 576, 24, 25), (1, 1, 10, 576)), 3072, True)
    with pytest.raises(ValueError, match="layer 'Conv_1' has a bias"):
        command.class_of(run("convnet5"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--from is needed: the folder of a finished run"),
        (["--from=x", "--delta=0"], "--delta=0.0: must lie between 0 and 1"),
        (["--from=x", "--num_signs=0"], "--num_signs=0: must be at least 1"),
        (["--from=x", "--num_steps=0"], "--num_steps=0: must be at least 1"),
        (["--from=x", "--num_examples=-1"], "--num_examples=-1: must be at least 1"),
        (["--from=x", "--seed=-1"], "--seed=-1: must lie in [0, 2^32)"),
        (["--from=x", f"--workdir={__file__}"], "is a file; a folder is needed"),
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
