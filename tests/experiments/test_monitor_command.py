"""The monitor command on the committed run, without metrics, and its mistakes."""

import functools
import shutil
from pathlib import Path

import pandas as pd
import pytest

from experiments import monitor
from normjax.controls import picks
from tests.helpers import commands

COMMITTED = Path(__file__).parents[2] / "docs" / "small_scale" / "runs" / "convnet3"

parse = functools.partial(commands.parse, monitor.Config)


def test_a_run_with_metrics(tmp_path, capsys):
    monitor.main(parse(f"--from={COMMITTED}", f"--workdir={tmp_path}"))
    text = (tmp_path / "monitor.md").read_text()
    assert text in capsys.readouterr().out
    assert text.startswith("# Which of two is better? CIFAR-10 (JPEG copy) · convnet3\n")
    assert "\n\n\n" not in text and "None" not in text and "nan" not in text
    table = pd.read_csv(tmp_path / "picks.csv", keep_default_na=False)
    assert set(table["choice"]) == {picks.OF_LEVELS, picks.OF_ONE_LEVEL, picks.OF_EPOCHS}
    assert set(table["selection"]) == {"final", "loss=0.0044", ""}
    assert text.count("\n## ") == 5 and text.count("normalized training loss |") == 5


def test_a_run_without_metrics(tmp_path, capsys):
    shutil.copytree(COMMITTED, tmp_path / "run", ignore=shutil.ignore_patterns("metrics.jsonl"))
    monitor.main(parse(f"--from={tmp_path / 'run'}", f"--workdir={tmp_path}", "--norm=1/100"))
    text = capsys.readouterr().out
    assert "\nNo epochs are compared: the run has no metrics.jsonl.\n" in text
    assert text.count("\n## ") == 4


def test_mistakes_are_one_line(tmp_path):
    assert commands.error_of(parse, f"--from={tmp_path / 'none'}").endswith("no such folder")
    config = parse(f"--from={tmp_path}", f"--workdir={tmp_path / 'out'}")
    assert "there is no results.csv" in commands.error_of(monitor.main, config)
    config = parse(f"--from={COMMITTED}", f"--workdir={tmp_path / 'out'}", "--norm=3")
    assert "no results for norm '3'" in commands.error_of(monitor.main, config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["results.csv", "run.json", "metrics.jsonl"])
def test_damaged_files_are_named(name, tmp_path):
    shutil.copytree(COMMITTED, tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:-20])
    config = parse(f"--from={tmp_path / 'run'}", f"--workdir={tmp_path / 'out'}")
    assert name in commands.error_of(monitor.main, config)
    assert not (tmp_path / "out").exists()


def test_metrics_of_another_run_are_refused(tmp_path):
    shutil.copytree(COMMITTED, tmp_path / "run")
    shutil.copy(COMMITTED.parent / "default_init" / "metrics.jsonl", tmp_path / "run")
    config = parse(f"--from={tmp_path / 'run'}", f"--workdir={tmp_path / 'out'}")
    said = commands.error_of(monitor.main, config)
    expected = "member 0 (family default_init, level 0, seed 0) is not in results.csv"
    assert said.endswith(f"metrics.jsonl: {expected}")
    assert not (tmp_path / "out").exists()
