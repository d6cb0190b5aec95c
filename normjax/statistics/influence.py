"""What a line owes to single networks and levels, and what it predicts of those it has not seen."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from normjax.statistics.regression import check_points, fit_line

MIN_LEVELS_TO_LEAVE_OUT = 4  # three levels or more stay, so that the line keeps a direction


class LeftOut(NamedTuple):
    """Errors of a line's predictions for what it was fitted without.

    Attributes:
      rmse: root mean square over the networks, in nats.
      largest: the largest absolute error, in nats, and
      where: what it was that was left out there.
      num_parts: how many networks, levels or families were left out in turn; not those without
        which fewer than 3 networks, or none that differ, would be left.
    """

    rmse: float
    largest: float
    where: str
    num_parts: int


class DemingFit(NamedTuple):
    """The line of least squares with errors in both variables (Deming 1943).

    Attributes:
      slope, intercept: in nats per nat, and nats.
      variance_ratio: variance of the errors in y over that of the errors in x.
    """

    slope: float
    intercept: float
    variance_ratio: float


class MarginPrediction(NamedTuple):
    """Raw test margins of levels left out: predicted by the line, and without training margins.

    Attributes:
      skill: 1 - (squared errors of the line) / (those of the better one of the two below). 0: the
        training loss adds nothing to the norm; 1: it tells all. None where neither errs.
      line_rmse: root mean square error of `test margin = b * training margin - a * rho`.
      divisor_rmse: of `test margin = c - a * rho`: the training margin replaced by one for all.
      constant_rmse: of `test margin = c`: the norm left out too.
      left_out: "levels" or "networks".
      actual, line, divisor: n raw test margins, and the predictions of the first two.
    """

    skill: float | None
    line_rmse: float
    divisor_rmse: float
    constant_rmse: float
    left_out: str
    actual: tuple[float, ...]
    line: tuple[float, ...]
    divisor: tuple[float, ...]


class MarginRatio(NamedTuple):
    """The ratio of raw test to raw training margin, from which the norms have gone.

    Attributes:
      mean, low, high: over the networks.
      spread: standard deviation of its logarithm, about the relative one.
      spread_if_unrelated: the same if test margins had nothing to do with training margins: the
        root of the sum of both logarithms' variances.
      correlation_with_norm: Spearman's, of the ratio with the product norm.
      partial_correlation: Pearson's, of test with training margins at equal product norm.
      partial_p_value: of the latter, two-sided, Student's t with n - 3 degrees of freedom.
    """

    mean: float
    low: float
    high: float
    spread: float
    spread_if_unrelated: float
    correlation_with_norm: float
    partial_correlation: float
    partial_p_value: float


def leave_out(
    x: Sequence[float], y: Sequence[float], parts: Sequence[Hashable], where: Sequence[str]
) -> LeftOut:
    """Predicts each part of the points by the line through all others.

    Args:
      x, y: n numbers.
      parts: n labels; points of one label are left out together.
      where: n names, of which that of the worst point is returned.

    Raises:
      ValueError: bad points as for `fit_line`, or no part without which a line is defined.
    """
    x, y = check_points(x, y, minimum=4)
    labels = np.array([str(part) for part in parts])
    errors = np.full_like(y, np.nan)
    for part in dict.fromkeys(labels):
        out = labels == part
        if np.count_nonzero(~out) >= 3 and np.ptp(x[~out]) > 0:
            errors[out] = fit_line(x[~out], y[~out]).predict(x[out]) - y[out]
    known = ~np.isnan(errors)
    if not known.any():
        raise ValueError(f"without {labels[0]} there are too few networks for a line")
    worst = int(np.nanargmax(np.abs(errors)))
    rmse = math.sqrt(np.mean(errors[known] ** 2))
    return LeftOut(rmse, float(abs(errors[worst])), where[worst], len(set(labels[known])))


def cooks_distances(x: Sequence[float], y: Sequence[float]) -> np.ndarray:
    """How far each point moves the line, Cook (1977), float64 [n]; above 1 it governs the line.

    ``D_i = e_i^2 h_i / (2 s^2 (1 - h_i)^2)`` with leverage h_i and s^2 = SSE / (n - 2).

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


