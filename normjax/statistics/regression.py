"""Line fits: ordinary least squares, through a given point, and with errors in both variables."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from normjax.statistics.intervals import (
    check_units,
    cluster_robust_intervals,
    jackknife_interval,
    units_of,
    without_each,
)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class LineIntervals:
    """95% intervals (low, high) for a line, over levels or networks.

    Attributes:
      slope: cluster-robust.
      intercept: cluster-robust. It is wide because the data are near x = ln K.
      r2: jackknife on Fisher's scale.
      adjusted_r2: the same, adjusted.
      rmse: jackknife of the logarithm.
      unit: "levels" or "networks".
      num_units: number of units.
    """

    slope: tuple[float, float]
    intercept: tuple[float, float]
    r2: tuple[float, float]
    adjusted_r2: tuple[float, float]
    rmse: tuple[float, float]
    unit: str
    num_units: int


@dataclasses.dataclass(frozen=True)
class LineFit:
    """The least-squares line y = intercept + slope * x and its goodness of fit.

    Attributes:
      slope: change of y per unit of x.
      intercept: y at x = 0.
      r2: 1 - SSE / SST, the coefficient of determination; NaN if all y are equal.
      adjusted_r2: 1 - (1 - r2) (n - 1) / (n - 2).
      rmse: sqrt(SSE / (n - 2)), the standard error of the regression, in units of y.
      n: number of points.
      intervals: 95% intervals, or None.
      no_intervals: why there are no intervals, or "".
    """

    slope: float
    intercept: float
    r2: float
    adjusted_r2: float
    rmse: float
    n: int
    intervals: LineIntervals | None
    no_intervals: str

    def predict(self, x):
        """Return y at x, a number or an array."""
        return self.intercept + self.slope * np.asarray(x, np.float64)


@dataclasses.dataclass(frozen=True)
class AnchoredFit:
    """The least-squares line through the point (anchor, anchor).

    Attributes:
      slope: change of y per unit of x.
      r2: 1 - SSE / SST with SST about the mean of y; can be negative. NaN if all y are equal.
      rmse: sqrt(SSE / (n - 1)), in units of y.
      n: number of points.
    """

    slope: float
    r2: float
    rmse: float
    n: int


@dataclasses.dataclass(frozen=True)
class DemingFit:
    """The least-squares line with errors in both variables (Deming 1943).

    Attributes:
      slope: change of y per unit of x.
      intercept: y at x = 0.
      variance_ratio: error variance in y divided by error variance in x.
    """

    slope: float
    intercept: float
    variance_ratio: float


def fit_line(x: ArrayLike, y: ArrayLike, levels: Sequence[Hashable] | None = None) -> LineFit:
    """Fit y = intercept + slope * x by ordinary least squares, in float64.

    Both axes are centered first, because normalized losses differ from ln K by as little as 1e-4.

    Examples:
      >>> import normjax
      >>> fit = normjax.fit_line([1, 2, 3, 4], [3, 5, 7, 9.5])
      >>> round(fit.slope, 6), round(fit.intercept, 6), fit.n
      (2.15, 0.75, 4)

    Args:
      x: n numbers, n >= 3, not all equal.
      y: n numbers.
      levels: n labels; points with the same label are not independent, and the intervals are over
        levels. By default, all points are independent.

    Raises:
      ValueError: fewer than 3 points, unequal lengths, NaN or infinity, or no spread in x.
    """
    x, y = check_points(x, y, minimum=3)
    if np.ptp(x) <= 4 * np.finfo(np.float64).eps * np.abs(x).max():
        raise ValueError(f"no spread in x: all {x.size} values are {x[0]}, no line is defined")
    n, mean_x, mean_y = x.size, x.mean(), y.mean()
    # scipy's linregress computes errors from 1 - r**2, which loses six more digits than the
    # residuals if R2 is 1 - 1e-8.
    slope, sse, sst = (float(v[0]) for v in _lines(x - mean_x, y - mean_y, np.ones((1, n))))
    r2 = 1 - sse / sst if np.ptp(y) > 0 else math.nan
    intervals, reason = None, ""
    try:
        intervals = _line_intervals(x, y, range(n) if levels is None else levels)
    except ValueError as error:
        reason = str(error)
    return LineFit(
        slope=slope,
        intercept=float(mean_y - slope * mean_x),
        r2=r2,
        adjusted_r2=_adjusted(r2, n),
        rmse=math.sqrt(sse / (n - 2)),
        n=n,
        intervals=intervals,
        no_intervals=reason,
    )


def _line_intervals(x: np.ndarray, y: np.ndarray, levels: Sequence[Hashable]) -> LineIntervals:
    """Return the intervals of the line.

    Raises:
      ValueError: there are too few units, or the line is undefined or perfect without one of them.
    """
    units, unit = units_of(levels)
    num_units, n = check_units(units, unit), x.size
    dx, dy = x - x.mean(), y - y.mean()
    weights = np.concatenate([np.ones((1, n)), without_each(units)])
    slopes, sse, sst = _lines(dx, dy, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Fisher's scale (1921), on which the error of a correlation hardly depends on its value.
        fisher = np.sign(slopes) * np.arctanh(np.sqrt(np.maximum(1 - sse / sst, 0)))
        log_rmse = np.log(sse / (weights.sum(axis=1) - 2)) / 2
    low, high = np.tanh(jackknife_interval(fisher[0], fisher[1:]))
    least, most = sorted((float(low**2), float(high**2)))
    r2 = (least if low * high > 0 else 0.0, most)
    rmse = jackknife_interval(log_rmse[0], log_rmse[1:])
    scale = np.abs(dx).max()
    slope, intercept = cluster_robust_intervals(
        np.stack([np.ones(n), dx / scale], axis=1),
        y,
        units,
        np.array([[0, 1 / scale], [1, -x.mean() / scale]]),
    )
    return LineIntervals(
        slope=slope,
        intercept=intercept,
        r2=r2,
        adjusted_r2=(_adjusted(r2[0], n), _adjusted(r2[1], n)),
        rmse=(math.exp(rmse[0]), math.exp(rmse[1])),
        unit=unit,
        num_units=num_units,
    )


def _adjusted(r2: float, n: int) -> float:
    return 1 - (1 - r2) * (n - 1) / (n - 2)


def _lines(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return slope, SSE and SST, each [B], of the lines with weights [B, n]; NaN without spread."""
    total = weights.sum(axis=1, keepdims=True)
    dx, dy = (v - np.sum(weights * v, axis=1, keepdims=True) / total for v in (x, y))
    sxx, sxy, sst = (np.sum(weights * a * b, axis=1) for a, b in ((dx, dx), (dx, dy), (dy, dy)))
    slopes = np.full(len(weights), np.nan)
    np.divide(sxy, sxx, out=slopes, where=sxx > 1e-24 * (x @ x))
    return slopes, np.sum(weights * (dy - slopes[:, None] * dx) ** 2, axis=1), sst


