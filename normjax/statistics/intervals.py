"""95% intervals for networks that come in levels.

Networks of one level are not independent, so the unit of every interval is the level. It is the
network if there is one level, or if each network has its own.

Coefficients of a line have cluster-robust intervals (`cluster_robust_intervals`). Everything else
has the interval of a delete-one-unit jackknife (`jackknife_interval`). Neither draws random
numbers. `python -m benchmarks.interval_coverage` measures how often they contain the true value.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

MIN_UNITS = 4


def members_of(levels: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """Return {level: positions of its networks}, in order of first appearance."""
    members: dict[Hashable, list[int]] = {}
    for index, level in enumerate(levels):
        members.setdefault(level, []).append(index)
    return members


def units_of(levels: Sequence[Hashable]) -> tuple[np.ndarray, str]:
    """Return the unit of each network, int [n] from 0, and its name: "levels" or "networks"."""
    known = list(members_of(levels).values())
    if len(known) in (1, len(levels)):
        return np.arange(len(levels)), "networks"
    units = np.empty(len(levels), int)
    for unit, own in enumerate(known):
        units[own] = unit
    return units, "levels"


def check_units(units: np.ndarray, unit: str) -> int:
    """Return the number of units.

    Raises:
      ValueError: there are fewer than `MIN_UNITS`.
    """
    num_units = int(units.max()) + 1
    if num_units < MIN_UNITS:
        raise ValueError(f"{num_units} {unit}; an interval needs at least {MIN_UNITS}")
    return num_units


def without_each(units: np.ndarray) -> np.ndarray:
    """Return which networks remain without each unit, float64 [units, n] of zeros and ones."""
    return (units != np.arange(units.max() + 1)[:, None]).astype(np.float64)


def jackknife_interval(value: float, left_out: ArrayLike) -> tuple[float, float]:
    """Return the interval of a statistic from its values without each unit.

    The standard error is the delete-one jackknife's (Efron and Tibshirani 1993, chapter 11), with
    Student's t of G - 2 degrees of freedom for G units, since a line has two coefficients. Give the
    statistic on a scale on which its error hardly depends on its value.

    Args:
      value: the statistic of all networks.
      left_out: its values without each of the G >= 3 units.

    Raises:
      ValueError: a value is not finite, or all are equal.
    """
    values = np.asarray(left_out, np.float64)
    if not (np.isfinite(values).all() and np.isfinite(value)):
        raise ValueError("it is undefined without one of the units")
    if np.ptp(values) <= 1e-12 * np.abs(values).max():
        raise ValueError("it is the same without any one of the units")
    num_units = values.size
    error = np.sqrt((num_units - 1) / num_units * np.sum((values - values.mean()) ** 2))
    margin = float(error * special.stdtrit(num_units - 2, 0.975))
    return value - margin, value + margin


def cluster_robust_intervals(
    columns: np.ndarray, y: np.ndarray, units: np.ndarray, contrasts: np.ndarray
) -> list[tuple[float, float]]:
    """Return intervals for linear combinations of least-squares coefficients.

    The variance is CR2 (Bell and McCaffrey 2002): residuals of unit g are multiplied by
    (I - H_gg)^(-1/2), which makes it unbiased for independent errors of equal variance. The degrees
    of freedom of Student's t are Satterthwaite's under these errors. If every network is its own
    unit, the variance is HC2.

    Args:
      columns: float64 [n, k] of full rank.
      y: float64 [n].
      units: int [n].
      contrasts: float64 [m, k], the coefficients of each combination.
    """
    inverse = np.linalg.inv(columns.T @ columns)
    coefficients = inverse @ (columns.T @ y)
    residual_maker = np.eye(len(y)) - columns @ inverse @ columns.T
    residuals = residual_maker @ y
    weights = contrasts @ inverse @ columns.T  # [m, n]: the estimates are weights @ y
    adjusted = np.zeros_like(weights)
    for unit in range(units.max() + 1):
        own = units == unit
        values, vectors = np.linalg.eigh(residual_maker[np.ix_(own, own)])
        roots = np.where(values > 1e-10, 1 / np.sqrt(np.maximum(values, 1e-10)), 0)
        adjusted[:, own] = weights[:, own] @ (vectors * roots) @ vectors.T
    by_unit = 1 - without_each(units)
    intervals = []
    for estimate, row in zip(contrasts @ coefficients, adjusted, strict=True):
        terms = by_unit * row  # [units, n]
        variance = np.sum((terms @ residuals) ** 2)
        spread = terms @ residual_maker @ terms.T
        degrees = np.trace(spread) ** 2 / np.sum(spread**2)
        margin = np.sqrt(variance) * special.stdtrit(degrees, 0.975)
        intervals.append((float(estimate - margin), float(estimate + margin)))
    return intervals
