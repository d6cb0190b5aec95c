"""How well measures of generalization rank networks by test error.

Three criteria, in order of strictness: rank correlation over all networks (Kendall's tau), rank
correlation if only one factor changes (Jiang et al., ICLR 2020), and the error rate in the worst
comparison (Dziugaite et al., NeurIPS 2020).
"""

import dataclasses
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from normjax.statistics.rank_correlation import (
    NUM_DRAWS,
    RankCorrelation,
    kendall_of_counts,
    rank_correlation,
    ranks,
)
from normjax.statistics.resampling import interval, resample_counts

MIN_NETWORKS = 3


@dataclasses.dataclass(frozen=True)
class SignErrors:
    """How often a measure orders two networks wrongly, by environment.

    An environment is a pair of values of one factor with the other factors fixed. Its sign error
    lies between 0 (all pairs ordered correctly) and 1 (all pairs ordered wrongly).

    Attributes:
      worst: largest sign error of an environment; NaN without environments.
      mean: mean over the environments; NaN without environments.
      num_environments: number of environments with a pair of networks whose errors differ by more
        than the noise of the test set.
      worst_environment: description of the environment with the largest sign error, or "".
    """

    worst: float
    mean: float
    num_environments: int
    worst_environment: str


@dataclasses.dataclass(frozen=True)
class RankedMeasure:
    """How well one measure ranks the networks; undefined numbers are NaN.

    Attributes:
      name: name of the measure.
      correlation: rank correlation with the test error, or None.
      tau_normalized_test_loss: Kendall's tau-b with the normalized test loss. It is high by
        construction for measures that contain the product of norms, the divisor of this loss.
      psi: {factor: granulated tau}.
      mean_psi: mean over the factors that have a granulated tau.
      psi_interval: 95% percentile bootstrap interval of `mean_psi`, with the same draws of levels
        as for the correlation; None if the correlation has no interval.
      sign_errors: sign errors with respect to the test error.
      reason: why `correlation` is None, or "".
    """

    name: str
    correlation: RankCorrelation | None
    tau_normalized_test_loss: float
    psi: dict[str, float]
    mean_psi: float
    psi_interval: tuple[float, float] | None
    sign_errors: SignErrors
    reason: str

    @property
    def tau(self) -> float:
        """Return Kendall's tau-b with the test error; NaN without a correlation."""
        return math.nan if self.correlation is None else self.correlation.kendall


def rank_measures(
    measures: Mapping[str, ArrayLike],
    test_error: ArrayLike,
    normalized_test_loss: ArrayLike,
    factors: Mapping[str, Sequence[str]],
    levels: Sequence[Hashable],
    *,
    num_test: int,
    seed: int = 0,
) -> list[RankedMeasure]:
    """Rank measures by Kendall's tau with the test error, best first.

    Args:
      measures: {name: n numbers}; a larger number predicts a larger error. A measure with a NaN
        comes last, without a correlation.
      test_error: n fractions of `num_test` test examples.
      normalized_test_loss: n losses.
      factors: {name: n values}, the design factors; "seed" does not define environments.
      levels: n labels; networks with the same label are not independent.
      num_test: number of test examples.
      seed: seed of the bootstrap and the permutations.

    Raises:
      ValueError: fewer than 3 networks, vectors of unequal lengths, or two networks that agree in
        all factors.
    """
    check_factors(factors)
    ranked = [
        _rank_measure(
            name, values, test_error, normalized_test_loss, factors, levels, num_test, seed
        )
        for name, values in measures.items()
    ]
    return sorted(ranked, key=lambda row: math.inf if math.isnan(row.tau) else -row.tau)


