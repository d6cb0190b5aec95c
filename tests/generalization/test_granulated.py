"""Granulated rank correlations, by hand, by loops, and with resampled levels."""

import itertools
import math

import numpy as np
import pytest

from normjax.generalization import granulated
from normjax.statistics.intervals import jackknife_interval


def grid(stds="xyz"):
    """Two levels of corruption, a few stds, two seeds."""
    levels = [(a, b, s) for a in ("0", "0.5") for b in stds for s in ("0", "1")]
    return dict(
        zip(("corruption", "std", "seed"), map(list, zip(*levels, strict=True)), strict=True)
    )


def levels_of(factors):
    """Networks that differ in their seed only are of one level."""
    return list(zip(factors["corruption"], factors["std"], strict=True))


def plain_tau(x, y):
    """The mean product of signs over pairs; ties count 0."""
    pairs = list(itertools.combinations(range(len(x)), 2))
    return np.mean([np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in pairs])


def groups_by_loops(factors, name):
    others = [key for key in factors if key != name]
    keys = list(zip(*[factors[key] for key in others], strict=True))
    groups = [[i for i, own in enumerate(keys) if own == key] for key in sorted(set(keys))]
    return [group for group in groups if len(group) > 1]


def test_by_hand():
    """A measure that follows the corruption and opposes the std; seeds only tie."""
    factors = grid()
    corruption = np.array([float(value) for value in factors["corruption"]])
    std = np.array(["xyz".index(value) for value in factors["std"]], float)
    psi = granulated.granulated_tau(10 * corruption - std, 10 * corruption + std, factors)
    assert psi == {"corruption": 1, "std": -1, "seed": 0}
    assert granulated.mean_psi(psi) == 0
    assert granulated.mean_psi({"corruption": 0.5, "seed": -1}) == 0.5  # not of repetitions
    assert math.isnan(granulated.mean_psi({"seed": 1.0})) and math.isnan(granulated.mean_psi({}))
    assert granulated.granulated_tau(std, corruption, {}) == {}


def test_by_loops_over_groups():
    factors = grid()
    x, y = np.random.default_rng(5).integers(0, 6, size=(2, 12)).astype(float)
    psi = granulated.granulated_tau(x, y, factors)
    expected = {
        name: np.mean([plain_tau(x[group], y[group]) for group in groups_by_loops(factors, name)])
        for name in factors
    }
    assert psi == pytest.approx(expected, rel=1e-12)
    mean = (expected["corruption"] + expected["std"]) / 2
    assert granulated.mean_psi(psi) == pytest.approx(mean, rel=1e-12)
    infinite = np.where(x > 4, np.inf, x)
    assert granulated.granulated_tau(infinite, y, factors) == psi


def test_a_factor_without_two_networks_has_no_psi():
    factors = {"corruption": ["0", "1", "2"], "std": ["x", "y", "z"]}
    psi = granulated.granulated_tau([1, 2, 3], [1, 2, 3], factors)
    assert all(map(math.isnan, psi.values())) and math.isnan(granulated.mean_psi(psi))


def test_interval_is_that_of_a_jackknife_over_levels():
    """Levels left out in turn, from psi of the networks that remain."""
    factors = grid("abcd")
    n, levels = len(factors["std"]), levels_of(factors)
    rng = np.random.default_rng(3)
    x = np.repeat(rng.normal(size=8), 2) + rng.normal(0, 0.8, n)
    y = np.repeat(rng.normal(size=8), 2) + rng.normal(0, 0.8, n) + x
    left_out = []
    for level in dict.fromkeys(levels):
        kept = [i for i in range(n) if levels[i] != level]
        own = {name: [values[i] for i in kept] for name, values in factors.items()}
        left_out.append(granulated.mean_psi(granulated.granulated_tau(x[kept], y[kept], own)))
    value = granulated.mean_psi(granulated.granulated_tau(x, y, factors))
    low, high = jackknife_interval(value, left_out)
    expected = (max(low, -1), min(high, 1))
    found = granulated.mean_psi_interval(x, y, factors, levels)
    assert found == pytest.approx(expected, rel=1e-12) and found[0] < value < found[1]


def test_where_there_is_no_interval():
    error, factors = np.arange(12.0), grid()
    with pytest.raises(ValueError, match="the same without any one of the units"):
        granulated.mean_psi_interval(error**3, error, factors, levels_of(factors))
    with pytest.raises(ValueError, match="2 levels; an interval needs at least"):
        granulated.mean_psi_interval(error, error, factors, factors["corruption"])
    with pytest.raises(ValueError, match="no hyperparameter varies"):
        granulated.mean_psi_interval(error, error, {"seed": list(map(str, error))}, range(12))
