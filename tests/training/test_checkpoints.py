"""Saved members and resumed runs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax import sweep
from normjax.batch_norm import absorb_batch_norm
from normjax.networks.models import make_model
from normjax.plots import paper as plotting
from normjax.results.rows import read_results, write_results
from normjax.training import ensemble
from normjax.training import record as records
from normjax.training.checkpoints import (
    copy_progress,
    drop_progress,
    group_folder,
    load_member,
    open_progress,
    restore_progress,
    save_members,
    save_progress,
)
from tests.helpers.synthetic_results import synthetic_rows

ROOT = Path(__file__).parents[2]

# --- saved members


def stacked_variables(model, num_members, seed=0):
    """Members' variables of the right shapes, positive as variances must be."""
    rng = np.random.default_rng(seed)
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    return jax.tree.map(
        lambda leaf: rng.uniform(0.5, 1.5, (num_members, *leaf.shape)).astype(leaf.dtype),
        jax.eval_shape(model.init, jax.random.key(0), images),
    )


def write_run(run_dir, model, groups, rows_of):
    """A run's folder with the rows `rows_of(member)` in each finished group."""
    run_dir.mkdir()
    run = {"model": model, "num_classes": 10, "groups": groups}
    (run_dir / "run.json").write_text(json.dumps(run))
    template = synthetic_rows()[0]
    for group, members in enumerate(groups):
        rows = [
            template._replace(member=member, selection=selection)
            for member in members
            for selection in rows_of(member)
        ]
        if rows:
            write_results(group_folder(run_dir, group) / "results.csv", rows)


def test_members_come_back_as_they_were_saved(tmp_path):
    run_dir = tmp_path / "run"
    write_run(run_dir, "linear", [[0, 1], [2]], lambda member: ["final", "loss=0.05"])
    variables = {
        (group, selection): stacked_variables(make_model("linear"), size, seed=10 * group + seed)
        for group, size in enumerate((2, 1))
        for seed, selection in enumerate(("final", "loss=0.05"))
    }
    for (group, selection), stacked in variables.items():
        save_members(run_dir, group, selection, stacked)
    images = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 8, 8, 1)
    for member, place in enumerate([(0, 0), (0, 1), (1, 0)]):
        for selection in ("final", "loss=0.05"):
            model, loaded = load_member(run_dir, member, selection)
            kernel = loaded["params"]["Dense_0"]["kernel"]
            saved = variables[place[0], selection]["params"]["Dense_0"]["kernel"][place[1]]
            assert isinstance(kernel, np.ndarray) and kernel.dtype == np.float32
            np.testing.assert_array_equal(kernel, saved)
            np.testing.assert_allclose(
                model.apply(loaded, images), images.reshape(2, -1) @ saved, rtol=1e-4, atol=1e-4
            )


def test_a_loaded_member_has_its_batch_norm_absorbed(tmp_path):
    write_run(tmp_path / "run", "convnet5", [[0, 1]], lambda member: ["final"])
    trained = make_model("convnet5", batch_norm=True)
    stacked = stacked_variables(trained, 2)
    save_members(tmp_path / "run", 0, "final", stacked)
    model, loaded = load_member(tmp_path / "run", 1)
    assert model == make_model("convnet5") and loaded.keys() == {"params"}
    expected = absorb_batch_norm(jax.tree.map(lambda x: x[1], stacked))
    assert jax.tree.structure(loaded["params"]) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(expected), strict=True):
        assert isinstance(ours, np.ndarray)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no run here \(run.json is missing\)"):
        load_member(tmp_path / "nowhere", 0)
    # Member 1 never came near its target, group 1 is not trained to its end.
    run_dir = tmp_path / "run"
    reached = {0: ["final", "loss=0.05"], 1: ["final"], 2: []}
    write_run(run_dir, "linear", [[0, 1], [2]], reached.get)
    for selection in ("final", "loss=0.05"):
        save_members(run_dir, 0, selection, stacked_variables(make_model("linear"), 2))
    for member in (3, -1):
        with pytest.raises(ValueError, match=f"no member {member}; there are 0 to 2"):
            load_member(run_dir, member)
    with pytest.raises(FileNotFoundError, match="member 2 is not trained to its end yet"):
        load_member(run_dir, 2)
    for member, selection, known in ((0, "best", "final, loss=0.05"), (1, "loss=0.05", "final")):
        message = f"member {member} has no network '{selection}'; it has: {known}$"
        with pytest.raises(ValueError, match=message):
            load_member(run_dir, member, selection)
    assert load_member(run_dir, 0, "loss=0.05")[1]["params"]


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
    value = step + 100.0 * jnp.minimum(jnp.arange(num_stacked), 2)
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
    with open_progress(tmp_path, 0, every=2) as checkpointer:
        start = progress_at(-1, saved_as)
        state, step = restore_progress(checkpointer, start, MEMBERS)
        assert step == 0
        assert_same(state, start)
        for step in range(1, 8):
            save_progress(checkpointer, step, progress_at(step, saved_as), MEMBERS)
    with open_progress(tmp_path, 0, every=2) as checkpointer:
        assert [checkpoint.step for checkpoint in checkpointer.checkpoints] == [4, 6]
        state, step = restore_progress(checkpointer, progress_at(0, restored_as), MEMBERS)
    assert step == 6
    assert_same(state, progress_at(6, restored_as))


