"""The verdict on lines whose answer is known by construction, and how often it is wrong."""

import numpy as np
import pytest

from benchmarks.verdict_errors import KINDS, draw_line, verdict_rates
from normjax.controls.explain import explain_line
from normjax.controls.margins import MarginPrediction
from normjax.controls.shuffles import MarginShuffle, shuffle_margins
from normjax.controls.verdict import (
    ARTIFACT,
    MAX_P_VALUE,
    MIN_NETWORKS,
    MIN_SKILL,
    SUPPORTED,
    UNDECIDED,
    judge,
)
from normjax.formatting import percent
from tests.helpers.synthetic_lines import table_of


def shuffle_of(p_value):
    return MarginShuffle(0.1, (0.1, 0.2, 0.3), (0.9, 0.95, 0.99), p_value, 1000)


def prediction_of(skill):
    return MarginPrediction(skill, 1.0, 1.0, 1.0, "levels", (), (), ())


@pytest.mark.parametrize(
    ("p_value", "skill", "verdict"),
    [
        (MAX_P_VALUE, MIN_SKILL, SUPPORTED),
        (MAX_P_VALUE + 0.001, MIN_SKILL, UNDECIDED),
        (MAX_P_VALUE, MIN_SKILL - 0.001, UNDECIDED),
        (MAX_P_VALUE + 0.001, MIN_SKILL - 0.001, ARTIFACT),
        (0.5, -3.0, ARTIFACT),
        (0.001, None, UNDECIDED),
    ],
)
def test_thresholds(p_value, skill, verdict):
    found = judge(MIN_NETWORKS, shuffle_of(p_value), prediction_of(skill))
    assert found.verdict == verdict
    assert judge(MIN_NETWORKS - 1, shuffle_of(p_value), prediction_of(skill)).verdict == UNDECIDED
    if skill is not None:
        assert percent(p_value) in found.because
        assert "worse than the norms alone" in found.because or percent(skill) in found.because


def test_known_answers_through_the_whole_of_explain():
    """One draw of each kind; the rates over many are below."""
    rng = np.random.default_rng(0)
    artifact = explain_line(table_of(*draw_line("independent", rng, 6, 3)))
    assert artifact.verdict == ARTIFACT
    assert artifact.fit.r2 > 0.9  # as good a line as many that were published
    supported = explain_line(table_of(*draw_line("constant ratio, 2% noise", rng, 6, 3)))
    assert supported.verdict == SUPPORTED
    assert supported.ratio.spread < 0.04 < supported.ratio.spread_if_unrelated
    few = explain_line(table_of(*draw_line("constant ratio, 2% noise", rng, 5, 1)))
    assert few.verdict == UNDECIDED
    assert "5 networks with true labels; 8 are needed" in few.because


# `python -m benchmarks.verdict_errors` measures these rates on 200 lines of four sizes. At 6 x 2
# networks: "supported" for 0.0% and 0.5% of the independent ones, for all of constant ratio.
@pytest.mark.parametrize("kind", ["independent", "independent by level"])
def test_false_alarms_are_rare(kind):
    rates = verdict_rates(kind, 40)
    assert rates[SUPPORTED] <= 0.05
    assert rates[ARTIFACT] >= 0.8


@pytest.mark.parametrize("kind", ["constant ratio, 2% noise", "constant ratio, 5% noise"])
def test_content_is_seldom_missed(kind):
    assert verdict_rates(kind, 40)[SUPPORTED] >= 0.9


def test_margins_that_both_follow_the_norm_are_seldom_taken_for_content():
    """Nothing is predicted by the training loss that the norm does not predict."""
    assert verdict_rates("both follow the norm", 40)[SUPPORTED] <= 0.25


def test_the_shuffle_p_value_is_uniform_under_the_null():
    """Exact also where networks of one level are alike, which free shuffles get wrong."""
    rng = np.random.default_rng(1)
    p_values = {"levels": [], "free": []}
    for _ in range(150):
        train, test, rho, levels = draw_line("independent by level", rng, 6, 3)
        for name, groups in (("levels", levels), ("free", None)):
            shuffle = shuffle_margins(-train / rho, -test / rho, rho, groups, num_draws=199)
            p_values[name].append(shuffle.p_value)
    # At most 5% are below 0.05; 150 draws have a standard error of 2%.
    assert np.mean(np.array(p_values["levels"]) <= 0.05) <= 0.1
    assert np.mean(np.array(p_values["free"]) <= 0.05) >= 0.2
    assert 0.4 < np.mean(p_values["levels"]) < 0.6


def test_kinds_are_what_they_say():
    rng = np.random.default_rng(2)
    for kind in KINDS:
        train, test, rho, levels = draw_line(kind, rng, 4, 2)
        assert train.shape == test.shape == rho.shape == (8,) and len(set(levels)) == 4
