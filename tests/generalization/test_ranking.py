"""Rankings against scipy and cases worked out by hand."""

import math
import re

import numpy as np
import pytest
from scipy import stats

from normjax.generalization import ranking
from normjax.generalization.conditional_information import conditional_information
from normjax.generalization.granulated import granulated_tau, mean_psi_interval
from normjax.generalization.paired_differences import differences_to_best
from normjax.statistics.rank_correlation import rank_correlation
from tests.generalization.test_granulated import grid, levels_of


def rank(measures, error, loss=None, factors=None, **settings):
    factors = factors or grid()
    settings = {"num_test": 5000, "seed": 1, **settings}
    loss = error if loss is None else loss
    return ranking.rank_measures(measures, error, loss, factors, levels_of(factors), **settings)


def test_measures_are_ranked_best_first():
    factors, error = grid(), 0.1 + 0.05 * np.arange(12.0)
    noisy = error + 0.1 * np.random.default_rng(0).normal(size=12)
    measures = {"constant": np.ones(12), "against": -error, "noisy": noisy, "perfect": error**2}
    ranked = rank(measures, error, noisy)
    assert [row.name for row in ranked] == ["perfect", "noisy", "against", "constant"]
    perfect, middle, against, constant = ranked
    assert perfect.tau == pytest.approx(1, rel=1e-12)
    assert perfect.mean_psi == 1 and perfect.psi_interval is None  # the same without any level
    assert perfect.sign_errors.worst == 0 and against.sign_errors.worst == 1
    assert against.tau == -perfect.tau and against.psi == {"corruption": -1, "std": -1, "seed": -1}
    assert middle.tau_normalized_test_loss == 1 and 0 < middle.tau < 1
    levels = levels_of(factors)
    assert middle.correlation == rank_correlation(noisy, error, levels, seed=1)
    assert middle.correlation.unit == "levels"
    assert middle.psi_interval == mean_psi_interval(noisy, error, factors, levels)
    assert constant.correlation is None and constant.reason.startswith("no spread")
    known = [error**2, noisy, -error]
    differences = differences_to_best(known, error, levels, seed=1)
    assert [row.difference for row in ranked[:3]] == differences
    assert differences[2].is_real and constant.difference is None
    hyperparameters = {name: factors[name] for name in ("corruption", "std")}
    assert middle.information == conditional_information(
        noisy, error, hyperparameters, levels, seed=1
    )
    p_values = [row.correlation.p_value for row in ranked[:3]]
    assert [row.adjusted_p_value for row in ranked[:3]] == ranking.holm(p_values)


def test_holm():
    """The smallest of three times 3, the next times 2, never smaller than one before."""
    assert ranking.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert ranking.holm([0.9, 0.8]) == [1, 1] and ranking.holm([0.2]) == [0.2]
    first, unknown, second = ranking.holm([0.03, math.nan, 0.01])
    assert (first, second) == pytest.approx((0.03, 0.02)) and math.isnan(unknown)


def test_identical_orders_are_named():
    error = np.arange(12.0)
    other = np.random.default_rng(0).permutation(12)
    ranked = rank({"a": error, "other": other, "b": np.exp(error), "c": 2 * error}, error)
    tied = {row.name: row.tied_with for row in ranked}
    assert tied == {"a": ("b", "c"), "b": ("a", "c"), "c": ("a", "b"), "other": ()}
    assert {row.difference.value for row in ranked[:3]} == {0}


def test_few_levels_give_no_interval_and_the_reason():
    factors = grid("x")
    x, y = np.random.default_rng(0).normal(size=(2, 4))
    (row,) = rank({"m": x}, y, factors=factors)
    assert row.correlation.kendall_interval is None and row.psi_interval is None
    assert row.correlation.reason.startswith("2 levels; an interval needs at least")
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
        granulated_tau([1, math.nan, 3], [1, 2, 3], {"seed": "012"})
