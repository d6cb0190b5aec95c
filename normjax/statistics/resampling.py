"""Shuffles and bootstraps of a line through a few networks: plain arrays, all draws at once.

Networks of one level are more alike than others, and are not independent. Shuffles therefore
exchange networks within a level, and levels of equally many networks as wholes; that keeps their
p values exact whatever networks of one level have in common. The bootstrap draws whole levels where
there are enough of them.
"""

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from normjax.statistics.regression import check_points

MIN_LEVELS_TO_RESAMPLE = 6  # fewer make too few different draws for an interval


class NormPermutation(NamedTuple):
    """Where the real R2 falls among those with the product norms shuffled.

    Attributes:
      r2: R2 of normalized test excess on normalized train excess, as measured.
      r2_quantiles: 5%, 50% and 95% quantiles of R2 over the permutations.
      fraction_at_least: fraction of permutations whose R2 is at least the real one, the real order
        counted among them (a one-sided p value; Phipson and Smyth 2010).
      num_permutations: how many permutations were looked at.
      is_exact: all n! permutations were looked at, not a random sample.
    """

    r2: float
    r2_quantiles: tuple[float, float, float]
    fraction_at_least: float
    num_permutations: int
    is_exact: bool


class MarginShuffle(NamedTuple):
    """How well the line does beside lines of the same norms with shuffled margins.

    Attributes:
      unexplained: of the raw test margins' variance, the part that the line leaves; it can pass 1.
      unexplained_quantiles: 5%, 50% and 95% quantiles of the same over the shuffles.
      r2_quantiles: 5%, 50% and 95% quantiles of the shuffled lines' R2: what the shared divisor
        gives to networks that have nothing else in common.
      p_value: fraction of the shuffles, the real order counted, that leave no more unexplained.
      num_draws: how many shuffles.
    """

    unexplained: float
    unexplained_quantiles: tuple[float, float, float]
    r2_quantiles: tuple[float, float, float]
    p_value: float
    num_draws: int


class LineBootstrap(NamedTuple):
    """95% percentile intervals of a line of losses, as (low, high).

    Attributes:
      slope_interval, intercept_interval, r2_interval: the intercept is that of losses in nats.
      unit: what was drawn with replacement: "networks" or "levels", "x test examples" if these too.
      num_draws: how many draws.
    """

    slope_interval: tuple[float, float]
    intercept_interval: tuple[float, float]
    r2_interval: tuple[float, float]
    unit: str
    num_draws: int


def permute_norms(
    train_excess: Sequence[float],
    test_excess: Sequence[float],
    product_norms: Sequence[float],
    *,
    num_draws: int = 10_000,
    seed: int = 0,
) -> NormPermutation:
    """Shuffles the product norms among the networks; each keeps its own train and test margins.

    Network i has the margins m_i = excess_i * rho_i (first order) and is given the norm of network
    pi(i): the points become m_i / rho_pi(i) on both axes. If their R2 is as high as the real one,
    then the shared divisor made the line, and not what the networks learned.

    Args:
      train_excess: n values of normalized training loss - ln K, n >= 3.
      test_excess: the same on the test set.
      product_norms: n positive product norms rho.
      num_draws: number of random permutations; if n! is no larger, all are enumerated instead.
      seed: seed of the random permutations.

    Raises:
      ValueError: fewer than 3 networks, unequal lengths, values that are not finite, product norms
        that are not positive, num_draws < 1, or excess without spread.
    """
    x, y, rho = check_excess(train_excess, test_excess, product_norms)
    if num_draws < 1:
        raise ValueError(f"num_draws is {num_draws}; at least 1 is needed")
    ratios = rho[:, None] / rho
    return permute_losses(x[:, None] * ratios, y[:, None] * ratios, num_draws=num_draws, seed=seed)


def permute_losses(
    train_excess: np.ndarray, test_excess: np.ndarray, *, num_draws: int = 10_000, seed: int = 0
) -> NormPermutation:
    """Shuffles the product norms among networks whose losses are known at every one of them.

    Args:
      train_excess: [n, n], n >= 3; normalized training loss - ln K of network i at norm j.
      test_excess: the same on the test set.
      num_draws, seed: see `permute_norms`.
    """
    n = len(train_excess)
    is_exact = math.factorial(n) <= num_draws
    if is_exact:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        orders = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (num_draws, 1)), axis=1)
    draws, real = (
        r2_of_rows(train_excess[np.arange(n), order], test_excess[np.arange(n), order])
        for order in (orders, np.arange(n)[None])
    )
    # The enumeration holds the real order; rounding must not count it out.
    num_at_least = int(np.sum(draws >= real[0] - 1e-12))
    fraction = num_at_least / draws.size if is_exact else (num_at_least + 1) / (draws.size + 1)
    return NormPermutation(float(real[0]), _quantiles(draws), fraction, draws.size, is_exact)


