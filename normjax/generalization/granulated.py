"""Rank correlation where only one factor changes (Jiang et al. 2020)."""

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from normjax.generalization.factors import Factors, check_factors, groups_of, hyperparameters
from normjax.statistics.intervals import check_units, jackknife_interval, units_of, without_each
from normjax.statistics.rank_correlation import ranks


def granulated_tau(measure: ArrayLike, error: ArrayLike, factors: Factors) -> dict[str, float]:
    """Return Kendall's tau by factor, averaged over the groups in which only that factor varies.

    It is psi of Jiang et al. 2020, "Fantastic Generalization Measures and Where to Find Them". As
    there, tau is the mean of `sign(x_i - x_j) sign(y_i - y_j)` over all pairs, so that ties count
    0; repetitions make groups of their own. Psi of the factor "seed" is between repetitions; the
    paper has none.

    Args:
      measure: n numbers.
      error: n numbers; the paper uses the generalization gap.
      factors: {name: n values}, the design factors.

    Returns:
      {name: psi}; NaN for a factor without a group of two networks.

    Raises:
      ValueError: two networks agree in all factors, or a NaN.
    """
    check_factors(factors)
    psis = _psis(ranks(measure), ranks(error), factors, np.ones((1, len(np.asarray(measure)))))
    return {name: float(psi[0]) for name, psi in psis.items()}


def mean_psi(psi: Mapping[str, float]) -> float:
    """Return Psi of Jiang et al. 2020: the mean of psi over hyperparameters; NaN without any.

    Repetitions are not averaged in.
    """
    known = [value for value in hyperparameters(psi).values() if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def mean_psi_interval(
    measure: ArrayLike, error: ArrayLike, factors: Factors, levels: Sequence[Hashable]
) -> tuple[float, float]:
    """Return the 95% jackknife interval of Psi over levels.

    Raises:
      ValueError: see `check_units`, `jackknife_interval` and `granulated_tau`.
    """
    check_factors(factors)
    units, unit = units_of(levels)
    check_units(units, unit)
    counts = np.concatenate([np.ones((1, units.size)), without_each(units)])
    psis = hyperparameters(_psis(ranks(measure), ranks(error), factors, counts))
    if not psis:
        raise ValueError("no hyperparameter varies")
    values = _mean_of_known(np.stack([*psis.values()]))
    low, high = jackknife_interval(float(values[0]), values[1:])
    return max(low, -1.0), min(high, 1.0)


def _psis(
    x: np.ndarray, y: np.ndarray, factors: Factors, counts: np.ndarray
) -> dict[str, np.ndarray]:
    """Return psi [B] of each factor, for sets of networks, [B, n] of zeros and ones."""
    psi = {}
    for name in factors:
        groups = list(groups_of(factors, [key for key in factors if key != name]).values())
        taus = [_plain_tau(x[group], y[group], counts[:, group]) for group in groups]
        psi[name] = _mean_of_known(np.stack(taus))
    return psi


def _plain_tau(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean product of signs over pairs of different networks; NaN without a pair."""
    signs = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
    total = np.sum((counts @ signs) * counts, axis=1)
    num_pairs = counts.sum(axis=1) ** 2 - np.sum(counts**2, axis=1)
    out = np.full(total.shape, np.nan)
    return np.divide(total, num_pairs, out=out, where=num_pairs > 0)


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis, ignoring NaN; NaN if all are NaN."""
    num_known = np.sum(~np.isnan(values), axis=0)
    out = np.full(num_known.shape, np.nan)
    return np.divide(np.nansum(values, axis=0), num_known, out=out, where=num_known > 0)
