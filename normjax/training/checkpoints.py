"""Checkpoints of groups in training.

DIR/checkpoints/progress/000/EPOCH   group 0 in the middle of its training (the last two)

Process 0 alone reads and writes them. Orbax does not detect changed bytes in an array's file. Each
checkpoint therefore carries a digest of its arrays, which is checked on loading. Nor does Orbax
take every path literally: see `files.plainly_named`.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax import checkpoint as ocp

from normjax.files import plainly_named
from normjax.training import processes
from normjax.training.ensemble import gather_members, take_process_members

RUN_FILE = "run.json"
# Orbax's newer interface, v1, cannot be used by only one of several processes.
ALONE = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})


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
def open_progress(run_dir: str | os.PathLike, group: int) -> Iterator[ocp.CheckpointManager | None]:
    """Open the checkpoints of a group in training in process 0; yield None in the others.

    The last two are kept. They are written in the background.

    Args:
      run_dir: the folder of the run.
      group: the number of the group.

    Raises:
      OSError: the last checkpoint could not be written.
    """
    if not processes.is_first():
        yield None
        return
    with plainly_named(_progress_folder(run_dir, group)) as folder:
        folder.mkdir(parents=True, exist_ok=True)  # Orbax makes it only for all processes
        checkpointer = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                create=False,
                max_to_keep=2,
                lightweight_initialize=True,  # damaged metadata would make it fail as a whole
                multiprocessing_options=ALONE,
            ),
            item_handlers=ocp.StandardCheckpointHandler(multiprocessing_options=ALONE),
        )
        try:
            yield checkpointer
        finally:
            with _writing(checkpointer):
                checkpointer.close()


def save_progress(
    checkpointer: ocp.CheckpointManager | None,
    step: int,
    state: Any,
    members: Sequence[int],
    then: Callable[[], None] | None = None,
) -> None:
    """Save a stacked state; if `then` is given, wait until it is written and call `then`.

    Every process must call this. The arrays of all processes are saved without padding, together
    with the indices of the members: a checkpoint does not depend on the number of devices or
    processes, and can restore a subset of its members. Orbax refuses empty arrays, which occur if
    the sweep has no target losses; they are omitted.

    Raises:
      OSError: the previous checkpoint could not be written, or `then` raises it.
    """
    whole = gather_members(state, len(members))
    if checkpointer is not None:
        saved = jax.tree.map(lambda x: x if x.size else None, whole)
        metadata = {"members": [*members], "digest": digest(saved, [*members])}
        with _writing(checkpointer):
            args = ocp.args.StandardSave(saved)
            checkpointer.save(step, args=args, force=True, custom_metadata=metadata)
            if then is not None:
                checkpointer.wait_until_finished()
    if then is not None:
        then()


def restore_progress(
    checkpointer: ocp.CheckpointManager | None, state: Any, members: Sequence[int]
) -> tuple[Any, int]:
    """Return the latest checkpoint of these members, placed like `state`, and its step.

    Every process must call this. An unreadable checkpoint is deleted with a line on stderr; one of
    other members is deleted silently. If none is left, `state` and 0 are returned.
    """
    leaves, step = processes.from_first(lambda: _load_latest(checkpointer, state, members))
    if not step:
        return state, 0

    def place(own, saved):
        if saved is None:
            return own
        return jax.device_put(take_process_members(saved, len(own)), own.sharding)

    owns, treedef = jax.tree.flatten(state)
    return treedef.unflatten(map(place, owns, leaves)), step


def _load_latest(checkpointer, state, members):
    """Return the arrays [M, ...] of the latest checkpoint, None for empty ones, and its step."""
    for step in sorted(checkpointer.all_steps(), reverse=True):
        try:
            saved = _load_progress(checkpointer, step, state, members)
        except Exception as error:  # a damaged file can raise anything
            print(f"checkpoint of epoch {step} cannot be read: {_one_line(error)}", file=sys.stderr)
            saved = None
        if saved is not None:
            return saved, step
        checkpointer.delete(step)
    return [], 0


def _load_progress(checkpointer, step, state, members):
    """Return the arrays of a checkpoint; None if it lacks some of these members."""
    metadata = checkpointer.metadata(step).custom_metadata or {}
    if metadata.keys() != {"members", "digest"}:
        raise ValueError("it does not say which members it holds")
    known = metadata["members"]

    def expected(own):
        return np.empty((len(known), *own.shape[1:]), own.dtype) if own.size else None

    whole = checkpointer.restore(step, args=ocp.args.StandardRestore(jax.tree.map(expected, state)))
    if digest(whole, known) != metadata["digest"]:
        raise ValueError("it is damaged: its SHA-256 has changed")
    if not set(members) <= set(known):
        return None
    positions = np.array([known.index(member) for member in members])
    leaves = jax.tree.structure(state).flatten_up_to(whole)
    return [None if leaf is None else leaf[positions] for leaf in leaves]


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
def _writing(checkpointer: ocp.CheckpointManager) -> Iterator[None]:
    """Raise OSError for any error of Orbax or TensorStore, such as a full disk."""
    try:
        yield
    except Exception as error:
        folder = Path(checkpointer.directory).resolve()  # not the link of `plainly_named`
        raise OSError(f"{folder}: a checkpoint cannot be written: {_one_line(error)}") from error


def _one_line(error) -> str:
    """Return an error's text in one line, without the middle of a long text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:120]} ... {text[-170:]}"


def _progress_folder(run_dir, group) -> Path:
    return Path(run_dir).resolve() / "checkpoints" / "progress" / f"{group:03d}"
