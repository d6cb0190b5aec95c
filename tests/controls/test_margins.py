"""Ratios and predictions of raw margins against statsmodels and scipy."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from normjax.controls.margins import margin_ratio, predict_margins


def networks(n=12, seed=0):
    rng = np.random.default_rng(seed)
    train, rho = rng.uniform(16, 25, n), np.exp(rng.uniform(5, 7, n))
    return train, 0.6 * train - 0.002 * rho + 0.2 * rng.normal(size=n), rho


def test_predictions_of_levels_left_out_against_weighted_lines():
    """The same as lines of the normalized losses with weights rho^2, by statsmodels."""
    train, test, rho = networks()
    levels = np.repeat(list("abcdef"), 2)
    found = predict_margins(train, test, rho, levels)
    assert found.left_out == "levels"
    for values, column in ((found.line, -train / rho), (found.divisor, 1 / rho)):
        expected = np.empty(12)
        for level in set(levels):
            out = levels == level
            columns = sm.add_constant(column)
            fit = sm.WLS(-(test / rho)[~out], columns[~out], weights=rho[~out] ** 2).fit()
            expected[out] = -rho[out] * fit.predict(columns[out])
        np.testing.assert_allclose(values, expected, rtol=1e-7)
    line, divisor = (np.mean((np.array(p) - test) ** 2) for p in (found.line, found.divisor))
    constant = np.mean([(test[2 * i : 2 * i + 2] - np.delete(test, [2 * i, 2 * i + 1]).mean()) ** 2
                        for i in range(6)])  # fmt: skip
    assert found.line_rmse == pytest.approx(np.sqrt(line), rel=1e-9)
    assert found.constant_rmse == pytest.approx(np.sqrt(constant), rel=1e-9)
    assert found.skill == pytest.approx(1 - line / min(divisor, constant), rel=1e-9)
    assert found.skill > 0.8


def test_networks_are_left_out_where_there_are_few_levels():
    train, test, rho = networks()
    few = predict_margins(train, test, rho, ["a"] * 6 + ["b"] * 6)
    assert few.left_out == "networks"
    assert few.line == predict_margins(train, test, rho, range(12)).line
    assert predict_margins(train, np.full(12, 11.0), rho, range(12)).skill is None


def test_margin_ratio_against_scipy():
    train, test, rho = networks()
    found = margin_ratio(train, test, rho)
    ratio = test / train
    assert found.mean == pytest.approx(ratio.mean())
    assert (found.low, found.high) == (ratio.min(), ratio.max())
    assert found.spread == pytest.approx(np.std(np.log(test) - np.log(train), ddof=1))
    total = np.var(np.log(test), ddof=1) + np.var(np.log(train), ddof=1)
    assert found.spread_if_unrelated == pytest.approx(np.sqrt(total))
    assert found.correlation_with_norm == pytest.approx(stats.spearmanr(ratio, rho)[0])
    model = sm.OLS(test, sm.add_constant(np.stack([train, rho], 1))).fit()
    t = model.tvalues[1]
    assert found.partial_correlation == pytest.approx(t / np.sqrt(t**2 + 9), rel=1e-9)
    assert found.partial_p_value == pytest.approx(model.pvalues[1], rel=1e-6)
    with pytest.raises(ValueError, match="not positive"):
        margin_ratio(train, -test, rho)
