"""Checkpoints of groups in training.

DIR/checkpoints/progress/000/EPOCH   group 0 in the middle of its training (the last two)

Orbax does not detect changed bytes in an array's file. Each checkpoint therefore carries a digest
of its arrays, which is checked on loading. Nor does it take every path literally: see
`files.plainly_named`.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from normjax.files import plainly_named
from normjax.training import processes
from normjax.training.ensemble import gather_members, take_process_members

RUN_FILE = "run.json"


def digest(tree: Any, *extra: Any) -> str:
    """Return the SHA-256 of a tree of arrays (names, dtypes, shapes, bytes) and of JSON values."""
    total = hashlib.sha256(json.dumps(extra).encode())
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)}:{array.dtype.str}:{array.shape}".encode())
        total.update(array.data)
    return total.hexdigest()


def has_progress(run_dir: str | os.PathLike) -> bool:
    """Return whether a run has a checkpoint or a finished group to resume from."""
    folder = Path(run_dir) / "checkpoints"
    steps = folder.glob("progress/*/*")  # unfinished checkpoints have longer names
    return any(step.name.isdecimal() for step in steps) or any(folder.glob("groups/*.csv"))


@contextlib.contextmanager
def open_progress(
    run_dir: str | os.PathLike, group: int, every: int
) -> Iterator[ocp.training.Checkpointer]:
    """Open the checkpoints of a group in training; the last two are kept.

    Args:
      run_dir: the folder of the run.
      group: the number of the group.
      every: epochs between checkpoints, which are written in the background.

    Raises:
      OSError: the last checkpoint could not be written.
    """
    with plainly_named(_progress_folder(run_dir, group)) as folder:
        _drop_unreadable(folder)
        policies = ocp.training
        checkpointer = ocp.training.Checkpointer(
            os.fspath(folder),
            save_decision_policy=cast(
                Any, policies.save_decision_policies.FixedIntervalPolicy(every)
            ),
            preservation_policy=cast(Any, policies.preservation_policies.LatestN(2)),
        )
        try:
            yield checkpointer
        finally:
            with _writing(checkpointer.directory):
                checkpointer.close()


def _drop_unreadable(folder: Path) -> None:
    """Delete checkpoints with damaged metadata, which make Orbax's Checkpointer fail as a whole."""
    for step in sorted(path for path in folder.glob("*") if path.name.isdecimal()):
        problem = None
        try:
            ocp.metadata(os.fspath(step))
        except Exception as error:  # a damaged file can raise anything
            problem = error
        if processes.all_max(problem is not None) and processes.is_first():
            _say_unreadable(step.name, problem)
            shutil.rmtree(step)
        processes.sync()  # no process opens the folder before the others agree on it


def _say_unreadable(epoch: int | str, error: Exception | None) -> None:
    print(f"checkpoint of epoch {epoch} cannot be read: {_one_line(error)}", file=sys.stderr)


def save_progress(
    checkpointer: ocp.training.Checkpointer,
    step: int,
    state: Any,
    members: Sequence[int],
    force: bool = False,
) -> None:
    """Save a stacked state if a checkpoint is due at this step, or if `force`.

    Every process must call this. The arrays of all processes are saved without padding, together
    with the indices of the members: a checkpoint does not depend on the number of devices or
    processes, and can restore a subset of its members. Orbax refuses empty arrays, which occur if
    the sweep has no target losses; they are omitted.

    Raises:
      OSError: the previous checkpoint could not be written.
    """
    if force or checkpointer.should_save(step):
        whole = gather_members(state, len(members))
        saved = jax.tree.map(lambda x: x if x.size else None, whole)
        metadata = {"members": [*members], "digest": digest(saved, [*members])}
        with _writing(checkpointer.directory):
            checkpointer.save_async(step, saved, force=True, custom_metadata=metadata)


def restore_progress(
    checkpointer: ocp.training.Checkpointer, state: Any, members: Sequence[int]
) -> tuple[Any, int]:
    """Return the latest checkpoint of these members, placed like `state`, and its step.

    An unreadable checkpoint is deleted with a line on stderr; one of other members is deleted
    silently. If none is left, `state` and 0 are returned.
    """
    for checkpoint in sorted(checkpointer.checkpoints, key=lambda c: c.step, reverse=True):
        try:
            saved = _load_progress(checkpointer, checkpoint.step, state, members)
        except Exception as error:  # a damaged file can raise anything
            _say_unreadable(checkpoint.step, error)
            saved = None
        if saved is not None:
            return saved, checkpoint.step
        checkpointer.delete(checkpoint.step)
    return state, 0


def _load_progress(checkpointer, step, state, members):
    """Return a checkpoint, placed like `state`; None if it lacks some of these members."""
    metadata = checkpointer.metadata(step).custom_metadata or {}
    if metadata.keys() != {"members", "digest"}:
        raise ValueError("it does not say which members it holds")
    known = metadata["members"]

    def expected(own):
        return np.empty((len(known), *own.shape[1:]), own.dtype) if own.size else None

    whole = checkpointer.load(step, jax.tree.map(expected, state))
    if digest(whole, known) != metadata["digest"]:
        raise ValueError("it is damaged: its SHA-256 has changed")
    if not set(members) <= set(known):
        return None
    positions = np.array([known.index(member) for member in members])

    def place(own, saved):
        if saved is None:
            return own
        return jax.device_put(take_process_members(saved[positions], len(own)), own.sharding)

    return jax.tree.map(place, state, whole)


def copy_progress(run_dir: str | os.PathLike, group: int, others: Sequence[int]) -> None:
    """Copy a group's checkpoints to the groups that it is split into, replacing theirs.

    A folder appears as a whole or not at all.
    """
    source = _progress_folder(run_dir, group)
    for other in others:
        drop_progress(run_dir, other)
        if source.is_dir():
            temporary = source.with_name(f"copying_{other:03d}")
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(source, temporary)
            temporary.replace(_progress_folder(run_dir, other))


def drop_progress(run_dir: str | os.PathLike, group: int) -> None:
    """Remove the checkpoints of a finished group."""
    shutil.rmtree(_progress_folder(run_dir, group), ignore_errors=True)


@contextlib.contextmanager
def _writing(folder) -> Iterator[None]:
    """Raise OSError for any error of Orbax or TensorStore, such as a full disk."""
    try:
        yield
    except Exception as error:
        folder = Path(folder).resolve()  # not the link of `plainly_named`
        raise OSError(f"{folder}: a checkpoint cannot be written: {_one_line(error)}") from error


def _one_line(error) -> str:
    """Return an error's text in one line, without the middle of a long text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:120]} ... {text[-170:]}"


def _progress_folder(run_dir, group) -> Path:
    return Path(run_dir).resolve() / "checkpoints" / "progress" / f"{group:03d}"
