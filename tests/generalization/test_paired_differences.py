"""Differences to the best measure: what is drawn, what is claimed, how often wrongly."""

import math

import numpy as np
import pytest
from scipy import stats

from normjax.generalization.paired_differences import differences_to_best
from normjax.statistics.rank_correlation import kendall_of_counts
from normjax.statistics.resampling import resample_counts

LEVELS = np.repeat(np.arange(12), 2).tolist()


def draw(rng, levels=LEVELS, within=0.3):
    """A number for each network that is alike within levels."""
    own = dict(zip(dict.fromkeys(levels), rng.normal(size=len(set(levels))), strict=True))
    return np.array([own[level] for level in levels]) + within * rng.normal(size=len(levels))


def test_against_the_definition():
    """The largest difference of each draw, in standard errors, pair by pair."""
    rng = np.random.default_rng(0)
    y = draw(rng)
    measures = [y + 0.2 * draw(rng), y + 0.5 * draw(rng), draw(rng)]
    found = differences_to_best(measures, y, LEVELS, num_draws=500, seed=3)
    counts, _ = resample_counts(LEVELS, 500, np.random.default_rng(3))
    taus = np.array([stats.kendalltau(x, y).statistic for x in measures])
    drawn = np.stack(
        [kendall_of_counts(stats.rankdata(x), stats.rankdata(y), counts) for x in measures]
    )
    best = taus.argmax()
    largest, errors = np.zeros(500), {}
    for i in range(3):
        for j in range(i):
            difference = drawn[i] - drawn[j]
            errors[i, j] = errors[j, i] = difference.std()
            deviations = np.abs(difference - difference.mean()) / difference.std()
            largest = np.maximum(largest, deviations)
    assert {difference.reason for difference in found} == {""}
    # Twelve levels: quantiles of Student's t with 11 degrees of freedom for those of a normal.
    scale = stats.t.ppf(stats.norm.cdf(np.quantile(largest, 0.95)), 11)
    for k, difference in enumerate(found):
        assert difference.value == pytest.approx(taus[best] - taus[k], abs=1e-12)
        if k == best:
            assert difference.interval == (0, 0) and difference.p_value == 1
            continue
        margin = scale * errors[best, k]
        expected = (difference.value - margin, difference.value + margin)
        assert difference.interval == pytest.approx(expected, rel=1e-6)
        statistic = difference.value / errors[best, k]
        p_value = (np.sum(stats.t.ppf(stats.norm.cdf(largest), 11) >= statistic) + 1) / 501
        assert difference.p_value == pytest.approx(p_value, abs=1e-12)
        assert difference.is_real == (difference.interval[0] > 0)


def test_identical_orders_tie_exactly():
    rng = np.random.default_rng(1)
    y = draw(rng)
    x = y + 0.1 * draw(rng)
    first, second, other = differences_to_best([x, np.exp(x), -x], y, LEVELS)
    assert first == second and first.interval == (0, 0) and not first.is_real
    assert other.is_real and other.p_value < 0.01 and other.value > 1


def test_few_levels_have_differences_without_intervals():
    y = np.arange(8.0)
    found = differences_to_best([y, -y], y, [0, 0, 1, 1, 2, 2, 3, 3])
    assert [difference.value for difference in found] == pytest.approx([0, 2])
    assert found[1].interval is None and math.isnan(found[1].p_value) and not found[1].is_real
    assert found[1].reason.startswith("4 levels; an interval needs at least 6")


@pytest.mark.slow
@pytest.mark.parametrize("num_levels", [6, 12])
@pytest.mark.parametrize("relation", [0.0, 0.7])
def test_equal_measures_are_seldom_told_apart(num_levels, relation):
    """Measures of one distribution: at most 5% of runs may name any of them worse."""
    rng = np.random.default_rng(2)
    levels = np.repeat(np.arange(num_levels), 2).tolist()
    wrong = 0
    for seed in range(100):
        y = draw(rng, levels)
        measures = [relation * y + draw(rng, levels) for _ in range(5)]
        found = differences_to_best(measures, y, levels, num_draws=300, seed=seed)
        wrong += any(difference.is_real for difference in found)
    assert wrong <= 10  # 1% chance at 5%


def test_intervals_stay_within_the_possible():
    """Six levels: standard errors are large, and the difference of two taus is at most 2."""
    rng = np.random.default_rng(0)
    levels = np.repeat(np.arange(6), 2).tolist()
    y = draw(rng, levels)
    measures = [y, *(draw(rng, levels) for _ in range(20)), -y]
    found = differences_to_best(measures, y, levels, num_draws=200)
    assert all(-2 <= low <= high <= 2 for low, high in (f.interval for f in found if f.interval))
    absent = [difference for difference in found if difference.interval is None]
    assert {difference.reason for difference in absent} == {
        "with 6 levels it would be all of -2 to 2"
    }
    assert not any(difference.is_real for difference in absent)
