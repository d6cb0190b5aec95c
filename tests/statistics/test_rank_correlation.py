"""Rank correlations against scipy, and how often their p values and intervals are wrong."""

import numpy as np
import pytest
from scipy import stats

from normjax.statistics.rank_correlation import (
    kendall_of_counts,
    rank_correlation,
    spearman_of_counts,
)


def pairs(n=12, seed=0, noise=0.01):
    rng = np.random.default_rng(seed)
    error = 0.4 + 0.1 * rng.random(n)
    return error + noise * rng.normal(size=n), error


def with_ties(n=12):
    rng = np.random.default_rng(0)
    return np.round(rng.random(n), 1), np.round(rng.random(n), 1)


@pytest.mark.parametrize(("x", "y"), [pairs(), with_ties(), pairs(3), with_ties(40)])
def test_both_correlations_against_scipy(x, y):
    found = rank_correlation(x, y, range(len(x)), num_draws=50)
    assert found.kendall == pytest.approx(stats.kendalltau(x, y).statistic, rel=1e-12)
    assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-12)
    assert found.n == len(x)
    assert found == rank_correlation(x, y, range(len(x)), num_draws=50)
    assert found != rank_correlation(x, y, range(len(x)), num_draws=50, seed=1)


@pytest.mark.parametrize(("x", "y"), [pairs(), with_ties()])
def test_weighted_samples_against_scipy(x, y):
    """Against scipy on the samples written out; a point drawn twice is tied with itself."""
    counts = np.random.default_rng(1).multinomial(12, np.full(12, 1 / 12), 40).astype(float)
    samples = [(np.repeat(x, draw), np.repeat(y, draw)) for draw in counts.astype(int)]
    kendall = [stats.kendalltau(*sample).statistic for sample in samples]
    spearman = [stats.spearmanr(*sample).statistic for sample in samples]
    np.testing.assert_allclose(kendall_of_counts(x, y, counts), kendall, rtol=1e-10)
    np.testing.assert_allclose(spearman_of_counts(x, y, counts), spearman, rtol=1e-10)


def test_samples_without_spread_are_no_number():
    counts = np.array([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    for function in (kendall_of_counts, spearman_of_counts):
        found = function(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]), counts)
        assert np.isnan(found[0]) and 0 < found[1] < 1


def test_infinities_have_ranks_and_scale_none():
    x, y = pairs(8)
    order = np.argsort(x)
    far = x.copy()
    far[order[0]], far[order[-1]] = -np.inf, np.inf
    for same in (far, 1e300 * x, np.exp(50 * x)):
        assert rank_correlation(same, y, range(8)) == rank_correlation(x, y, range(8))
    both = far.copy()
    both[order[-2]] = np.inf  # two infinities are tied
    tied = x.copy()
    tied[order[-2]] = tied[order[-1]]
    assert rank_correlation(both, y, range(8)) == rank_correlation(tied, y, range(8))


def test_intervals_draw_levels():
    x, y = pairs(18)
    levels = np.repeat(list("abcdef"), 3)
    found = rank_correlation(x, y, levels)
    assert found.unit == "levels" and found.reason == ""
    for interval, value in (
        (found.kendall_interval, found.kendall),
        (found.spearman_interval, found.spearman),
    ):
        assert -1 <= interval[0] <= value <= interval[1] <= 1
    assert rank_correlation(x, y, range(18)).unit == "networks"
    few = rank_correlation(x, y, np.repeat(list("ab"), 9))
    assert few.kendall_interval is few.spearman_interval is None and few.unit == ""
    assert "2 levels; an interval needs at least 6" in few.reason
    assert few.kendall == found.kendall and 0 < few.p_value <= 1


def test_p_value_against_all_orders():
    """Without levels, and without ties, the exact p value is scipy's."""
    for n, noise in ((5, 0.1), (7, 0.05), (7, 0.5)):
        x, y = pairs(n, seed=n, noise=noise)
        exact = stats.kendalltau(x, y, method="exact").pvalue
        found = rank_correlation(x, y, range(n), num_draws=20_000).p_value
        # The standard error of 20,000 draws is at most 0.0035.
        assert found == pytest.approx(exact, abs=0.015)


def null_networks(rng, num_levels=6, num_seeds=3, spread=0.2):
    """Networks whose levels are unrelated; those of one level are alike."""
    x, y = (
        np.repeat(rng.normal(size=num_levels), num_seeds)
        + spread * rng.normal(size=num_levels * num_seeds)
        for _ in range(2)
    )
    return x, y, np.repeat(np.arange(num_levels), num_seeds)


def test_p_value_is_wrong_as_often_as_it_says():
    """At most 5% of unrelated levels are called related; scipy's are far more often."""
    rng = np.random.default_rng(0)
    p_values, naive = [], []
    for _ in range(400):
        x, y, levels = null_networks(rng)
        p_values.append(rank_correlation(x, y, levels, num_draws=199).p_value)
        naive.append(stats.kendalltau(x, y).pvalue)
    # 5% of 400 are 20 with a standard error of 4.4; three of them are 13.
    assert np.sum(np.array(p_values) <= 0.05) <= 20 + 13
    assert np.sum(np.array(naive) <= 0.05) >= 100
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.05)


def test_intervals_of_independent_networks_cover_the_truth():
    """For Gaussian pairs of correlation 0.6, tau is 2 asin(0.6) / pi."""
    rng = np.random.default_rng(0)
    truth = 2 * np.arcsin(0.6) / np.pi
    num_covered = 0
    for _ in range(200):
        x = rng.normal(size=30)
        y = 0.6 * x + 0.8 * rng.normal(size=30)
        low, high = rank_correlation(x, y, range(30), num_draws=400).kendall_interval
        num_covered += low <= truth <= high
    # 95% of 200 are 190, standard error 3.1; the percentile method covers a bit less.
    assert num_covered >= 176


@pytest.mark.parametrize("num_levels", [6, 12])
def test_intervals_over_levels_cover_the_truth(num_levels):
    """Measured: 96% with 6 levels of 3 networks, 93% with 12, of a nominal 95%."""
    rng = np.random.default_rng(1)

    def draw(count):
        level_x = rng.normal(size=count)
        level_y = 0.6 * level_x + 0.8 * rng.normal(size=count)
        x, y = (np.repeat(v, 3) + 0.2 * rng.normal(size=3 * count) for v in (level_x, level_y))
        return x, y, np.repeat(np.arange(count), 3)

    truth = stats.kendalltau(*draw(5000)[:2]).statistic
    intervals = np.array(
        [rank_correlation(*draw(num_levels), num_draws=400).kendall_interval for _ in range(300)]
    )
    coverage = np.mean((intervals[:, 0] <= truth) & (truth <= intervals[:, 1]))
    assert 0.88 <= coverage <= 0.99  # the standard error is 1.3%


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2], [1, 2], "2 points; at least 3"),
        ([1, 2, 3], [1, 2], "of one length"),
        ([1, 1, 1], [1, 2, 3], "no spread"),
        ([1, 2, 3], [2, 2, 2], "no spread"),
        ([1, 2, np.nan], [1, 2, 3], "value 2 is NaN"),
    ],
)
def test_bad_input(x, y, message):
    with pytest.raises(ValueError, match=message):
        rank_correlation(x, y, range(len(x)))
