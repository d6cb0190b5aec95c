"""How well measures of generalization rank networks by their errors.

Three questions, each stricter than the one before: does a measure rank all networks as their
errors do (Kendall's tau)? does it where only one factor is changed (Jiang et al., ICLR 2020)? and
how often is it wrong in the worst comparison (Dziugaite et al., NeurIPS 2020)?
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

NUM_RESAMPLES = 2000
MIN_NETWORKS = 3


class SignErrors(NamedTuple):
    """How often a measure orders two networks wrongly, environment by environment.

    An environment is a pair of values of one factor, the other factors being fixed; its sign error
    lies between 0 (every pair ordered as by their errors) and 1 (none).

    Attributes:
      worst: the largest sign error of an environment; NaN if there is no environment.
      mean: the mean over the environments; NaN if there is none.
      num_environments: how many have a pair of networks whose errors differ beyond noise.
      worst_environment: the one of the largest sign error in words; "" if there is none.
    """

    worst: float
    mean: float
    num_environments: int
    worst_environment: str


class RankedMeasure(NamedTuple):
    """How well one measure ranks the networks; numbers are NaN where there is nothing to rank.

    Attributes:
      name: of the measure.
      tau: Kendall's tau-b with the test error.
      tau_interval: 95% bootstrap interval.
      tau_normalized_test_loss: Kendall's tau-b with the normalized test loss. Whatever contains the
        product of norms shares it with this loss, so that a high value is no achievement there.
      psi: granulated tau for each factor.
      mean_psi: the mean over the factors that have one.
      psi_interval: 95% bootstrap interval of `mean_psi`.
      sign_errors: against the test error.
    """

    name: str
    tau: float
    tau_interval: tuple[float, float]
    tau_normalized_test_loss: float
    psi: dict[str, float]
    mean_psi: float
    psi_interval: tuple[float, float]
    sign_errors: SignErrors


def rank_measures(
    measures: Mapping[str, Sequence[float]],
    test_error: Sequence[float],
    normalized_test_loss: Sequence[float],
    factors: Mapping[str, Sequence],
    *,
    num_test: int,
    seed: int = 0,
) -> list[RankedMeasure]:
    """Ranks measures, the best first, by Kendall's tau with the test error.

    Args:
      measures: {name: n numbers}, the larger, the larger the error that is expected; with a NaN
        among them, a measure has no numbers below.
      test_error: n fractions of `num_test` test examples.
      normalized_test_loss: n losses.
      factors: {name: n values}, all that the networks differ in by intention; "seed" is mere
        repetition in the sign errors.
      num_test: number of test examples.
      seed: of the bootstrap.

    Raises:
      ValueError: fewer than 3 networks, or vectors of other lengths.
    """
    ranked = []
    for name, values in measures.items():
        if np.isnan(values).any():
            values = np.full(len(values), np.nan)
        psi = granulated_tau(values, test_error, factors)
        ranked.append(
            RankedMeasure(
                name=name,
                tau=kendall_tau(values, test_error),
                tau_interval=bootstrap_tau(values, test_error, seed),
                tau_normalized_test_loss=kendall_tau(values, normalized_test_loss),
                psi=psi,
                mean_psi=mean_psi(psi),
                psi_interval=bootstrap_mean_psi(values, test_error, factors, seed),
                sign_errors=sign_errors(values, test_error, factors, num_test=num_test),
            )
        )
    return sorted(ranked, key=lambda row: math.inf if math.isnan(row.tau) else -row.tau)


def kendall_tau(measure: Sequence[float], error: Sequence[float]) -> float:
    """Kendall's tau-b, which corrects for ties; infinite values are ranked like others.

    Returns:
      A number in [-1, 1]; NaN if all values of one of the two are the same, or any is NaN.
    """
    x, y = _vectors(measure, error)
    return float(_tau(_signs(x), _signs(y), np.ones((1, x.size)))[0])


def bootstrap_tau(
    measure: Sequence[float], error: Sequence[float], seed: int = 0
) -> tuple[float, float]:
    """95% percentile bootstrap interval of Kendall's tau-b: whole networks are resampled.

    Resamples in which all values of one of the two are the same are left out.

    Returns:
      (low, high); NaN where tau is.
    """
    x, y = _vectors(measure, error)
    return _interval(_tau(_signs(x), _signs(y), _resamples(x.size, seed)))


def granulated_tau(
    measure: Sequence[float], error: Sequence[float], factors: Mapping[str, Sequence]
) -> dict[str, float]:
    """Kendall's tau-b for each factor, averaged over the groups in which only that factor varies.

    This is psi of Jiang et al. 2020 ("Fantastic Generalization Measures and Where to Find Them"),
    with tau-b in the place of tau: a measure that follows one factor only, by whatever accident,
    has a high tau over all networks but not in every factor. Groups without two networks that
    differ in both numbers count as nothing.

    Args:
      measure, error: n numbers.
      factors: {name: n values}, all that the networks differ in by intention.

    Returns:
      {name: psi}; NaN for a factor without a group.
    """
    x, y = _vectors(measure, error)
    counts = np.ones((1, x.size))
    return {name: float(psi[0]) for name, psi in _granulated(x, y, factors, counts).items()}


def bootstrap_mean_psi(
    measure: Sequence[float],
    error: Sequence[float],
    factors: Mapping[str, Sequence],
    seed: int = 0,
) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean psi over factors (see `mean_psi`)."""
    x, y = _vectors(measure, error)
    psi = _granulated(x, y, factors, _resamples(x.size, seed))
    return _interval(_mean_of_known(list(psi.values()))) if psi else (math.nan, math.nan)


