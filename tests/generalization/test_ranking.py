"""Rank statistics against scipy, statisticians' loops, and cases worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from normjax.generalization import ranking


def tied_numbers(n=14, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 8, n).astype(float)
    return x, x + rng.integers(-4, 5, n)


@pytest.mark.parametrize("seed", range(4))
def test_tau_is_scipys_with_ties(seed):
    x, y = tied_numbers(seed=seed)
    expected = stats.kendalltau(x, y).statistic
    assert ranking.kendall_tau(x, y) == pytest.approx(expected, rel=1e-12)
    assert len(set(x)) < len(x) and 0.1 < abs(expected) < 0.95
    infinite = np.where(x >= 6, np.inf, np.where(x == 0, -np.inf, x))
    clipped = np.clip(np.where(x == 0, -99, x), None, 6)
    again = stats.kendalltau(clipped, y).statistic
    assert ranking.kendall_tau(infinite, y) == pytest.approx(again, rel=1e-12)


def test_tau_needs_spread_and_numbers():
    assert math.isnan(ranking.kendall_tau([1, 1, 1], [1, 2, 3]))
    assert math.isnan(ranking.kendall_tau([1, math.nan, 3], [1, 2, 3]))
    assert ranking.kendall_tau([1, 2, 3], [3, 2, 1]) == -1
    with pytest.raises(ValueError, match="at least 3, not of shapes"):
        ranking.kendall_tau([1, 2], [1, 2])
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        ranking.kendall_tau([1, 2, 3], [1, 2, 3, 4])


def test_bootstrap_interval_is_that_of_resampled_networks():
    """Against resamples drawn by index, each given to scipy."""
    x, y = tied_numbers(seed=1)
    rng = np.random.default_rng(99)
    draws = []
    for _ in range(1500):
        chosen = rng.integers(0, len(x), len(x))
        draws.append(stats.kendalltau(x[chosen], y[chosen]).statistic)
    low, high = ranking.bootstrap_tau(x, y, seed=3)
    # The quantiles' own sampling error is about 0.02.
    np.testing.assert_allclose((low, high), np.nanquantile(draws, [0.025, 0.975]), atol=0.06)
    assert high - low > 0.3 and ranking.bootstrap_tau(x, y, seed=3) == (low, high)
    assert all(map(math.isnan, ranking.bootstrap_tau([1, 1, 1], [1, 2, 3])))


def grid():
    """Two levels of one factor, three of another, two seeds."""
    levels = [(a, b, s) for a in ("0", "0.5") for b in ("x", "y", "z") for s in ("0", "1")]
    return dict(
        zip(("corruption", "std", "seed"), map(list, zip(*levels, strict=True)), strict=True)
    )


def test_granulated_tau_by_hand():
    """A measure that follows the corruption and goes against the std; seeds only tie."""
    factors = grid()
    corruption = np.array([float(value) for value in factors["corruption"]])
    std = np.array(["xyz".index(value) for value in factors["std"]], float)
    error = 10 * corruption + std
    psi = ranking.granulated_tau(10 * corruption - std, error, factors)
    assert psi["corruption"] == 1 and psi["std"] == -1 and math.isnan(psi["seed"])
    assert ranking.mean_psi(psi) == 0
    # All 12 together: tau-b is (36 - 24) / 60 pairs that are no ties.
    tau = ranking.kendall_tau(10 * corruption - std, error)
    assert tau == pytest.approx((36 - 24) / 60, rel=1e-12)
    # Between no factors nothing can be asked; a factor of one value has no groups of two.
    assert math.isnan(ranking.mean_psi({}))
    lone = {"corruption": factors["corruption"], "std": ["x"] * 12}
    assert math.isnan(ranking.granulated_tau(error, error, lone)["std"])


def test_granulated_tau_by_loops_over_groups():
    factors = grid()
    x, y = np.random.default_rng(5).normal(size=(2, 12))
    psi = ranking.granulated_tau(x, y, factors)
    for name in factors:
        others = [key for key in factors if key != name]
        keys = list(zip(*[factors[key] for key in others], strict=True))
        taus = []
        for key in set(keys):
            group = [i for i, own in enumerate(keys) if own == key]
            taus.append(stats.kendalltau(x[group], y[group]).statistic)
        assert psi[name] == pytest.approx(np.mean(taus), rel=1e-12)
    assert ranking.mean_psi(psi) == pytest.approx(np.mean(list(psi.values())), rel=1e-12)
    low, high = ranking.bootstrap_mean_psi(x, y, factors, seed=2)
    assert -1 <= low < high <= 1 and high - low > 0.1


def test_psi_interval_closes_where_every_group_is_perfect():
    error = np.arange(12.0)
    assert ranking.bootstrap_mean_psi(error**3, error, grid()) == (1, 1)
    assert all(map(math.isnan, ranking.bootstrap_mean_psi(error, error, {})))


def test_hoeffding_weight_by_hand():
    # 2 exp(-10,000 * 0.03^2 / 2) = 2 e^-4.5.
    expected = (1 - 2 * math.exp(-4.5)) ** 2 - 0.5
    assert ranking.hoeffding_weight(0.03, 10_000) == pytest.approx(expected, rel=1e-12)
    assert ranking.hoeffding_weight(-0.03, 10_000) == pytest.approx(expected, rel=1e-12)
    weights = ranking.hoeffding_weight(np.array([0, 1e-3, 0.5]), 10_000)
    np.testing.assert_allclose(weights, [0, 0, 0.5], rtol=1e-12)


def test_hoeffding_weight_keeps_its_promise():
    """Where it is positive, two networks of these test errors are seldom in the wrong order."""
    rng = np.random.default_rng(0)
    num_test, drawn = 500, []
    for truth in rng.uniform(0.2, 0.6, 4000):
        first, second = truth, truth + rng.normal(0, 0.05)
        seen = rng.binomial(num_test, [first, np.clip(second, 0, 1)]) / num_test
        if ranking.hoeffding_weight(seen[0] - seen[1], num_test) > 0:
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
    found = ranking.sign_errors(measure, error, factors, num_test=10_000)

    def weight(i, j):
        return ranking.hoeffding_weight(error[i] - error[j], 10_000)

    # std at corruption 0: both pairs in the wrong order. At 0.5 the errors differ by 0.01, noise.
    # corruption, at std x: four pairs and at y one, all in the right order.
    assert weight(3, 5) == weight(4, 5) == 0 < min(weight(0, 2), weight(1, 2))
    assert found == (1.0, 1 / 3, 3, "std x or y, corruption 0")
    # One of the two turned round: the weighted mean. A tie counts a half.
    turned = ranking.sign_errors(
        measure - 1.5 * (np.arange(6) == 0), error, factors, num_test=10_000
    )
    expected = weight(1, 2) / (weight(0, 2) + weight(1, 2))
    assert turned.worst == pytest.approx(expected, rel=1e-12) and 0.4 < expected < 0.5
    tied = ranking.sign_errors(measure * (np.arange(6) > 2), error, factors, num_test=10_000)
    assert tied.worst == 0.5 and tied.num_environments == 3


def test_without_significant_differences_there_are_no_sign_errors():
    found = ranking.sign_errors(np.arange(12), np.arange(12) / 1e4, grid(), num_test=100)
    assert math.isnan(found.worst) and math.isnan(found.mean)
    assert found.num_environments == 0 and found.worst_environment == ""
    # Seeds are repetition: they make no environment by themselves.
    lone = ranking.sign_errors(np.arange(3), [0.1, 0.5, 0.9], {"seed": "012"}, num_test=10_000)
    assert lone.num_environments == 0


def test_measures_are_ranked_best_first():
    factors, error = grid(), 0.1 + 0.05 * np.arange(12.0)
    noisy = error + 0.1 * np.random.default_rng(0).normal(size=12)
    measures = {"constant": np.ones(12), "against": -error, "noisy": noisy, "perfect": error**2}
    ranked = ranking.rank_measures(measures, error, noisy, factors, num_test=5000, seed=1)
    assert [row.name for row in ranked] == ["perfect", "noisy", "against", "constant"]
    perfect, middle, against, constant = ranked
    assert (perfect.tau, perfect.tau_interval, perfect.mean_psi) == (1, (1, 1), 1)
    assert perfect.sign_errors.worst == 0 and against.sign_errors.worst == 1
    assert against.tau == -1 and against.psi == {"corruption": -1, "std": -1, "seed": -1}
    assert middle.tau_normalized_test_loss == 1 and 0 < middle.tau < 1
    assert middle.tau_interval == ranking.bootstrap_tau(noisy, error, 1)
    assert middle.psi_interval == ranking.bootstrap_mean_psi(noisy, error, factors, 1)
    assert math.isnan(constant.tau) and math.isnan(constant.mean_psi)
    assert constant.sign_errors.worst == 0.5


def test_a_measure_without_a_value_for_some_network_is_not_ranked():
    error = 0.1 + 0.05 * np.arange(12.0)
    measures = {"holes": np.where(error > 0.6, np.nan, error), "inverse": 1 / error}
    first, last = ranking.rank_measures(measures, error, error, grid(), num_test=5000)
    assert first.name == "inverse" and first.tau == -1
    numbers = [last.tau, *last.tau_interval, last.mean_psi, *last.psi_interval, *last.psi.values()]
    assert all(map(math.isnan, numbers)) and last.sign_errors.num_environments == 0
