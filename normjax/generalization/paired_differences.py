"""Which measures rank worse than the best one, beyond what the choice of networks explains."""

import dataclasses
import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from normjax.statistics.intervals import units_of
from normjax.statistics.rank_correlation import kendall_of_counts, ranks
from normjax.statistics.resampling import resample_counts

NUM_DRAWS = 10_000


@dataclasses.dataclass(frozen=True)
class Difference:
    """Kendall's tau of the best measure minus that of another one.

    Attributes:
      value: the difference.
      interval: simultaneous 95% interval, within the possible -2 to 2: in 95% of repetitions,
        the intervals of all pairs of measures hold at once. None if there is none.
      p_value: probability, if no two measures differed, that some pair of measures differs by as
        many standard errors; NaN if there are too few levels to draw from.
      reason: why there is no interval, or "".
    """

    value: float
    interval: tuple[float, float] | None
    p_value: float
    reason: str = ""

    @property
    def is_real(self) -> bool:
        """Whether the measure is worse than the best, at 5% for all measures together."""
        return self.interval is not None and self.interval[0] > 0


def differences_to_best(
    measures: Sequence[ArrayLike],
    error: ArrayLike,
    levels: Sequence[Hashable],
    *,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> list[Difference]:
    """Compare Kendall's tau-b of every measure with the largest one, on the same draws of levels.

    Args:
      measures: numbers of n networks, for each of m measures; each has spread.
      error: n numbers with spread.
      levels: n labels; networks of one level are drawn together.
      num_draws: number of bootstrap draws.
      seed: seed of the draws.

    Returns:
      A difference per measure, 0 for the best.
    """
    y, xs = ranks(error), [ranks(values) for values in measures]
    once = np.ones((1, y.size))
    taus = np.array([kendall_of_counts(x, y, once)[0] for x in xs])
    best = int(np.argmax(taus))
    values = taus[best] - taus
    try:
        counts, unit = resample_counts(levels, num_draws, np.random.default_rng(seed))
    except ValueError as failure:
        return [Difference(value, None, math.nan, str(failure)) for value in values.tolist()]
    num_units = int(units_of(levels)[0].max()) + 1
    drawn = np.stack([kendall_of_counts(x, y, counts) for x in xs])
    drawn = drawn[:, ~np.isnan(drawn).any(axis=0)]
    errors, largest = _largest_differences(drawn)
    scale = _to_student(np.quantile(largest, 0.95), num_units)
    found = []
    for value, standard_error in zip(values.tolist(), errors[best].tolist(), strict=True):
        margin, p_value = scale * standard_error, 1.0
        if standard_error > 0:
            num_at_least = np.sum(_to_student(largest, num_units) >= value / standard_error - 1e-12)
            p_value = (int(num_at_least) + 1) / (largest.size + 1)
        low, high = max(value - margin, -2.0), min(value + margin, 2.0)
        if high - low == 4:
            reason = f"with {num_units} {unit} it would be all of -2 to 2"
            found.append(Difference(value, None, p_value, reason))
            continue
        found.append(Difference(value, (low, high), p_value))
    return found


def _to_student(quantiles: np.ndarray, num_units: int) -> np.ndarray:
    """Return the quantiles of Student's t that have the normal quantiles' probabilities.

    With few units, standard errors are themselves uncertain.
    """
    return -stats.t.ppf(stats.norm.sf(quantiles), num_units - 1)


def _largest_differences(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return standard errors [m, m] of differences, and the largest |difference| of each draw.

    The latter is about the mean of the draws, in standard errors. Measures that always agree have
    standard error 0 and do not count.
    """
    centered = drawn - drawn.mean(axis=1, keepdims=True)
    covariance = centered @ centered.T / drawn.shape[1]
    variances = np.diag(covariance)[:, None] + np.diag(covariance) - 2 * covariance
    errors = np.sqrt(np.where(variances > 1e-12, variances, 0))
    largest = np.zeros(drawn.shape[1])
    for row, scale in zip(centered, errors, strict=True):
        known = scale > 0
        if known.any():
            pairs = np.abs(row - centered[known]) / scale[known, None]
            largest = np.maximum(largest, pairs.max(axis=0))
    return errors, largest
