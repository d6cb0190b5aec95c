"""How well measures of a network rank its test error: rank correlations with intervals."""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from normjax.statistics.regression import check_points
from normjax.statistics.resampling import interval, resample_counts


class ErrorRanking(NamedTuple):
    """Rank correlations of one measure with the test error, over networks.

    Attributes:
      kendall: Kendall's tau-b.
      kendall_interval: its 95% percentile bootstrap interval.
      kendall_p_value: of no association, two-sided (scipy's: exact without ties).
      spearman: Spearman's rho, with ranks averaged over ties.
      spearman_interval: its 95% percentile bootstrap interval.
      lead_interval: 95% interval of |tau| of the first measure less |tau| of this one, over the
        same draws; (0, 0) for the first.
    """

    kendall: float
    kendall_interval: tuple[float, float]
    kendall_p_value: float
    spearman: float
    spearman_interval: tuple[float, float]
    lead_interval: tuple[float, float]


def rank_errors(
    measures: Mapping[str, Sequence[float]],
    test_error: Sequence[float],
    levels: Sequence[Hashable],
    *,
    num_draws: int = 2000,
    seed: int = 0,
) -> dict[str, ErrorRanking]:
    """Rank correlations of measures with the test error; the first measure is set beside the rest.

    Networks, or whole levels where there are enough (`resampling.resample_counts`), are drawn with
    replacement, the same ones for all measures. A network that is drawn twice is tied with itself;
    tau-b and averaged ranks leave such ties out of account.

    Args:
      measures: {name: n values}.
      test_error: n errors.
      levels: n labels.
      num_draws: number of bootstrap draws.
      seed: seed of the draws.

    Raises:
      ValueError: fewer than 4 networks, unequal lengths, values that are not finite, or a measure
        (or the error) without spread.
    """
    names = list(measures)
    *columns, error = check_points(*measures.values(), test_error, minimum=4)
    for name, column in zip([*names, "test error"], [*columns, error], strict=True):
        if np.ptp(column) == 0:
            raise ValueError(f"no spread in the {name}: all networks have the same")
    counts, _ = resample_counts(levels, num_draws, np.random.default_rng(seed))
    one_each = np.ones((1, error.size))
    rankings: dict[str, ErrorRanking] = {}
    first = None
    for name, column in zip(names, columns, strict=True):
        taus = kendall_of_counts(column, error, counts)
        first = taus if first is None else first
        rankings[name] = ErrorRanking(
            float(kendall_of_counts(column, error, one_each)[0]),
            interval(taus),
            float(stats.kendalltau(column, error).pvalue),
            float(spearman_of_counts(column, error, one_each)[0]),
            interval(spearman_of_counts(column, error, counts)),
            interval(np.abs(first) - np.abs(taus)),
        )
    return rankings


def kendall_of_counts(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of samples in which point i stands counts[:, i] times; NaN without spread."""
    signs_x, signs_y = (np.sign(values[:, None] - values) for values in (x, y))

    def sum_over_pairs(signs: np.ndarray) -> np.ndarray:
        return np.sum((counts @ signs) * counts, axis=1)

    spread = np.sqrt(sum_over_pairs(signs_x**2) * sum_over_pairs(signs_y**2))
    return _divide(sum_over_pairs(signs_x * signs_y), spread)


def spearman_of_counts(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Spearman's rho of samples in which point i stands counts[:, i] times; NaN without spread."""
    total = counts.sum(axis=1, keepdims=True)
    centered = []
    for values in (x, y):
        # Twice the average rank, up to a constant, is the number below less the number above.
        ranks = counts @ np.sign(values - values[:, None])
        centered.append(ranks - np.sum(counts * ranks, axis=1, keepdims=True) / total)
    xx, xy, yy = (
        np.sum(counts * centered[i] * centered[j], axis=1) for i, j in ((0, 0), (0, 1), (1, 1))
    )
    return _divide(xy, np.sqrt(xx * yy))


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, NaN where the denominator is not positive."""
    out = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator > 1e-9)
