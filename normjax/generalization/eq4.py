"""Eq. 4 on the networks of a finished run: all terms in nats."""

import dataclasses
import math
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from normjax.data import dataset_label, standardize_images
from normjax.generalization import bounds, rademacher
from normjax.results.table import select
from normjax.training.finished_run import FinishedRun


@dataclasses.dataclass(frozen=True)
class Gap:
    """The gap between test and training loss of one normalized network.

    Attributes:
      member: number of the network in the run.
      family: the family.
      level: the level.
      gap: |test - training loss| in nats.
    """

    member: int
    family: str
    level: float
    gap: float


@dataclasses.dataclass(frozen=True)
class LowerEstimate:
    """A lower estimate of 2 R_N.

    Attributes:
      two_r: 2 R_N in nats.
      standard_error: standard error of `two_r`; None for a single draw.
      num_draws: number of sign draws, or of networks with random labels.
      num_examples: number of images. An estimate on a subset is scaled by 1 / sqrt(N).
      by_step: best value before each ascent step and at the end, averaged over draws; None without
        ascent.
      last_quarter: fraction of the estimate that the last quarter of the steps added, or None.
      times_gap: `two_r` divided by the largest gap.
    """

    two_r: float
    standard_error: float | None
    num_draws: int
    num_examples: int
    by_step: list[float] | None
    last_quarter: float | None
    times_gap: float


@dataclasses.dataclass(frozen=True)
class Eq4:
    """The terms of eq. 4 for the networks of a run, in nats.

    Attributes:
      run: folder of the run.
      data_name: name of the data in figures.
      model: name of the network.
      selection: the selection of the networks.
      num_examples: N.
      ln_num_classes: ln K, the loss of chance.
      delta: probability that the bound fails.
      networks: the gaps.
      diverged: numbers of the excluded, diverged networks.
      median_gap, smallest_gap, largest_gap: statistics over the networks.
      largest_below_chance: the largest distance of a training loss below ln K.
      confidence_term_expected: the term for the expected R_N and losses in an interval of length 1.
      confidence_term: the same for the empirical R_N.
      confidence_times_gap: `confidence_term` divided by the largest gap.
      loss_range: length of an interval that contains the losses of the class.
      confidence_term_of_range: `confidence_term` for losses in that interval.
      labels: lower estimate of 2 R_N by networks with random labels; None if the run has none.
      labels_over_signs: `labels` divided by `signs`; None without `labels`.
      signs: lower estimate of 2 R_N by ascent with random signs.
      upper: {authors: published upper bound on 2 R_N}.
      least_upper: key of the smallest upper bound.
      upper_over_signs: the smallest upper bound divided by `signs`.
      right_side: `signs` plus `confidence_term`.
      num_within: number of networks whose gap is at most `right_side`.
      num_below_chance: number of networks whose training loss is below ln K by more than
        `right_side`: these terms bound their test loss below the loss of chance.
    """

    run: str
    data_name: str
    model: str
    selection: str
    num_examples: int
    ln_num_classes: float
    delta: float
    networks: list[Gap]
    diverged: list[int]
    median_gap: float
    smallest_gap: float
    largest_gap: float
    largest_below_chance: float
    confidence_term_expected: float
    confidence_term: float
    confidence_times_gap: float
    loss_range: float
    confidence_term_of_range: float
    labels: LowerEstimate | None
    labels_over_signs: float | None
    signs: LowerEstimate
    upper: dict[str, float]
    least_upper: str
    upper_over_signs: float
    right_side: float
    num_within: int
    num_below_chance: int


def frobenius_gaps(run: FinishedRun, selection: str) -> pd.DataFrame:
    """Return the rows at a selection under the Frobenius norm, with a column `gap` in nats.

    The gap is the left side of eq. 4, with the test set instead of the expectation; it is not
    finite for diverged networks.

    Raises:
      ValueError: there are no such rows, or all networks diverged.
    """
    table = select(run.table, selection=selection, norm="2")
    gap = (table["normalized_test_excess"] - table["normalized_train_excess"]).abs()
    if not np.isfinite(gap).any():
        raise ValueError(f"{run.run_dir}: all networks at selection {selection!r} diverged")
    return table.assign(gap=gap)


def class_of(run: FinishedRun) -> bounds.NetworkClass:
    """Return the class of the run's normalized networks.

    Raises:
      ValueError: later layers have biases, or there are no bounds for networks of this kind.
    """
    classifier, structure = run.classifier, run.classifier.structure
    if classifier.module is None:
        raise ValueError("eq. 4 needs a Linen module, whose layers' outputs are read")
    inputs = (classifier.shapes, jax.ShapeDtypeStruct((1, *run.dataset.image_shape), jnp.float32))
    if "reduce_" in str(jax.make_jaxpr(classifier.apply)(*inputs)):
        raise ValueError("eq. 4 has no bounds for networks with pooling")
    apply = partial(classifier.module.apply, capture_intermediates=True)
    _, state = jax.eval_shape(apply, *inputs)
    positions = []
    for path in structure.layers:
        keys = [*path.removeprefix("params/").split("/"), "__call__"]
        outputs = reduce(lambda tree, key: tree.get(key, {}), keys, state["intermediates"])
        if not outputs:
            raise ValueError(f"eq. 4 needs layers that are modules, unlike {path!r}")
        positions.append(math.prod(outputs[0].shape[1:-1]))
    return bounds.network_class(structure, positions, math.prod(run.dataset.image_shape))