def mean_psi(psi: Mapping[str, float]) -> float:
    """Psi of Jiang et al. 2020: the mean over the factors that have one; NaN if none has."""
    known = [value for value in psi.values() if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def hoeffding_weight(difference: np.ndarray, num_test: int) -> np.ndarray:
    """How far a difference of two test errors is beyond the noise of a test set, in [0, 1/2].

    By Hoeffding's inequality each error is within d / 2 of its expectation with probability at
    least p = 1 - 2 exp(-2 num_test (d / 2)^2), both are with p^2, and then the sign of the
    difference d is right. The weight is p^2 - 1/2, or 0 if that is negative: Dziugaite et al. 2020,
    "In Search of Robust Measures of Generalization".

    Args:
      difference: of errors as fractions, any shape; the sign does not matter.
      num_test: test examples behind each error.
    """
    p = 1 - 2 * np.exp(-num_test * np.asarray(difference, np.float64) ** 2 / 2)
    return np.maximum(np.maximum(p, 0) ** 2 - 0.5, 0)


def sign_errors(
    measure: Sequence[float],
    error: Sequence[float],
    factors: Mapping[str, Sequence],
    *,
    num_test: int,
    repeat: str = "seed",
) -> SignErrors:
    """Sign errors in the manner of Dziugaite et al. 2020; the worst is their robust sign error.

    In an environment each network at one value of the factor is paired with each at the other
    value, whatever their seeds. A pair counts 0 if measure and error differ in the same direction,
    1 if in opposite ones, and 1/2 if the measure ties; the environment's is the mean weighted by
    `hoeffding_weight`. Environments of no weight are left out. Unlike there, what is ordered is the
    test error and not the gap (training errors are near zero), and no least number of pairs is
    asked for: a few seeds are all there are, which makes the worst case coarse.

    Args:
      measure, error: n numbers; errors are fractions of `num_test` test examples.
      factors: {name: n values}, all that the networks differ in.
      num_test: number of test examples.
      repeat: the factor that is mere repetition and makes no environments.
    """
    x, y = _vectors(measure, error)
    weights = hoeffding_weight(y[:, None] - y, num_test)
    wrong = (1 - _signs(x) * _signs(y)) / 2
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
                if weights[pairs].sum() > 0 and not np.isnan(wrong[pairs]).any():
                    loss = np.average(wrong[pairs], weights=weights[pairs])
                    found.append((float(loss), _environment(name, low, high, others, fixed)))
    if not found:
        return SignErrors(math.nan, math.nan, 0, "")
    worst, environment = max(found, key=lambda item: item[0])
    return SignErrors(worst, float(np.mean([loss for loss, _ in found])), len(found), environment)


def _environment(name, low, high, others, fixed) -> str:
    """An environment in words."""
    rest = [f"{key} {value}" for key, value in zip(others, fixed, strict=True)]
    return ", ".join([f"{name} {low} or {high}", *rest])


def _vectors(measure: Sequence[float], error: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 vectors of one length."""
    x, y = np.asarray(measure, np.float64), np.asarray(error, np.float64)
    if x.ndim != 1 or x.shape != y.shape or x.size < MIN_NETWORKS:
        raise ValueError(
            f"measure and error must be vectors of one length, at least {MIN_NETWORKS}, not of "
            f"shapes {x.shape} and {y.shape}"
        )
    return x, y


def _signs(x: np.ndarray) -> np.ndarray:
    """Signs of all differences [n, n]; 0 between infinities of one sign, NaN where x is NaN."""
    greater = (x[:, None] > x).astype(np.float64)
    return np.where(np.isnan(x[:, None]) | np.isnan(x), np.nan, greater - greater.T)


def _resamples(n: int, seed: int) -> np.ndarray:
    """How often each of n networks is in each resample, float64 [NUM_RESAMPLES, n]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), NUM_RESAMPLES).astype(np.float64)


def _tau(sx: np.ndarray, sy: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Tau-b [B] of samples in which network i stands counts[b, i] times; NaN without spread."""

    def pairs(signs):
        return np.einsum("bi,ij,bj->b", counts, signs, counts, optimize=True)

    spread = np.sqrt(pairs(sx**2) * pairs(sy**2))
    return np.divide(pairs(sx * sy), spread, out=np.full_like(spread, np.nan), where=spread > 0)


def _granulated(x, y, factors: Mapping[str, Sequence], counts: np.ndarray) -> dict[str, np.ndarray]:
    """Psi [B] of each factor, for samples with these counts."""
    psi = {}
    for name, values in factors.items():
        labels = np.asarray(values)
        differs = labels[:, None] != labels  # two networks of one value say nothing of the factor
        sx, sy = _signs(x) * differs, _signs(y) * differs
        others = [key for key in factors if key != name]
        taus = [
            _tau(sx[np.ix_(g, g)], sy[np.ix_(g, g)], counts[:, g])
            for g in _groups(factors, others).values()
        ]
        psi[name] = _mean_of_known(taus)
    return psi


def _groups(factors: Mapping[str, Sequence], names: Sequence[str]) -> dict[tuple, list[int]]:
    """Positions of the networks that agree in these factors."""
    groups: dict[tuple, list[int]] = {}
    num_networks = len(next(iter(factors.values())))
    for i in range(num_networks):
        groups.setdefault(tuple(factors[name][i] for name in names), []).append(i)
    return groups


def _mean_of_known(values: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over the first axis of what is not NaN; NaN where nothing is known."""
    stacked = np.stack(values)
    known = ~np.isnan(stacked)
    count = known.sum(0)
    total = np.where(known, stacked, 0).sum(0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _interval(draws: np.ndarray) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles of what is known."""
    known = draws[~np.isnan(draws)]
    if not known.size:
        return math.nan, math.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
