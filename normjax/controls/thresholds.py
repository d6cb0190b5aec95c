"""The thresholds of the verdict, each with its reason."""

import dataclasses

MIN_LEVELS = 4
STRATUM = 4
MAX_P_VALUE = 0.05
MAX_P_VALUE_ALONE = 0.025
SMALLEST_EFFECT = 0.5
POWER = 0.8


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A threshold of the verdict, and the reason for its value."""

    value: float
    reason: str


THRESHOLDS = {
    "MAX_P_VALUE": Threshold(
        MAX_P_VALUE,
        "largest p value of the content, if the skill on left-out levels is a second hurdle",
    ),
    "MAX_P_VALUE_ALONE": Threshold(
        MAX_P_VALUE_ALONE,
        "the same for networks of a single level, where the content decides alone: p is one-sided, "
        "and this is 5% of both sides",
    ),
    "SMALLEST_EFFECT": Threshold(
        SMALLEST_EFFECT,
        "smallest correlation within levels of interest: training margins explain a quarter of the "
        "variance of test margins. Only if it is excluded is the shared divisor blamed",
    ),
    "POWER": Threshold(
        POWER, "fraction of draws in which the stated number of seeds per level would decide"
    ),
    "MIN_LEVELS": Threshold(
        float(MIN_LEVELS),
        "levels needed to leave levels out: the curves in the norms have three coefficients",
    ),
    "STRATUM": Threshold(
        float(STRATUM),
        "smallest number of networks of one level and similar norm that are compared with each "
        "other: a level of twice as many is divided by the norm, because a polynomial does not "
        "follow every curve",
    ),
}


def max_p_value(num_levels: int) -> float:
    """Return the largest p value that counts as content."""
    return MAX_P_VALUE_ALONE if num_levels == 1 else MAX_P_VALUE