def measure(
    run: FinishedRun,
    table: pd.DataFrame,
    networks: bounds.NetworkClass,
    *,
    delta: float,
    num_signs: int,
    num_steps: int,
    num_examples: int,
    seed: int,
) -> Eq4:
    """Compute every term of eq. 4.

    Args:
      run: the run.
      table: the result of `frobenius_gaps`.
      networks: the class from `class_of`.
      delta: probability that the bound fails.
      num_signs: number of sign draws.
      num_steps: ascent steps per draw.
      num_examples: maximum number of training images for the ascent.
      seed: seed of the signs.
    """
    images = np.asarray(standardize_images(run.dataset.train.images))
    is_known = np.isfinite(table["gap"])
    known = table[is_known]
    gaps, largest = known["gap"].to_numpy(), float(known["gap"].max())
    margins = -known["normalized_train_excess"].to_numpy()

    def lower(found: rademacher.RademacherEstimate, scale: float) -> LowerEstimate:
        two_r, error, steps = scale * found.mean, scale * found.standard_error, found.by_step
        return LowerEstimate(
            two_r,
            None if math.isnan(error) else error,
            num_draws=found.values.size,
            num_examples=found.num_examples,
            by_step=None if steps is None else (scale * steps).tolist(),
            last_quarter=None if steps is None else _last_quarter(steps),
            times_gap=two_r / largest,
        )

    climbed = _climb(run, images, num_signs, num_steps, num_examples, seed)
    signs = lower(climbed, 2 * math.sqrt(climbed.num_examples / len(images)))
    excess = known.loc[known["family"] == "random_labels", "normalized_train_excess"]
    labels = None
    if len(excess):
        labels = lower(rademacher.rademacher_by_labels(excess, len(images)), 2)
    first = networks.layers[0]
    window = (math.isqrt(first.window),) * 2 if first.window > 1 else ()
    upper = bounds.loss_bounds(networks, bounds.input_norms(images, window))
    upper = {name: 2 * value for name, value in upper.items()}
    least = min(upper, key=upper.__getitem__)
    confidence = bounds.confidence_term(len(images), delta, empirical=True)
    right_side = signs.two_r + confidence
    loss_range = bounds.loss_range(networks)
    return Eq4(
        run=str(run.run_dir),
        data_name=dataset_label(run.config.dataset),
        model=run.config.model,
        selection=table["selection"].iloc[0],
        num_examples=len(images),
        ln_num_classes=math.log(run.dataset.num_classes),
        delta=delta,
        networks=[
            Gap(*row)
            for row in zip(*(known[f.name].tolist() for f in dataclasses.fields(Gap)), strict=True)
        ],
        diverged=sorted(table.loc[~is_known, "member"].tolist()),
        median_gap=float(np.median(gaps)),
        smallest_gap=float(gaps.min()),
        largest_gap=largest,
        largest_below_chance=float(margins.max()),
        confidence_term_expected=bounds.confidence_term(len(images), delta),
        confidence_term=confidence,
        confidence_times_gap=confidence / largest,
        loss_range=loss_range,
        confidence_term_of_range=loss_range * confidence,
        labels=labels,
        labels_over_signs=None if labels is None else labels.two_r / signs.two_r,
        signs=signs,
        upper=upper,
        least_upper=least,
        upper_over_signs=upper[least] / signs.two_r,
        right_side=right_side,
        num_within=int(np.sum(gaps <= right_side)),
        num_below_chance=int(np.sum(margins > right_side)),
    )


def _last_quarter(by_step: np.ndarray) -> float:
    """Return the fraction of the estimate that the last quarter of the steps added."""
    return float(1 - by_step[3 * (len(by_step) - 1) // 4] / by_step[-1])


def _climb(
    run: FinishedRun,
    images: np.ndarray,
    num_signs: int,
    num_steps: int,
    num_examples: int,
    seed: int,
) -> rademacher.RademacherEstimate:
    """Return a lower estimate of R_N of the losses, on the first images."""
    num = min(num_examples, len(images))
    return rademacher.estimate_rademacher(
        run.apply_fn,
        run.classifier.init,
        jnp.asarray(images[:num]),
        jnp.asarray(run.dataset.train.labels[:num]),
        rademacher.excess_loss,
        jax.random.key(seed),
        num_signs=num_signs,
        num_steps=num_steps,
    )
