"""A straight line fitted by least squares, with the numbers the paper prints beside its figures."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from scipy import stats

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class LineFit:
    """The least-squares line y = intercept + slope * x, and how well it fits.

    Attributes:
      slope: change of y per unit of x.
      intercept: y at x = 0. Far from the data its interval is wide: here x is near ln K.
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
        """The line's y at x, a number or an array."""
        return self.intercept + self.slope * np.asarray(x, np.float64)


class AnchoredFit(NamedTuple):
    """The least-squares line through the point (anchor, anchor).

    Attributes:
      slope: change of y per unit of x.
      slope_interval: (low, high), 95% Student's t interval, n - 1 degrees of freedom.
      r2: 1 - SSE / SST about the mean of y, so that it compares with the free line's; it can be
        negative. NaN if all y are equal.
      rmse: sqrt(SSE / (n - 1)), in units of y.
      n: number of points.
    """

    slope: float
    slope_interval: tuple[float, float]
    r2: float
    rmse: float
    n: int


def fit_line(x: Sequence[float], y: Sequence[float], confidence: float = 0.95) -> LineFit:
    """Fits y = intercept + slope * x by ordinary least squares, in float64.

    Both axes are centered first: losses of normalized networks differ by 1e-4 around ln K.

    Example:
      >>> import normjax
      >>> fit = normjax.fit_line([1, 2, 3, 4], [3, 5, 7, 9.5])
      >>> round(fit.slope, 6), round(fit.intercept, 6), fit.n
      (2.15, 0.75, 4)

    Args:
      x: n numbers, n >= 3, not all equal.
      y: n numbers.
      confidence: probability covered by the intervals, in (0, 1).

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


def fit_through_anchor(x: Sequence[float], y: Sequence[float], anchor: float) -> AnchoredFit:
    """The least-squares line forced through (anchor, anchor), with anchor = ln K for losses.

    Networks whose margins vanish lie there, so every line of normalized losses aims at it.

    Raises:
      ValueError: fewer than 3 points, unequal lengths, values that are not finite, or all x at the
        anchor.
    """
    x, y = check_points(x, y, minimum=3)
    dx, dy = x - anchor, y - anchor
    if not dx.any():
        raise ValueError(f"all x are at the anchor {anchor}, no line is defined")
    sxx = dx @ dx
    slope = dx @ dy / sxx
    residuals = dy - slope * dx
    sse = residuals @ residuals
    deviations = y - y.mean()
    r2 = 1 - sse / (deviations @ deviations) if np.ptp(y) > 0 else math.nan
    rmse = math.sqrt(sse / (x.size - 1))
    margin = stats.t.ppf(0.975, x.size - 1) * rmse / math.sqrt(sxx)
    return AnchoredFit(
        float(slope), (float(slope - margin), float(slope + margin)), float(r2), rmse, x.size
    )


def check_points(*columns: Sequence[float], minimum: int) -> list[np.ndarray]:
    """The columns as float64 vectors, if they are finite, of one length, and long enough."""
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
    """What `compute` gives; None, with the reason by name, where there are no such statistics."""
    try:
        return compute()
    except ValueError as error:
        reasons[name] = str(error)
        return None
