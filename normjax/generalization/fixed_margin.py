"""Training at a fixed normalized margin: does the margin cause generalization?

Farhang, Bernstein, Tirumala, Liu and Yue, "Investigating Generalization by Controlling Normalized
Margin" (ICML 2022, arXiv 2205.03940) train networks of constant Frobenius norms to targets alpha on
the right class and 0 on the others by a squared loss. Here every layer has Frobenius norm 1 after
each step of projected gradient descent, so the margin is the normalized one; they use a different
optimizer (Nero, whose rows have norm 1), perceptrons and full batches.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from tqdm import tqdm

from normjax.data import Dataset, corrupt_labels, standardize_images
from normjax.losses import classification_error
from normjax.networks.classifier import Classifier, Variables
from normjax.normalize import normalize_params, product_norm
from normjax.statistics.rank_correlation import rank_correlation
from normjax.training.ensemble import (
    Member,
    gather_members,
    make_order_key,
    map_members,
    pad_members,
    shard_members,
    share,
    take_member,
)
from normjax.training.finished_run import logits_of, make_apply
from normjax.training.step import Batch, Metrics, make_train_epoch
from normjax.types import Array

TRUE, RANDOM = "true", "random"
FAMILIES = {TRUE: "fixed_margin", RANDOM: "fixed_margin_random_labels"}
TOLERANCE = 0.1
"""A margin is reached if its mean and its spread are within this fraction of the target."""

COLUMNS = {
    "member": int,
    "labels": str,
    "target_margin": float,
    "seed": int,
    "reached": int,
    "product_norm": float,
    "train_margin": float,
    "train_margin_std": float,
    "train_margin_min": float,
    "test_margin": float,
    "train_error": float,
    "test_error": float,
}


class State(NamedTuple):
    """The training state of one network.

    Attributes:
      variables: the variables of a `Classifier`, each layer with norm 1.
      opt_state: the state of the optimizer.
      margin: the target, scalar.
    """

    variables: Variables
    opt_state: optax.OptState
    margin: Array


def make_members(margins: Sequence[float], num_seeds: int) -> list[Member]:
    """Return a network for each kind of labels, target margin and seed."""
    cells = [(f, m, s) for f in FAMILIES.values() for m in margins for s in range(num_seeds)]
    return [Member(i, seed, family, margin) for i, (family, margin, seed) in enumerate(cells)]


def labels_of(dataset: Dataset, member: Member, run_seed: int) -> np.ndarray:
    """Return a network's training labels, int32 [N]."""
    labels = dataset.train.labels
    if member.family == FAMILIES[TRUE]:
        return labels
    rng = np.random.default_rng(member.stream(run_seed))
    how = {"method": "swap", "num_classes": dataset.num_classes}
    return corrupt_labels(labels, 1.0, rng=rng, **how)[0]


def init_state(
    classifier: Classifier, tx: optax.GradientTransformation, key: Array, margin: Array
) -> State:
    """Initialize a network with layers of norm 1."""
    variables = normalize_params(classifier.init(key, None), structure=classifier.structure)
    return State(variables, tx.init(variables["params"]), margin)


