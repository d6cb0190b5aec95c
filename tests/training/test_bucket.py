"""Runs in a bucket, on an S3 server of this machine: a state to resume from is always there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import explain
from normjax.results.table import read_results
from normjax.training import bucket
from normjax.training.bucket import fetch_run, mirrored
from normjax.training.saved import load_member
from tests.helpers.commands import error_of, parse
from tests.test_robustness import RUN

s3fs = pytest.importorskip("s3fs", reason="the extra s3 is not installed")
server_module = pytest.importorskip("moto.server", reason="moto, an S3 server, is not installed")

ROOT = Path(__file__).parents[2]
ADDRESS = "s3://bucket/sweeps/run"


@pytest.fixture(scope="module")
def server():
    server = server_module.ThreadedMotoServer("localhost", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(autouse=True)
def s3(server, monkeypatch):
    """Boto3's client; the bucket is empty."""
    import boto3

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    empty(client)
    return client


@pytest.fixture(autouse=True)
def on_machine(tmp_path, monkeypatch):
    """`on_machine(name)`: from now on with that machine's local folders. Nothing waits for long."""
    monkeypatch.setattr(bucket, "STALE_S", 0.5)
    monkeypatch.setattr(bucket, "SETTLE_S", 0.1)

    def on_machine(name):
        monkeypatch.setenv("NORMJAX_CACHE_DIR", str(tmp_path / name))

    on_machine("first")
    return on_machine


def names(s3):
    """The objects of the run."""
    found = s3.list_objects_v2(Bucket="bucket").get("Contents", [])
    return {entry["Key"].removeprefix("sweeps/run/") for entry in found}


def empty(s3):
    for name in names(s3):
        s3.delete_object(Bucket="bucket", Key=f"sweeps/run/{name}")


def content(s3, name):
    return s3.get_object(Bucket="bucket", Key=f"sweeps/run/{name}")["Body"].read()


def put(s3, name, text):
    s3.put_object(Bucket="bucket", Key=f"sweeps/run/{name}", Body=text.encode())


