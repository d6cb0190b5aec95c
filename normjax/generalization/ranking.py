"""How well measures of generalization rank networks by test error.

The criteria: rank correlation over all networks (Kendall's tau), rank correlation where only one
factor changes and information beyond the hyperparameters (Jiang et al., ICLR 2020), the error rate
in the worst comparison (Dziugaite et al., NeurIPS 2020), and whether a measure is worse than the
best one.
"""

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from normjax.generalization.conditional_information import Information, conditional_information
from normjax.generalization.factors import Factors, check_factors, hyperparameters
from normjax.generalization.granulated import granulated_tau, mean_psi, mean_psi_interval
from normjax.generalization.paired_differences import Difference, differences_to_best
from normjax.generalization.sign_errors import NO_SIGN_ERRORS, SignErrors, sign_errors
from normjax.statistics.rank_correlation import (
    RankCorrelation,
    kendall_of_counts,
    rank_correlation,
    ranks,
)

MIN_NETWORKS = 3


@dataclasses.dataclass(frozen=True)
class RankedMeasure:
    """How well one measure ranks the networks; undefined numbers are NaN.

    Attributes:
      name: name of the measure.
      correlation: rank correlation with the test error, or None.
      adjusted_p_value: p value of the correlation, adjusted by Holm's method for all measures; NaN
        without a correlation.
      difference: tau of the best measure minus this one's, or None without a correlation.
      tied_with: names of the measures that order the networks identically.
      tau_normalized_test_loss: Kendall's tau-b with the normalized test loss. It is high by
        construction for measures that contain the product of norms, the divisor of this loss.
      psi: {factor: granulated tau}.
      mean_psi: mean over the hyperparameters that have a granulated tau.
      psi_interval: 95% jackknife interval of `mean_psi` over levels, or None.
      information: the information about the order of errors, given hyperparameters, or None.
      sign_errors: sign errors with respect to the test error.
      reason: why `correlation` is None, or "".
    """

    name: str
    correlation: RankCorrelation | None
    adjusted_p_value: float
    difference: Difference | None
    tied_with: tuple[str, ...]
    tau_normalized_test_loss: float
    psi: dict[str, float]
    mean_psi: float
    psi_interval: tuple[float, float] | None
    information: Information | None
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
    factors: Factors,
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
    values = {name: np.asarray(given, np.float64) for name, given in measures.items()}
    error, loss = (np.asarray(given, np.float64) for given in (test_error, normalized_test_loss))
    for own in values.values():
        if own.ndim != 1 or own.shape != error.shape or own.size < MIN_NETWORKS:
            raise ValueError(
                f"measure and error must be vectors of one length, at least {MIN_NETWORKS}, not of "
                f"shapes {own.shape} and {error.shape}"
            )
    correlations: dict[str, RankCorrelation] = {}
    reasons = {}
    for name, own in values.items():
        try:
            if missing := int(np.isnan(own).sum()):
                raise ValueError(f"it has no value for {missing} of {own.size} networks")
            correlations[name] = rank_correlation(own, error, levels, seed=seed)
        except ValueError as failure:
            reasons[name] = str(failure)
    unranked = [_unranked(name, factors, reason) for name, reason in reasons.items()]
    if not correlations:
        return unranked
    ordered = sorted(correlations, key=lambda name: -correlations[name].kendall)
    known = [values[name] for name in ordered]
    adjusted = holm([correlations[name].p_value for name in ordered])
    differences = differences_to_best(known, error, levels, seed=seed)
    orders = [tuple(ranks(own)) for own in known]
    rows = []
    for place, name in enumerate(ordered):
        correlation, own = correlations[name], known[place]
        psi = granulated_tau(own, error, factors)
        try:
            psi_interval = mean_psi_interval(own, error, factors, levels)
        except ValueError:
            psi_interval = None
        same = [other for other, x in zip(ordered, orders, strict=True) if x == orders[place]]
        rows.append(
            RankedMeasure(
                name=name,
                correlation=correlation,
                adjusted_p_value=adjusted[place],
                difference=differences[place],
                tied_with=tuple(other for other in same if other != name),
                tau_normalized_test_loss=_tau(own, loss),
                psi=psi,
                mean_psi=mean_psi(psi),
                psi_interval=psi_interval,
                information=conditional_information(
                    own, error, hyperparameters(factors), levels, seed=seed
                ),
                sign_errors=sign_errors(own, error, factors, num_test=num_test),
                reason="",
            )
        )
    return rows + unranked


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values, adjusted for all of them by Holm's method; NaN stays NaN."""
    given = np.asarray(p_values, np.float64)
    order = np.argsort(given, kind="stable")[: np.sum(~np.isnan(given))]
    multiples = (len(order) - np.arange(len(order))) * given[order]
    adjusted = np.full(given.shape, math.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(multiples), 1)
    return adjusted.tolist()


def _unranked(name: str, factors: Factors, reason: str) -> RankedMeasure:
    """Return the row of a measure without a correlation."""
    return RankedMeasure(
        name=name,
        correlation=None,
        adjusted_p_value=math.nan,
        difference=None,
        tied_with=(),
        tau_normalized_test_loss=math.nan,
        psi=dict.fromkeys(factors, math.nan),
        mean_psi=math.nan,
        psi_interval=None,
        information=None,
        sign_errors=NO_SIGN_ERRORS,
        reason=reason,
    )


def _tau(x: np.ndarray, y: np.ndarray) -> float:
    return float(kendall_of_counts(ranks(x), ranks(y), np.ones((1, x.size)))[0])
