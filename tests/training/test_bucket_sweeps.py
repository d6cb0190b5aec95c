"""Sweeps that work in a bucket, on an S3 server of this machine."""

# ruff: noqa: F811 - tests name the fixtures that are imported

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import explain
from normjax.results.table import read_results
from normjax.training import bucket
from normjax.training.bucket import fetch_run
from normjax.training.saved import load_member
from tests.helpers.buckets import (  # noqa: F401 - the fixtures
    ADDRESS,
    Failing,
    content,
    names,
    on_machine,
    put,
    s3,
    s3fs,
    server,
)
from tests.helpers.commands import error_of, parse
from tests.test_robustness import RUN
from tests.training.test_processes import NOTHING, assert_all_well, assert_same_run, run

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://nowhere/run", "s3://nowhere/run: not found: The specified bucket does not exist"),
        ("gs://bucket/run", "gs://bucket/run: No module named 'gcsfs_'; pip install 'normjax[gs]'"),
        ("az://bucket/run", "--workdir=az://bucket/run: gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"),
        ("s3://bucket", "--workdir=s3://bucket: gs://BUCKET/FOLDER or s3://BUCKET/FOLDER is"),
        ("s3://bucket/../run", "--workdir=s3://bucket/../run: gs://BUCKET/FOLDER or s3://"),
    ],
)
def test_what_is_no_folder_of_a_bucket_is_one_line(invoke, monkeypatch, address, message):
    monkeypatch.setitem(bucket.PACKAGES, "gs", "gcsfs_")
    assert error_of(invoke, *RUN, f"--workdir={address}").startswith(f"error: {message}")


@pytest.mark.slow
def test_without_credentials_or_a_network_it_is_one_line(invoke, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9")
    s3fs.S3FileSystem.clear_instance_cache()
    said = error_of(invoke, *RUN, f"--workdir={ADDRESS}")
    assert said.startswith(f"error: {ADDRESS}: Could not connect to the endpoint URL: ")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    said = error_of(invoke, *RUN, f"--workdir={ADDRESS}")
    assert said.startswith(f"error: {ADDRESS}: ") and "credentials" in said


def test_only_a_sweep_writes_to_a_bucket():
    said = error_of(parse, explain.Config, "--from=.", "--workdir=s3://bucket/run")
    assert "a local folder is needed, not an address" in said
    for load in (read_results, lambda address: load_member(address, 0)):
        with pytest.raises(ValueError, match=r"fetch_run makes it a local folder"):
            load(ADDRESS)


KILLED = """
import os, signal
from experiments import flags, random_pretrain
from normjax.results import metrics
from normjax.training.config import SweepConfig

append = metrics.append_metrics

def append_and_die(run_dir, members, common, values):
    lines = append(run_dir, members, common, values)
    if (common["group"], common["step"]) == (1, 5):
        os.kill(os.getpid(), signal.SIGKILL)
    return lines

metrics.append_metrics = append_and_die
flags.run(random_pretrain.main, SweepConfig)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_on_another_machine(invoke, s3, on_machine, tmp_path, capsys):
    invoke(*RUN, f"--workdir={tmp_path / 'whole'}")
    flags = [*RUN, f"--workdir={ADDRESS}"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *flags], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert killed.returncode == -signal.SIGKILL
    assert {"lock.json", "checkpoints/groups/000.csv"} <= names(s3)
    put(s3, "checkpoints/progress/001/5/half", "of a checkpoint")
    on_machine("second")
    assert "is in use by another process; if that was killed" in error_of(invoke, *flags)
    capsys.readouterr()
    invoke(*flags, "--resume")
    said = capsys.readouterr()
    assert "epoch 5 of 8" in said.err and "epoch 4 of 8" not in said.err
    assert f"{ADDRESS}: all of it is there" in said.out
    for name in ("results.csv", "metrics.jsonl"):
        assert content(s3, name) == (tmp_path / "whole" / name).read_bytes()
    whole = {path for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    whole = {path.relative_to(tmp_path / "whole").as_posix() for path in whole} - {".lock"}
    assert names(s3) == {*whole, "manifest.json"}

    on_machine("third")
    assert "already holds a run" in error_of(invoke, *flags)
    assert "different --epochs" in error_of(invoke, *flags, "--resume", "--epochs=7")
    invoke(*flags, "--resume")
    assert "is finished; nothing to do" in capsys.readouterr().out
    folder = Path(parse(explain.Config, f"--from={ADDRESS}").source)
    assert folder.name == "run" and read_results(folder).equals(read_results(tmp_path / "whole"))
    ours, theirs = (load_member(each, 1)[1] for each in (folder, tmp_path / "whole"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def steps_of(s3):
    """The epochs whose checkpoints count."""
    paths = json.loads(content(s3, "manifest.json"))["files"]
    return {path.split("/")[3] for path in paths if path.startswith("checkpoints/progress/")}


@pytest.mark.slow
def test_a_network_that_fails_in_the_middle_loses_nothing(
    invoke, s3, monkeypatch, tmp_path, capsys
):
    """The second checkpoint cannot be sent."""
    push, count = bucket.Mirror.push, 0

    def push_twice(mirror):
        nonlocal count
        count += 1
        if count == 3:
            mirror.fs = Failing(mirror.fs, 1)
        push(mirror)

    flags = [*RUN, f"--workdir={ADDRESS}", "--members_per_group=2", "--tensorboard"]
    with monkeypatch.context() as patch:
        patch.setattr(bucket.Mirror, "push", push_twice)
        said = error_of(invoke, *flags)
    where = f"what is not there yet is in {tmp_path}/first/"
    assert said.startswith(f"error: {ADDRESS}: the network is down; {where}")
    assert steps_of(s3) == {"2"}
    invoke(*flags, "--resume")
    said = capsys.readouterr().err
    assert f"sending what is not in {ADDRESS} yet\n" in said and said.count("epoch 3 of 8") == 1
    assert {"results.csv", "report.html"} <= names(s3)


@pytest.mark.slow
def test_two_processes_work_in_a_bucket(s3, on_machine, tmp_path):
    """From the start through SIGTERM to the second one, and on another machine to the end."""
    flags = [f"--workdir={ADDRESS}", "--members_per_group=3"]
    ended = run(flags, 2, 2, [NOTHING, (5, signal.SIGTERM)])
    assert [process.code for process in ended] == [143, 143], ended[0].stderr
    assert "manifest.json" in names(s3) and "results.csv" not in names(s3)
    on_machine("second")
    ended = run([*flags, "--resume"], 2, 2)
    assert_all_well(ended)
    assert f"{ADDRESS}: all of it is there" in ended[0].stdout
    assert "results.csv" in names(s3) and "lock.json" not in names(s3)
    assert_all_well(run([f"--workdir={tmp_path / 'whole'}"], 1))
    assert_same_run(fetch_run(ADDRESS), tmp_path / "whole")
