"""Checkpoints of training, and runs that are interrupted and resumed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax.results import metrics
from normjax.results.table import read_results
from normjax.training import ensemble, plan, record
from normjax.training.checkpoints import (
    copy_progress,
    drop_progress,
    open_progress,
    restore_progress,
    save_progress,
)
from normjax.training.config import SweepConfig
from normjax.training.phases import is_checkpoint_due
from normjax.training.saved import load_member, rows_path
from tests.helpers import soak

ROOT = Path(__file__).parents[2]

# --- progress


MEMBERS = [4, 5, 7]  # their numbers in the run


class Progress(NamedTuple):
    """A state as ensembles have it: named tuples, an optimizer's state, several dtypes."""

    variables: dict
    opt_state: optax.OptState
    losses: jax.Array  # [M, 0]: no targets
    epoch: jax.Array


def progress_at(step, num_stacked=3):
    """Three members with a value each; the last one is repeated as padding."""
    value = step + 100.0 * jnp.minimum(jnp.arange(num_stacked), 2).astype(float)
    params = {"Dense_0": {"kernel": jnp.tile(value[:, None, None], (1, 2, 3))}}
    tx = optax.sgd(0.1, momentum=0.9)
    opt_state = jax.tree.map(lambda x: x - 0.5, tx.init(params))
    epoch = value.astype(jnp.int32)
    return Progress({"params": params}, opt_state, jnp.zeros((num_stacked, 0)), epoch)


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert isinstance(ours, jax.Array) and ours.dtype == theirs.dtype
        assert ours.sharding == theirs.sharding
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("saved_as", "restored_as"), [(3, 3), (4, 3), (3, 8), (4, 4)])
def test_progress_is_restored_whatever_the_number_of_devices(tmp_path, saved_as, restored_as):
    """Three members, padded to a multiple of the devices before and after."""
    with open_progress(tmp_path, 0) as checkpointer:
        start = progress_at(-1, saved_as)
        state, step = restore_progress(checkpointer, start, MEMBERS)
        assert step == 0
        assert_same(state, start)
        for step in (2, 4, 6):
            save_progress(checkpointer, step, progress_at(step, saved_as), MEMBERS)
    with open_progress(tmp_path, 0) as checkpointer:
        assert checkpointer.all_steps() == [4, 6]
        state, step = restore_progress(checkpointer, progress_at(0, restored_as), MEMBERS)
    assert step == 6
    assert_same(state, progress_at(6, restored_as))


def test_a_checkpoint_serves_a_part_of_its_members_and_no_others(tmp_path):
    """Members 5 and 7 of a checkpoint of 4, 5 and 7, in either order, and padded."""
    with open_progress(tmp_path, 0) as checkpointer:
        save_progress(checkpointer, 3, progress_at(3), MEMBERS)
    whole = progress_at(3)
    for members, places in (([5, 7], [1, 2, 2]), ([7, 5], [2, 1, 1]), ([4], [0, 0, 0])):
        with open_progress(tmp_path, 0) as checkpointer:
            state, step = restore_progress(checkpointer, progress_at(0), members)
        assert step == 3
        assert_same(state, jax.tree.map(lambda x, i=places: x[np.array(i)], whole))
    with open_progress(tmp_path, 0) as checkpointer:
        start = progress_at(0)
        state, step = restore_progress(checkpointer, start, [5, 8])
        assert step == 0
        assert_same(state, start)
        # What is no use is gone: it would keep those of earlier epochs from being saved.
        assert checkpointer.all_steps() == []
        save_progress(checkpointer, 1, progress_at(1), [5, 8, 9])
    with open_progress(tmp_path, 0) as checkpointer:
        assert restore_progress(checkpointer, progress_at(0), [5, 8, 9])[1] == 1


def test_a_checkpoint_is_due_at_its_interval_and_at_the_ends_of_phases():
    config = SweepConfig("run", pretrain_epochs=5, epochs=8, checkpoint_every=4)
    sweep = SimpleNamespace(config=config)
    assert [step + 1 for step in range(13) if is_checkpoint_due(sweep, step)] == [4, 5, 8, 12, 13]


def test_a_checkpoint_that_cannot_be_read_gives_way_to_the_one_before(tmp_path, capsys):
    with open_progress(tmp_path, 0) as checkpointer:
        for step in (2, 4, 6):
            save_progress(checkpointer, step, progress_at(step), MEMBERS)
    folder = tmp_path / "checkpoints" / "progress" / "000"
    damaged = [path for path in (folder / "6").rglob("*") if path.is_file()]
    for path in damaged:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with open_progress(tmp_path, 0) as checkpointer:
        state, step = restore_progress(checkpointer, progress_at(0), MEMBERS)
        assert step == 4
        assert_same(state, progress_at(4))
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("checkpoint of epoch 6 cannot be read: ")
        save_progress(checkpointer, 6, progress_at(6), MEMBERS)  # in its place
    with open_progress(tmp_path, 0) as checkpointer:
        assert restore_progress(checkpointer, progress_at(0), MEMBERS)[1] == 6


