"""Rank correlations over networks, with one bootstrap and one permutation test for all uses.

Networks of one level are not independent: whole levels are drawn or exchanged
(`normjax.statistics.resampling`).
"""

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from normjax.statistics.regression import check_points
from normjax.statistics.resampling import interval, permute_within_levels, resample_counts

NUM_DRAWS = 10_000


@dataclasses.dataclass(frozen=True)
class RankCorrelation:
    """The rank correlation of two quantities over networks.

    Attributes:
      kendall: Kendall's tau-b.
      kendall_interval: its 95% percentile bootstrap interval, or None.
      spearman: Spearman's rho, with ranks averaged over ties.
      spearman_interval: its 95% percentile bootstrap interval, or None.
      p_value: fraction of permutations within levels and of whole levels, including the observed
        order, with |tau| at least the observed one.
      unit: the unit of the bootstrap, "levels" or "networks"; "" without intervals.
      n: number of networks.
      reason: why the intervals are None, or "".
    """

    kendall: float
    kendall_interval: tuple[float, float] | None
    spearman: float
    spearman_interval: tuple[float, float] | None
    p_value: float
    unit: str
    n: int
    reason: str


def rank_correlation(
    x: ArrayLike,
    y: ArrayLike,
    levels: Sequence[Hashable],
    *,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> RankCorrelation:
    """Correlate the ranks of two quantities over n networks.

    A network drawn twice is tied with itself; tau-b and averaged ranks account for such ties.

    Args:
      x: n numbers; infinities are ranked too.
      y: n numbers.
      levels: n labels; networks with the same label are not independent. Distinct labels make
        every network its own unit.
      num_draws: number of bootstrap draws and of permutations; for the Monte Carlo error see
        `resampling.bootstrap_line`.
      seed: seed of both.

    Raises:
      ValueError: fewer than 3 networks, unequal lengths, NaN, or no spread in x or y.
    """
    x, y = (ranks(values) for values in (x, y))
    x, y = check_points(x, y, minimum=3)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("no spread: all networks have the same value")
    rng = np.random.default_rng(seed)
    unit, reason, intervals = "", "", (None, None)
    try:
        counts, unit = resample_counts(levels, num_draws, rng)
        intervals = (
            interval(kendall_of_counts(x, y, counts)),
            interval(spearman_of_counts(x, y, counts)),
        )
    except ValueError as error:
        reason = str(error)
    once = np.ones((1, x.size))
    tau = float(kendall_of_counts(x, y, once)[0])
    shuffled = y[permute_within_levels(levels, num_draws, rng)]
    taus = _kendall_of_orders(x, shuffled)
    num_at_least = int(np.sum(np.abs(taus) >= abs(tau) - 1e-12))
    return RankCorrelation(
        kendall=tau,
        kendall_interval=intervals[0],
        spearman=float(spearman_of_counts(x, y, once)[0]),
        spearman_interval=intervals[1],
        p_value=(num_at_least + 1) / (num_draws + 1),
        unit=unit,
        n=x.size,
        reason=reason,
    )


def kendall_of_counts(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return tau-b of samples in which point i occurs counts[:, i] times; NaN without spread."""
    signs_x, signs_y = (np.sign(values[:, None] - values) for values in (x, y))

    def sum_over_pairs(signs: np.ndarray) -> np.ndarray:
        return np.sum((counts @ signs) * counts, axis=1)

    spread = np.sqrt(sum_over_pairs(signs_x**2) * sum_over_pairs(signs_y**2))
    return _divide(sum_over_pairs(signs_x * signs_y), spread)


def spearman_of_counts(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return rho of samples in which point i occurs counts[:, i] times; NaN without spread."""
    total = counts.sum(axis=1, keepdims=True)
    centered = []
    for values in (x, y):
        # Up to a constant, twice the average rank is the number below minus the number above.
        rank = counts @ np.sign(values - values[:, None])
        centered.append(rank - np.sum(counts * rank, axis=1, keepdims=True) / total)
    xx, xy, yy = (
        np.sum(counts * centered[i] * centered[j], axis=1) for i, j in ((0, 0), (0, 1), (1, 1))
    )
    return _divide(xy, np.sqrt(xx * yy))


def ranks(values: ArrayLike) -> np.ndarray:
    """Return the ranks of n numbers, with ties averaged; infinities have ranks.

    Raises:
      ValueError: a number is NaN.
    """
    values = np.asarray(values, np.float64)
    if np.isnan(values).any():
        raise ValueError(f"value {int(np.isnan(values).argmax())} is NaN; it has no rank")
    return stats.rankdata(values)


def _kendall_of_orders(x: np.ndarray, ys: np.ndarray, at_once: int = 200) -> np.ndarray:
    """Return tau-b of x with each row of ys; the rows are orders of the same values."""
    signs_x = np.sign(x[:, None] - x)
    spread = np.sqrt(np.sum(signs_x**2) * np.sum(np.sign(ys[0][:, None] - ys[0]) ** 2))
    sums = [
        np.sum(signs_x * np.sign(part[:, :, None] - part[:, None, :]), axis=(1, 2))
        for part in np.split(ys, range(at_once, len(ys), at_once))
    ]
    return np.concatenate(sums) / spread


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the quotient, or NaN where the denominator is not positive."""
    out = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator > 1e-9)
