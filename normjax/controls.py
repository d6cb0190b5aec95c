"""Is the line real? What of its fit is made by construction, and what is not.

To first order ln K - CE = mean(f_y - mean_k f_k): the normalised losses are mean centred margins on
the training and on the test set, both divided by the same product of norms. Networks with unrelated
margins would still line up, towards (ln K, ln K), if only their product norms differ enough.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from normjax.regression import check_points


class NormPermutation(NamedTuple):
    """Where the real R2 falls among those with the product norms shuffled.

    Attributes:
      r2: R2 of normalised test excess on normalised train excess, as measured.
      r2_quantiles: 5%, 50% and 95% quantiles of R2 over the permutations.
      fraction_at_least: fraction of permutations whose R2 is at least the real one, the real order
        counted among them (a one-sided p value; Phipson and Smyth 2010).
      num_permutations: how many permutations were looked at.
      is_exact: all n! permutations were looked at, not a random sample.
    """

    r2: float
    r2_quantiles: tuple[float, float, float]
    fraction_at_least: float
    num_permutations: int
    is_exact: bool


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


def permute_norms(
    train_excess: Sequence[float],
    test_excess: Sequence[float],
    product_norms: Sequence[float],
    *,
    num_draws: int = 10_000,
    seed: int = 0,
) -> NormPermutation:
    """Shuffles the product norms among the networks; each keeps its own train and test margins.

    Network i has the margins m_i = excess_i * rho_i (first order) and is given the norm of network
    pi(i): the points become m_i / rho_pi(i) on both axes. If their R2 is as high as the real one,
    then the shared divisor made the line, and not what the networks learned.

    Args:
      train_excess: n values of normalised training loss - ln K, n >= 3.
      test_excess: the same on the test set.
      product_norms: n positive product norms rho.
      num_draws: number of random permutations; if n! is no larger, all are enumerated instead.
      seed: seed of the random permutations.

    Raises:
      ValueError: fewer than 3 networks, unequal lengths, values that are not finite, product norms
        that are not positive, num_draws < 1, or excess without spread.
    """
    x, y, rho = check_points(train_excess, test_excess, product_norms, minimum=3)
    if (rho <= 0).any():
        raise ValueError(f"product norm {rho.min()}; every product norm must be positive")
    if num_draws < 1:
        raise ValueError(f"num_draws is {num_draws}; at least 1 is needed")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("no spread in the excess losses: all networks have the same")
    # Only ratios of norms and of excesses matter, and raw products can be huge or tiny.
    rho, x, y = rho / rho.max(), x / np.abs(x).max(), y / np.abs(y).max()
    n = x.size
    is_exact = math.factorial(n) <= num_draws
    if is_exact:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        orders = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (num_draws, 1)), axis=1)
    divisors = rho[orders]
    draws = _r2_of_rows(x * rho / divisors, y * rho / divisors)
    r2 = float(_r2_of_rows(x[None], y[None])[0])
    # The enumeration holds the real order; rounding must not count it out.
    num_at_least = int(np.sum(draws >= r2 - 1e-12))
    fraction = num_at_least / draws.size if is_exact else (num_at_least + 1) / (draws.size + 1)
    low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95])
    return NormPermutation(
        r2, (float(low), float(middle), float(high)), fraction, draws.size, is_exact
    )


def fit_through_anchor(x: Sequence[float], y: Sequence[float], anchor: float) -> AnchoredFit:
    """The least-squares line forced through (anchor, anchor), with anchor = ln K for losses.

    Networks whose margins vanish lie there, so every line of normalised losses aims at it.

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


def _r2_of_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared correlation of x and y along the last axis; 0 where one of them has no spread."""
    dx = x - x.mean(-1, keepdims=True)
    dy = y - y.mean(-1, keepdims=True)
    spread = np.sum(dx**2, -1) * np.sum(dy**2, -1)
    return np.divide(np.sum(dx * dy, -1) ** 2, spread, out=np.zeros_like(spread), where=spread > 0)
