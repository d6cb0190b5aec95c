"""The verdict on a line: artifact of the shared divisor, supported or undecided.

It follows from two of three questions (docs/is_it_real.md). The first, how well the normalized
training loss predicts what was left out, is reported and decides nothing: a shared divisor alone
can make the prediction perfect.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from normjax.controls.content import Content
from normjax.controls.divisor import MIN_NETWORKS, Divisor
from normjax.controls.power import MIN_WITHIN, levels_for_skill, seeds_for_smallest
from normjax.controls.thresholds import MIN_LEVELS, POWER, SMALLEST_EFFECT, max_p_value
from normjax.formatting import fixed, number, percent

ARTIFACT = "artifact of the shared divisor"
SUPPORTED = "supported"
UNDECIDED = "undecided"
_NO_HELP = "more networks like these do not help"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A verdict.

    Attributes:
      verdict: one of the three.
      because: the numbers behind it, as a sentence.
      missing: what would decide an undecided line, as a sentence; else "".
    """

    verdict: str
    because: str
    missing: str


def judge(
    content: Content | None,
    divisor: Divisor | None,
    sizes: Sequence[int],
    reasons: Mapping[str, str],
) -> Verdict:
    """Choose one of the three verdicts by `thresholds.THRESHOLDS`.

    Supported: training and test margins go together within levels, and on left-out levels the line
    predicts better than the best curve in the norms. Artifact: they do not, an effect of interest
    is excluded, and that curve predicts at least as well as the line. Undecided: everything else,
    including a relation of the wrong sign within levels. With one level, the content decides alone.
    R2 is not used: a shared divisor can give any R2.

    Args:
      content: the content of the networks with true labels, or None.
      divisor: the predictions of their left-out test margins, or None.
      sizes: number of these networks of each level. Networks with random labels do not count: their
        test margins are near zero regardless of what they learned.
      reasons: {"content" or "divisor": why it is None}.
    """
    is_alone = len(sizes) == 1
    because, missing = [], []
    is_found = is_excluded = is_reversed = False
    if content is None:
        because.append(
            f"whether margins go together at equal level is unknown ({reasons['content']})"
        )
        has_few = sum(sizes) - len(sizes) < MIN_WITHIN
        missing.append(_more_seeds(sizes) if has_few else f"other margins: {_NO_HELP}")
    else:
        limit = max_p_value(len(sizes))
        is_found = content.p_value <= limit
        is_reversed = content.interval[1] < 0
        is_excluded = content.interval[1] < SMALLEST_EFFECT and not is_reversed
        because.append(
            "at equal level and norm, training and test margins have a correlation of "
            f"{_estimate(content)}; {reached(content)} (p = {number(content.p_value, 2)}, "
            f"{'at most' if is_found else 'more than'} {number(limit)}"
            f"{'' if is_found else _least_p_value(content, limit)})"
        )
        if is_reversed:
            missing.append(
                "a reason why test margins fall as training margins rise within levels: the "
                "relation is reversed"
            )
        elif not is_found and not is_excluded:
            missing.append(_more_seeds(sizes, content.power.seeds_for_observed))
    is_better, is_worse = is_alone, is_alone
    if not is_alone and divisor is None:
        because.append(f"what the norms alone predict is unknown ({reasons['divisor']})")
        missing.append(_more_levels(sizes))
    elif not is_alone and divisor is not None:
        is_better, is_worse = divisor.interval[0] > 0, divisor.skill <= 0
        because.append(
            f"on left-out {divisor.left_out}, the skill of the line against the best curve in the "
            f"norms ({divisor.rival}) is {_skill(divisor)}"
        )
        if not is_better and not is_found and not is_excluded and not is_reversed:
            missing.append("for support, a skill above zero as well")
        elif is_found and is_worse:
            missing.append(
                "a better skill: the norms alone predict left-out levels as well as the line does"
            )
        elif not is_better and not is_worse and (is_found or is_excluded):
            missing.append(_levels_for_a_sign(divisor, len(sizes)))
        elif is_better and is_excluded and not is_found:
            missing.append(
                "levels that differ in nothing but their margins: the skill is there, but not "
                "among networks of one level"
            )
    verdict = UNDECIDED
    if is_found and is_better:
        verdict = SUPPORTED
    elif content is not None and not is_found and is_excluded and is_worse:
        verdict = ARTIFACT
    return Verdict(verdict, "; ".join(because), "; ".join(missing) if verdict == UNDECIDED else "")


def reached(content: Content) -> str:
    """Describe how many orders within levels reach the observed correlation."""
    count = number(content.num_reaching) if content.num_reaching else "none"
    orders = number(content.num_orders)
    if content.is_exact:
        return f"{count} of all {orders} orders within levels, the real one among them, reach it"
    return f"{count} of {orders} random orders within levels reach it"


def _estimate(content: Content) -> str:
    low, high = content.interval
    return f"{fixed(content.correlation)} (95%: {fixed(low)} to {fixed(high)})"


def _skill(divisor: Divisor) -> str:
    low, high = divisor.interval
    return f"{fixed(divisor.skill)} (95%: {fixed(low)} to {fixed(high)})"


def _least_p_value(content: Content, limit: float) -> str:
    """Say so if there are too few orders to find any correlation."""
    least = 1 / content.num_orders
    return f"; no p is below {number(least, 2)}" if content.is_exact and least > limit else ""


def _levels_for_a_sign(divisor: Divisor, num_levels: int) -> str:
    """Describe how many levels would settle the sign of a positive skill."""
    needed = levels_for_skill(divisor.skill, divisor.interval[0], num_levels)
    if needed is None:
        return "more levels or seeds, for a skill whose sign is known"
    return (
        f"{needed - num_levels} more levels like these ({needed} in all), which show a skill as "
        f"large as this in {percent(POWER)} of draws, or more seeds"
    )


def _more_levels(sizes: Sequence[int]) -> str:
    """Describe what the prediction of left-out levels lacks."""
    if len(sizes) < MIN_LEVELS:
        return f"at least {MIN_LEVELS} levels, or a single one"
    if sum(sizes) < MIN_NETWORKS:
        return f"at least {MIN_NETWORKS} networks"
    return f"other margins or norms: {_NO_HELP}"


def _more_seeds(sizes: Sequence[int], for_observed: int | None = None) -> str:
    """Describe how many seeds are missing; `for_observed` show the observed correlation."""
    if not sizes:
        return "networks with true labels"
    needed, present = seeds_for_smallest(len(sizes)), min(sizes)
    if needed <= present:
        return "more seeds: the correlation can be neither shown nor called small"
    level = "" if len(sizes) == 1 else " per level"
    observed = ""
    if for_observed is not None and present < for_observed < needed:
        observed = f"; {for_observed} in all show the observed one"
    return (
        f"{needed - present} more seeds{level} ({needed} in all), which show a correlation of "
        f"{number(SMALLEST_EFFECT)} or exclude it in {percent(POWER)} of draws{observed}"
    )
