"""Line fits: ordinary least squares, through a given point, and with errors in both variables."""

import dataclasses
import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class LineFit:
    """The least-squares line y = intercept + slope * x and its goodness of fit.

    The intervals assume independent points. Networks of one level are not independent: reports use
    the intervals of `resampling.bootstrap_line` instead.

    Attributes:
      slope: change of y per unit of x.
      intercept: y at x = 0. The interval is wide because the data are near x = ln K.
      r2: 1 - SSE / SST, the coefficient of determination; NaN if all y are equal.
      adjusted_r2: 1 - (1 - r2) (n - 1) / (n - 2).
      rmse: sqrt(SSE / (n - 2)), the standard error of the regression, in units of y.
      n: number of points.
      slope_interval: (low, high), Student's t interval of the slope.
      intercept_interval: (low, high), Student's t interval of the intercept.
    """

    slope: float
    intercept: float
    r2: float
    adjusted_r2: float
    rmse: float
    n: int
    slope_interval: tuple[float, float]
    intercept_interval: tuple[float, float]

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


def fit_line(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> LineFit:
    """Fit y = intercept + slope * x by ordinary least squares, in float64.

    Both axes are centered first, because normalized losses differ from ln K by as little as 1e-4.

    Example:
      >>> import normjax
      >>> fit = normjax.fit_line([1, 2, 3, 4], [3, 5, 7, 9.5])
      >>> round(fit.slope, 6), round(fit.intercept, 6), fit.n
      (2.15, 0.75, 4)

    Args:
      x: n numbers, n >= 3, not all equal.
      y: n numbers.
      confidence: confidence level of the intervals, in (0, 1).

    Raises:
      ValueError: fewer than 3 points, unequal lengths, NaN or infinity, no spread in x, or a
        confidence outside (0, 1).
    """
    x, y = check_points(x, y, minimum=3)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1")
    if np.ptp(x) <= 4 * np.finfo(np.float64).eps * np.abs(x).max():
        raise ValueError(f"no spread in x: all {x.size} values are {x[0]!r}, no line is defined")
    n, mean_x, mean_y = x.size, x.mean(), y.mean()
    dx, dy = x - mean_x, y - mean_y
    sxx = dx @ dx
    slope = dx @ dy / sxx
    # scipy's linregress computes standard errors from 1 - r**2, which loses six more digits than
    # the residuals if R2 is 1 - 1e-8.
    residuals = dy - slope * dx
    sse = residuals @ residuals
    r2 = 1 - sse / (dy @ dy) if np.ptp(y) > 0 else math.nan
    rmse = math.sqrt(sse / (n - 2))
    intercept = mean_y - slope * mean_x
    quantile = stats.t.ppf((1 + confidence) / 2, n - 2)
    slope_margin = quantile * rmse / math.sqrt(sxx)
    intercept_margin = quantile * rmse * math.sqrt(1 / n + mean_x**2 / sxx)
    return LineFit(
        slope=float(slope),
        intercept=float(intercept),
        r2=float(r2),
        adjusted_r2=float(1 - (1 - r2) * (n - 1) / (n - 2)),
        rmse=rmse,
        n=n,
        slope_interval=(float(slope - slope_margin), float(slope + slope_margin)),
        intercept_interval=(
            float(intercept - intercept_margin),
            float(intercept + intercept_margin),
        ),
    )


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


def cooks_distances(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Return the influence of each point on the line, float64 [n]; above 1, a point dominates it.

    Cook (1977): `D_i = e_i^2 h_i / (2 s^2 (1 - h_i)^2)`, with leverage h_i, s^2 = SSE / (n - 2).

    Raises:
      ValueError: see `fit_line`.
    """
    x, y = check_points(x, y, minimum=3)
    fit = fit_line(x, y)
    dx = x - x.mean()
    leverage = 1 / x.size + dx**2 / (dx @ dx)
    residuals = y - fit.predict(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        return residuals**2 * leverage / (2 * fit.rmse**2 * (1 - leverage) ** 2)


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
