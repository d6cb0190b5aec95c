"""Random orders and bootstraps against loops over single draws, and against formulas."""

import numpy as np
import pytest

from normjax.statistics.regression import fit_line
from normjax.statistics.resampling import bootstrap_line, permute_within_levels, resample_counts

LN10 = np.log(10)


def networks(n=12, seed=0):
    rng = np.random.default_rng(seed)
    train, rho = rng.uniform(16, 25, n), np.exp(rng.uniform(5, 7, n))
    test = 0.6 * train - 0.002 * rho + 0.2 * rng.normal(size=n)
    return -train / rho, -test / rho, rho


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


def test_bootstrap_over_networks_against_a_loop():
    x, y, _ = networks()
    rng = np.random.default_rng(5)
    counts, unit = resample_counts(range(12), 300, rng)
    assert unit == "networks"
    lines = [fit_line(np.repeat(x, draw), np.repeat(y, draw)) for draw in counts.astype(int)]
    found = bootstrap_line(x, y, range(12), LN10, num_draws=300, seed=5)
    for name in ("slope", "r2", "adjusted_r2", "rmse"):
        expected = np.quantile([getattr(line, name) for line in lines], [0.025, 0.975])
        np.testing.assert_allclose(getattr(found, f"{name}_interval"), expected, rtol=1e-9)
    intercept = [LN10 * (1 - line.slope) + line.intercept for line in lines]
    np.testing.assert_allclose(
        found.intercept_interval, np.quantile(intercept, [0.025, 0.975]), rtol=1e-9
    )
    assert (found.unit, found.num_draws) == ("networks", 300)


def test_draws_of_too_few_networks_do_not_count():
    """Two networks are always on a line; of 6 networks, 936 of 46,656 draws hold no more."""
    x, y, _ = networks(6)
    found = bootstrap_line(x, y, range(6), LN10, num_draws=20_000)
    assert found.num_draws / 20_000 == pytest.approx(1 - 936 / 46_656, abs=0.004)
    assert found.r2_interval[1] < 1
    with pytest.raises(ValueError, match="3 points; at least 4"):
        bootstrap_line(x[:3], y[:3], range(3), LN10)
    with pytest.raises(ValueError, match="2 levels; an interval needs at least 6"):
        bootstrap_line(x, y, list("aaabbb"), LN10)
    with pytest.raises(ValueError, match="5 networks; an interval needs at least 6"):
        bootstrap_line(x[:5], y[:5], range(5), LN10)
    with pytest.raises(ValueError, match="no spread"):
        bootstrap_line(x, np.ones(6), range(6), LN10)


def test_whole_levels_are_drawn_where_there_are_enough():
    levels = np.repeat(list("abcdef"), 3)
    counts, unit = resample_counts(levels, 100, np.random.default_rng(0))
    assert unit == "levels"
    assert (counts.reshape(100, 6, 3) == counts.reshape(100, 6, 3)[..., :1]).all()
    assert (counts.sum(axis=1) == 18).all() and counts.max() > 1
    for one_unit in (range(6), ["a"] * 6):
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


def test_what_the_intervals_of_a_line_are_worth():
    """Measured on 400 runs of 6 levels of 3 networks: slope 91%, R2 90%, RMSE 72%."""
    rng = np.random.default_rng(0)

    def draw(num_levels):
        level_x = rng.uniform(-0.1, -0.01, num_levels)
        level_y = 0.6 * level_x + 5e-4 * rng.normal(size=num_levels)
        x, y = np.repeat(level_x, 3), np.repeat(level_y, 3)
        return x + 1e-3 * rng.normal(size=x.size), y + 7e-4 * rng.normal(size=x.size)

    truth = fit_line(*draw(20_000))
    covered = dict.fromkeys(("slope", "r2", "rmse"), 0)
    levels = np.repeat(np.arange(6), 3)
    for seed in range(200):
        found = bootstrap_line(*draw(6), levels, LN10, num_draws=300, seed=seed)
        for name in covered:
            low, high = getattr(found, f"{name}_interval")
            covered[name] += low <= getattr(truth, name) <= high
    # The standard errors are 2 to 3%.
    assert 0.82 <= covered["slope"] / 200 <= 0.99
    assert 0.80 <= covered["r2"] / 200 <= 0.99
    assert covered["rmse"] / 200 >= 0.58
