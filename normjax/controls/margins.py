"""The ratio of raw test to training margins, without the divisor."""

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike

from normjax.statistics.rank_correlation import spearman_of_counts
from normjax.statistics.regression import check_points


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
    """

    mean: float
    low: float
    high: float
    spread: float
    spread_if_unrelated: float
    correlation_with_norm: float


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
    return MarginRatio(
        mean=float(ratio.mean()),
        low=float(ratio.min()),
        high=float(ratio.max()),
        spread=float(spreads[0]),
        spread_if_unrelated=float(math.hypot(spreads[1], spreads[2])),
        correlation_with_norm=with_norm,
    )
