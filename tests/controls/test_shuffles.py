"""Shuffled norms against loops over single draws, and on known answers."""

import itertools

import numpy as np
import pytest
from scipy import stats

from normjax.controls.shuffles import permute_losses, permute_norms


def networks(n=12, seed=0):
    rng = np.random.default_rng(seed)
    train, rho = rng.uniform(16, 25, n), np.exp(rng.uniform(5, 7, n))
    test = 0.6 * train - 0.002 * rho + 0.2 * rng.normal(size=n)
    return -train / rho, -test / rho, rho


def unrelated(n, seed=0):
    rng = np.random.default_rng(seed)
    rho = np.exp(rng.uniform(5, 7, n))
    train, test = rng.uniform(16, 25, n), rng.uniform(10, 12, n)
    return -train / rho, -test / rho, rho


def test_enumeration_against_a_loop():
    x, y, rho = unrelated(5)
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
    assert result.num_reaching == np.sum(np.array(expected) >= real - 1e-12) >= 1


def test_random_draws_approach_the_enumeration():
    x, y, rho = unrelated(7, seed=1)
    exact = permute_norms(x, y, rho, num_draws=5040)
    drawn = permute_norms(x, y, rho, num_draws=5000)
    assert exact.is_exact and not drawn.is_exact
    # Standard error of the fraction at most 0.007; of the quantiles small beside 0.02.
    assert abs(exact.num_reaching / 5040 - drawn.num_reaching / 5000) < 0.03
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
    assert max(result.num_reaching for result in artifact) > 1000
    train = rng.uniform(16, 25, 20)
    test = (0.8 * train / rho - 0.002) * rho  # exactly a line that misses the origin
    real = permute_norms(-train / rho, -test / rho, rho)
    assert real.r2 == pytest.approx(1, abs=1e-12)
    assert real.num_reaching == 0  # of 10,000


def test_scales_of_permuted_norms_do_not_matter():
    x, y, rho = unrelated(6)
    plain = permute_norms(x, y, rho)
    scaled = permute_norms(x * 1e-160, y * 1e-160, rho * 1e200)
    np.testing.assert_allclose(scaled.r2_quantiles, plain.r2_quantiles, rtol=1e-10)
    assert scaled.num_reaching == plain.num_reaching


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
        permute_norms(*unrelated(4), num_draws=0)


def test_losses_known_at_every_norm():
    x, y, rho = networks(6)
    ratios = rho[:, None] / rho
    exact = permute_losses(x[:, None] * ratios, y[:, None] * ratios)
    scaled = permute_norms(x, y, rho)
    np.testing.assert_allclose(exact.r2_quantiles, scaled.r2_quantiles, rtol=1e-10)
    assert exact.r2 == pytest.approx(stats.linregress(x, y).rvalue ** 2, rel=1e-10)
    assert exact.num_reaching == scaled.num_reaching
    assert exact.num_permutations == 720 and exact.is_exact
