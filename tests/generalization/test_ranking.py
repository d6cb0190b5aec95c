"""Rankings against scipy, statisticians' loops, and cases worked out by hand."""

import math
import re

import numpy as np
import pytest
from scipy import stats

from normjax.generalization import ranking
from normjax.statistics.rank_correlation import rank_correlation


def grid(stds="xyz"):
    """Two levels of corruption, a few stds, two seeds."""
    levels = [(a, b, s) for a in ("0", "0.5") for b in stds for s in ("0", "1")]
    return dict(
        zip(("corruption", "std", "seed"), map(list, zip(*levels, strict=True)), strict=True)
    )


def levels_of(factors):
    """Networks that differ in their seed only are of one level."""
    return list(zip(factors["corruption"], factors["std"], strict=True))


def rank(measures, error, loss=None, factors=None, **settings):
    factors = factors or grid()
    settings = {"num_test": 5000, "seed": 1, **settings}
    loss = error if loss is None else loss
    return ranking.rank_measures(measures, error, loss, factors, levels_of(factors), **settings)


def test_granulated_tau_by_hand():
    """A measure that follows the corruption and opposes the std; seeds only tie."""
    factors = grid()
    corruption = np.array([float(value) for value in factors["corruption"]])
    std = np.array(["xyz".index(value) for value in factors["std"]], float)
    error = 10 * corruption + std
    psi = ranking.granulated_tau(10 * corruption - std, error, factors)
    assert psi["corruption"] == 1 and psi["std"] == -1 and math.isnan(psi["seed"])
    assert ranking.mean_psi(psi) == 0
    # All 12 together: of the 60 pairs that do not tie, 36 are in order and 24 are not.
    (row,) = rank({"m": 10 * corruption - std}, error)
    assert row.tau == pytest.approx((36 - 24) / 60, rel=1e-12)
    assert math.isnan(ranking.mean_psi({})) and ranking.granulated_tau(std, error, {}) == {}


def granulated_by_loops(x, y, factors):
    """{factor: psi} with scipy, group by group."""
    psi = {}
    for name in factors:
        others = [key for key in factors if key != name]
        keys = list(zip(*[factors[key] for key in others], strict=True))
        taus = []
        for key in sorted(set(keys)):
            group = [i for i, own in enumerate(keys) if own == key]
            if len(group) > 1:
                taus.append(stats.kendalltau(x[group], y[group]).statistic)
        psi[name] = np.nanmean(taus)
    return psi


def test_granulated_tau_by_loops_over_groups():
    factors = grid()
    x, y = np.random.default_rng(5).normal(size=(2, 12))
    psi = ranking.granulated_tau(x, y, factors)
    expected = granulated_by_loops(x, y, factors)
    assert psi == pytest.approx(expected, rel=1e-12)
    assert ranking.mean_psi(psi) == pytest.approx(np.mean(list(expected.values())), rel=1e-12)
    infinite = np.where(x > 1, np.inf, x)
    clipped = np.minimum(x, x[x <= 1].max() + 1e-9 * (x > 1))
    assert ranking.granulated_tau(infinite, y, factors) == ranking.granulated_tau(
        clipped, y, factors
    )


def test_psi_interval_is_that_of_resampled_levels():
    """Against levels drawn by index. A level that is drawn twice makes its groups twice."""
    stds = "abcd"
    factors = grid(stds)
    n, levels = len(factors["std"]), levels_of(factors)
    rng = np.random.default_rng(3)
    x = np.repeat(rng.normal(size=8), 2) + rng.normal(0, 0.8, n)
    y = np.repeat(rng.normal(size=8), 2) + rng.normal(0, 0.8, n) + x
    known, draws = sorted(set(levels)), []
    for _ in range(600):
        counts = np.zeros(n)
        for level in rng.integers(0, len(known), len(known)):
            counts[[i for i, own in enumerate(levels) if own == known[level]]] += 1
        chosen = np.repeat(np.arange(n), counts.astype(int))
        psis = []
        for name in factors:
            others = [key for key in factors if key != name]
            groups = {}
            for i in range(n):
                groups.setdefault(tuple(factors[key][i] for key in others), []).append(i)
            taus, weights = [], []
            for group in groups.values():
                own = [i for i in chosen if i in group]
                if len(set(own)) > 1:
                    taus.append(stats.kendalltau(x[own], y[own]).statistic)
                    weights.append(len(own) / len(group))
            psis.append(np.average(taus, weights=weights) if taus else np.nan)
        draws.append(np.nanmean(psis))
    found = ranking.bootstrap_mean_psi(x, y, factors, levels, seed=2)
    np.testing.assert_allclose(found, np.quantile(draws, [0.025, 0.975]), atol=0.08)
    assert found[1] - found[0] > 0.3
    assert found == ranking.bootstrap_mean_psi(x, y, factors, levels, seed=2)