def shuffle_margins(
    train_excess: Sequence[float],
    test_excess: Sequence[float],
    product_norms: Sequence[float],
    levels: Sequence[Hashable] | None = None,
    *,
    num_draws: int = 10_000,
    seed: int = 0,
) -> MarginShuffle:
    """Shuffles training and test margins, each on its own, among the networks; norms stay.

    This is the artifact itself: unrelated margins over shared norms. The statistic is not R2, which
    networks of small norm decide almost alone. The line ``y = a + b x`` times -rho reads

        test margin = b * training margin - a * rho,

    and fitted in this form every network counts alike. It is a line of normalized losses still, and
    its residual variance tells a constant ratio of margins, or one that moves with the norm, from
    unrelated margins. Shuffling the norms instead (`permute_norms`) cannot see a constant
    ratio: pairs of margins in one proportion are on a line under any norms.

    Args:
      train_excess: n values of normalized training loss - ln K, n >= 3.
      test_excess: the same on the test set.
      product_norms: n positive product norms rho.
      levels: n labels; networks of the same label are exchanged with each other or as a whole. By
        default all networks are exchanged freely.
      num_draws: number of shuffles.
      seed: seed of the shuffles.

    Raises:
      ValueError: see `permute_norms`; also test margins without spread.
    """
    x, y, rho = check_excess(train_excess, test_excess, product_norms)
    if num_draws < 1:
        raise ValueError(f"num_draws is {num_draws}; at least 1 is needed")
    train, test = x * rho, y * rho
    spread = np.sum((test - test.mean()) ** 2)
    if spread <= 1e-20 * (test @ test):
        raise ValueError("no spread in the raw test margins: all networks have the same")
    rng = np.random.default_rng(seed)
    groups = range(x.size) if levels is None else levels
    trains = train[permute_within_levels(groups, num_draws, rng)]
    tests = test[permute_within_levels(groups, num_draws, rng)]
    left = _residual_sum(trains, tests, rho) / spread
    real = float(_residual_sum(train, test, rho) / spread)
    r2 = r2_of_rows(trains / rho, tests / rho)
    num_at_most = int(np.sum(left <= real + 1e-12))
    return MarginShuffle(
        real, _quantiles(left), _quantiles(r2), (num_at_most + 1) / (num_draws + 1), num_draws
    )


