"""The verdict on a line: artifact of the shared divisor, supported or undecided; and why."""

import dataclasses

from normjax.controls.margins import MarginPrediction
from normjax.controls.shuffles import MarginShuffle

ARTIFACT = "artifact of the shared divisor"
SUPPORTED = "supported"
UNDECIDED = "undecided"

MIN_NETWORKS = 8
MAX_P_VALUE = 0.05
MIN_SKILL = 0.25


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A number that the verdict rests on, and why it is this one."""

    value: float
    reason: str


THRESHOLDS = {
    "MIN_NETWORKS": Threshold(
        float(MIN_NETWORKS),
        "fewer networks with true labels decide nothing: a line with one left out has two "
        "parameters for six points or fewer",
    ),
    "MAX_P_VALUE": Threshold(
        MAX_P_VALUE,
        "at most this fraction of shuffled margins may do as well as the real ones; it bounds how "
        "often unrelated margins pass for a finding",
    ),
    "MIN_SKILL": Threshold(
        MIN_SKILL,
        "of the squared error that the norm alone makes on test margins left out, the training "
        "loss must save this fraction; margins that follow the norm, and not each other, pass the "
        "shuffle but rarely this",
    ),
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A verdict and the sentence that says which numbers decided it."""

    verdict: str
    because: str


def judge(
    num_networks: int, shuffle: MarginShuffle | None, prediction: MarginPrediction | None
) -> Verdict:
    """Decide between the three verdicts by `THRESHOLDS`.

    Supported: the real margins do better than margins shuffled among the networks, and the training
    loss predicts networks left out better than their norms alone do. Artifact: neither. Undecided:
    only one of the two, or too few networks. R2 does not count: a shared divisor gives any R2 up to
    1 if the norms differ enough.

    Args:
      num_networks: number of networks trained and evaluated on true labels. Networks of random
        labels have test margins near zero whatever they learned, and decide nothing.
      shuffle: the shuffle of their margins; None if there is none.
      prediction: the prediction of their test margins; None if there is none.
    """
    if num_networks < MIN_NETWORKS:
        return Verdict(
            UNDECIDED, f"{num_networks} networks with true labels; {MIN_NETWORKS} are needed"
        )
    if shuffle is None or prediction is None or prediction.skill is None:
        return Verdict(UNDECIDED, "the margins have no spread, or the controls are not defined")
    is_related = shuffle.p_value <= MAX_P_VALUE
    has_skill = prediction.skill >= MIN_SKILL
    shuffled = (
        f"{shuffle.p_value:.2%} of shuffled margins do as well as the real ones "
        f"({'at most' if is_related else 'more than'} {MAX_P_VALUE:.0%})"
    )
    skill = (
        f"the training loss saves {prediction.skill:.0%} of the squared error that the norms alone "
        f"make on {prediction.left_out} left out ({'at least' if has_skill else 'less than'} "
        f"{MIN_SKILL:.0%})"
    )
    if prediction.skill < 0:
        skill = (
            f"on {prediction.left_out} left out the training loss predicts the test margins worse "
            "than the norms alone do"
        )
    if is_related == has_skill:
        return Verdict(SUPPORTED if is_related else ARTIFACT, f"{shuffled}, and {skill}")
    return Verdict(UNDECIDED, f"{shuffled}, but {skill}")
