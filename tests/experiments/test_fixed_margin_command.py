"""The fixed-margin experiment from its flags to its figure, and its mistakes."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import fixed_margin as experiment
from normjax.generalization.fixed_margin import COLUMNS
from normjax.plots.fixed_margin import plot_fixed_margin
from normjax.results.columns import read_columns
from tests.helpers import commands

ROOT = Path(__file__).parents[2]
SMALL = (
    "--train_size=20",
    "--test_size=30",
    "--model=linear",
    "--margins=0.02,0.05",
    "--num_seeds=2",
    "--epochs=30",
    "--batch_size=16",
    "--learning_rate=0.01",
)

parse = functools.partial(commands.parse, experiment.Config)


def run(run_dir, *arguments):
    experiment.main(parse(*SMALL, f"--workdir={run_dir}", *arguments))
    return run_dir


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return run(tmp_path_factory.mktemp("fixed") / "run")


def test_a_run_leaves_its_files(run_dir):
    files = {"flags.txt", "run.json", "results.csv", "summary.json", "figures", ".lock"}
    assert {path.name for path in run_dir.iterdir()} == files
    record = json.loads((run_dir / "run.json").read_text())
    assert record["finished"] is True and record["experiment"] == "fixed_margin"
    config = dataclasses.asdict(parse(f"--flagfile={run_dir / 'flags.txt'}"))
    assert record["config"] == json.loads(json.dumps(config))
    table = read_columns(run_dir / "results.csv", COLUMNS)
    assert table["target_margin"].tolist() == [0.02, 0.02, 0.05, 0.05] * 2
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["train_images"], summary["test_images"]) == (20, 30)
    assert set(summary["correlations"]) == {"true", "random"}
    assert (run_dir / "figures" / "fixed_margin.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_run_and_another(run_dir, tmp_path, capsys, monkeypatch):
    run(run_dir, "--resume")
    assert "this run is finished" in capsys.readouterr().out
    assert "already holds a run" in commands.error_of(run, run_dir)
    message = commands.error_of(run, run_dir, "--resume", "--margins=0.1")
    assert message.endswith("has a different --margins")
    monkeypatch.setattr(experiment, "save_figure", lambda *_: [])
    again = run(tmp_path / "again")
    assert (again / "results.csv").read_bytes() == (run_dir / "results.csv").read_bytes()


def test_networks_that_diverge_are_named(tmp_path, capsys):
    run_dir = run(tmp_path / "run", "--learning_rate=1e38", "--epochs=2", "--num_seeds=1")
    assert "warning: all 4 networks diverged" in capsys.readouterr().out
    table = read_columns(run_dir / "results.csv", COLUMNS)
    assert not table["reached"].any() and table["test_error"].isna().all()
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["diverged"] == summary["not_reached"] == [0, 1, 2, 3]
    assert (run_dir / "figures" / "fixed_margin.png").exists()


def test_the_figure_shows_the_table():
    row = dict.fromkeys(COLUMNS, 0.5)
    table = pd.DataFrame(
        [
            row | {"labels": labels, "target_margin": target, "reached": reached}
            for labels in ("true", "random")
            for target, reached in ((0.5, 1), (5.0, 0))
        ]
    )
    tau = {"kendall": -0.5, "kendall_interval": [-0.75, -0.25]}
    summary = {"correlations": {"true": tau, "random": None}, "reasons": {"random": "few"}}
    left, right = plot_fixed_margin(table, summary, "a title").axes
    title = "True labels: tau -0.50, 95% interval -0.75 to -0.25"
    assert left.get_title(loc="left") == title
    dots = {line.get_label(): line for line in left.lines if line.get_marker() == "o"}
    assert set(dots) == {
        "True labels",
        "True labels, not reached",
        "Random labels",
        "Random labels, not reached",
    }
    assert dots["True labels, not reached"].get_markerfacecolor() == "none"
    np.testing.assert_array_equal(dots["True labels"].get_xydata(), [[0.5, 50.0]])
    targets = [line for line in right.lines if line.get_label() == "Target"]
    np.testing.assert_array_equal(targets[0].get_xydata(), [[0.5, 0.5], [5.0, 5.0]])
    summary = {"correlations": {"true": None}, "reasons": {"true": "few"}}
    left, _ = plot_fixed_margin(table, summary, "").axes
    assert left.get_title(loc="left") == "True labels, no rank correlation: few"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--margins=0"], "--margins=0.0: margins must be at least 1e-08 and finite"),
        (["--margins=inf"], "--margins=inf: margins must be at least 1e-08 and finite"),
        (["--margins=1e-30"], "--margins=1e-30: margins must be at least 1e-08 and finite"),
        (["--margins=1,1"], "no margin may be repeated"),
        (["--margins="], "at least one margin is needed"),
        (["--learning_rate=0"], "--learning_rate=0.0: must be positive"),
        (["--model=other"], "convnet3|convnet5|linear"),
        (["--momentum=0.9"], "Unknown command line flag 'momentum'"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    assert message in commands.error_of(parse, *arguments)


def test_data_that_can_not_be_used(tmp_path):
    message = commands.error_of(run, tmp_path / "run", "--batch_size=21")
    assert message == "error: --batch_size=21: must not exceed the 20 training images"
    assert not (tmp_path / "run").exists()


def test_our_flagfile_parses():
    config = parse(f"--flagfile={ROOT}/experiments/flagfiles/fixed_margin.flags")
    assert config.workdir == "runs/fixed_margin" and config.margins[0] == 0.003
