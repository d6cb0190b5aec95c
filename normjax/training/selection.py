"""Evaluate trained networks on both splits and under every norm: the rows of results.csv."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from normjax.data import Dataset
from normjax.training import processes
from normjax.training.config import SweepConfig
from normjax.training.ensemble import (
    Member,
    gather_members,
    pad_members,
    shard_members,
    share,
    take_member,
)
from normjax.training.evaluate import EvaluationSums, dataset_means
from normjax.training.members import own_labels
from normjax.training.plan import Sweep

Labels = Callable[[SweepConfig, Dataset, Member, str], np.ndarray]
"""A function that returns a member's labels for "train" or "test"."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """The networks of a group at one selection.

    Attributes:
      name: "final" or "loss=0.0044".
      variables: returns this process's part of the stacked variables, on its devices.
      epochs: int [M], the epoch of each network.
      exists: bool [M], whether each member has a network at this selection.
    """

    name: str
    variables: Callable[[], Any]
    epochs: np.ndarray
    exists: np.ndarray


def selections(
    config: SweepConfig, state: Any, snapshots: Any, num_members: int
) -> Iterator[Selection]:
    """Yield the final networks, then those nearest to each target loss."""
    epochs, always = np.full(num_members, config.epochs), np.full(num_members, True)
    if state.stopped_at is not None:
        stopped_at = gather_members(state.stopped_at, num_members)
        epochs = np.where(stopped_at > 0, stopped_at, epochs)
    yield Selection("final", lambda: state.variables, epochs, always)
    epochs, losses = gather_members((snapshots.epoch, snapshots.loss), num_members)

    def at_target(i):
        return jax.tree.map(lambda x: x[:, i], snapshots.variables)

    for i, target in enumerate(config.target_losses):
        exists = np.isfinite(losses[:, i])
        yield Selection(f"loss={target:g}", partial(at_target, i), epochs[:, i], exists)


def evaluate_selection(
    sweep: Sweep, members: Sequence[Member], selection: Selection, variables: Any
) -> list[dict[str, Any]]:
    """Return a row per network of a group, kind of labels and norm.

    Args:
      sweep: the sweep.
      members: the M members of the group.
      selection: the selection.
      variables: this process's part of the selection's variables, on its devices.

    Raises:
      OutOfMemoryError: a device ran out of memory.
    """
    padded = pad_members(members, sweep.ensemble.places)
    rows = []
    for labels, labels_of in (("natural", natural_labels), ("random", own_labels)):
        chosen = [
            i
            for i, member in enumerate(members)
            if selection.exists[i] and labels in label_kinds(member)
        ]
        if not chosen:
            continue

        def evaluate(labels_of=labels_of):
            return jax.device_get(
                [
                    sweep.ensemble.evaluate(
                        variables, *evaluation_data(sweep, padded, split, labels_of)
                    )
                    for split in ("train", "test")
                ]
            )

        splits = gather_members(processes.attempt(evaluate), len(members))
        for i in chosen:
            train, test = (take_member(sums, i) for sums in splits)
            epoch = int(selection.epochs[i])
            rows += member_rows(sweep, members[i], labels, selection.name, epoch, train, test)
    return rows


def label_kinds(member: Member) -> tuple[str, ...]:
    """Return the kinds of labels that a network is evaluated on."""
    return ("natural", "random") if member.family == "random_labels" else ("natural",)


def natural_labels(
    _config: SweepConfig, dataset: Dataset, _member: Member, split: str
) -> np.ndarray:
    """Return the true labels, regardless of what a network was trained on."""
    return getattr(dataset, split).labels


def evaluation_data(
    sweep: Sweep, padded: Sequence[Member], split: str, labels_of: Labels
) -> tuple[Any, Any]:
    """Return this process's labels [M', N] and the images of a split, on its devices."""
    labels = np.stack([labels_of(sweep.config, sweep.dataset, m, split) for m in padded])
    return shard_members(labels, sweep.ensemble.mesh), share(getattr(sweep.dataset, split).images)


def member_rows(
    sweep: Sweep,
    member: Member,
    labels: str,
    selection: str,
    epoch: int,
    train: EvaluationSums,
    test: EvaluationSums,
) -> list[dict[str, Any]]:
    """Return a member's rows at one selection, computed in float64."""
    shared = {
        "experiment": sweep.experiment,
        "member": member.index,
        "seed": member.seed,
        "family": member.family,
        "level": member.level,
        "labels": labels,
        "selection": selection,
        "epoch": epoch,
    }
    by_norm: dict[str, Any] = {"product_norm": train.product_norms}
    for split, sums in (("train", train), ("test", test)):
        means = dataset_means(sums, len(getattr(sweep.dataset, split).labels))
        shared |= {f"{split}_loss": means.loss, f"{split}_error": means.error}
        excess = means.normalized_excess
        by_norm[f"normalized_{split}_loss"] = np.log(sweep.dataset.num_classes) + excess
        by_norm[f"normalized_{split}_error"] = means.normalized_error
        by_norm[f"normalized_{split}_excess"] = excess
    return [
        {**shared, "norm": norm, **{k: v[i] for k, v in by_norm.items()}}
        for i, norm in enumerate(sweep.config.norms)
    ]
