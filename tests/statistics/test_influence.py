"""Influence, prediction and errors in both variables against statsmodels, loops and minimizers."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import optimize, stats
from statsmodels.stats.outliers_influence import OLSInfluence

from normjax.statistics.influence import (
    cooks_distances,
    deming_line,
    leave_out,
    margin_ratio,
    predict_margins,
)


def points(n=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-0.1, -0.01, n)
    return x, 0.6 * x - 0.001 + 0.0008 * rng.normal(size=n)


def networks(n=12, seed=0):
    rng = np.random.default_rng(seed)
    train, rho = rng.uniform(16, 25, n), np.exp(rng.uniform(5, 7, n))
    return train, 0.6 * train - 0.002 * rho + 0.2 * rng.normal(size=n), rho


def test_cooks_distances_against_statsmodels():
    x, y = points()
    expected = OLSInfluence(sm.OLS(y, sm.add_constant(x)).fit()).cooks_distance[0]
    np.testing.assert_allclose(cooks_distances(x, y), expected, rtol=1e-9)
    x[0], y[0] = 0.5, 1.0  # far out, off the line
    assert cooks_distances(x, y)[0] > 1


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
    with pytest.raises(ValueError, match="without a there are too few"):
        leave_out(x, y, ["a"] * 12, levels)
    families = np.repeat(["many", "few"], [10, 2])  # without the many there is no line
    only = leave_out(x, y, families, families)
    slope, intercept = np.polyfit(x[:10], y[:10], 1)
    error = slope * x[10:] + intercept - y[10:]
    assert only.rmse == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-9)
    assert (only.num_parts, only.where) == (1, "few")


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