def fit_through_anchor(x: ArrayLike, y: ArrayLike, anchor: float) -> AnchoredFit:
    """Fit a line through (anchor, anchor) by least squares.

    For normalized losses the anchor is ln K, the loss of networks with vanishing margins.

    Raises:
      ValueError: fewer than 3 points, unequal lengths, values that are not finite, or all x equal
        to the anchor.
    """
    x, y = check_points(x, y, minimum=3)
    dx, dy = x - anchor, y - anchor
    if not dx.any():
        raise ValueError(f"all x are at the anchor {anchor}, no line is defined")
    slope = dx @ dy / (dx @ dx)
    residuals = dy - slope * dx
    sse = residuals @ residuals
    deviations = y - y.mean()
    r2 = 1 - sse / (deviations @ deviations) if np.ptp(y) > 0 else math.nan
    return AnchoredFit(float(slope), float(r2), math.sqrt(sse / (x.size - 1)), x.size)


def deming_line(x: ArrayLike, y: ArrayLike, variance_ratio: float = 1.0) -> DemingFit:
    """Fit the maximum-likelihood line for errors in both x and y.

    With d the ratio of the error variances,
    `slope = (syy - d sxx + sqrt((syy - d sxx)^2 + 4 d sxy^2)) / (2 sxy)`. Ordinary least squares
    (d infinite) underestimates the slope if x has errors.

    Args:
      x: n numbers, n >= 3.
      y: n numbers.
      variance_ratio: error variance in y divided by error variance in x; 1 gives orthogonal
        regression.

    Raises:
      ValueError: invalid points as for `fit_line`, uncorrelated x and y, or a ratio that is not
        positive and finite.
    """
    x, y = check_points(x, y, minimum=3)
    if not 0 < variance_ratio < math.inf:
        raise ValueError(f"variance_ratio is {variance_ratio}; it must be positive and finite")
    dx, dy = x - x.mean(), y - y.mean()
    sxx, sxy, syy = dx @ dx, dx @ dy, dy @ dy
    if sxy == 0:
        raise ValueError("x and y are uncorrelated: no line with errors in both is defined")
    difference = syy - variance_ratio * sxx
    slope = (difference + math.hypot(difference, 2 * math.sqrt(variance_ratio) * sxy)) / (2 * sxy)
    return DemingFit(float(slope), float(y.mean() - slope * x.mean()), float(variance_ratio))


def check_points(*columns: ArrayLike, minimum: int) -> list[np.ndarray]:
    """Return the columns as float64 vectors.

    Raises:
      ValueError: values are not finite, lengths differ or are below `minimum`.
    """
    arrays = [np.asarray(column, np.float64) for column in columns]
    lengths = [array.shape for array in arrays]
    if any(array.ndim != 1 for array in arrays) or len(set(lengths)) != 1:
        raise ValueError(f"points must be vectors of one length, not of shapes {lengths}")
    if arrays[0].size < minimum:
        raise ValueError(f"{arrays[0].size} points; at least {minimum} are needed")
    for array in arrays:
        if not np.isfinite(array).all():
            index = int(np.flatnonzero(~np.isfinite(array))[0])
            raise ValueError(f"point {index} is {array[index]}; all values must be finite")
    return arrays


def attempt(reasons: dict[str, str], name: str, compute: Callable[[], T]) -> T | None:
    """Return `compute()`; if it raises ValueError, record the reason by name and return None."""
    try:
        return compute()
    except ValueError as error:
        reasons[name] = str(error)
        return None