def test_progress_is_copied_to_the_groups_that_a_group_is_split_into(tmp_path):
    def progress_of(group, members):
        with open_progress(tmp_path, group) as checkpointer:
            return restore_progress(checkpointer, progress_at(0, 1), members)

    copy_progress(tmp_path, 0, [1])  # there is none yet
    for group, members in ((0, MEMBERS), (2, [8, 9, 10])):
        with open_progress(tmp_path, group) as checkpointer:
            save_progress(checkpointer, 3, progress_at(3), members)
    copy_progress(tmp_path, 0, [1, 2])
    for group, member in enumerate(MEMBERS):
        state, step = progress_of(group, [member])
        assert step == 3
        assert_same(state, jax.tree.map(lambda x, i=group: x[i : i + 1], progress_at(3)))
    folder = tmp_path / "checkpoints" / "progress"
    assert sorted(path.name for path in folder.iterdir()) == ["000", "001", "002"]


def test_each_group_has_its_own_progress_until_it_is_dropped(tmp_path):
    def step_of(group):
        with open_progress(tmp_path, group) as checkpointer:
            return restore_progress(checkpointer, progress_at(0), MEMBERS)[1]

    with open_progress(tmp_path, 0) as checkpointer:
        save_progress(checkpointer, 5, progress_at(5), MEMBERS)
    assert (step_of(0), step_of(1)) == (5, 0)
    drop_progress(tmp_path, 0)
    drop_progress(tmp_path, 0)  # again: it may have been dropped before a run was stopped
    assert step_of(0) == 0


# --- a run that is interrupted

RUN = [*soak.RUN, "--pretrain_epochs=4", "--epochs=20", "--test_every=0", "--checkpoint_every=4"]

KILLED_AT_STEP_6 = """
import os, signal
from experiments import flags, random_pretrain
from normjax.results import metrics
from normjax.training.config import SweepConfig

append = metrics.append_metrics

def append_and_die(run_dir, members, common, values):
    append(run_dir, members, common, values)
    if common["step"] == 6:
        os.kill(os.getpid(), signal.SIGKILL)

metrics.append_metrics = append_and_die
flags.run(random_pretrain.main, SweepConfig, workdir="runs/random_pretrain")
"""


class Interrupted(Exception):
    """Stands for whatever ends a run."""


def test_an_interrupted_run_is_resumed_to_the_same_results(invoke, tmp_path, monkeypatch, capsys):
    """Killed without warning, then stopped at several other places, and resumed each time."""
    # The runs of this process share compiled functions; the killed one had its own.
    ensembles = []

    def make_ensemble(*args, **kwargs):
        if not ensembles:
            ensembles.append(ensemble.make_ensemble(*args, **kwargs))
        return ensembles[0]

    monkeypatch.setattr(plan, "make_ensemble", make_ensemble)
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    invoke(*RUN, f"--workdir={whole}")

    def interrupt(module, name, stops, *flags):
        """Runs until `stops` says that the call of module.name is the one to fail."""
        original = getattr(module, name)

        def call(*args, **kwargs):
            if stops(*args, **kwargs):
                raise Interrupted
            return original(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(module, name, call)
            invoke(*RUN, f"--workdir={pieces}", *flags)

    def at(group, step):
        return lambda run_dir, members, common, values: (
            (common["group"], common["step"]) == (group, step)
        )

    interrupt(metrics, "append_metrics", at(0, 1))
    assert "starting from the beginning" not in capsys.readouterr().out
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT_STEP_6, *RUN, f"--workdir={pieces}", "--resume"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL
    assert killed.stdout == f"{pieces}: no checkpoint yet, starting from the beginning\n"
    assert not (pieces / "results.csv").exists()
    with pytest.raises(FileNotFoundError, match="not fully trained yet"):
        load_member(pieces, 0)

    # The checkpoint of step 4 is the end of the first phase: the optimizer is reset after it.
    # First, before the second group's first checkpoint.
    interrupt(metrics, "append_metrics", at(1, 2), "--resume")
    assert load_rows(pieces, 0).equals(load_rows(whole, 0)) and load_rows(pieces, 1) is None
    # Then in its second phase, after step 8's; and when all is trained.
    interrupt(metrics, "append_metrics", at(1, 11), "--resume")
    interrupt(record, "finish_run", lambda *_: True, "--resume")
    assert not json.loads((pieces / "run.json").read_text())["finished"]
    invoke(*RUN, f"--workdir={pieces}", "--resume")

    assert (pieces / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    table = read_results(pieces)
    assert set(table["selection"]) == {"final", "loss=0.1"}
    assert table["train_loss"].nunique() == len(table) == 8
    assert metrics_of(pieces) == metrics_of(whole)
    for member in range(4):
        for selection in ("final", "loss=0.1"):
            ours, theirs = (load_member(d, member, selection)[1] for d in (pieces, whole))
            jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    run = json.loads((pieces / "run.json").read_text())
    assert run["finished"] and isinstance(run["wall_time_s"], float)
    assert not list((pieces / "checkpoints" / "progress").iterdir())

    # Once more: there is nothing to do, and nothing is touched.
    before = {path: path.stat().st_mtime_ns for path in pieces.rglob("*")}
    capsys.readouterr()
    invoke(*RUN, f"--workdir={pieces}", "--resume")
    assert "is finished; nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in pieces.rglob("*")} == before


def load_rows(run_dir, group):
    """A finished group's rows, None while it is not finished."""
    path = rows_path(run_dir, group)
    return read_results(path) if path.exists() else None


def metrics_of(run_dir):
    """The lines of metrics.jsonl, in their order; each epoch once."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len({(line["member"], line["step"]) for line in lines}) == len(lines) == 4 * 24
    return lines
