"""Orders of networks within their levels, and bootstrap draws of levels.

Networks of one level are not independent, and levels are ordered. Permutations therefore exchange
networks of one level only, which is exact for any dependence on the level. The bootstrap draws
whole levels.
"""

import itertools
import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from normjax.statistics.intervals import members_of, units_of

MIN_UNITS = 6  # with fewer units a bootstrap has too few different draws


def orders_within(
    levels: Sequence[Hashable], num_draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, bool]:
    """Return orders that exchange networks of one level, int [B, n], and whether these are all.

    Args:
      levels: n labels.
      num_draws: number of random orders; all are enumerated if no more exist.
      rng: the generator.
    """
    members = list(members_of(levels).values())
    places = list(itertools.chain(*members))
    if log_num_orders(map(len, members)) <= math.log(num_draws) + 1e-9:
        parts = [list(itertools.permutations(own)) for own in members]
        every = [list(itertools.chain(*parts)) for parts in itertools.product(*parts)]
        orders = np.empty((len(every), len(places)), int)
        orders[:, places] = every
        return orders, True
    orders = np.empty((num_draws, len(places)), int)
    for size in {len(own) for own in members}:
        blocks = np.array([own for own in members if len(own) == size])
        drawn = rng.permuted(np.tile(blocks, (num_draws, 1, 1)), axis=2)
        orders[:, blocks.ravel()] = drawn.reshape(num_draws, -1)
    return orders, False


def p_value_of(num_reaching: int, num_orders: int, is_exact: bool) -> float:
    """Return the p value of a permutation test; random orders do not contain the observed one."""
    return num_reaching / num_orders if is_exact else (num_reaching + 1) / (num_orders + 1)


def log_num_orders(sizes: Iterable[int]) -> float:
    """Return the logarithm of the number of orders within levels of these sizes."""
    return sum(math.lgamma(size + 1) for size in sizes)


def resample_counts(
    levels: Sequence[Hashable], num_draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """Return how often each network is drawn, float [num_draws, n], and the unit of the draws.

    The unit is that of `intervals.units_of`.

    Raises:
      ValueError: there are fewer than 6 units, too few for an interval.
    """
    units, unit = units_of(levels)
    num_units = int(units.max()) + 1
    if num_units < MIN_UNITS:
        raise ValueError(f"{num_units} {unit}; an interval needs at least {MIN_UNITS}")
    drawn = rng.multinomial(num_units, np.full(num_units, 1 / num_units), num_draws)
    return drawn[:, units].astype(float), unit