def make_step(classifier: Classifier, tx: optax.GradientTransformation) -> Any:
    """Make a step of projected gradient descent on the squared distance to the targets.

    The loss is half the squared distance of `logits / margin` to `one_hot(label)`, summed over
    classes and averaged over the batch. Without the division, gradients at small margins would be
    below Adam's epsilon.

    Returns:
      `step(state, batch, key) -> (state, metrics)` for `make_train_epoch`; `metrics.loss` is the
      mean loss, and besides it only `metrics.error` is set.
    """

    def mean_loss(params: Any, batch: Batch, margin: Array, key: Array) -> Any:
        x = standardize_images(batch.images)
        logits, _ = classifier.train_apply({"params": params}, x, batch.weights > 0, key)
        targets = jax.nn.one_hot(batch.labels, logits.shape[-1], dtype=logits.dtype)
        losses = 0.5 * jnp.sum((logits / margin - targets) ** 2, axis=-1)
        total = jnp.sum(batch.weights)
        error = jnp.sum(batch.weights * classification_error(logits, batch.labels)) / total
        return jnp.sum(batch.weights * losses) / total, error

    def step(state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
        params = state.variables["params"]
        (loss, error), grads = jax.value_and_grad(mean_loss, has_aux=True)(
            params, batch, state.margin, key
        )
        with jax.numpy_dtype_promotion("standard"):  # Adam and schedules mix int32 and float32
            updates, opt_state = tx.update(grads, state.opt_state, params)
        moved = {"params": optax.apply_updates(params, updates)}
        variables = normalize_params(moved, structure=classifier.structure)
        unused = [jnp.zeros_like(loss)] * (len(Metrics._fields) - 2)
        return State(variables, opt_state, state.margin), Metrics(loss, error, *unused)

    return step


def train(
    classifier: Classifier,
    tx: optax.GradientTransformation,
    dataset: Dataset,
    members: Sequence[Member],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
) -> Variables:
    """Train all networks together.

    Args:
      classifier: the network; without batch normalization.
      tx: the optimizer.
      dataset: the images and true labels.
      members: the networks; the level is the target margin.
      epochs: number of epochs.
      batch_size: examples per step.
      seed: seed of the run.

    Returns:
      The variables, stacked, NumPy arrays [M, ...].

    Raises:
      ValueError: the network has batch normalization.
    """
    if classifier.has_state:
        raise ValueError("networks with batch normalization have no fixed margin in training")
    padded = pad_members(members)
    init = map_members(lambda key, margin: init_state(classifier, tx, key, margin))
    epoch_of_one = make_train_epoch(make_step(classifier, tx), batch_size)
    train_epoch = map_members(
        lambda state, labels, images, key: epoch_of_one(state, images, labels, key), num_shared=2
    )
    keys = jnp.stack([member.key(seed) for member in padded])
    margins = jnp.array([member.level for member in padded], jnp.float32)
    state = init(*shard_members((keys, margins)))
    labels = shard_members(np.stack([labels_of(dataset, member, seed) for member in padded]))
    images, order_key = share(dataset.train.images), share(make_order_key(seed))
    for step in tqdm(range(epochs), "fixed margins", unit="epoch", disable=None):
        state, _ = train_epoch(state, labels, images, jax.random.fold_in(order_key, step))
    return gather_members(state.variables, len(members))


def measure(
    classifier: Classifier,
    dataset: Dataset,
    members: Sequence[Member],
    variables: Variables,
    seed: int,
) -> pd.DataFrame:
    """Measure trained networks.

    | column | meaning |
    | --- | --- |
    | member, seed | the network |
    | labels | `true` or `random`: the labels of training |
    | target_margin | alpha |
    | reached | 1 if mean and standard deviation of the training margin are within `TOLERANCE` |
    | product_norm | product of the layers' Frobenius norms: 1, up to rounding; NaN, like all that follows, if training diverged or a layer's norm is 0 or overflows |
    | train_margin, train_margin_std, train_margin_min | right class minus best other class, on the labels of training |
    | test_margin, test_error | on the true labels of the test set |
    | train_error | on the labels of training; margins of 0, as of a dead network, are errors |

    Args:
      classifier: the network.
      dataset: the images and true labels.
      members: the networks.
      variables: from `train`.
      seed: seed of the run.

    Returns:
      A row per network, with the columns `COLUMNS`.
    """  # noqa: E501
    apply_fn, rows = make_apply(classifier), []
    for member in members:
        own = take_member(variables, member.index)
        rows.append(
            dict.fromkeys(COLUMNS, math.nan)
            | {
                "member": member.index,
                "labels": TRUE if member.family == FAMILIES[TRUE] else RANDOM,
                "target_margin": member.level,
                "seed": member.seed,
                "reached": 0,
            }
        )
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(own)):
            continue
        try:
            norm = float(product_norm(own, structure=classifier.structure))
        except ValueError:  # a layer's norm is 0 or overflows
            continue
        logits = {
            name: np.asarray(logits_of(apply_fn, own, split.images), np.float64)
            for name, split in (("train", dataset.train), ("test", dataset.test))
        }
        train = margins_of(logits["train"], labels_of(dataset, member, seed))
        test = margins_of(logits["test"], dataset.test.labels)
        target = member.level
        off = max(abs(train.mean() - target), train.std())
        rows[-1].update(
            {
                "reached": int(off <= TOLERANCE * target),
                "product_norm": norm,
                "train_margin": train.mean(),
                "train_margin_std": train.std(),
                "train_margin_min": train.min(),
                "test_margin": test.mean(),
                "train_error": np.mean(train <= 0),
                "test_error": np.mean(test <= 0),
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def margins_of(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the logit of the right class minus the largest other one, [N]."""
    places = np.arange(len(labels)), labels
    others = logits.copy()
    others[places] = -np.inf
    return logits[places] - others.max(axis=1)


def summarize(table: pd.DataFrame, *, seed: int) -> dict[str, Any]:
    """Correlate margins with test errors, over the networks of each kind that reached the target.

    Returns:
      Values for summary.json; `reasons` explains correlations that are None.
    """
    correlations: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for kind in (TRUE, RANDOM):
        own = table[(table["labels"] == kind) & (table["reached"] == 1)]
        levels = own["target_margin"].tolist()
        try:
            found = rank_correlation(own["train_margin"], own["test_error"], levels, seed=seed)
            correlations[kind] = dataclasses.asdict(found)
        except ValueError as error:
            correlations[kind], reasons[kind] = None, str(error)
    return {
        "method": (
            "Kendall's tau of normalized training margin and test error over networks that reached "
            f"their margin within {TOLERANCE:.0%}; 95% jackknife intervals over target margins"
        ),
        "correlations": correlations,
        "reasons": reasons,
        "not_reached": table.loc[table["reached"] == 0, "member"].tolist(),
        "diverged": table.loc[table["product_norm"].isna(), "member"].tolist(),
    }
