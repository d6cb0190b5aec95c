"""How much a measure says about the order of errors beyond what the hyperparameters say.

Jiang et al. 2020 and the competition "Predicting Generalization in Deep Learning" (NeurIPS 2020).
"""

import dataclasses
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from normjax.statistics.resampling import orders_within, p_value_of

NUM_DRAWS = 1000
MOST_CONDITIONS = 2


@dataclasses.dataclass(frozen=True)
class Information:
    """The conditional mutual information of a measure and the error.

    Attributes:
      value: between 0 (nothing) and 1 (the order is known); NaN if all errors are equal. It has no
        sign: a measure that always orders wrongly also has 1.
      given: the hyperparameters that leave the least information.
      chance: mean information of the measure over orders of the networks within each level. It is
        above 0, because a few pairs always seem to say something.
      p_value: fraction of these orders, counting the observed one, that reach the value. Like
        `chance`, it is NaN if each network has its own level, because there is only one order.
    """

    value: float
    given: tuple[str, ...]
    chance: float
    p_value: float


def conditional_information(
    measure: ArrayLike,
    error: ArrayLike,
    hyperparameters: Mapping[str, Sequence[str]],
    levels: Sequence[Hashable],
    *,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> Information:
    """Return the information about the order of errors, given hyperparameters.

    For a random ordered pair of different networks, V says whether the measure of the first is
    larger, and W whether its error is. With the values U of a set of hyperparameters in both
    networks, the information is I(V; W | U) / H(W | U). The result is its minimum over all sets of
    at most two hyperparameters, including the empty set. Sets that determine W are ignored.

    The competition's program has sets of exactly two, weights all values of U alike, and counts
    pairs of a network with itself.

    Args:
      measure: n numbers without NaN.
      error: n numbers.
      hyperparameters: {name: n values}, without repetitions such as the seed.
      levels: n labels; networks of one level have the same hyperparameters.
      num_draws: number of random orders; all are enumerated if no more exist.
      seed: seed of these orders.
    """
    x, y = np.asarray(measure, np.float64), np.asarray(error, np.float64)
    first, second = np.nonzero(~np.eye(len(x), dtype=bool))
    larger_error = y[first] > y[second]
    cells = {
        names: _cells([hyperparameters[name] for name in names], first, second)
        for size in range(MOST_CONDITIONS + 1)
        for names in itertools.combinations(hyperparameters, size)
    }

    def least(values: np.ndarray) -> tuple[float, tuple[str, ...]]:
        larger = values[first] > values[second]
        found = [(_normalized(larger, larger_error, own), names) for names, own in cells.items()]
        known = [item for item in found if not math.isnan(item[0])]
        return min(known, key=lambda item: item[0], default=(math.nan, ()))

    value, given = least(x)
    if math.isnan(value) or len(set(levels)) == len(x):
        return Information(value, given, math.nan, math.nan)
    orders, is_exact = orders_within(levels, num_draws, np.random.default_rng(seed))
    drawn = np.array([least(x[order])[0] for order in orders])
    num_reaching = int(np.sum(drawn >= value - 1e-12))
    p_value = p_value_of(num_reaching, len(orders), is_exact)
    return Information(value, given, float(drawn.mean()), p_value)


def _cells(columns: Sequence[Sequence[str]], first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Number the values of some hyperparameters in both networks of each pair."""
    cell = np.zeros(len(first), int)
    for column in columns:
        codes = np.unique(column, return_inverse=True)[1]
        for codes_of_pairs in (codes[first], codes[second]):
            cell = np.unique(cell * (codes.max() + 1) + codes_of_pairs, return_inverse=True)[1]
    return cell


def _normalized(v: np.ndarray, w: np.ndarray, cell: np.ndarray) -> float:
    """Return I(V; W | U) / H(W | U) of pairs with U = cell, or NaN if U determines W."""
    counts = np.bincount(4 * cell + 2 * v + w, minlength=4 * (cell.max() + 1))
    joint = counts.reshape(-1, 2, 2) / len(cell)
    entropy_w = _entropy(joint.sum(axis=1)) - _entropy(joint.sum(axis=(1, 2)))
    if entropy_w < 1e-12:
        return math.nan
    entropy_v = _entropy(joint.sum(axis=2)) - _entropy(joint.sum(axis=(1, 2)))
    entropy_both = _entropy(joint) - _entropy(joint.sum(axis=(1, 2)))
    return max(0.0, (entropy_v + entropy_w - entropy_both) / entropy_w)


def _entropy(p: np.ndarray) -> float:
    """Return the entropy of a distribution, in nats."""
    p = p[p > 0]
    return float(-np.sum(p * np.log(p)))
