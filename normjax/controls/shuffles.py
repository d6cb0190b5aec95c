"""Shuffle the norms among networks that keep their margins."""

import dataclasses
import itertools
import math

import numpy as np
from numpy.typing import ArrayLike

from normjax.statistics.regression import check_points


@dataclasses.dataclass(frozen=True)
class NormPermutation:
    """The observed R2 compared with the R2 for shuffled product norms.

    Attributes:
      r2: the observed R2 of normalized test excess on normalized training excess.
      r2_quantiles: 5%, 50% and 95% quantiles of R2 over the permutations.
      num_reaching: number of permutations whose R2 is at least the observed one; the observed order
        is among them if all are enumerated.
      num_permutations: number of permutations.
      is_exact: whether all n! permutations are enumerated.
    """

    r2: float
    r2_quantiles: tuple[float, float, float]
    num_reaching: int
    num_permutations: int
    is_exact: bool


def permute_norms(
    train_excess: ArrayLike,
    test_excess: ArrayLike,
    product_norms: ArrayLike,
    *,
    num_draws: int = 10_000,
    seed: int = 0,
) -> NormPermutation:
    """Shuffle the product norms among the networks, keeping each network's margins.

    Network i has margins m_i = excess_i * rho_i (to first order) and gets the norm of network
    pi(i): the points become m_i / rho_pi(i) on both axes. If R2 stays as high as observed, the
    shared divisor causes the line, not what the networks learned.

    Args:
      train_excess: n values of normalized training loss minus ln K, n >= 3.
      test_excess: the same on the test set.
      product_norms: n positive product norms rho.
      num_draws: number of random permutations; if n! is not larger, all are enumerated.
      seed: seed of the random permutations.

    Raises:
      ValueError: fewer than 3 networks, unequal lengths, values that are not finite, product norms
        that are not positive, num_draws < 1, or excess without spread.
    """
    x, y, rho = _check_excess(train_excess, test_excess, product_norms)
    if num_draws < 1:
        raise ValueError(f"num_draws is {num_draws}; at least 1 is needed")
    ratios = rho[:, None] / rho
    return permute_losses(x[:, None] * ratios, y[:, None] * ratios, num_draws=num_draws, seed=seed)


def permute_losses(
    train_excess: np.ndarray, test_excess: np.ndarray, *, num_draws: int = 10_000, seed: int = 0
) -> NormPermutation:
    """Shuffle the product norms among networks with known losses at every norm.

    Args:
      train_excess: float64 [n, n], n >= 3: normalized training excess of network i at norm j.
      test_excess: the same on the test set.
      num_draws: see `permute_norms`.
      seed: seed of the random permutations.
    """
    n = len(train_excess)
    is_exact = math.factorial(n) <= num_draws
    if is_exact:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        orders = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (num_draws, 1)), axis=1)
    draws, real = (
        _r2_of_rows(train_excess[np.arange(n), order], test_excess[np.arange(n), order])
        for order in (orders, np.arange(n)[None])
    )
    # The enumeration contains the observed order, which rounding must not exclude.
    return NormPermutation(
        r2=float(real[0]),
        r2_quantiles=_quantiles(draws),
        num_reaching=int(np.sum(draws >= real[0] - 1e-12)),
        num_permutations=draws.size,
        is_exact=is_exact,
    )


def _check_excess(
    train_excess: ArrayLike, test_excess: ArrayLike, product_norms: ArrayLike
) -> list[np.ndarray]:
    """Return the columns as vectors, each divided by its largest absolute value.

    Only ratios of norms and of excesses matter, and product norms can be huge or tiny.

    Raises:
      ValueError: fewer than 3 networks, unequal lengths, values that are not finite, product norms
        that are not positive, or excess without spread.
    """
    x, y, rho = check_points(train_excess, test_excess, product_norms, minimum=3)
    if (rho <= 0).any():
        raise ValueError(f"product norm {rho.min()}; every product norm must be positive")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("no spread in the excess losses: all networks have the same")
    return [values / np.abs(values).max() for values in (x, y, rho)]


def _r2_of_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return R2 of x and y along the last axis; 0 if either has no spread."""
    dx = x - x.mean(-1, keepdims=True)
    dy = y - y.mean(-1, keepdims=True)
    spread = np.sum(dx**2, -1) * np.sum(dy**2, -1)
    return np.divide(np.sum(dx * dy, -1) ** 2, spread, out=np.zeros_like(spread), where=spread > 0)


def _quantiles(draws: np.ndarray) -> tuple[float, float, float]:
    """Return the 5%, 50% and 95% quantiles."""
    low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95])
    return float(low), float(middle), float(high)