def test_a_checkpoint_serves_a_part_of_its_members_and_no_others(tmp_path):
    """Members 5 and 7 of a checkpoint of 4, 5 and 7, in either order, and padded."""
    with open_progress(tmp_path, 0, every=1) as checkpointer:
        save_progress(checkpointer, 3, progress_at(3), MEMBERS)
    whole = progress_at(3)
    for members, places in (([5, 7], [1, 2, 2]), ([7, 5], [2, 1, 1]), ([4], [0, 0, 0])):
        with open_progress(tmp_path, 0, every=1) as checkpointer:
            state, step = restore_progress(checkpointer, progress_at(0), members)
        assert step == 3
        assert_same(state, jax.tree.map(lambda x, i=places: x[np.array(i)], whole))
    with open_progress(tmp_path, 0, every=1) as checkpointer:
        start = progress_at(0)
        state, step = restore_progress(checkpointer, start, [5, 8])
        assert step == 0
        assert_same(state, start)
        # What is no use is gone: it would keep those of earlier epochs from being saved.
        assert checkpointer.checkpoints == []
        save_progress(checkpointer, 1, progress_at(1), [5, 8, 9])
    with open_progress(tmp_path, 0, every=1) as checkpointer:
        assert restore_progress(checkpointer, progress_at(0), [5, 8, 9])[1] == 1


def test_a_checkpoint_can_be_forced_between_the_regular_ones(tmp_path):
    with open_progress(tmp_path, 0, every=10) as checkpointer:
        for step in range(1, 24):
            save_progress(checkpointer, step, progress_at(step), MEMBERS, step in (13, 22))
    with open_progress(tmp_path, 0, every=10) as checkpointer:
        assert [checkpoint.step for checkpoint in checkpointer.checkpoints] == [20, 22]
        state, _ = restore_progress(checkpointer, progress_at(0), MEMBERS)
    assert_same(state, progress_at(22))


def test_a_checkpoint_that_cannot_be_read_gives_way_to_the_one_before(tmp_path, capsys):
    with open_progress(tmp_path, 0, every=2) as checkpointer:
        for step in range(1, 7):
            save_progress(checkpointer, step, progress_at(step), MEMBERS)
    folder = tmp_path / "checkpoints" / "progress" / "000"
    damaged = [path for path in (folder / "6").rglob("*") if path.is_file()]
    for path in damaged:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with open_progress(tmp_path, 0, every=2) as checkpointer:
        state, step = restore_progress(checkpointer, progress_at(0), MEMBERS)
        assert step == 4
        assert_same(state, progress_at(4))
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("checkpoint of epoch 6 can't be read: ")
        save_progress(checkpointer, 6, progress_at(6), MEMBERS)  # in its place
    with open_progress(tmp_path, 0, every=2) as checkpointer:
        assert restore_progress(checkpointer, progress_at(0), MEMBERS)[1] == 6


