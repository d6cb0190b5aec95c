"""How many seeds per level, and how many levels, would decide an undecided line."""

import dataclasses
import math

from scipy import special

from normjax.controls.thresholds import POWER, SMALLEST_EFFECT, STRATUM, max_p_value
from normjax.statistics.resampling import log_num_orders

MIN_WITHIN = 4  # networks minus strata: two degrees of freedom remain for a correlation
_MAX_POWERS = 3
_MAX_LEVELS = 60
_MIN_ORDERS = 20  # orders that may reach the observed one; fewer lose power compared to z


@dataclasses.dataclass(frozen=True)
class Power:
    """What more seeds would decide. Numbers are for levels of equal size, by Fisher's z.

    Attributes:
      smallest_effect: the smallest correlation of interest.
      seeds_for_smallest: seeds per level that show it if it is real, and exclude it if the true
        correlation is 0, each in 80% of draws.
      seeds_for_observed: seeds per level that show the observed correlation in 80% of draws; None
        if it is not positive.
    """

    smallest_effect: float
    seeds_for_smallest: int
    seeds_for_observed: int | None


def strata_sizes(num_networks: int) -> list[int]:
    """Return the numbers of networks in the strata of a level, which differ by at most one."""
    num_strata = max(num_networks // STRATUM, 1)
    return [(num_networks + place) // num_strata for place in range(num_strata)]


def degrees_of(num_within: int) -> tuple[int, int]:
    """Return how many powers of the log norm to control for, and the degrees of freedom left.

    There is at most one power per three degrees of freedom: with few networks, noise hides a
    curvature that many networks would reveal as spurious content.

    Args:
      num_within: networks minus strata, at least `MIN_WITHIN`.
    """
    num_powers = min(max((num_within - 1) // 3, 1), _MAX_POWERS)
    return num_powers, num_within - 1 - num_powers


def power_of(correlation: float, num_levels: int) -> Power:
    """Return the power of the test of content.

    Args:
      correlation: the observed correlation within levels.
      num_levels: number of levels.
    """
    error = max_p_value(num_levels)
    return Power(
        smallest_effect=SMALLEST_EFFECT,
        seeds_for_smallest=seeds_for_smallest(num_levels),
        seeds_for_observed=seeds_for(correlation, num_levels, error) if correlation > 0 else None,
    )


def seeds_for_smallest(num_levels: int) -> int:
    """Return the seeds per level that show the smallest effect of interest or exclude it.

    To exclude it, the 95% interval of a correlation of 0 must end below it.
    """
    return seeds_for(SMALLEST_EFFECT, num_levels, 0.025)


def levels_for_skill(skill: float, low: float, num_levels: int) -> int | None:
    """Return how many levels in all put the interval of the same skill above zero with `POWER`.

    The standard error of the logarithm of the ratio of errors (`divisor.Divisor`) is taken from the
    interval, and falls with the square root of the number of levels.

    Args:
      skill: the observed skill, below 1.
      low: the lower end of its 95% interval, at most 0.
      num_levels: the number of levels that were left out in turn, at least 4.

    Returns:
      The number; None if the skill is not positive or more than 60 are needed.
    """
    if skill <= 0:
        return None
    log_ratio = -math.log1p(-skill)
    quantile = special.stdtrit(num_levels - 3, 0.975)
    error = (log_ratio + math.log1p(-low)) / quantile * math.sqrt(num_levels)
    for levels in range(num_levels, _MAX_LEVELS + 1):
        quantiles = special.stdtrit(levels - 3, 0.975) + special.stdtrit(levels - 3, POWER)
        if log_ratio >= quantiles * error / math.sqrt(levels):
            return levels
    return None


def seeds_for(correlation: float, num_levels: int, error: float) -> int:
    """Return the seeds per level that detect a correlation with power `POWER`, by Fisher's z.

    Args:
      correlation: the true correlation, in (0, 1].
      num_levels: number of levels.
      error: one-sided probability of a false positive when the correlation is 0.
    """
    z = math.atanh(min(correlation, 1 - 1e-12))
    needed = ((special.ndtri(1 - error) + special.ndtri(POWER)) / z) ** 2 + 1
    num_within = MIN_WITHIN
    if needed > 2:
        num_within = math.ceil(needed) + 2
        while degrees_of(num_within)[1] < needed:
            num_within += 1
    within = math.ceil(num_within / num_levels)
    seeds = within + max((within - 1) // (STRATUM - 1), 1)  # of which the strata leave `within`
    # Only with few seeds can there be too few orders.
    while seeds < 100 and log_num_orders(strata_sizes(seeds) * num_levels) < math.log(
        _MIN_ORDERS / error
    ):
        seeds += 1
    return seeds
