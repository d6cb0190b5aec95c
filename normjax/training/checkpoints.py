"""Saving and resuming a sweep, and loading the networks it trained.

DIR/checkpoints/progress/000/EPOCH   group 0 in the middle of its training (the last two)
DIR/checkpoints/members/000/final    the trained members of group 0, stacked; one folder for
                                     each selection, and results.csv with the group's rows

Orbax does not notice when bytes of an array's file change. So each checkpoint carries a digest of
what was saved, and is compared with it when it is read.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from normjax.batch_norm import absorb_batch_norm
from normjax.files import read_object, replacing
from normjax.networks.models import make_model
from normjax.results.rows import RESULTS_FILE, ResultRow, read_results, write_results
from normjax.training.ensemble import gather_members, take_process_members

RUN_FILE = "run.json"
DIGEST_FILE = f"{RESULTS_FILE}.sha256"


def group_folder(run_dir: str | os.PathLike, group: int) -> Path:
    """Where the trained members of a group are kept."""
    return Path(run_dir).resolve() / "checkpoints" / "members" / f"{group:03d}"


def save_members(run_dir: str | os.PathLike, group: int, selection: str, variables: Any) -> None:
    """Saves the stacked variables of a group's members, as numpy arrays, at one selection.

    Every process must call it, with the variables of all members.
    """
    folder = group_folder(run_dir, group) / selection
    with _writing(folder):
        ocp.save(folder, variables, overwrite=True, custom_metadata={"digest": digest(variables)})


def digest(tree: Any, *beside: Any) -> str:
    """SHA-256 of a tree of arrays: names, dtypes, shapes and bytes; and of what JSON can hold."""
    total = hashlib.sha256(json.dumps(beside).encode())
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)}:{array.dtype.str}:{array.shape}".encode())
        total.update(array)
    return total.hexdigest()


def save_rows(run_dir: str | os.PathLike, group: int, rows: Sequence[ResultRow]) -> None:
    """Saves the rows of a group, which is finished with that, and a digest of the file.

    The digest is in the format of `sha256sum`.
    """
    folder = group_folder(run_dir, group)
    with replacing(folder / RESULTS_FILE) as temporary:
        write_results(temporary, rows)
        with replacing(folder / DIGEST_FILE) as path:
            text = hashlib.sha256(temporary.read_bytes()).hexdigest()
            path.write_text(f"{text}  {RESULTS_FILE}\n", encoding="ascii")


def read_rows(run_dir: str | os.PathLike, group: int) -> list[ResultRow]:
    """The rows of a finished group.

    Raises:
      ValueError: the file is damaged.
    """
    folder = group_folder(run_dir, group)
    path = folder / RESULTS_FILE
    if (folder / DIGEST_FILE).exists():  # runs from before there were digests have none
        text = (folder / DIGEST_FILE).read_text(encoding="ascii", errors="replace")
        if text != f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {RESULTS_FILE}\n":
            raise ValueError(
                f"{path}: damaged, its SHA-256 is not that of what was saved; where this group's "
                "folder and those after it are removed, --resume trains them again"
            )
    return read_results(path)


def has_progress(run_dir: str | os.PathLike) -> bool:
    """Whether a run has anything to go on from: a checkpoint, or a finished group."""
    folder = Path(run_dir) / "checkpoints"
    steps = folder.glob("progress/*/*")  # while it is written, a checkpoint has a longer name
    return any(step.name.isdecimal() for step in steps) or any(
        folder.glob(f"members/*/{RESULTS_FILE}")
    )


@contextlib.contextmanager
def open_progress(
    run_dir: str | os.PathLike, group: int, every: int
) -> Iterator[ocp.training.Checkpointer]:
    """The checkpoints of a group in training: asynchronous, every so many epochs, the last two.

    Raises:
      OSError: the last one could not be written.
    """
    policies = ocp.training
    checkpointer = ocp.training.Checkpointer(
        _progress_folder(run_dir, group),
        save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(every),
        preservation_policy=policies.preservation_policies.LatestN(2),
    )
    try:
        yield checkpointer
    finally:
        with _writing(checkpointer.directory):
            checkpointer.close()


def save_progress(
    checkpointer: ocp.training.Checkpointer,
    step: int,
    state: Any,
    members: Sequence[int],
    force: bool = False,
) -> None:
    """Saves a stacked state if a checkpoint is due at this step, or in any case by `force`.

    The arrays of all processes are put together, without the copies that pad them, and the
    members' numbers are kept beside them: a checkpoint does not depend on the number of devices or
    of processes, and serves a part of its members as well. Orbax refuses arrays without entries,
    which there are where no target is asked for: they are left out. Every process must call it.

    Raises:
      OSError: the checkpoint before could not be written.
    """
    if force or checkpointer.should_save(step):
        whole = gather_members(state, len(members))
        saved = jax.tree.map(lambda x: x if x.size else None, whole)
        beside = {"members": [*members], "digest": digest(saved, [*members])}
        with _writing(checkpointer.directory):
            checkpointer.save_async(step, saved, force=True, custom_metadata=beside)


def restore_progress(
    checkpointer: ocp.training.Checkpointer, state: Any, members: Sequence[int]
) -> tuple[Any, int]:
    """The latest checkpoint of these members, placed like `state`, and its step; else `state`, 0.

    A checkpoint that can't be read is dropped with a line on stderr, and so is, silently, one that
    is not of these members.
    """
    for checkpoint in sorted(checkpointer.checkpoints, key=lambda c: c.step, reverse=True):
        try:
            saved = _load_progress(checkpointer, checkpoint.step, state, members)
        except Exception as error:  # whatever a damaged file makes of itself
            print(
                f"checkpoint of epoch {checkpoint.step} can't be read: {_one_line(error)}",
                file=sys.stderr,
            )
            saved = None
        if saved is not None:
            return saved, checkpoint.step
        checkpointer.delete(checkpoint.step)
    return state, 0


def _load_progress(checkpointer, step, state, members):
    """A checkpoint, placed like `state`; None if it doesn't hold all these members."""
    beside = checkpointer.metadata(step).custom_metadata or {}
    if beside.keys() != {"members", "digest"}:
        raise ValueError("it does not say which members it is of")
    known = beside["members"]

    def expected(own):
        return np.empty((len(known), *own.shape[1:]), own.dtype) if own.size else None

    whole = checkpointer.load(step, jax.tree.map(expected, state))
    if digest(whole, known) != beside["digest"]:
        raise ValueError("it is damaged: its SHA-256 is not that of what was saved")
    if not set(members) <= set(known):
        return None
    positions = np.array([known.index(member) for member in members])

    def place(own, saved):
        if saved is None:
            return own
        return jax.device_put(take_process_members(saved[positions], len(own)), own.sharding)

    return jax.tree.map(place, state, whole)


