"""Sign errors: cases worked out by hand, and what the weights promise."""

import math

import numpy as np
import pytest

from normjax.generalization import sign_errors
from tests.generalization.test_granulated import grid


def test_hoeffding_weight_by_hand():
    # 2 exp(-10,000 * 0.03^2 / 2) = 2 e^-4.5.
    expected = (1 - 2 * math.exp(-4.5)) ** 2 - 0.5
    assert sign_errors.hoeffding_weight(0.03, 10_000) == pytest.approx(expected, rel=1e-12)
    assert sign_errors.hoeffding_weight(-0.03, 10_000) == pytest.approx(expected, rel=1e-12)
    weights = sign_errors.hoeffding_weight(np.array([0, 1e-3, 0.5]), 10_000)
    np.testing.assert_allclose(weights, [0, 0, 0.5], rtol=1e-12)


def test_hoeffding_weight_keeps_its_promise():
    """Where it is positive, two networks of these test errors are seldom in the wrong order."""
    rng = np.random.default_rng(0)
    num_test, drawn = 500, []
    for truth in rng.uniform(0.2, 0.6, 4000):
        first, second = truth, truth + rng.normal(0, 0.05)
        seen = rng.binomial(num_test, [first, np.clip(second, 0, 1)]) / num_test
        if sign_errors.hoeffding_weight(seen[0] - seen[1], num_test) > 0:
            drawn.append((seen[0] - seen[1]) * (first - second) > 0)
    assert len(drawn) > 200 and np.mean(drawn) > 0.5**0.5


def test_sign_errors_by_hand():
    """Environments of a std at each corruption, and of the corruption at each std."""
    factors = {
        "corruption": ["0", "0", "0", "0.5", "0.5", "0.5"],
        "std": ["x", "x", "y", "x", "x", "y"],
        "seed": ["0", "1", "0", "0", "1", "0"],
    }
    error = np.array([0.10, 0.12, 0.20, 0.30, 0.32, 0.31])
    measure = np.array([1.0, 2.0, 0.0, 3.0, 4.0, 3.5])
    found = sign_errors.sign_errors(measure, error, factors, num_test=10_000)

    def weight(i, j):
        return sign_errors.hoeffding_weight(error[i] - error[j], 10_000)

    # std at corruption 0: both pairs in the wrong order. At 0.5 the errors differ by 0.01, noise.
    # corruption, at std x: four pairs and at y one, all in the right order.
    assert weight(3, 5) == weight(4, 5) == 0 < min(weight(0, 2), weight(1, 2))
    assert found == sign_errors.SignErrors(1.0, 1 / 3, 3, "std x or y, corruption 0")
    # One of the two reversed: the weighted mean. A tie counts a half.
    reversed_ = sign_errors.sign_errors(
        measure - 1.5 * (np.arange(6) == 0), error, factors, num_test=10_000
    )
    expected = weight(1, 2) / (weight(0, 2) + weight(1, 2))
    assert reversed_.worst == pytest.approx(expected, rel=1e-12) and 0.4 < expected < 0.5
    tied = sign_errors.sign_errors(measure * (np.arange(6) > 2), error, factors, num_test=10_000)
    assert tied.worst == 0.5 and tied.num_environments == 3


def test_without_significant_differences_there_are_no_sign_errors():
    found = sign_errors.sign_errors(np.arange(12), np.arange(12) / 1e4, grid(), num_test=100)
    assert math.isnan(found.worst) and math.isnan(found.mean)
    assert found.num_environments == 0 and found.worst_environment == ""
    # Seeds are repetition: they make no environment by themselves.
    lone = sign_errors.sign_errors(np.arange(3), [0.1, 0.5, 0.9], {"seed": "012"}, num_test=10_000)
    assert lone.num_environments == 0