def deming_line(x: Sequence[float], y: Sequence[float], variance_ratio: float = 1.0) -> DemingFit:
    """The maximum-likelihood line where x is measured with errors as y is.

    With d the ratio of the errors' variances,
    ``slope = (syy - d sxx + sqrt((syy - d sxx)^2 + 4 d sxy^2)) / (2 sxy)``. Least squares alone
    (d infinite) makes the slope too small by what is error in the spread of x.

    Args:
      x, y: n numbers, n >= 3.
      variance_ratio: variance of the errors in y over that of the errors in x; 1 gives orthogonal
        distances.

    Raises:
      ValueError: bad points as for `fit_line`, x and y uncorrelated, or a ratio not above 0.
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


def predict_margins(
    train_margins: Sequence[float],
    test_margins: Sequence[float],
    product_norms: Sequence[float],
    levels: Sequence[Hashable],
) -> MarginPrediction:
    """Does the training loss predict the test loss better than the product norm alone does?

    ``test margin = b * training margin - a * rho`` is the line of normalized losses times -rho (see
    `resampling.shuffle_margins`). With one constant in place of all training margins it is a line
    of the normalized test loss on 1 / rho: the shared divisor, with as many parameters, and nothing
    of the training loss. Whole levels are left out in turn where there are at least
    `MIN_LEVELS_TO_LEAVE_OUT`, else single networks.

    Raises:
      ValueError: fewer than 5 networks, unequal lengths, values that are not finite.
    """
    train, test, rho = check_points(train_margins, test_margins, product_norms, minimum=5)
    labels = np.array([str(level) for level in levels])
    is_by_level = len(set(labels)) >= MIN_LEVELS_TO_LEAVE_OUT
    parts = labels if is_by_level else np.arange(test.size)
    ones = np.ones_like(test)
    models = (np.stack([train, rho], 1), np.stack([ones, rho], 1), ones[:, None])
    predictions = [_predict_left_out(columns, test, parts) for columns in models]
    line, divisor, constant = (float(np.mean((p - test) ** 2)) for p in predictions)
    rival = min(divisor, constant)
    skill = 1 - line / rival if rival > 1e-20 * np.mean(test**2) else None
    return MarginPrediction(
        skill,
        *map(math.sqrt, (line, divisor, constant)),
        "levels" if is_by_level and len(set(labels)) < test.size else "networks",
        *(tuple(values.tolist()) for values in (test, *predictions[:2])),
    )


def margin_ratio(
    train_margins: Sequence[float], test_margins: Sequence[float], product_norms: Sequence[float]
) -> MarginRatio:
    """The spread of test margin / training margin across networks.

    Raises:
      ValueError: fewer than 4 networks, values that are not finite, or margins that are not
        positive.
    """
    train, test, rho = check_points(train_margins, test_margins, product_norms, minimum=4)
    if min(train.min(), test.min()) <= 0:
        raise ValueError("a mean centered margin is not positive: there is no ratio to speak of")
    ratio = test / train
    spreads = [np.std(np.log(values), ddof=1) for values in (ratio, train, test)]
    has_spread = all(np.ptp(values) > 1e-12 * np.abs(values).max() for values in (ratio, rho))
    with_norm = float(stats.spearmanr(ratio, rho).statistic) if has_spread else math.nan
    partial, p_value = _partial_correlation(train, test, rho / rho.max())
    return MarginRatio(
        float(ratio.mean()),
        float(ratio.min()),
        float(ratio.max()),
        float(spreads[0]),
        float(math.hypot(spreads[1], spreads[2])),
        with_norm,
        partial,
        p_value,
    )


def _predict_left_out(columns: np.ndarray, y: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Least-squares predictions of y, each part's by the coefficients of all others."""
    scaled = columns / np.abs(columns).max(axis=0)
    predictions = np.empty_like(y)
    for part in set(parts.tolist()):
        out = parts == part
        coefficients = np.linalg.lstsq(scaled[~out], y[~out], rcond=None)[0]
        predictions[out] = scaled[out] @ coefficients
    return predictions


def _partial_correlation(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> tuple[float, float]:
    """Correlation of what a line on `given` leaves of x and of y, and its p value."""
    rest = []
    for values in (x, y):
        deviations = values - values.mean()
        other = given - given.mean()
        norm = other @ other
        rest.append(deviations - (other @ deviations / norm * other if norm > 0 else 0))
    spread = math.sqrt((rest[0] @ rest[0]) * (rest[1] @ rest[1]))
    if spread == 0:
        return math.nan, math.nan
    r = float(np.clip(rest[0] @ rest[1] / spread, -1, 1))
    degrees = x.size - 3
    t = math.inf if abs(r) == 1 else abs(r) * math.sqrt(degrees / (1 - r**2))
    return r, float(2 * stats.t.sf(t, degrees))