def copy_progress(run_dir: str | os.PathLike, group: int, others: Sequence[int]) -> None:
    """Gives other groups, which the group is split into, its checkpoints to go on from.

    What those groups had is replaced; a folder is there as a whole or not at all.
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
    """Removes the checkpoints of a group that is finished."""
    shutil.rmtree(_progress_folder(run_dir, group), ignore_errors=True)


def load_member(
    run_dir: str | os.PathLike, member: int, selection: str = "final"
) -> tuple[nn.Module, dict[str, Any]]:
    """A trained network of a finished run.

    Args:
      run_dir: the run's folder.
      member: its number, as in results.csv.
      selection: "final" or "loss=0.0044", as in results.csv.

    Returns:
      (model, variables) with `model.apply(variables, images)` on standardized float images
      [N, H, W, C]; numpy arrays; batch normalization, if there was any, is absorbed.

    Raises:
      FileNotFoundError: no run in that folder, or the run isn't finished.
      ValueError: no such member or selection, the message lists what there is; or the file that
        holds the network is damaged.
    """
    path = Path(run_dir) / RUN_FILE
    if not path.exists():
        raise FileNotFoundError(f"{run_dir}: no run here ({RUN_FILE} is missing)")
    run = read_object(path, groups=list[list[int]], model=str, num_classes=int)
    groups = run["groups"]
    places = {m: (g, i) for g, members in enumerate(groups) for i, m in enumerate(members)}
    if member not in places:
        raise ValueError(f"{run_dir}: no member {member}; there are 0 to {len(places) - 1}")
    group, position = places[member]
    folder = group_folder(run_dir, group)
    if not (folder / RESULTS_FILE).exists():
        raise FileNotFoundError(f"{run_dir}: member {member} is not trained to its end yet")
    rows = [row for row in read_rows(run_dir, group) if row.member == member]
    known = list(dict.fromkeys(row.selection for row in rows))
    if selection not in known:
        raise ValueError(
            f"{run_dir}: member {member} has no network {selection!r}; it has: {', '.join(known)}"
        )
    stacked = _load_members(folder / selection)
    variables = jax.tree.map(lambda x: np.asarray(x[position]), stacked)
    model = make_model(run["model"], run["num_classes"])
    return model, {"params": jax.tree.map(np.asarray, absorb_batch_norm(variables))}


def _load_members(folder) -> Any:
    """The stacked variables of a group at one selection, compared with their digest."""
    try:
        metadata = ocp.metadata(folder)
        stacked = ocp.load(folder)
    except Exception as error:  # whatever a damaged file makes of itself
        raise ValueError(f"{folder}: damaged, it can't be read: {_one_line(error)}") from error
    # Of metadata that it can't read, orbax says that they are empty; runs from before there were
    # digests have no custom metadata, but the rest.
    is_from_before = metadata.custom_metadata == {} and metadata.commit_timestamp_nsecs
    if not is_from_before and metadata.custom_metadata != {"digest": digest(stacked)}:
        raise ValueError(f"{folder}: damaged, its SHA-256 is not that of what was saved")
    return stacked


@contextlib.contextmanager
def _writing(folder) -> Iterator[None]:
    """Orbax and tensorstore say in many ways that a disk is full: an OSError says it in one."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{folder}: a checkpoint can't be written: {_one_line(error)}") from error


def _one_line(error) -> str:
    """An error's text, the middle of a long one left out."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:120]} ... {text[-170:]}"


def _progress_folder(run_dir, group) -> Path:
    return Path(run_dir).resolve() / "checkpoints" / "progress" / f"{group:03d}"
