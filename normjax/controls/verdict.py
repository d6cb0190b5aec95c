"""The verdict on a line: artifact of the shared divisor, supported or undecided."""

import dataclasses

from normjax.controls.margins import MarginPrediction
from normjax.controls.shuffles import MarginShuffle
from normjax.formatting import percent

ARTIFACT = "artifact of the shared divisor"
SUPPORTED = "supported"
UNDECIDED = "undecided"

MIN_NETWORKS = 8
MAX_P_VALUE = 0.05
MIN_SKILL = 0.25


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A threshold of the verdict, and the reason for its value."""

    value: float
    reason: str


THRESHOLDS = {
    "MIN_NETWORKS": Threshold(
        float(MIN_NETWORKS),
        "with fewer networks with true labels there is no verdict: a leave-one-out line has two "
        "parameters for six points or fewer",
    ),
    "MAX_P_VALUE": Threshold(
        MAX_P_VALUE,
        "at most this fraction of shuffled margins may fit as well as the real ones; this bounds "
        "how often unrelated margins are reported as a finding",
    ),
    "MIN_SKILL": Threshold(
        MIN_SKILL,
        "the training loss must reduce the squared error of the norm alone on left-out test "
        "margins by this fraction; margins that depend on the norm, but not on each other, pass "
        "the shuffle but rarely this",
    ),
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A verdict and the numbers behind it, as a sentence."""

    verdict: str
    because: str


def judge(
    num_networks: int, shuffle: MarginShuffle | None, prediction: MarginPrediction | None
) -> Verdict:
    """Choose one of the three verdicts by `THRESHOLDS`.

    Supported: the real margins fit better than margins shuffled among the networks, and the
    training loss predicts left-out networks better than their norms alone. Artifact: neither.
    Undecided: only one of the two, or too few networks. R2 is not used: a shared divisor can give
    any R2 up to 1 if the norms differ enough.

    Args:
      num_networks: number of networks trained and evaluated on true labels. Networks with random
        labels do not count: their test margins are near zero regardless of what they learned.
      shuffle: the shuffle of their margins, or None.
      prediction: the prediction of their test margins, or None.
    """
    if num_networks < MIN_NETWORKS:
        return Verdict(
            UNDECIDED, f"{num_networks} networks with true labels; {MIN_NETWORKS} are needed"
        )
    if shuffle is None or prediction is None or prediction.skill is None:
        return Verdict(UNDECIDED, "the margins have no spread, or the controls are undefined")
    is_related = shuffle.p_value <= MAX_P_VALUE
    has_skill = prediction.skill >= MIN_SKILL
    shuffled = (
        f"{percent(shuffle.p_value)} of shuffled margins fit as well as the real ones "
        f"({'at most' if is_related else 'more than'} {percent(MAX_P_VALUE)})"
    )
    skill = (
        f"the training loss reduces the squared error of the norms alone on left-out "
        f"{prediction.left_out} by {percent(prediction.skill)} "
        f"({'at least' if has_skill else 'less than'} {percent(MIN_SKILL)})"
    )
    if prediction.skill < 0:
        skill = (
            f"on left-out {prediction.left_out}, the training loss predicts the test margins worse "
            "than the norms alone"
        )
    if is_related == has_skill:
        return Verdict(SUPPORTED if is_related else ARTIFACT, f"{shuffled}, and {skill}")
    return Verdict(UNDECIDED, f"{shuffled}, but {skill}")
