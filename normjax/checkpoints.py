"""Saving and resuming a sweep, and loading the networks it trained.

DIR/checkpoints/progress/000/EPOCH   group 0 in the middle of its training (the last two)
DIR/checkpoints/members/000/final    the trained members of group 0, stacked; one folder for
                                     each selection, and results.csv with the group's rows
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from normjax.models import make_model
from normjax.normalize import absorb_batch_norm
from normjax.results import RESULTS_FILE, read_results

RUN_FILE = "run.json"


def group_folder(run_dir: str | os.PathLike, group: int) -> Path:
    """Where the trained members of a group are kept."""
    return Path(run_dir).resolve() / "checkpoints" / "members" / f"{group:03d}"


def save_members(run_dir: str | os.PathLike, group: int, selection: str, variables: Any) -> None:
    """Saves the stacked variables of a group's members, as numpy arrays, at one selection."""
    ocp.save(group_folder(run_dir, group) / selection, variables, overwrite=True)


def open_progress(run_dir: str | os.PathLike, group: int, every: int) -> ocp.training.Checkpointer:
    """The checkpoints of a group in training: asynchronous, every so many epochs, the last two."""
    policies = ocp.training
    return ocp.training.Checkpointer(
        _progress_folder(run_dir, group),
        save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(every),
        preservation_policy=policies.preservation_policies.LatestN(2),
    )


def save_progress(
    checkpointer: ocp.training.Checkpointer, step: int, state: Any, num_members: int
) -> None:
    """Saves a stacked state, if a checkpoint is due at this step, without the copies that pad it.

    How many copies there are depends on the number of devices, which may change before a resume.
    Orbax refuses arrays without entries, which there are where no target is asked for: they are
    left out.
    """
    if checkpointer.should_save(step):
        saved = jax.tree.map(lambda x: np.asarray(x[:num_members]) if x.size else None, state)
        checkpointer.save(step, saved)


def restore_progress(
    checkpointer: ocp.training.Checkpointer, state: Any, num_members: int
) -> tuple[Any, int]:
    """The latest checkpoint, padded and placed like `state`, and its step; else `state` and 0."""
    if checkpointer.latest is None:
        return state, 0

    def expected(own):
        return np.empty((num_members, *own.shape[1:]), own.dtype) if own.size else None

    def place(own, saved):
        if saved is None:
            return own
        copies = np.repeat(saved[-1:], len(own) - num_members, axis=0)
        return jax.device_put(np.concatenate([saved, copies]), own.sharding)

    saved = checkpointer.load(checkpointer.latest, jax.tree.map(expected, state))
    return jax.tree.map(place, state, saved), checkpointer.latest.step


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
      (model, variables) with `model.apply(variables, images)` on standardised float images
      [N, H, W, C]; numpy arrays; batch normalisation, if there was any, is absorbed.

    Raises:
      FileNotFoundError: no run in that folder, or the run isn't finished.
      ValueError: no such member or selection; the message lists what there is.
    """
    path = Path(run_dir) / RUN_FILE
    if not path.exists():
        raise FileNotFoundError(f"{run_dir}: no run here ({RUN_FILE} is missing)")
    run = json.loads(path.read_text(encoding="utf-8"))
    groups = run["groups"]
    places = {m: (g, i) for g, members in enumerate(groups) for i, m in enumerate(members)}
    if member not in places:
        raise ValueError(f"{run_dir}: no member {member}; there are 0 to {len(places) - 1}")
    group, position = places[member]
    folder = group_folder(run_dir, group)
    if not (folder / RESULTS_FILE).exists():
        raise FileNotFoundError(f"{run_dir}: member {member} is not trained to its end yet")
    rows = [row for row in read_results(folder) if row.member == member]
    known = list(dict.fromkeys(row.selection for row in rows))
    if selection not in known:
        raise ValueError(
            f"{run_dir}: member {member} has no network {selection!r}; it has: {', '.join(known)}"
        )
    variables = jax.tree.map(lambda x: np.asarray(x[position]), ocp.load(folder / selection))
    model = make_model(run["model"], run["num_classes"])
    return model, {"params": jax.tree.map(np.asarray, absorb_batch_norm(variables))}


def _progress_folder(run_dir, group) -> Path:
    return Path(run_dir).resolve() / "checkpoints" / "progress" / f"{group:03d}"
