"""Fitted lines against scipy, statsmodels and longdouble, at the scale of the paper's losses."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import optimize, stats

from normjax.statistics.regression import deming_line, fit_line, fit_through_anchor


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
    assert fit.n == x.size


def test_intervals_against_loops_over_levels():
    x, y = near_ln_10()
    levels = np.repeat(list("abcdef"), 2)
    found = fit_line(x, y, levels).intervals
    assert (found.unit, found.num_units) == ("levels", 6)
    z, log_rmse = [], []
    for level in ("", *"abcdef"):
        line = fit_line(x[levels != level], y[levels != level])
        z.append(np.arctanh(np.sqrt(line.r2)) * np.sign(line.slope))
        log_rmse.append(np.log(line.rmse))
    for interval, values, back in ((found.r2, z, np.tanh), (found.rmse, log_rmse, np.exp)):
        error = np.sqrt(5 / 6 * np.sum((np.array(values[1:]) - np.mean(values[1:])) ** 2))
        ends = values[0] + stats.t.ppf(0.975, 4) * error * np.array([-1, 1])
        expected = back(ends) ** 2 if back is np.tanh else back(ends)
        np.testing.assert_allclose(interval, expected, rtol=1e-8)
    adjusted = [1 - (1 - r2) * 11 / 10 for r2 in found.r2]
    np.testing.assert_allclose(found.adjusted_r2, adjusted, rtol=1e-12)
    # Networks of their own and of one level are their own units.
    alone = fit_line(x, y)
    assert alone == fit_line(x, y, range(12)) == fit_line(x, y, ["a"] * 12)
    assert alone.intervals.unit == "networks"
    # The intercept's interval does not depend on where x is centered.
    shifted = fit_line(x - 2, y, levels)
    low, high = shifted.intervals.intercept
    at_two = fit_line(x - 2, y - (shifted.slope - 1) * 2, levels).intercept
    assert low < at_two - (shifted.slope - 1) * -2 < high


def test_where_no_interval_can_be_had():
    x, y = near_ln_10()
    for n, levels, reason in (
        (12, list("aaaabbbbcccc"), "3 levels; an interval needs at least 4"),
        (3, None, "3 networks; an interval needs at least 4"),
    ):
        fit = fit_line(x[:n], y[:n], levels)
        assert fit.intervals is None and fit.no_intervals == reason
    perfect = fit_line(x, np.zeros(12) + x - x[0])
    assert perfect.intervals is None and "undefined" in perfect.no_intervals
    only = fit_line([1.0, 1, 1, 2, 1], [1.0, 2, 3, 4, 5])
    assert only.intervals is None and "undefined" in only.no_intervals
    weak = fit_line([1.0, 2, 3, 4, 5, 6], [1.0, -1, 2, -2, 1, -1])
    assert weak.intervals.r2[0] == 0 and 0 < weak.intervals.r2[1] < 1


def test_exact_line_and_prediction():
    x = np.array([0.0, 1.0, 2.0, 4.0])
    fit = fit_line(x, 3 - 2 * x)
    assert (fit.slope, fit.intercept, fit.r2, fit.rmse) == (-2, 3, 1, 0)
    np.testing.assert_allclose(fit.predict([10.0, -1.0]), [-17.0, 5.0], rtol=1e-15)
    assert fit.predict(10.0) == -17.0


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


@pytest.mark.parametrize("noise", [1e-2, 1e-4])
def test_rmse_keeps_its_digits_near_a_perfect_line(noise):
    x, _ = near_ln_10()
    y = 0.84 * x + 0.37 + noise * 1e-4 * np.random.default_rng(1).normal(size=x.size)
    long_x, long_y = x.astype(np.longdouble), y.astype(np.longdouble)
    dx, dy = long_x - long_x.mean(), long_y - long_y.mean()
    slope = dx @ dy / (dx @ dx)
    sse = np.sum((dy - slope * dx) ** 2)
    fit = fit_line(x, y)
    assert fit.slope == pytest.approx(float(slope), rel=1e-12)
    assert fit.r2 == pytest.approx(float(1 - sse / (dy @ dy)), rel=1e-12)
    assert fit.rmse == pytest.approx(float(np.sqrt(sse / 10)), rel=1e-12)


def points(n=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-0.1, -0.01, n)
    return x, 0.6 * x - 0.001 + 0.0008 * rng.normal(size=n)


def test_anchored_line_against_statsmodels():
    x, y = points(9)
    anchor = np.log(10)
    fit = fit_through_anchor(anchor + x, anchor + y, anchor)
    model = sm.OLS(y, x).fit()
    np.testing.assert_allclose(fit.slope, model.params[0], rtol=1e-10)
    np.testing.assert_allclose(fit.rmse, np.sqrt(model.ssr / 8), rtol=1e-10)
    centered = 1 - model.ssr / np.sum((y - y.mean()) ** 2)
    np.testing.assert_allclose(fit.r2, centered, rtol=1e-10)
    assert fit.n == 9


def test_anchored_line_can_be_worse_than_the_mean():
    fit = fit_through_anchor([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], 0.0)
    assert fit.slope == pytest.approx(10 / 14, rel=1e-12)
    assert fit.r2 == pytest.approx(1 - (14 - 100 / 14) / 2, rel=1e-12)
    with pytest.raises(ValueError, match="at the anchor"):
        fit_through_anchor([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], 2.0)


@pytest.mark.parametrize("variance_ratio", [0.2, 1.0, 7.0])
def test_deming_line_minimizes_the_weighted_distances(variance_ratio):
    """Against a minimizer over the points' true places as well as the line."""
    x, y = points()
    x, y = 10 * x, 10 * y

    def residuals(values):
        slope, intercept, places = values[0], values[1], values[2:]
        return np.concatenate(
            [np.sqrt(variance_ratio) * (x - places), y - intercept - slope * places]
        )

    start = np.concatenate([[0.5, 0.0], x])
    expected = optimize.least_squares(residuals, start, xtol=1e-14, ftol=1e-14, gtol=1e-14).x
    found = deming_line(x, y, variance_ratio)
    assert found.slope == pytest.approx(expected[0], rel=1e-6)
    assert found.intercept == pytest.approx(expected[1], rel=1e-5)


def test_deming_line_undoes_what_noise_in_x_does():
    rng = np.random.default_rng(1)
    true_x = rng.normal(size=20_000)
    x = true_x + 0.5 * rng.normal(size=true_x.size)
    y = 0.6 * true_x + 0.3 + 0.25 * rng.normal(size=true_x.size)
    assert stats.linregress(x, y).slope == pytest.approx(0.48, abs=0.01)  # 0.6 / (1 + 0.25)
    assert deming_line(x, y, 0.25).slope == pytest.approx(0.6, abs=0.015)
    falling = deming_line(x, -y, 0.25)
    assert falling.slope == pytest.approx(-deming_line(x, y, 0.25).slope, rel=1e-9)
    for ratio in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="variance_ratio"):
            deming_line(x, y, ratio)
