"""Rank correlations of weighted samples against scipy on the samples written out."""

import numpy as np
import pytest
from normjax.statistics.error_prediction import kendall_of_counts, rank_errors, spearman_of_counts
from scipy import stats


def measures(n=12, seed=0):
    rng = np.random.default_rng(seed)
    error = 0.4 + 0.1 * rng.random(n)
    good = error + 0.01 * rng.normal(size=n)
    return {"good": good, "poor": np.round(rng.random(n), 1)}, error


def test_weighted_samples_against_scipy():
    columns, error = measures()
    error = np.round(error, 2)  # ties in both
    counts = np.random.default_rng(1).multinomial(12, np.full(12, 1 / 12), 40).astype(float)
    for x in columns.values():
        samples = [(np.repeat(x, draw), np.repeat(error, draw)) for draw in counts.astype(int)]
        kendall = [stats.kendalltau(*sample).statistic for sample in samples]
        spearman = [stats.spearmanr(*sample).statistic for sample in samples]
        np.testing.assert_allclose(kendall_of_counts(x, error, counts), kendall, rtol=1e-10)
        np.testing.assert_allclose(spearman_of_counts(x, error, counts), spearman, rtol=1e-10)


def test_samples_without_spread_are_no_number():
    counts = np.array([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    for function in (kendall_of_counts, spearman_of_counts):
        found = function(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]), counts)
        assert np.isnan(found[0]) and 0 < found[1] < 1


def test_rankings():
    columns, error = measures()
    found = rank_errors(columns, error, range(12))
    for name, x in columns.items():
        test = stats.kendalltau(x, error)
        assert found[name].kendall == pytest.approx(test.statistic)
        assert found[name].kendall_p_value == pytest.approx(test.pvalue)
        assert found[name].spearman == pytest.approx(stats.spearmanr(x, error).statistic)
        low, high = found[name].kendall_interval
        assert low <= found[name].kendall <= high and 0 < high - low < 2
    assert found["good"].kendall_interval[0] > 0.4
    assert found["good"].lead_interval == (0, 0)
    assert found["poor"].lead_interval[0] > 0
    assert found == rank_errors(columns, error, range(12))
    assert found != rank_errors(columns, error, range(12), seed=1)


def test_intervals_cover_the_truth():
    """For Gaussian pairs of correlation 0.6, tau is 2 asin(0.6) / pi; 95% intervals hold it."""
    rng = np.random.default_rng(0)
    truth = 2 * np.arcsin(0.6) / np.pi
    num_covered = 0
    for _ in range(100):
        x = rng.normal(size=30)
        y = 0.6 * x + 0.8 * rng.normal(size=30)
        low, high = rank_errors({"x": x}, y, range(30), num_draws=400)["x"].kendall_interval
        num_covered += low <= truth <= high
    assert (
        num_covered >= 87
    )  # 95 expected, standard error 2.2; the percentile method is a bit short


def test_bad_input():
    columns, error = measures()
    with pytest.raises(ValueError, match="no spread in the poor"):
        rank_errors({**columns, "poor": np.ones(12)}, error, range(12))
    with pytest.raises(ValueError, match="no spread in the test error"):
        rank_errors(columns, np.ones(12), range(12))
    with pytest.raises(ValueError, match="3 points; at least 4"):
        rank_errors({"x": [1, 2, 3]}, [1, 2, 3], "abc")