def test_psi_interval_closes_where_every_group_is_perfect():
    error, factors = np.arange(12.0), grid()
    levels = levels_of(factors)
    assert ranking.bootstrap_mean_psi(error**3, error, factors, levels) == (1, 1)
    with pytest.raises(ValueError, match="no two networks that differ in one factor only"):
        ranking.bootstrap_mean_psi(error, error, {}, levels)


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
    assert found == ranking.SignErrors(1.0, 1 / 3, 3, "std x or y, corruption 0")
    # One of the two reversed: the weighted mean. A tie counts a half.
    reversed_ = ranking.sign_errors(
        measure - 1.5 * (np.arange(6) == 0), error, factors, num_test=10_000
    )
    expected = weight(1, 2) / (weight(0, 2) + weight(1, 2))
    assert reversed_.worst == pytest.approx(expected, rel=1e-12) and 0.4 < expected < 0.5
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
    ranked = rank(measures, error, noisy)
    assert [row.name for row in ranked] == ["perfect", "noisy", "against", "constant"]
    perfect, middle, against, constant = ranked
    assert perfect.tau == pytest.approx(1, rel=1e-12)
    assert (perfect.correlation.kendall_interval, perfect.mean_psi) == ((1, 1), 1)
    assert perfect.sign_errors.worst == 0 and against.sign_errors.worst == 1
    assert against.tau == -perfect.tau and against.psi == {"corruption": -1, "std": -1, "seed": -1}
    assert middle.tau_normalized_test_loss == 1 and 0 < middle.tau < 1
    levels = levels_of(factors)
    assert middle.correlation == rank_correlation(noisy, error, levels, seed=1)
    assert middle.correlation.unit == "levels"
    assert middle.psi_interval == ranking.bootstrap_mean_psi(noisy, error, factors, levels, seed=1)
    assert constant.correlation is None and constant.reason.startswith("no spread")


def test_few_levels_give_no_interval_and_the_reason():
    factors = grid("xy")
    x, y = np.random.default_rng(0).normal(size=(2, 8))
    (row,) = rank({"m": x}, y, factors=factors)
    assert row.correlation.kendall_interval is None and row.psi_interval is None
    assert row.correlation.reason.startswith("4 levels; an interval needs at least 6")
    assert row.tau == pytest.approx(stats.kendalltau(x, y).statistic, rel=1e-12)
    assert 0 < row.correlation.p_value <= 1 and not math.isnan(row.mean_psi)


def test_a_measure_without_a_value_for_some_network_is_not_ranked():
    error = 0.1 + 0.05 * np.arange(12.0)
    measures = {"holes": np.where(error > 0.6, np.nan, error), "inverse": 1 / error}
    first, last = rank(measures, error)
    assert first.name == "inverse" and first.reason == ""
    assert first.tau == pytest.approx(-1, rel=1e-12)
    numbers = [last.tau, last.tau_normalized_test_loss, last.mean_psi, *last.psi.values()]
    assert all(map(math.isnan, numbers)) and last.sign_errors.num_environments == 0
    assert last.correlation is None and last.psi_interval is None
    assert last.reason == "it has no value for 1 of 12 networks"


def test_what_can_not_be_ranked():
    with pytest.raises(ValueError, match=r"at least 3, not of shapes \(2,\) and \(2,\)"):
        rank({"m": [1, 2]}, [1, 2], factors={"corruption": "ab", "std": "ab"})
    with pytest.raises(ValueError, match=re.escape("(3,) and (12,)")):
        rank({"m": [1, 2, 3]}, np.arange(12))
    twice = {"corruption": ["0", "0", "1"], "std": ["x", "x", "x"]}
    with pytest.raises(ValueError, match="networks 0 and 1 agree in all factors"):
        rank({"m": [1, 2, 3]}, [1, 2, 3], factors=twice)
    with pytest.raises(ValueError, match="is NaN; it has no rank"):
        ranking.granulated_tau([1, math.nan, 3], [1, 2, 3], {"seed": "012"})
