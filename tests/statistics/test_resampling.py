"""Shuffles of margins and bootstraps against loops over single draws, and against formulas."""

import numpy as np
import pytest
from scipy import stats

from normjax.statistics.resampling import (
    bootstrap_line,
    permute_losses,
    permute_norms,
    permute_within_levels,
    resample_counts,
    shuffle_margins,
)

LN10 = np.log(10)


def networks(n=12, seed=0):
    rng = np.random.default_rng(seed)
    train, rho = rng.uniform(16, 25, n), np.exp(rng.uniform(5, 7, n))
    test = 0.6 * train - 0.002 * rho + 0.2 * rng.normal(size=n)
    return -train / rho, -test / rho, rho


def test_shuffled_margins_against_a_loop():
    x, y, rho = networks()
    levels = list("aabbccddeeff")
    rng = np.random.default_rng(3)
    orders = [permute_within_levels(levels, 50, rng) for _ in range(2)]
    train, test = -x * rho, -y * rho

    def unexplained(train, test):
        columns = np.stack([train, rho], 1)
        residual = test - columns @ np.linalg.lstsq(columns, test, rcond=None)[0]
        return residual @ residual / np.sum((test - test.mean()) ** 2)

    left, r2 = [], []
    for first, second in zip(*orders, strict=True):
        left.append(unexplained(train[first], test[second]))
        r2.append(stats.linregress(train[first] / rho, test[second] / rho).rvalue ** 2)
    real = unexplained(train, test)
    found = shuffle_margins(x, y, rho, levels, num_draws=50, seed=3)
    assert found.unexplained == pytest.approx(real, rel=1e-8)
    quantiles = [0.05, 0.5, 0.95]
    np.testing.assert_allclose(found.unexplained_quantiles, np.quantile(left, quantiles), rtol=1e-8)
    np.testing.assert_allclose(found.r2_quantiles, np.quantile(r2, quantiles), rtol=1e-8)
    assert found.p_value == (np.sum(np.array(left) <= real) + 1) / 51


def test_scales_do_not_matter():
    x, y, rho = networks()
    plain = shuffle_margins(x, y, rho, num_draws=200)
    scaled = shuffle_margins(x * 1e-160, y * 1e-160, rho * 1e200, num_draws=200)
    for name in ("unexplained", "unexplained_quantiles", "r2_quantiles", "p_value"):
        np.testing.assert_allclose(getattr(scaled, name), getattr(plain, name), rtol=1e-9)


def test_orders_keep_levels_together():
    levels = list("abacbcdde")  # 3 pairs, here d too, and a single
    orders = permute_within_levels(levels, 500, np.random.default_rng(0))
    assert (np.sort(orders, axis=1) == np.arange(9)).all()
    names = np.array(levels)
    for level in "abcd":
        came_from = names[orders[:, names == level]]
        assert (came_from[:, 0] == came_from[:, 1]).all()
        # Each of the four pairs comes here in a quarter of the draws; standard error 2%.
        share = [np.mean(came_from[:, 0] == other) for other in "abcd"]
        np.testing.assert_allclose(share, 0.25, atol=0.08)
    assert (orders[:, 8] == 8).all()
    assert 0.4 < np.mean(orders[:, 0] < orders[:, 2]) < 0.6  # within a level too


def test_losses_known_at_every_norm():
    x, y, rho = networks(6)
    ratios = rho[:, None] / rho
    exact = permute_losses(x[:, None] * ratios, y[:, None] * ratios)
    scaled = permute_norms(x, y, rho)
    np.testing.assert_allclose(exact.r2_quantiles, scaled.r2_quantiles, rtol=1e-10)
    assert exact.r2 == pytest.approx(stats.linregress(x, y).rvalue ** 2, rel=1e-10)
    assert exact.fraction_at_least == scaled.fraction_at_least
    assert exact.num_permutations == 720 and exact.is_exact


def test_bootstrap_over_networks_against_a_loop():
    x, y, _ = networks()
    rng = np.random.default_rng(5)
    counts, unit = resample_counts(range(12), 300, rng)
    assert unit == "networks"
    lines = [
        stats.linregress(np.repeat(x, draw), np.repeat(y, draw)) for draw in counts.astype(int)
    ]
    found = bootstrap_line(x, y, range(12), LN10, num_draws=300, seed=5)
    ends = [0.025, 0.975]
    slope = np.array([line.slope for line in lines])
    intercept = LN10 * (1 - slope) + [line.intercept for line in lines]
    np.testing.assert_allclose(found.slope_interval, np.quantile(slope, ends), rtol=1e-9)
    np.testing.assert_allclose(found.intercept_interval, np.quantile(intercept, ends), rtol=1e-9)
    r2 = [line.rvalue**2 for line in lines]
    np.testing.assert_allclose(found.r2_interval, np.quantile(r2, ends), rtol=1e-9)
    assert (found.unit, found.num_draws) == ("networks", 300)


def test_whole_levels_are_drawn_where_there_are_enough():
    levels = np.repeat(list("abcdef"), 3)
    counts, unit = resample_counts(levels, 100, np.random.default_rng(0))
    assert unit == "levels"
    assert (counts.reshape(100, 6, 3) == counts.reshape(100, 6, 3)[..., :1]).all()
    assert (counts.sum(axis=1) == 18).all() and counts.max() > 1
    for one_unit in (range(5), ["a"] * 5):
        assert resample_counts(one_unit, 9, np.random.default_rng(0))[1] == "networks"
    with pytest.raises(ValueError, match="5 levels; an interval needs at least 6"):
        resample_counts(levels[:15], 9, np.random.default_rng(0))


def test_two_way_bootstrap_has_the_test_examples_error():
    """With networks on an exact line the slope's error is that of the test examples alone."""
    rng = np.random.default_rng(0)
    x = np.linspace(-0.1, -0.01, 12)
    shared, own = rng.normal(size=(1, 400)), rng.normal(size=(12, 400))
    noise = 0.02 * shared * x[:, None] / 0.1 + 0.001 * own
    examples = 0.6 * x[:, None] + noise - noise.mean(axis=1, keepdims=True)
    alone = bootstrap_line(x, examples.mean(axis=1), range(12), LN10)
    assert np.ptp(alone.slope_interval) < 1e-9
    found = bootstrap_line(x, examples, range(12), LN10)
    assert found.unit == "networks x test examples"
    # The slope of example j is 0.6 + 0.2 shared_j and little more: its standard error 0.2 / 20.
    error = 0.2 * np.std(shared) / np.sqrt(400)
    np.testing.assert_allclose(
        found.slope_interval, [0.6 - 1.96 * error, 0.6 + 1.96 * error], atol=0.15 * error
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"product_norms": [1, 0, 2]}, "positive"),
        ({"train_excess": [-1, -1, -1]}, "no spread in the excess"),
        ({"train_excess": [-1, -2, np.nan]}, "finite"),
        ({"test_excess": [-3, -1.5, -1]}, "no spread in the raw test margins"),
        ({"num_draws": 0}, "num_draws"),
    ],
)
def test_bad_input(change, message):
    given = {"train_excess": [-1, -2, -3], "test_excess": [-1, -2, -1], "product_norms": [1, 2, 3]}
    with pytest.raises(ValueError, match=message):
        shuffle_margins(**{**given, **change})
