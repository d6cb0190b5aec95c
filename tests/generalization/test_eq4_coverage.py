"""Eq. 4 on finite classes whose every sample is enumerated: no draw, no tolerance of a simulation.

docs/bounds.md derives the statements that are checked here.
"""

import itertools
import math

import numpy as np
import pytest

from normjax.generalization.bounds import confidence_term
from normjax.generalization.rademacher import linear_bound, linear_rademacher

DELTAS = np.linspace(0.01, 0.99, 99)


class Enumerated:
    """All samples of N examples: their probabilities, gaps and Rademacher complexities."""

    def __init__(self, losses, probabilities, num_examples):
        losses, atoms = np.asarray(losses, float), len(probabilities)
        self.samples = np.array(list(itertools.product(range(atoms), repeat=num_examples)))
        signs = np.array(list(itertools.product([-1, 1], repeat=num_examples)))
        self.weights = np.prod(np.asarray(probabilities)[self.samples], axis=1)
        drawn = losses[:, self.samples]  # [functions, samples, N]
        differences = (losses @ probabilities)[:, None] - drawn.mean(axis=-1)
        sums = drawn @ signs.T / num_examples  # [functions, samples, signs]
        self.num_examples = num_examples
        self.range = losses.max() - losses.min()
        self.up, self.gap = differences.max(axis=0), np.abs(differences).max(axis=0)
        self.empirical = sums.max(axis=0).mean(axis=-1)
        self.absolute = np.abs(sums).max(axis=0).mean(axis=-1)

    def mean(self, values):
        return float(self.weights @ values)

    def probability(self, event):
        return float(self.weights[event].sum())


SINGLE = Enumerated([[0, 1]], [0.5, 0.5], 1)
FINITE = [
    SINGLE,
    Enumerated([[0, 1]], [0.3, 0.7], 5),
    Enumerated([[0, 2, 1], [1, 0, 0.5], [1.5, 1.5, 0]], [0.2, 0.5, 0.3], 5),
    Enumerated(list(itertools.product([0, 1], repeat=3)), [0.6, 0.3, 0.1], 6),
]


@pytest.mark.parametrize("finite", FINITE)
def test_the_steps_of_the_proof(finite):
    """Symmetrization, with and without the absolute value, and the differences in McDiarmid's."""
    assert finite.mean(finite.up) <= 2 * finite.mean(finite.empirical) + 1e-12
    assert finite.mean(finite.gap) <= 2 * finite.mean(finite.absolute) + 1e-12
    assert finite.mean(finite.absolute) >= finite.mean(finite.empirical)
    neighbors = (finite.samples[:, None] != finite.samples).sum(axis=-1) == 1
    for values in (finite.up, finite.gap, finite.empirical):
        largest = np.abs(values[:, None] - values)[neighbors].max()
        assert largest <= finite.range / finite.num_examples + 1e-12


@pytest.mark.parametrize("finite", FINITE)
def test_eq_4_holds_with_its_probability(finite):
    complexity = {False: finite.mean(finite.empirical), True: finite.empirical}
    for delta, empirical in itertools.product(DELTAS, (False, True)):
        term = confidence_term(finite.num_examples, delta, finite.range, empirical=empirical)
        assert finite.probability(finite.gap > 2 * complexity[empirical] + term) <= delta
    for delta in DELTAS:
        printed = finite.range * math.sqrt(math.log(1 / delta) / (2 * finite.num_examples))
        above = finite.gap > 2 * finite.mean(finite.absolute) + printed
        assert finite.probability(above) <= delta


def test_eq_4_as_printed_can_fail():
    """One function has R_N = 0, and the gap of one fair 0 or 1 is always 1/2."""
    assert SINGLE.empirical.tolist() == [0, 0] and SINGLE.gap.tolist() == [0.5, 0.5]
    printed = math.sqrt(math.log(1 / 0.7) / 2)
    assert printed == pytest.approx(0.4223, abs=5e-5)
    assert SINGLE.probability(SINGLE.gap > printed) == 1


def test_the_constants():
    """The example of docs/bounds.md: 5,000 images and delta = 0.05."""
    expected = confidence_term(5000, 0.05)
    assert expected == pytest.approx(math.sqrt(math.log(40) / 10_000), rel=1e-12)
    assert expected == pytest.approx(0.019206455826, rel=1e-9)
    empirical = confidence_term(5000, 0.05, empirical=True)
    assert empirical == pytest.approx(3 * math.sqrt(math.log(80) / 10_000), rel=1e-12)
    assert empirical == pytest.approx(0.062799872382, rel=1e-9)
    assert confidence_term(5000, 0.05, 1972.0, empirical=True) == pytest.approx(1972 * empirical)


@pytest.mark.parametrize("norm", [3, 4, math.inf])
def test_the_paper_s_bound_of_linear_functions_is_one_of_the_2_norm(norm):
    """For unit vectors as inputs, R_N is N^(1/q - 1), above the paper's X W / sqrt(N)."""
    inputs = np.eye(50)
    found = linear_rademacher(inputs, norm, num_signs=2).mean
    dual = 1 if norm == math.inf else norm / (norm - 1)
    assert found == pytest.approx(50 ** (1 / dual - 1), rel=1e-12)
    assert 1 / math.sqrt(50) < found <= linear_bound(inputs, norm) * (1 + 1e-12)
