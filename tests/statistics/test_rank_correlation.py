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


def test_intervals_are_over_levels():
    x, y = pairs(18)
    levels = np.repeat(list("abcdef"), 3)
    found = rank_correlation(x, y, levels)
    assert found.unit == "levels" and found.reason == ""
    for interval, function in (
        (found.kendall_interval, stats.kendalltau),
        (found.spearman_interval, stats.spearmanr),
    ):
        value = function(x, y).statistic
        without = [function(x[levels != z], y[levels != z]).statistic for z in "abcdef"]
        error = np.sqrt(5 / 6 * np.sum((without - np.mean(without)) ** 2))
        margin = stats.t.ppf(0.975, 4) * error
        expected = np.clip([value - margin, value + margin], -1, 1)
        np.testing.assert_allclose(interval, expected, rtol=1e-9)
    assert rank_correlation(x, y, range(18)).unit == "networks"


def test_where_no_interval_can_be_had():
    x, y = pairs(18)
    few = rank_correlation(x, y, np.repeat(list("ab"), 9))
    assert few.kendall_interval is few.spearman_interval is None and few.unit == ""
    assert "2 levels; an interval needs at least 4" in few.reason
    assert 0 < few.p_value <= 1
    perfect = rank_correlation(x, x, range(18))
    assert perfect.kendall_interval is None and "the same without any" in perfect.reason
    wild = rank_correlation([1, 2, 3, 4], [1, 3, 2, 4], range(4))
    assert wild.kendall_interval is None and "all of -1 to 1" in wild.reason


def test_p_value_against_all_orders():
    """Of one level, and without ties, the exact p value is scipy's."""
    for n, noise in ((5, 0.1), (7, 0.05), (7, 0.5)):
        x, y = pairs(n, seed=n, noise=noise)
        exact = stats.kendalltau(x, y, method="exact").pvalue
        assert rank_correlation(x, y, ["a"] * n).p_value == pytest.approx(exact, rel=1e-9)
        drawn = rank_correlation(x, y, ["a"] * n, num_draws=100).p_value
        assert drawn == pytest.approx(exact, abs=0.15)
        assert np.isnan(rank_correlation(x, y, range(n)).p_value)  # nothing to exchange


def test_p_value_is_wrong_as_often_as_it_says():
    """Both quantities follow the level, and nothing else: scipy's p is always tiny."""
    rng = np.random.default_rng(0)
    levels = np.repeat(np.arange(6), 3)
    p_values, naive = [], []
    for _ in range(300):
        x, y = (levels + 0.2 * rng.normal(size=18) for _ in range(2))
        p_values.append(rank_correlation(x, y, levels, num_draws=199).p_value)
        naive.append(stats.kendalltau(x, y).pvalue)
    # 5% of 300 are 15 with a standard error of 3.8; three of them are 11.
    assert np.sum(np.array(p_values) <= 0.05) <= 15 + 11
    assert max(naive) < 0.01
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.07)


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