def fill(folder, files):
    """Makes a folder hold these files alone."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


# --- states

OLD = {"run.json": "old", "metrics.jsonl": "1", "checkpoints/progress/000/1/d/x": "one"}
NEW = {"run.json": "new", "metrics.jsonl": "1 2", "checkpoints/progress/000/2/d/y": "two"}


def test_a_state_is_sent_and_fetched(s3, on_machine):
    with mirrored(ADDRESS, False) as mirror:
        assert names(s3) == {"lock.json"}
        for files in (OLD, NEW):
            fill(mirror.run_dir, files | {".lock": "", ".run.json.7.tmp": "half"})
            mirror.push()
            assert names(s3) == {*files, "lock.json", "manifest.json"}
    assert names(s3) == {*NEW, "manifest.json"}
    on_machine("second")
    assert read(fetch_run(ADDRESS)) == NEW
    with mirrored(ADDRESS + "/", True) as mirror:
        assert read(mirror.run_dir) == NEW
        fill(mirror.run_dir, {"run.json": "changed", "unlisted/file": ""})
    with mirrored(ADDRESS, True) as mirror:
        assert read(mirror.run_dir) == NEW and not (mirror.run_dir / "unlisted").exists()
    with (
        pytest.raises(ValueError, match="already holds a run: give another folder, or --resume"),
        mirrored(ADDRESS, False),
    ):
        pass


class DownError(Exception):
    """Stands for what a file system raises without a network."""


class Failing:
    """A file system without a network after so many changes."""

    def __init__(self, fs, changes):
        self.fs, self.changes = fs, changes

    def __getattr__(self, name):
        return getattr(self.fs, name)

    def change(self, call, *args, **how):
        if not self.changes:
            raise DownError("the network\nis down")
        self.changes -= 1
        call(*args, **how)

    def put(self, sources, targets):
        for pair in zip(sources, targets, strict=True):
            self.change(self.fs.put_file, *pair)

    def pipe_file(self, *args, **how):
        self.change(self.fs.pipe_file, *args, **how)

    def rm_file(self, *args):
        self.change(self.fs.rm_file, *args)


@pytest.mark.parametrize("changes", range(5))
def test_whenever_sending_ends_a_state_is_there(s3, on_machine, capsys, changes):
    """Three files are sent, the manifest, one file is removed."""
    with mirrored(ADDRESS, False) as mirror:
        fill(mirror.run_dir, OLD)
        mirror.push()
        fill(mirror.run_dir, NEW)
        mirror.fs = Failing(mirror.fs, changes)
        with pytest.raises(OSError, match=f"^{ADDRESS}: the network is down") as caught:
            mirror.push()
        assert changes == 4 or f"is in {mirror.run_dir}, and --resume sends it" in str(caught.value)
    on_machine("second")
    expected = NEW if changes == 4 else OLD
    copy = read(fetch_run(ADDRESS))
    assert copy.keys() == expected.keys()
    for name, text in copy.items():  # what keeps its name may be new already
        assert text == expected[name] or text == NEW[name]
    on_machine("first")
    with mirrored(ADDRESS, True) as mirror:
        assert read(mirror.run_dir) == NEW
        assert names(s3) == {*NEW, "lock.json", "manifest.json"}
    assert ("sending what is not in" in capsys.readouterr().err) == (changes < 4)


@pytest.mark.parametrize(
    ("event", "reason"),
    [("other", "another process has gone on with this run"), ("changed", "it has been changed")],
)
def test_what_cannot_be_sent_any_more_is_dropped_with_a_line(s3, on_machine, capsys, event, reason):
    with mirrored(ADDRESS, False) as mirror:
        fill(mirror.run_dir, OLD)
        mirror.push()
        fill(mirror.run_dir, NEW)
        fs, mirror.fs = mirror.fs, Failing(mirror.fs, 0)
        with pytest.raises(OSError):
            mirror.push()
        mirror.fs = fs
    expected = OLD
    if event == "changed":
        (mirror.run_dir / "run.json").write_text("damaged")
    else:
        on_machine("second")
        expected = OLD | {"more": ""}
        with mirrored(ADDRESS, True) as other:
            fill(other.run_dir, expected)
            other.push()
        on_machine("first")
    with mirrored(ADDRESS, True) as mirror:
        assert read(mirror.run_dir) == expected
    line = f"{mirror.run_dir}: what is not in {ADDRESS} is lost: {reason}\n"
    assert capsys.readouterr().err == line


def test_what_was_never_sent_is_no_new_run(s3):
    with mirrored(ADDRESS, False) as mirror:
        fill(mirror.run_dir, OLD)
        fs, mirror.fs = mirror.fs, Failing(mirror.fs, 0)
        with pytest.raises(OSError):
            mirror.push()
        mirror.fs = fs
    with pytest.raises(ValueError, match="already holds a run"), mirrored(ADDRESS, False):
        pass
    with mirrored(ADDRESS, True) as mirror:
        assert read(mirror.run_dir) == OLD


def test_the_last_copy_of_a_run_is_not_removed(s3):
    with mirrored(ADDRESS, False) as mirror:
        fill(mirror.run_dir, OLD)
        mirror.push()
    empty(s3)
    for resume in (False, True):
        with pytest.raises(ValueError, match="holds no run any more"), mirrored(ADDRESS, resume):
            pass
    assert read(mirror.run_dir) == OLD and names(s3) == set()


def test_what_the_manifest_does_not_list_does_not_count(s3, on_machine):
    with mirrored(ADDRESS, False) as mirror:
        fill(mirror.run_dir, OLD)
        mirror.push()
    put(s3, "checkpoints/progress/000/9/d/x", "half of a checkpoint")
    put(s3, "notes.txt", "of the user")
    on_machine("second")
    with mirrored(ADDRESS, True) as mirror:
        assert read(mirror.run_dir) == OLD
    assert names(s3) == {*OLD, "manifest.json", "notes.txt"}
    put(s3, "manifest.json", json.dumps({"id": "x", "files": {"../../escaped": "0"}}))
    with pytest.raises(ValueError, match=r"escaped is outside of the run"), mirrored(ADDRESS, True):
        pass
    empty(s3)
    put(s3, "results.csv", "of somebody")
    with pytest.raises(ValueError, match="holds other results"), mirrored(ADDRESS, True):
        pass
    with pytest.raises(FileNotFoundError, match="no run here"):
        fetch_run(ADDRESS)


# --- the lock


def test_a_second_process_is_refused(s3, on_machine, monkeypatch):
    monkeypatch.setattr(bucket, "RENEW_S", 0.05)
    with mirrored(ADDRESS, False):
        with (
            pytest.raises(ValueError, match=r"is in use by another process$"),
            mirrored(ADDRESS, True),
        ):
            pass
        on_machine("second")
        with (
            pytest.raises(ValueError, match="if that was killed, --resume takes over"),
            mirrored(ADDRESS, False),
        ):
            pass
        with (
            pytest.raises(ValueError, match=r"is in use by another process$"),
            mirrored(ADDRESS, True),
        ):
            pass
    assert names(s3) == set()
    with mirrored(ADDRESS, True):
        pass


def test_a_lock_without_a_sign_of_life_is_taken_over(s3, on_machine, capsys, monkeypatch):
    holding = mirrored(ADDRESS, False)
    mirror = holding.__enter__()  # it gives no sign of life for 30 s
    on_machine("second")
    with mirrored(ADDRESS, True) as second:
        assert "waiting 0.5 s for a sign of life" in capsys.readouterr().err
        fill(mirror.run_dir, OLD)
        with pytest.raises(OSError, match="another process has taken this run over"):
            mirror.push()
        assert mirror.is_lost and names(s3) == {"lock.json"}
        fill(second.run_dir, NEW)
        second.push()
    assert names(s3) == {*NEW, "manifest.json"}


def test_of_two_that_take_a_lock_over_one_wins(s3, on_machine, monkeypatch):
    put(s3, "lock.json", '{"owner": "dead"}')
    sleep = time.sleep

    def sleep_while_another_takes_over(seconds):
        sleep(seconds)
        if json.loads(content(s3, "lock.json"))["owner"] != "dead":
            put(s3, "lock.json", '{"owner": "other"}')

    monkeypatch.setattr(time, "sleep", sleep_while_another_takes_over)
    with pytest.raises(ValueError, match=r"is in use by another process$"), mirrored(ADDRESS, True):
        pass
    assert json.loads(content(s3, "lock.json"))["owner"] == "other"


def test_a_store_without_conditions_is_refused(s3, monkeypatch):
    pipe_file = s3fs.S3FileSystem.pipe_file

    def pipe_whatever(fs, name, data, mode):
        pipe_file(fs, name, data)

    monkeypatch.setattr(s3fs.S3FileSystem, "pipe_file", pipe_whatever)
    with pytest.raises(ValueError, match="cannot create a file only once"), mirrored(ADDRESS, True):
        pass
    assert names(s3) == set()


def test_a_process_that_lost_its_lock_hears_of_it(s3, monkeypatch):
    monkeypatch.setattr(bucket, "RENEW_S", 0.02)
    with mirrored(ADDRESS, False) as mirror:
        first = content(s3, "lock.json")
        give_up = time.monotonic() + 10
        while content(s3, "lock.json") == first and time.monotonic() < give_up:
            time.sleep(0.02)
        assert content(s3, "lock.json") != first
        mirror.check()
        while not mirror.is_lost and time.monotonic() < give_up:
            put(s3, "lock.json", "damaged")
            time.sleep(0.05)
        with pytest.raises(OSError, match="another process has taken this run over"):
            mirror.check()
    assert names(s3) == {"lock.json"}


# --- sweeps


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
