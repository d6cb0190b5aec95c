"""The rows of results.csv: trained networks over both splits, under every norm."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from normjax.data import Dataset
from normjax.results.rows import ResultRow
from normjax.training import processes as distributed
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
from normjax.training.members import Sweep, own_labels

Labels = Callable[[SweepConfig, Dataset, Member, str], np.ndarray]  # a member's labels for a split


def selections(
    config: SweepConfig, state: Any, snapshots: Any, num_members: int
) -> Iterator[tuple[str, Callable[[], Any], np.ndarray, np.ndarray]]:
    """(name, variables, epochs [M], valid [M]) of the final networks and those at each target.

    `variables` is a function that gives this process's part of them, stacked, on its devices.
    """
    yield (
        "final",
        lambda: state.variables,
        np.full(num_members, config.epochs),
        np.full(num_members, True),
    )
    epochs, losses = gather_members((snapshots.epoch, snapshots.loss), num_members)

    def at_target(i):
        return jax.tree.map(lambda x: x[:, i], snapshots.variables)

    for i, target in enumerate(config.target_losses):
        yield f"loss={target:g}", partial(at_target, i), epochs[:, i], np.isfinite(losses[:, i])


def evaluate_selection(
    sweep: Sweep,
    members: Sequence[Member],
    selection: str,
    variables: Any,
    epochs: np.ndarray,
    valid: np.ndarray,
) -> list[ResultRow]:
    """Rows for each member with a network here, one for each kind of labels and norm.

    Args:
      sweep: the run.
      members: the group's, M of them.
      selection: "final" or "loss=0.0044".
      variables: stacked, of this process's members, on its devices.
      epochs: int [M].
      valid: bool [M], whether a member has a network at this selection.
    """
    padded = pad_members(members)
    rows = []
    for labels, labels_of in (("natural", natural_labels), ("random", own_labels)):
        chosen = [i for i, m in enumerate(members) if valid[i] and labels in label_kinds(m)]
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

        splits = gather_members(distributed.attempt(evaluate), len(members))
        for i in chosen:
            own = [take_member(sums, i) for sums in splits]
            rows += member_rows(sweep, members[i], labels, selection, int(epochs[i]), *own)
    return rows


def label_kinds(member: Member) -> tuple[str, ...]:
    """The labels that a network is evaluated on."""
    return ("natural", "random") if member.family == "random_labels" else ("natural",)


def natural_labels(
    _config: SweepConfig, dataset: Dataset, _member: Member, split: str
) -> np.ndarray:
    """The true labels, whatever a network was trained on."""
    return getattr(dataset, split).labels


def evaluation_data(
    sweep: Sweep, padded: Sequence[Member], split: str, labels_of: Labels
) -> tuple[Any, Any]:
    """The labels [M', N] of this process's members and the images of a split, on its devices."""
    labels = np.stack([labels_of(sweep.config, sweep.dataset, m, split) for m in padded])
    return shard_members(labels), share(getattr(sweep.dataset, split).images)


def member_rows(
    sweep: Sweep,
    member: Member,
    labels: str,
    selection: str,
    epoch: int,
    train: EvaluationSums,
    test: EvaluationSums,
) -> list[ResultRow]:
    """A member's rows at one selection; means and ln K are taken in float64."""
    means = {
        "train": dataset_means(train, len(sweep.dataset.train.labels)),
        "test": dataset_means(test, len(sweep.dataset.test.labels)),
    }
    ln_num_classes = np.log(sweep.dataset.num_classes)
    return [
        ResultRow(
            experiment=sweep.experiment,
            member=member.index,
            seed=member.seed,
            family=member.family,
            level=member.level,
            labels=labels,
            selection=selection,
            epoch=epoch,
            norm=norm,
            product_norm=train.product_norms[k],
            train_loss=means["train"].loss,
            train_error=means["train"].error,
            test_loss=means["test"].loss,
            test_error=means["test"].error,
            normalized_train_loss=ln_num_classes + means["train"].normalized_excess[k],
            normalized_test_loss=ln_num_classes + means["test"].normalized_excess[k],
            normalized_train_error=means["train"].normalized_error[k],
            normalized_test_error=means["test"].normalized_error[k],
            normalized_train_excess=means["train"].normalized_excess[k],
            normalized_test_excess=means["test"].normalized_excess[k],
        )
        for k, norm in enumerate(sweep.config.norms)
    ]
