"""The linear network's experiment, from its flags to its figure, on a few small training sets."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize, stats

from experiments import linear_margin as experiment
from normjax.generalization import linear_margin, linear_sweep
from normjax.generalization.linear_sweep import ANGLE_COLUMNS, DRAW_COLUMNS
from normjax.plots import linear_margin as linear_plots
from normjax.results.columns import read_columns
from tests.helpers import commands

ROOT = Path(__file__).parents[2]
SIZES = ("--train_size=12", "--dimension=8", "--num_draws=14", "--num_steps=200")


parse = functools.partial(commands.parse, experiment.Config)


def run(run_dir, *arguments):
    experiment.main(parse(*SIZES, f"--workdir={run_dir}", *arguments))
    return run_dir


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return run(tmp_path_factory.mktemp("linear") / "run")


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes longest and is looked at once."""
    monkeypatch.setattr(experiment, "save_figure", lambda *_: [])


def test_a_run_leaves_its_files(run_dir):
    files = {"flags.txt", "run.json", "results.csv", "angles.csv", "summary.json", "figures"}
    files.add(".lock")
    assert {path.name for path in run_dir.iterdir()} == files
    record = json.loads((run_dir / "run.json").read_text())
    assert record["finished"] is True and record["wall_time_s"] > 0
    assert {"python", "numpy", "scipy", "scikit-learn"} <= record["versions"].keys()
    assert record["config"] == dataclasses.asdict(parse(f"--flagfile={run_dir / 'flags.txt'}"))
    figures = {path.name for path in (run_dir / "figures").iterdir()}
    assert figures == {"linear_margin.png", "linear_margin.pdf"}


def test_results_by_another_path(run_dir):
    """Every number of one row, from the training set drawn again."""
    table = read_columns(run_dir / "results.csv", DRAW_COLUMNS)
    row = 4
    x, y = linear_sweep.draw_classes(np.random.default_rng((0, table["draw"][row])), 12, 8)
    signed = x * y[:, None]
    # Lawson and Hanson: the least-distance problem as one of nonnegative least squares.
    stacked, right = np.vstack([signed.T, np.ones(12)]), np.eye(9)[8]
    residual = stacked @ optimize.nnls(stacked, right)[0] - right
    svm = -residual[:8] / residual[8]
    descended = np.zeros(8)
    rate = 4 / np.linalg.eigvalsh(x.T @ x).max()
    for _ in range(200):
        descended += rate * signed.T @ (1 / (1 + np.exp(signed @ descended)))
    cosine = svm @ descended / (np.linalg.norm(svm) * np.linalg.norm(descended))

    def error(w):
        return stats.norm.cdf(-2 * w[0] / np.linalg.norm(w))

    expected = {
        "norm_at_unit_margin": np.linalg.norm(svm),
        "gd_norm_at_unit_margin": np.linalg.norm(descended) / (signed @ descended).min(),
        "angle_final_deg": np.rad2deg(np.arccos(cosine)),
        "train_error": 0.0,
        "test_error": error(svm),
        "gd_train_error": 0.0,
        "gd_test_error": error(descended),
        "data_radius": np.sqrt((x**2).sum(axis=1).max()),
    }
    for name, value in expected.items():
        assert table[name][row] == pytest.approx(value, rel=1e-4), name
    assert (table["train_size"] == 12).all() and (table["dimension"] == 8).all()
    assert (table["num_support_vectors"] <= 12).all() and (table["duality_gap"] <= 0.01).all()


def test_angles_end_where_the_results_say(run_dir):
    table = read_columns(run_dir / "results.csv", DRAW_COLUMNS)
    angles = read_columns(run_dir / "angles.csv", ANGLE_COLUMNS)
    steps = linear_margin.log_spaced_steps(200)
    assert angles["step"].tolist() == steps.tolist() * len(table["draw"])
    last = angles["step"] == 200
    np.testing.assert_array_equal(angles["draw"][last], table["draw"])
    np.testing.assert_allclose(angles["angle_deg"][last], table["angle_final_deg"], rtol=1e-12)
    by_draw = angles["angle_deg"].to_numpy().reshape(len(table["draw"]), len(steps))
    assert np.median(by_draw[:, -1]) < 0.7 * np.median(by_draw[:, 0])


def test_summary(run_dir):
    summary = json.loads((run_dir / "summary.json").read_text())
    table = read_columns(run_dir / "results.csv", DRAW_COLUMNS)
    found = summary["correlations"]["norm_at_unit_margin"]
    spearman = stats.spearmanr(table["norm_at_unit_margin"], table["test_error"]).statistic
    assert found["spearman"] == pytest.approx(spearman, rel=1e-12)
    low, high = found["spearman_interval"]
    assert low < spearman < high and "jackknife" in summary["method"]
    product = table["data_radius"] * table["norm_at_unit_margin"]
    assert summary["correlations"]["radius_times_norm"]["spearman"] == pytest.approx(
        stats.spearmanr(product, table["test_error"]).statistic, rel=1e-12
    )
    absent = set(range(14)) - set(table["draw"].tolist())
    assert summary["not_separable"] == sorted(absent) and len(table["draw"]) == found["n"]
    assert [draw["draw"] for draw in summary["two_draws"]] == table["draw"][:2].tolist()


