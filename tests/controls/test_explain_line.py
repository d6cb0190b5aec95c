"""The controls against loops, statsmodels, and data whose answer is known."""

import itertools

import numpy as np
import pytest
import statsmodels.api as sm

from normjax.controls.explain import fit_through_anchor, permute_norms


def networks(n, seed=0):
    rng = np.random.default_rng(seed)
    rho = np.exp(rng.uniform(5, 7, n))
    train, test = rng.uniform(16, 25, n), rng.uniform(10, 12, n)
    return -train / rho, -test / rho, rho


def test_enumeration_against_a_loop():
    x, y, rho = networks(5)
    expected = []
    for order in itertools.permutations(range(5)):
        divisor = rho[list(order)]
        expected.append(np.corrcoef(x * rho / divisor, y * rho / divisor)[0, 1] ** 2)
    real = np.corrcoef(x, y)[0, 1] ** 2
    result = permute_norms(x, y, rho)
    assert result.is_exact and result.num_permutations == 120
    np.testing.assert_allclose(result.r2, real, rtol=1e-12)
    np.testing.assert_allclose(
        result.r2_quantiles, np.quantile(expected, [0.05, 0.5, 0.95]), rtol=1e-10
    )
    np.testing.assert_allclose(
        result.fraction_at_least, np.mean(np.array(expected) >= real - 1e-12), rtol=1e-12
    )


def test_random_draws_approach_the_enumeration():
    x, y, rho = networks(7, seed=1)
    exact = permute_norms(x, y, rho, num_draws=5040)
    drawn = permute_norms(x, y, rho, num_draws=5000)
    assert exact.is_exact and not drawn.is_exact
    # Standard error of the fraction at most 0.007; of the quantiles small beside 0.02.
    assert abs(exact.fraction_at_least - drawn.fraction_at_least) < 0.03
    np.testing.assert_allclose(drawn.r2_quantiles, exact.r2_quantiles, atol=0.02)
    assert drawn == permute_norms(x, y, rho, num_draws=5000)
    assert drawn != permute_norms(x, y, rho, num_draws=5000, seed=1)


def test_content_is_told_from_the_shared_divisor():
    """Margins whose ratio follows the norm make a line that shuffling breaks; unrelated do not."""
    rng = np.random.default_rng(2)
    rho = np.exp(rng.uniform(5, 7, 20))
    artifact = [
        permute_norms(-rng.uniform(16, 25, 20) / rho, -rng.uniform(10, 12, 20) / rho, rho)
        for _ in range(5)
    ]
    assert min(result.r2 for result in artifact) > 0.8
    assert max(result.fraction_at_least for result in artifact) > 0.1
    train = rng.uniform(16, 25, 20)
    test = (0.8 * train / rho - 0.002) * rho  # exactly a line that misses the origin
    real = permute_norms(-train / rho, -test / rho, rho)
    assert real.r2 == pytest.approx(1, abs=1e-12)
    assert real.fraction_at_least == pytest.approx(1 / 10_001)


def test_scales_do_not_matter():
    x, y, rho = networks(6)
    plain = permute_norms(x, y, rho)
    scaled = permute_norms(x * 1e-160, y * 1e-160, rho * 1e200)
    np.testing.assert_allclose(scaled.r2_quantiles, plain.r2_quantiles, rtol=1e-10)
    assert scaled.fraction_at_least == plain.fraction_at_least


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([-1, -2], [-1, -2], [1, 2]), "at least 3"),
        (([-1, -2, -3], [-1, -2, -3], [1, 0, 2]), "positive"),
        (([-1, -2, -3], [-1, -2, np.nan], [1, 1, 2]), "finite"),
        (([-1, -1, -1], [-1, -2, -3], [1, 1, 2]), "no spread"),
    ],
)
def test_permutation_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        permute_norms(*arguments)
    with pytest.raises(ValueError, match="num_draws"):
        permute_norms(*networks(4), num_draws=0)


def test_anchored_line_against_statsmodels():
    x, y, _ = networks(9)
    anchor = np.log(10)
    fit = fit_through_anchor(anchor + x, anchor + y, anchor)
    model = sm.OLS(y, x).fit()
    np.testing.assert_allclose(fit.slope, model.params[0], rtol=1e-10)
    np.testing.assert_allclose(fit.slope_interval, model.conf_int()[0], rtol=1e-10)
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