def granulated_tau(
    measure: ArrayLike, error: ArrayLike, factors: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Return Kendall's tau-b by factor, averaged over the groups in which only that factor varies.

    This is psi of Jiang et al. 2020 ("Fantastic Generalization Measures and Where to Find Them")
    with tau-b instead of tau. A measure that depends on one factor only can have a high tau over
    all networks, but not for every factor. Groups without spread in both numbers are ignored.

    Args:
      measure: n numbers.
      error: n numbers.
      factors: {name: n values}, the design factors.

    Returns:
      {name: psi}; NaN for a factor without a group.

    Raises:
      ValueError: see `rank_measures`.
    """
    check_factors(factors)
    x, y = _ranks(measure, error)
    return {name: float(psi[0]) for name, psi in _psis(x, y, factors, np.ones((1, x.size))).items()}


def bootstrap_mean_psi(
    measure: ArrayLike,
    error: ArrayLike,
    factors: Mapping[str, Sequence[str]],
    levels: Sequence[Hashable],
    *,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95% percentile bootstrap interval of Psi, the mean of psi over factors.

    In each draw, a group is weighted by how often its networks are drawn on average.

    Raises:
      ValueError: see `resample_counts` and `granulated_tau`; also if no draw has a Psi.
    """
    check_factors(factors)
    x, y = _ranks(measure, error)
    counts, _ = resample_counts(levels, num_draws, np.random.default_rng(seed))
    psis = list(_psis(x, y, factors, counts).values())
    shape = (len(factors), num_draws)
    draws = _mean_of_known(np.reshape(psis, shape), np.ones(shape))
    if np.isnan(draws).all():
        raise ValueError("no two networks that differ in one factor only have an order")
    return interval(draws)


def mean_psi(psi: Mapping[str, float]) -> float:
    """Return Psi of Jiang et al. 2020: the mean over factors that have a psi; NaN if none has."""
    known = [value for value in psi.values() if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def hoeffding_weight(difference: np.ndarray, num_test: int) -> np.ndarray:
    """Return the weight in [0, 1/2] of a difference of test errors, given the test set's noise.

    By Hoeffding's inequality, each error is within d / 2 of its expectation with probability at
    least p = 1 - 2 exp(-2 num_test (d / 2)^2). With probability p^2 both are, and the sign of the
    difference d is correct. The weight is p^2 - 1/2, or 0 if negative: Dziugaite et al. 2020, "In
    Search of Robust Measures of Generalization".

    Args:
      difference: differences of error fractions, any shape and sign.
      num_test: number of test examples per error.
    """
    p = 1 - 2 * np.exp(-num_test * np.asarray(difference, np.float64) ** 2 / 2)
    return np.maximum(np.maximum(p, 0) ** 2 - 0.5, 0)


def sign_errors(
    measure: ArrayLike,
    error: ArrayLike,
    factors: Mapping[str, Sequence[str]],
    *,
    num_test: int,
    repeat: str = "seed",
) -> SignErrors:
    """Return the sign errors of Dziugaite et al. 2020; the worst is their robust sign error.

    An environment pairs each network at one value of a factor with each network at another value,
    for any seeds. A pair counts 0 if measure and error differ in the same direction, 1 if in
    opposite directions, and 1/2 if the measure is tied. The sign error is the mean over pairs,
    weighted by `hoeffding_weight`; environments without weight are ignored. There are two
    differences from the paper: networks are ordered by test error, not by the gap (training errors
    are near zero), and there is no minimum number of pairs, because there are only a few seeds. The
    worst case is therefore coarse.

    Args:
      measure: n numbers.
      error: n fractions of `num_test` test examples.
      factors: {name: n values}, the design factors.
      num_test: number of test examples.
      repeat: the factor of repetitions, which does not define environments.
    """
    x, y = _ranks(measure, error)
    weights = hoeffding_weight(np.subtract.outer(error, error), num_test)
    wrong = (1 - np.sign(np.subtract.outer(x, x) * np.subtract.outer(y, y))) / 2
    found = []
    for name in factors:
        if name == repeat:
            continue
        others = [key for key in factors if key not in (name, repeat)]
        for fixed, members in _groups(factors, others).items():
            values = [factors[name][i] for i in members]
            for low, high in itertools.combinations(sorted(set(values)), 2):
                rows = [i for i, value in zip(members, values, strict=True) if value == low]
                columns = [i for i, value in zip(members, values, strict=True) if value == high]
                pairs = np.ix_(rows, columns)
                if weights[pairs].sum() > 0:
                    mean = np.average(wrong[pairs], weights=weights[pairs])
                    found.append((float(mean), _environment(name, low, high, others, fixed)))
    if not found:
        return SignErrors(math.nan, math.nan, 0, "")
    worst, environment = max(found, key=lambda item: item[0])
    return SignErrors(worst, float(np.mean([mean for mean, _ in found])), len(found), environment)


def check_factors(factors: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError if two networks agree in all factors."""
    if factors and (repeated := [g for g in _groups(factors, list(factors)).values() if g[1:]]):
        first, second, *_ = repeated[0]
        raise ValueError(f"networks {first} and {second} agree in all factors")


def _rank_measure(
    name, values, test_error, normalized_test_loss, factors, levels, num_test, seed
) -> RankedMeasure:
    """Rank by one measure; without a correlation, numbers are NaN and `reason` explains why."""
    values, test_error = _vectors(values, test_error)
    try:
        if missing := int(np.isnan(values).sum()):
            raise ValueError(f"it has no value for {missing} of {len(values)} networks")
        correlation = rank_correlation(values, test_error, levels, seed=seed)
    except ValueError as error:
        absent = dict.fromkeys(factors, math.nan)
        no_errors = SignErrors(math.nan, math.nan, 0, "")
        return RankedMeasure(name, None, math.nan, absent, math.nan, None, no_errors, str(error))
    psi = granulated_tau(values, test_error, factors)
    psi_interval = None
    if correlation.kendall_interval is not None and not math.isnan(mean_psi(psi)):
        psi_interval = bootstrap_mean_psi(values, test_error, factors, levels, seed=seed)
    x, loss = _ranks(values, normalized_test_loss)
    return RankedMeasure(
        name=name,
        correlation=correlation,
        tau_normalized_test_loss=float(kendall_of_counts(x, loss, np.ones((1, x.size)))[0]),
        psi=psi,
        mean_psi=mean_psi(psi),
        psi_interval=psi_interval,
        sign_errors=sign_errors(values, test_error, factors, num_test=num_test),
        reason="",
    )


def _environment(name, low, high, others, fixed) -> str:
    """Describe an environment."""
    rest = [f"{key} {value}" for key, value in zip(others, fixed, strict=True)]
    return ", ".join([f"{name} {low} or {high}", *rest])


def _vectors(measure: ArrayLike, error: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64 vectors of one length."""
    x, y = np.asarray(measure, np.float64), np.asarray(error, np.float64)
    if x.ndim != 1 or x.shape != y.shape or x.size < MIN_NETWORKS:
        raise ValueError(
            f"measure and error must be vectors of one length, at least {MIN_NETWORKS}, not of "
            f"shapes {x.shape} and {y.shape}"
        )
    return x, y


def _ranks(measure: ArrayLike, error: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the ranks of both vectors."""
    x, y = _vectors(measure, error)
    return ranks(x), ranks(y)


def _psis(x, y, factors: Mapping[str, Sequence], counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return psi [B] of each factor, for samples with counts [B, n]."""
    psi = {}
    for name in factors:
        groups = list(_groups(factors, [key for key in factors if key != name]).values())
        taus = [kendall_of_counts(x[group], y[group], counts[:, group]) for group in groups]
        weights = [counts[:, group].mean(axis=1) for group in groups]
        psi[name] = _mean_of_known(np.array(taus), np.array(weights))
    return psi


def _groups(factors: Mapping[str, Sequence], names: Sequence[str]) -> dict[tuple, list[int]]:
    """Return the positions of the networks that agree in these factors."""
    groups: dict[tuple, list[int]] = {}
    for i in range(len(next(iter(factors.values())))):
        groups.setdefault(tuple(factors[name][i] for name in names), []).append(i)
    return groups


def _mean_of_known(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted mean over the first axis, ignoring NaN; NaN if all are NaN."""
    weights = np.where(np.isnan(values), 0, weights)
    total, weight = np.nansum(weights * values, axis=0), weights.sum(axis=0)
    return np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0)
