"""Predictions of what was left out, against statsmodels and loops."""

import numpy as np
import pytest
import statsmodels.api as sm
from statsmodels.stats.outliers_influence import OLSInfluence

from normjax.statistics.leave_out import leave_out, predict_left_out


def points(n=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-0.1, -0.01, n)
    return x, 0.6 * x - 0.001 + 0.0008 * rng.normal(size=n)


def test_leaving_networks_out_against_statsmodels():
    x, y = points()
    names = [f"network {i}" for i in range(12)]
    errors = OLSInfluence(sm.OLS(y, sm.add_constant(x)).fit()).resid_press
    found = leave_out(x, y, names, names)
    assert found.rmse == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-9)
    assert found.largest == pytest.approx(np.abs(errors).max(), rel=1e-9)
    assert found.where == names[np.abs(errors).argmax()]
    assert found.num_parts == 12


def test_leaving_levels_out_against_a_loop():
    x, y = points()
    levels = np.repeat(["a", "b", "c"], 4)
    errors = np.empty(12)
    for level in "abc":
        out = levels == level
        slope, intercept = np.polyfit(x[~out], y[~out], 1)
        errors[out] = slope * x[out] + intercept - y[out]
    found = leave_out(x, y, levels, levels)
    assert found.rmse == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-9)
    with pytest.raises(ValueError, match="all points belong to a"):
        leave_out(x, y, ["a"] * 12, levels)
    families = np.repeat(["many", "few"], [10, 2])  # without the many there is no line
    only = leave_out(x, y, families, families)
    slope, intercept = np.polyfit(x[:10], y[:10], 1)
    error = slope * x[10:] + intercept - y[10:]
    assert only.rmse == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-9)
    assert (only.num_parts, only.where) == (1, "few")


def test_no_line_is_drawn_through_too_little():
    with pytest.raises(ValueError, match="without left there are too few"):
        leave_out([1.0, 2, 3, 4], [1.0, 2, 3, 4], ["left", "left", "right", "right"], list("abcd"))
    with pytest.raises(ValueError, match="3 points; at least 4"):
        leave_out([1.0, 2, 3], [1.0, 2, 3], list("abc"), list("abc"))
    with pytest.raises(ValueError, match="without a there are too few"):  # or one x, without b
        leave_out([1.0, 1, 1, 2, 2.5], [1.0, 1.1, 0.9, 2, 2.6], list("aaabb"), list("pqrst"))


def test_errors_relative_to_the_mean():
    x, y = points()
    names = [f"network {i}" for i in range(12)]
    of_mean = [y[k] - np.delete(y, k).mean() for k in range(12)]
    found = leave_out(x, y, names, names)
    assert found.relative == pytest.approx(found.rmse / np.sqrt(np.mean(np.square(of_mean))))
    assert found.relative < 0.1
    assert np.isnan(leave_out(x, np.ones(12), names, names).relative)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_curves_against_least_squares_without_each_part(offset):
    rng = np.random.default_rng(0)
    rho = np.exp(0.05 * rng.normal(size=12))
    columns = np.stack([rho**0, 1 / rho, 1 / rho**2], axis=1)
    y, parts = offset + rng.normal(size=12), np.repeat(list("abcd"), 3)
    expected = np.empty(12)
    for part in "abcd":
        out = parts == part
        scaled = columns - [0, 1, 1]  # the same curves, better conditioned
        fit = np.linalg.lstsq(scaled[~out], y[~out], rcond=None)[0]
        expected[out] = scaled[out] @ fit
    found = predict_left_out(columns, y, list(parts))
    np.testing.assert_allclose(found - offset, expected - offset, atol=1e-6)


def test_columns_without_unique_coefficients():
    y = np.arange(6.0)
    twice = np.stack([y + 1, 2 * (y + 1)], 1)
    assert np.isnan(predict_left_out(twice, y, range(6))).all()
    line = np.stack([np.ones(6), [0, 0, 0, 0, 1, 2]], 1)
    found = predict_left_out(line, y, list("aaaabb"))
    assert not np.isnan(found[:4]).any() or np.isnan(found[:4]).all()
    assert np.isnan(found[4:]).all()  # without them, all x are equal
