"""Conditional mutual information, by loops over pairs and in closed form."""

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from normjax.generalization.conditional_information import conditional_information


def design(num_levels=4, num_seeds=3):
    """(hyperparameters, levels) of a run of one factor."""
    levels = [str(i) for i in range(num_levels) for _ in range(num_seeds)]
    return {"corruption": levels}, levels


def by_loops(x, y, hyperparameters):
    """The least normalized information over sets of at most two, from counts of pairs."""
    least = math.inf
    for size in range(3):
        for names in itertools.combinations(hyperparameters, size):
            pairs = defaultdict(list)
            for i, j in itertools.permutations(range(len(x)), 2):
                key = tuple((hyperparameters[n][i], hyperparameters[n][j]) for n in names)
                pairs[key].append((x[i] > x[j], y[i] > y[j]))
            information = entropy = 0
            for cell in pairs.values():
                weight = len(cell) / (len(x) * (len(x) - 1))
                both = {k: c / len(cell) for k, c in Counter(cell).items()}
                first, second = (
                    {k: c / len(cell) for k, c in Counter(p[side] for p in cell).items()}
                    for side in (0, 1)
                )
                information += weight * sum(
                    p * math.log(p / (first[v] * second[w])) for (v, w), p in both.items()
                )
                entropy -= weight * sum(p * math.log(p) for p in second.values())
            if entropy > 0:
                least = min(least, information / entropy)
    return least


@pytest.mark.parametrize("seed", range(3))
def test_against_loops_over_pairs(seed):
    rng = np.random.default_rng(seed)
    grid = list(itertools.product("ab", "xyz", "pq"))
    hyperparameters = {name: [point[i] for point in grid] for i, name in enumerate(("a", "b", "c"))}
    y = rng.normal(size=12)
    x = y + rng.normal(size=12)
    found = conditional_information(x, y, hyperparameters, grid, num_draws=2)
    assert found.value == pytest.approx(by_loops(x, y, hyperparameters), rel=1e-9)
    assert len(found.given) <= 2


def test_the_order_itself_and_its_reverse_have_all_information():
    hyperparameters, levels = design()
    y = np.random.default_rng(0).normal(size=12)
    for x in (y, -y, y**3):
        found = conditional_information(x, y, hyperparameters, levels)
        assert found.value == pytest.approx(1, abs=1e-12)


def test_a_measure_of_the_hyperparameter_says_nothing_more():
    """Errors that differ between seeds only by noise: the level's number has no information."""
    hyperparameters, levels = design()
    x = np.array([float(level) for level in levels])
    y = x + 0.1 * np.random.default_rng(1).normal(size=12)
    found = conditional_information(x, y, hyperparameters, levels)
    assert found.value == pytest.approx(0, abs=1e-12) and found.given == ("corruption",)
    assert found.chance == pytest.approx(0, abs=1e-12) and found.p_value == 1


def test_two_networks_of_each_level_in_closed_form():
    """Within levels the order is right in one of two; between levels all is known."""
    hyperparameters, levels = design(2, 2)
    y = np.array([1.0, 2, 11, 12])
    x = np.array([1.0, 2, 12, 11])
    # Of 12 pairs 10 agree, and V and W are up in half of them. Given the level, V tells W: a level
    # has one pair and its reverse.
    p = 10 / 12
    information = 1 + (p * math.log2(p) + (1 - p) * math.log2(1 - p))
    for given in (hyperparameters, {}):
        found = conditional_information(x, y, given, levels)
        assert found.value == pytest.approx(information, rel=1e-9) and found.given == ()
    # All four orders within levels: both right, one of them, none.
    p = 8 / 12
    least = 1 + (p * math.log2(p) + (1 - p) * math.log2(1 - p))
    assert found.chance == pytest.approx((1 + 2 * information + least) / 4, rel=1e-9)
    assert found.p_value == 3 / 4


def test_chance_and_p_value():
    hyperparameters, levels = design(3, 6)
    rng = np.random.default_rng(2)
    y = rng.normal(size=18)
    related = conditional_information(y + 0.3 * rng.normal(size=18), y, hyperparameters, levels)
    assert related.value > related.chance > 0 and related.p_value < 0.01
    p_values = [
        conditional_information(
            rng.normal(size=18), y, hyperparameters, levels, num_draws=19
        ).p_value
        for _ in range(60)
    ]
    assert 0.35 < np.mean(p_values) < 0.7 and np.mean(np.array(p_values) <= 0.1) < 0.25


def test_equal_errors_have_no_order():
    hyperparameters, levels = design()
    found = conditional_information(np.arange(12), np.ones(12), hyperparameters, levels)
    assert math.isnan(found.value) and math.isnan(found.p_value) and found.given == ()
    apart = conditional_information(np.arange(12), np.arange(12), {}, range(12))
    assert apart.value == 1 and math.isnan(apart.p_value) and math.isnan(apart.chance)
