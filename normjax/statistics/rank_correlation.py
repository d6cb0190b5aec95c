"""Rank correlations over networks, with one interval and one permutation test for all uses.

Networks of one level are not independent: intervals are over levels, and only networks of one level
are exchanged. Levels are ordered, so the levels themselves are never exchanged.
"""

import dataclasses
import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from normjax.statistics.intervals import (
    check_units,
    jackknife_interval,
    units_of,
    without_each,
)
from normjax.statistics.regression import check_points
from normjax.statistics.resampling import orders_within, p_value_of

NUM_DRAWS = 10_000


@dataclasses.dataclass(frozen=True)
class RankCorrelation:
    """The rank correlation of two quantities over networks.

    Attributes:
      kendall: Kendall's tau-b.
      kendall_interval: its 95% jackknife interval over levels, or None.
      spearman: Spearman's rho, with ranks averaged over ties.
      spearman_interval: its 95% jackknife interval over levels, or None.
      p_value: fraction of orders within levels, including the observed one, with |tau| at least the
        observed one: whether the quantities go together at equal level. NaN if each network has its
        own level, so that there is one order.
      unit: the unit of the intervals, "levels" or "networks"; "" without intervals.
      n: number of networks.
      reason: why the interval of tau is None, or "".
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

    Args:
      x: n numbers; infinities are ranked too.
      y: n numbers.
      levels: n labels; networks with the same label are not independent. One label for all makes
        every network its own unit, and all exchangeable. Distinct labels leave nothing to exchange.
      num_draws: number of random orders within levels; all are enumerated if no more exist.
      seed: seed of these orders.

    Raises:
      ValueError: fewer than 3 networks, unequal lengths, NaN, or no spread in x or y.
    """
    x, y = (ranks(values) for values in (x, y))
    x, y = check_points(x, y, minimum=3)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("no spread: all networks have the same value")
    units, unit = units_of(levels)
    weights = np.concatenate([np.ones((1, x.size)), without_each(units)])
    taus, rhos = kendall_of_counts(x, y, weights), spearman_of_counts(x, y, weights)
    (tau_interval, reason), (rho_interval, _) = (
        _interval(values, units, unit) for values in (taus, rhos)
    )
    tau, p_value = float(taus[0]), math.nan
    if len(set(levels)) < x.size:
        orders, is_exact = orders_within(levels, num_draws, np.random.default_rng(seed))
        drawn = np.abs(_kendall_of_orders(x, y[orders]))
        p_value = p_value_of(int(np.sum(drawn >= abs(tau) - 1e-12)), len(orders), is_exact)
    return RankCorrelation(
        kendall=tau,
        kendall_interval=tau_interval,
        spearman=float(rhos[0]),
        spearman_interval=rho_interval,
        p_value=p_value,
        unit="" if reason else unit,
        n=x.size,
        reason=reason,
    )


def _interval(
    values: np.ndarray, units: np.ndarray, unit: str
) -> tuple[tuple[float, float] | None, str]:
    """Return the interval of a rank correlation [1 + units], or why there is none."""
    try:
        check_units(units, unit)
        low, high = jackknife_interval(float(values[0]), values[1:])
        if low <= -1 and high >= 1:
            raise ValueError("the interval would be all of -1 to 1")
        return (max(low, -1.0), min(high, 1.0)), ""
    except ValueError as error:
        return None, str(error)


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