def test_progress_is_copied_to_the_groups_that_a_group_is_split_into(tmp_path):
    def progress_of(group, members):
        with open_progress(tmp_path, group, every=1) as checkpointer:
            return restore_progress(checkpointer, progress_at(0, 1), members)

    copy_progress(tmp_path, 0, [1])  # there is none yet
    for group, members in ((0, MEMBERS), (2, [8, 9, 10])):
        with open_progress(tmp_path, group, every=1) as checkpointer:
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
        with open_progress(tmp_path, group, every=1) as checkpointer:
            return restore_progress(checkpointer, progress_at(0), MEMBERS)[1]

    with open_progress(tmp_path, 0, every=1) as checkpointer:
        save_progress(checkpointer, 5, progress_at(5), MEMBERS)
    assert (step_of(0), step_of(1)) == (5, 0)
    drop_progress(tmp_path, 0)
    drop_progress(tmp_path, 0)  # again: it may have been dropped before a run was stopped
    assert step_of(0) == 0


# --- a run that is interrupted

RUN = [
    "--dataset=digits",
    "--train_size=90",
    "--test_size=40",
    "--model=linear",
    "--corruption_levels=0,1",
    "--num_seeds=2",
    "--members_per_group=2",
    "--pretrain_epochs=4",
    "--epochs=20",
    "--batch_size=32",
    "--learning_rate=0.2",
    "--target_losses=0.1",
    "--norms=2",
    "--checkpoint_every=4",
]

KILLED_AT_STEP_6 = """
import os, signal
from experiments import flags, random_pretrain
from normjax.training import record as records

append = records.append_metrics

def append_and_die(run_dir, members, common, values):
    append(run_dir, members, common, values)
    if common["step"] == 6:
        os.kill(os.getpid(), signal.SIGKILL)

records.append_metrics = append_and_die
flags.define_flags("random_pretrain")
flags.run(random_pretrain.main)
"""


class Interrupted(Exception):
    """Stands for whatever ends a run."""


def test_an_interrupted_run_is_resumed_to_the_same_results(invoke, tmp_path, monkeypatch, capsys):
    """Killed without warning, then stopped at several other places, and resumed each time."""
    monkeypatch.setattr(plotting, "draw_figures", lambda *_: [])
    # The runs of this process share compiled functions; the killed one had its own.
    ensembles = []

    def make_ensemble(*args, **kwargs):
        if not ensembles:
            ensembles.append(ensemble.make_ensemble(*args, **kwargs))
        return ensembles[0]

    monkeypatch.setattr(sweep, "make_ensemble", make_ensemble)
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

    interrupt(records, "append_metrics", at(0, 1))
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
    with pytest.raises(FileNotFoundError, match="not trained to its end yet"):
        load_member(pieces, 0)

    # The checkpoint of step 4 is the end of the first phase: the optimizer is reset after it.
    # First, before the second group's first checkpoint.
    interrupt(records, "append_metrics", at(1, 2), "--resume")
    assert load_rows(pieces, 0) == load_rows(whole, 0) and load_rows(pieces, 1) is None
    # Then in its second phase, after step 8's; and when all is trained.
    interrupt(records, "append_metrics", at(1, 11), "--resume")
    interrupt(records, "finish_run", lambda *_: True, "--resume")
    assert not json.loads((pieces / "run.json").read_text())["finished"]
    invoke(*RUN, f"--workdir={pieces}", "--resume")

    assert (pieces / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    rows = read_results(pieces)
    assert {row.selection for row in rows} == {"final", "loss=0.1"}
    assert len({row.train_loss for row in rows}) == len(rows) == 8
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
    assert "is finished, there is nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in pieces.rglob("*")} == before


def load_rows(run_dir, group):
    """A finished group's rows, None while it is not finished."""
    path = group_folder(run_dir, group) / "results.csv"
    return read_results(path) if path.exists() else None


def metrics_of(run_dir):
    """The lines of metrics.jsonl, in their order; each epoch once."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len({(line["member"], line["step"]) for line in lines}) == len(lines) == 4 * 24
    return lines
