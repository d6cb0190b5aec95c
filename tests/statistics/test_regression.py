"""The fitted line against scipy and statsmodels, at the scale where the paper's losses lie."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from normjax.statistics.regression import fit_line


def near_ln_10(n=12, spread=1e-4, seed=0):
    rng = np.random.default_rng(seed)
    x = np.log(10) - spread * rng.random(n)
    y = 0.84 * x + 0.37 + 0.05 * spread * rng.normal(size=n)
    return x, y


@pytest.mark.parametrize(
    ("x", "y"),
    [
        near_ln_10(),
        near_ln_10(n=3, seed=1),
        (np.array([1.0, 2, 4, 8, 16]), np.array([3.0, -1, 4, -1, 5])),
        (np.array([-2.0, 0, 1, 5]), np.array([4.0, 3, 1, -7])),
    ],
)
def test_agrees_with_statsmodels_and_scipy(x, y):
    fit = fit_line(x, y)
    # The reference is given centered x too; its intercept is then moved back by hand.
    shift = x.mean()
    model = sm.OLS(y, sm.add_constant(x - shift)).fit()
    line = stats.linregress(x - shift, y)
    tolerance = {"rtol": 1e-10, "atol": 0}
    np.testing.assert_allclose(fit.slope, model.params[1], **tolerance)
    np.testing.assert_allclose(fit.slope, line.slope, **tolerance)
    np.testing.assert_allclose(fit.intercept, line.intercept - line.slope * shift, **tolerance)
    np.testing.assert_allclose(fit.r2, model.rsquared, **tolerance)
    np.testing.assert_allclose(fit.r2, line.rvalue**2, **tolerance)
    np.testing.assert_allclose(fit.adjusted_r2, model.rsquared_adj, **tolerance)
    np.testing.assert_allclose(fit.rmse, np.sqrt(model.ssr / (x.size - 2)), **tolerance)
    np.testing.assert_allclose(fit.slope_interval, model.conf_int()[1], rtol=1e-9, atol=0)
    assert fit.n == x.size


def test_intervals_against_the_uncentered_model():
    x, y = np.array([1.0, 2, 4, 8, 16]), np.array([3.0, -1, 4, -1, 5])
    fit = fit_line(x, y, confidence=0.8)
    expected = sm.OLS(y, sm.add_constant(x)).fit().conf_int(alpha=0.2)
    np.testing.assert_allclose(fit.intercept_interval, expected[0], rtol=1e-10, atol=0)
    np.testing.assert_allclose(fit.slope_interval, expected[1], rtol=1e-10, atol=0)


def test_exact_line_and_prediction():
    x = np.array([0.0, 1.0, 2.0, 4.0])
    fit = fit_line(x, 3 - 2 * x)
    assert (fit.slope, fit.intercept, fit.r2, fit.rmse) == (-2, 3, 1, 0)
    np.testing.assert_allclose(fit.predict([10.0, -1.0]), [-17.0, 5.0], rtol=1e-15)
    assert fit.predict(10.0) == -17.0


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, 6)
    num_covered = 0
    for _ in range(400):
        low, high = fit_line(x, 2 * x + rng.normal(size=6)).slope_interval
        num_covered += low <= 2 <= high
    # 400 draws at 95%: the standard error is 4.4, four of them are 18.
    assert abs(num_covered - 380) < 18


def test_constant_y_has_no_r2():
    fit = fit_line([1, 2, 3], [0.1, 0.1, 0.1])
    assert np.isnan(fit.r2) and np.isnan(fit.adjusted_r2)
    assert abs(fit.slope) < 1e-16 and fit.intercept == pytest.approx(0.1, rel=1e-15)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2], [1, 2], "2 points; at least 3"),
        ([1, 2, 3], [1, 2], "of one length"),
        ([[1, 2, 3]], [[1, 2, 3]], "of one length"),
        ([2.3, 2.3, 2.3], [1, 2, 3], "no spread in x"),
        ([2.3, 2.3, np.nextafter(2.3, 3)], [1, 2, 3], "no spread in x"),
        ([1, 2, np.nan], [1, 2, 3], "point 2 is nan"),
        ([1, 2, 3], [1, np.inf, 3], "point 1 is inf"),
    ],
)
def test_bad_points(x, y, message):
    with pytest.raises(ValueError, match=message) as info:
        fit_line(x, y)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_bad_confidence(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        fit_line([1, 2, 3], [1, 2, 4], confidence)
