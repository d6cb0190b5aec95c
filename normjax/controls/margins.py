"""Raw margins, without the divisor: their ratio, and predictions of test from training margins."""

import dataclasses
import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from normjax.statistics.leave_out import predict_left_out
from normjax.statistics.rank_correlation import spearman_of_counts
from normjax.statistics.regression import check_points

MIN_LEVELS_TO_LEAVE_OUT = 4  # at least three levels remain for the fit


@dataclasses.dataclass(frozen=True)
class MarginPrediction:
    """Predictions of left-out raw test margins, with and without the training margins.

    Attributes:
      skill: 1 - (squared error of the line) / (squared error of the better model below). 0: the
        training loss adds nothing to the norm; 1: it predicts perfectly. None if the better model
        has no error.
      line_rmse: root mean square error of `test margin = b * training margin - a * rho`.
      divisor_rmse: the same for `test margin = c - a * rho`, without the training margin.
      constant_rmse: the same for `test margin = c`, without the norm.
      left_out: the unit that is left out in turn, "levels" or "networks".
      actual: n raw test margins.
      line: their predictions by the line.
      divisor: their predictions by the norm only.
    """

    skill: float | None
    line_rmse: float
    divisor_rmse: float
    constant_rmse: float
    left_out: str
    actual: tuple[float, ...]
    line: tuple[float, ...]
    divisor: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class MarginRatio:
    """The ratio of raw test to raw training margin, in which the norms cancel.

    Attributes:
      mean: mean over the networks.
      low: the minimum.
      high: the maximum.
      spread: standard deviation of the logarithm, approximately the relative one.
      spread_if_unrelated: the spread if test and training margins were unrelated: the root of the
        sum of the variances of both logarithms.
      correlation_with_norm: Spearman correlation of the ratio with the product norm.
      partial_correlation: Pearson correlation of test and training margins, given the product norm.
      partial_p_value: its two-sided p value, Student's t with n - 3 degrees of freedom.
    """

    mean: float
    low: float
    high: float
    spread: float
    spread_if_unrelated: float
    correlation_with_norm: float
    partial_correlation: float
    partial_p_value: float


def predict_margins(
    train_margins: ArrayLike,
    test_margins: ArrayLike,
    product_norms: ArrayLike,
    levels: Sequence[Hashable],
) -> MarginPrediction:
    """Predict left-out test margins with and without the training margins.

    `test margin = b * training margin - a * rho` is the line of normalized losses times -rho (see
    `shuffles.shuffle_margins`). A constant instead of the training margins makes it a line of the
    normalized test loss on 1 / rho: the shared divisor alone, with the same number of parameters.
    Whole levels are left out in turn if there are at least `MIN_LEVELS_TO_LEAVE_OUT`, otherwise
    single networks.

    Raises:
      ValueError: fewer than 5 networks, unequal lengths, or values that are not finite.
    """
    train, test, rho = check_points(train_margins, test_margins, product_norms, minimum=5)
    num_levels = len(set(levels))
    is_by_level = num_levels >= MIN_LEVELS_TO_LEAVE_OUT
    parts = levels if is_by_level else range(test.size)
    ones = np.ones_like(test)
    models = (np.stack([train, rho], 1), np.stack([ones, rho], 1), ones[:, None])
    predictions = [predict_left_out(columns, test, parts) for columns in models]
    line, divisor, constant = (float(np.mean((p - test) ** 2)) for p in predictions)
    rival = min(divisor, constant)
    return MarginPrediction(
        skill=1 - line / rival if rival > 1e-20 * np.mean(test**2) else None,
        line_rmse=math.sqrt(line),
        divisor_rmse=math.sqrt(divisor),
        constant_rmse=math.sqrt(constant),
        left_out="levels" if is_by_level and num_levels < test.size else "networks",
        actual=tuple(test.tolist()),
        line=tuple(predictions[0].tolist()),
        divisor=tuple(predictions[1].tolist()),
    )


def margin_ratio(
    train_margins: ArrayLike, test_margins: ArrayLike, product_norms: ArrayLike
) -> MarginRatio:
    """Return statistics of test margin / training margin over the networks.

    Raises:
      ValueError: fewer than 4 networks, values that are not finite, or margins that are not
        positive.
    """
    train, test, rho = check_points(train_margins, test_margins, product_norms, minimum=4)
    if min(train.min(), test.min()) <= 0:
        raise ValueError("a mean centered margin is not positive: the ratio is undefined")
    ratio = test / train
    spreads = [np.std(np.log(values), ddof=1) for values in (ratio, train, test)]
    has_spread = all(np.ptp(values) > 1e-12 * np.abs(values).max() for values in (ratio, rho))
    with_norm = (
        float(spearman_of_counts(ratio, rho, np.ones((1, rho.size)))[0]) if has_spread else math.nan
    )
    partial, p_value = _partial_correlation(train, test, rho / rho.max())
    return MarginRatio(
        mean=float(ratio.mean()),
        low=float(ratio.min()),
        high=float(ratio.max()),
        spread=float(spreads[0]),
        spread_if_unrelated=float(math.hypot(spreads[1], spreads[2])),
        correlation_with_norm=with_norm,
        partial_correlation=partial,
        partial_p_value=p_value,
    )


def _partial_correlation(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> tuple[float, float]:
    """Return the partial correlation of x and y given `given`, and its p value."""
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