def test_the_figure_shows_the_tables(run_dir):
    left, right = experiment.draw_figure(run_dir).axes
    table = read_columns(run_dir / "results.csv", DRAW_COLUMNS)
    angles = read_columns(run_dir / "angles.csv", ANGLE_COLUMNS)
    curves = {line.get_color(): np.column_stack(line.get_data()) for line in left.lines}
    for color, draw in zip(linear_plots._COLORS, table["draw"][:2], strict=True):
        own = angles["draw"] == draw
        np.testing.assert_array_equal(
            curves[color], np.column_stack([angles["step"][own], angles["angle_deg"][own]])
        )
    dots = np.column_stack(right.lines[0].get_data())
    expected = np.column_stack([table["norm_at_unit_margin"], 100 * table["test_error"]])
    np.testing.assert_allclose(dots, expected, rtol=1e-14)
    for star, point in zip(right.lines[1:], expected, strict=False):
        np.testing.assert_allclose(np.ravel(star.get_data()), point, rtol=1e-14)
    assert left.get_xscale() == right.get_xscale() == "log"
    assert "degrees" in left.get_ylabel() and "(%)" in right.get_ylabel()
    spearman = stats.spearmanr(table["norm_at_unit_margin"], table["test_error"]).statistic
    assert f"Rank correlation {spearman:.2f}" in right.get_title(loc="left")


def test_draws_depend_on_seed_and_number_only(run_dir, tmp_path, undrawn):
    again = run(tmp_path / "again", "--num_draws=16")
    first = (run_dir / "results.csv").read_text().splitlines()
    more = read_columns(again / "results.csv", DRAW_COLUMNS)
    table = read_columns(run_dir / "results.csv", DRAW_COLUMNS)
    for name in table:
        np.testing.assert_allclose(more[name][: len(first) - 1], table[name], rtol=1e-9)
    other = read_columns(run(tmp_path / "other", "--seed=1") / "results.csv", DRAW_COLUMNS)
    assert not np.isin(other["data_radius"], table["data_radius"]).any()


def test_the_teachers_run(tmp_path, undrawn):
    table = read_columns(
        run(tmp_path / "t", "--distribution=teacher") / "results.csv", DRAW_COLUMNS
    )
    row = 2
    x, y = linear_sweep.draw_teacher(np.random.default_rng((0, row)), 12, 8)
    weights = linear_margin.hard_margin(x, y).weights
    expected = np.arccos(weights[0] / np.linalg.norm(weights)) / np.pi
    assert table["draw"].tolist() == list(range(14))  # always separable
    assert table["test_error"][row] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_draws=9"], "--num_draws=9: must be at least 10"),
        (["--train_size=1"], "--train_size=1: must be at least 2"),
        (["--dimension=1"], "--dimension=1: must be at least 2"),
        (["--num_steps=0"], "--num_steps=0: must be at least 1"),
        (["--relative_step=2"], "--relative_step=2.0: must lie between 0 and 2"),
        (["--relative_step=nan"], "--relative_step=nan: must lie between 0 and 2"),
        (["--seed=-1"], "--seed=-1: must lie in [0, 2^32)"),
        (["--distribution=moons"], "classes|teacher"),
        (["--num_steps=ten"], "--num_steps=ten"),
        (["--no_such_flag=1"], "Unknown command line flag 'no_such_flag'"),
        (["run"], "unexpected argument 'run'; options are --name=value"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    assert message in commands.error_of(parse, *arguments)


def test_a_folder_in_use(run_dir, tmp_path, capsys):
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    assert f"--workdir={run_dir} already holds a run" in commands.error_of(run, run_dir)
    message = commands.error_of(run, run_dir, "--resume", "--seed=1")
    assert message == f"error: --resume: the run in {run_dir} has a different --seed"
    run(run_dir, "--resume")
    assert "this run is finished" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    (tmp_path / "results.csv").write_text("a,b\n")
    assert "holds other results" in commands.error_of(run, tmp_path)


def test_training_sets_that_are_hardly_ever_separable(tmp_path):
    message = commands.error_of(run, tmp_path / "new", "--train_size=60", "--dimension=2")
    assert "training sets are separable, 10 are needed" in message
    assert not (tmp_path / "new").exists()


def test_our_flagfile_parses():
    config = parse(f"--flagfile={ROOT}/experiments/flagfiles/linear_margin.flags")
    assert config == dataclasses.replace(parse(), workdir="runs/linear_margin")


def test_a_mistake_as_the_shell_sees_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.linear_margin", "--num_draws=0", "--workdir=out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: --num_draws=0: must be at least 10\n"
    assert list(tmp_path.iterdir()) == []
