"""Orders within levels and draws of levels, against loops and counts."""

import itertools
import math

import numpy as np
import pytest

from normjax.statistics.resampling import (
    log_num_orders,
    orders_within,
    p_value_of,
    resample_counts,
)


def test_all_orders_of_few_networks():
    levels = list("abacbb")  # 2, 3 and 1 networks: 12 orders
    orders, is_exact = orders_within(levels, 12, np.random.default_rng(0))
    assert is_exact
    expected = {
        order for order in itertools.permutations(range(6)) if [levels[i] for i in order] == levels
    }
    assert set(map(tuple, orders.tolist())) == expected and len(orders) == 12
    assert math.exp(log_num_orders([2, 3, 1])) == pytest.approx(12)


def test_random_orders_stay_within_their_levels():
    levels = list("abacbbcc")
    orders, is_exact = orders_within(levels, 500, np.random.default_rng(0))
    assert is_exact  # 72 orders
    levels = list("abacbbcccbb")
    orders, is_exact = orders_within(levels, 500, np.random.default_rng(0))
    assert not is_exact and orders.shape == (500, 11)
    names = np.array(levels)
    assert (np.sort(orders, axis=1) == np.arange(11)).all()
    assert (names[orders] == names).all()
    # Each network of "b" comes to the first place of "b" in a fifth of the draws; error 1.8%.
    share = [np.mean(orders[:, 1] == i) for i in np.flatnonzero(names == "b")]
    np.testing.assert_allclose(share, 0.2, atol=0.07)


def test_the_observed_order_counts():
    assert p_value_of(3, 12, is_exact=True) == 3 / 12
    assert p_value_of(0, 99, is_exact=False) == 1 / 100


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
