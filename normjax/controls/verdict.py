"""What the controls come to: artifact of the shared divisor, supported, or undecided; and why."""

from typing import NamedTuple

from normjax.statistics.influence import MarginPrediction
from normjax.statistics.resampling import MarginShuffle

ARTEFACT = "artifact of the shared divisor"
SUPPORTED = "supported"
UNDECIDED = "undecided"

MIN_NETWORKS = 8
MAX_P_VALUE = 0.05
MIN_SKILL = 0.25
THRESHOLDS = {
    "MIN_NETWORKS": (
        MIN_NETWORKS,
        "fewer networks with true labels decide nothing: a line with one left out has two "
        "parameters for six points or less",
    ),
    "MAX_P_VALUE": (
        MAX_P_VALUE,
        "at most this part of shuffled margins may do as well as the real ones; it bounds how "
        "often unrelated margins pass for a finding",
    ),
    "MIN_SKILL": (
        MIN_SKILL,
        "of the squared error in predicting the test margins of networks left out, the training "
        "loss must save this part beside the norm alone; margins that both follow the norm, and "
        "not each other, pass the shuffle but rarely this",
    ),
}
"""{name: (value, reason)}: what the verdict rests on."""


class Verdict(NamedTuple):
    """A verdict and the sentence that says which numbers decided it."""

    verdict: str
    because: str


def judge(
    num_networks: int, shuffle: MarginShuffle | None, prediction: MarginPrediction | None
) -> Verdict:
    """Decides between the three verdicts by `THRESHOLDS`.

    Supported: the real margins do better than margins shuffled among the networks, and the training
    loss predicts networks left out better than their norms alone do. Artifact: neither. Undecided:
    one without the other, or too few networks. R2 has no say: a shared divisor gives any R2 up to
    1, if only the norms differ enough.

    Args:
      num_networks: networks trained and evaluated on true labels. Those of random labels have test
        margins near zero whatever they learned, and decide nothing.
      shuffle: of these networks; None if it could not be computed.
      prediction: the same.
    """
    if num_networks < MIN_NETWORKS:
        return Verdict(
            UNDECIDED, f"{num_networks} networks with true labels; {MIN_NETWORKS} are needed"
        )
    if shuffle is None or prediction is None or prediction.skill is None:
        return Verdict(UNDECIDED, "the margins have no spread, or the controls can't be computed")
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
        return Verdict(SUPPORTED if is_related else ARTEFACT, f"{shuffled}, and {skill}")
    return Verdict(UNDECIDED, f"{shuffled}, but {skill}")