def permute_within_levels(
    levels: Sequence[Hashable], num_draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Random orders, int [num_draws, n], that keep the levels together.

    Networks change places within their level, and levels of equal size as wholes.
    """
    members: dict[Hashable, list[int]] = {}
    for index, level in enumerate(levels):
        members.setdefault(level, []).append(index)
    orders = np.empty((num_draws, len(levels)), int)
    for size in {len(level) for level in members.values()}:
        blocks = np.array([level for level in members.values() if len(level) == size])
        places = rng.permuted(np.tile(np.arange(len(blocks)), (num_draws, 1)), axis=1)
        orders[:, blocks.ravel()] = rng.permuted(blocks[places], axis=2).reshape(num_draws, -1)
    return orders


def bootstrap_line(
    x: Sequence[float],
    y: Sequence[float] | np.ndarray,
    levels: Sequence[Hashable],
    ln_num_classes: float,
    *,
    num_draws: int = 2000,
    seed: int = 0,
) -> LineBootstrap:
    """Intervals of slope, intercept and R2 over networks drawn with replacement.

    Args:
      x: n values of normalized training loss - ln K.
      y: the same on the test set: n values, or [n, N] with one for each of N test examples, which
        are then drawn with replacement too, the same ones for all networks (a two-way bootstrap).
      levels: n labels; whole levels are drawn where there are enough of them.
      ln_num_classes: ln K.
      num_draws: number of draws. Draws without spread in x are left out.
      seed: seed of the draws.

    Raises:
      ValueError: fewer than 3 networks, no spread, or values that are not finite.
    """
    y = np.asarray(y, np.float64)
    x, means = check_points(x, y if y.ndim == 1 else y.mean(axis=1), minimum=3)
    if np.ptp(x) == 0 or np.ptp(means) == 0:
        raise ValueError("no spread in the excess losses: all networks have the same")
    rng = np.random.default_rng(seed)
    counts, unit = resample_counts(levels, num_draws, rng)
    drawn = means
    if y.ndim == 2:
        unit += " x test examples"
        drawn = _resample_examples(y, num_draws, rng)
    total = counts.sum(axis=1, keepdims=True)
    dx = x - np.sum(counts * x, axis=1, keepdims=True) / total
    mean_y = np.sum(counts * drawn, axis=1, keepdims=True) / total
    dy = drawn - mean_y
    sxx, sxy, syy = (np.sum(counts * a * b, axis=1) for a, b in ((dx, dx), (dx, dy), (dy, dy)))
    kept = (sxx > 1e-12 * np.sum((x - x.mean()) ** 2)) & (syy > 0)
    slope = sxy[kept] / sxx[kept]
    offset = mean_y[kept, 0] - slope * (x - dx)[kept, 0]
    intercept = offset + (1 - slope) * ln_num_classes
    r2 = sxy[kept] ** 2 / (sxx[kept] * syy[kept])
    return LineBootstrap(
        *(interval(values) for values in (slope, intercept, r2)), unit, int(kept.sum())
    )


def resample_counts(
    levels: Sequence[Hashable], num_draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """Return how often each network is drawn, float [num_draws, n], and the unit that is drawn.

    The unit is the level, since networks of one level are not independent; where there is only one
    level, or each network has its own, it is the network.

    Raises:
      ValueError: 2 to 5 levels of several networks: too few different draws for an interval.
    """
    known = list(dict.fromkeys(levels))
    if len(known) in (1, len(levels)):
        n = len(levels)
        return rng.multinomial(n, np.full(n, 1 / n), num_draws).astype(float), "networks"
    if len(known) < MIN_LEVELS_TO_RESAMPLE:
        raise ValueError(
            f"{len(known)} levels; an interval needs at least {MIN_LEVELS_TO_RESAMPLE}, because "
            "networks of one level are not independent"
        )
    position = {level: index for index, level in enumerate(known)}
    drawn = rng.multinomial(len(known), np.full(len(known), 1 / len(known)), num_draws)
    return drawn[:, [position[level] for level in levels]].astype(float), "levels"


def check_excess(
    train_excess: Sequence[float], test_excess: Sequence[float], product_norms: Sequence[float]
) -> list[np.ndarray]:
    """The columns as vectors, each divided by its largest absolute value.

    Only ratios of norms and of excesses matter, and raw products can be huge or tiny.

    Raises:
      ValueError: fewer than 3 networks, unequal lengths, values that are not finite, product norms
        that are not positive, or excess without spread.
    """
    x, y, rho = check_points(train_excess, test_excess, product_norms, minimum=3)
    if (rho <= 0).any():
        raise ValueError(f"product norm {rho.min()}; every product norm must be positive")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("no spread in the excess losses: all networks have the same")
    return [values / np.abs(values).max() for values in (x, y, rho)]


def r2_of_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared correlation of x and y along the last axis; 0 where one of them has no spread."""
    dx = x - x.mean(-1, keepdims=True)
    dy = y - y.mean(-1, keepdims=True)
    spread = np.sum(dx**2, -1) * np.sum(dy**2, -1)
    return np.divide(np.sum(dx * dy, -1) ** 2, spread, out=np.zeros_like(spread), where=spread > 0)


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The central 95% of the draws that are numbers."""
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)


def _quantiles(draws: np.ndarray) -> tuple[float, float, float]:
    """The 5%, 50% and 95% quantiles."""
    low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95])
    return float(low), float(middle), float(high)


def _residual_sum(train: np.ndarray, test: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """Least sum of squares of test - b * train - a * rho along the last axis."""
    # rho is projected out of both first: where train follows rho the difference below stays exact.
    unit = rho / np.sqrt(rho @ rho)
    rest = [values - np.sum(values * unit, -1, keepdims=True) * unit for values in (train, test)]
    tt, ty, yy = (np.sum(a * b, -1) for a, b in ((rest[0],) * 2, rest, (rest[1],) * 2))
    explained = np.divide(ty**2, tt, out=np.zeros_like(yy), where=tt > 1e-20 * np.sum(train**2, -1))
    return np.maximum(yy - explained, 0)


def _resample_examples(
    y: np.ndarray, num_draws: int, rng: np.random.Generator, at_once: int = 200
) -> np.ndarray:
    """Means over examples drawn with replacement, float64 [num_draws, n]."""
    num_examples = y.shape[1]
    center = y.mean(axis=1)
    deviations = (y - center[:, None]).astype(np.float32)  # float32 costs no digit of the means
    means = []
    for start in range(0, num_draws, at_once):
        size = min(at_once, num_draws - start)
        chosen = rng.integers(num_examples, size=(size, num_examples))
        counts = np.stack([np.bincount(row, minlength=num_examples) for row in chosen])
        means.append(counts.astype(np.float32) @ deviations.T / num_examples + center)
    return np.concatenate(means)
