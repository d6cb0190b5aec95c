"""How often a measure orders two networks wrongly, in the worst of many comparisons."""

import dataclasses
import itertools
import math

import numpy as np
from numpy.typing import ArrayLike

from normjax.generalization.factors import REPEAT, Factors, groups_of, hyperparameters
from normjax.statistics.rank_correlation import ranks


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


NO_SIGN_ERRORS = SignErrors(math.nan, math.nan, 0, "")


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
    factors: Factors,
    *,
    num_test: int,
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
      factors: {name: n values}, the design factors; repetitions define no environments.
      num_test: number of test examples.
    """
    x, y = ranks(measure), ranks(error)
    weights = hoeffding_weight(np.subtract.outer(error, error), num_test)
    wrong = (1 - np.sign(np.subtract.outer(x, x) * np.subtract.outer(y, y))) / 2
    found = []
    for name in hyperparameters(factors):
        others = [key for key in factors if key not in (name, REPEAT)]
        for fixed, members in groups_of(factors, others).items():
            values = [factors[name][i] for i in members]
            for low, high in itertools.combinations(sorted(set(values)), 2):
                rows = [i for i, value in zip(members, values, strict=True) if value == low]
                columns = [i for i, value in zip(members, values, strict=True) if value == high]
                pairs = np.ix_(rows, columns)
                if weights[pairs].sum() > 0:
                    mean = np.average(wrong[pairs], weights=weights[pairs])
                    found.append((float(mean), _environment(name, low, high, others, fixed)))
    if not found:
        return NO_SIGN_ERRORS
    worst, environment = max(found, key=lambda item: item[0])
    return SignErrors(worst, float(np.mean([mean for mean, _ in found])), len(found), environment)


def _environment(name, low, high, others, fixed) -> str:
    """Describe an environment."""
    rest = [f"{key} {value}" for key, value in zip(others, fixed, strict=True)]
    return ", ".join([f"{name} {low} or {high}", *rest])
