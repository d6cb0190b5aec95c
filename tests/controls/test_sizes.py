"""Runs of several numbers of training images: means by another path, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from normjax.controls.explain import explain_line
from normjax.controls.sizes import PER_NETWORK, QUANTITIES, compare_sizes
from tests.helpers.synthetic_results import synthetic_table


def table_with_random_labels(seed=0):
    """12 networks of true labels and one of random labels, with its two kinds of rows."""
    table = synthetic_table(seed=seed)
    last = table[table["member"] == 11].assign(member=12, family="random_labels", level=1.0)
    return pd.concat([table, last, last.assign(labels="random")], ignore_index=True)


def values_of(rows, size):
    return {row.quantity: row for row in rows if row.train_images == size}


def test_means_over_levels_and_slopes():
    tables = {4000: synthetic_table(seed=1), 1000: table_with_random_labels()}
    rows, networks = compare_sizes(tables)
    assert [row.train_images for row in rows] == [1000] * 9 + [4000] * 8
    assert networks["train_images"].value_counts().to_dict() == {1000: 12, 4000: 12}
    for size, table in tables.items():
        found = values_of(rows, size)
        own = table[(table["norm"] == "2") & (table["family"] == "pretrain")]
        train = -own["normalized_train_excess"] * own["product_norm"]
        test = -own["normalized_test_excess"] * own["product_norm"]
        expected = {
            "train_loss": own["train_loss"],
            "margin_ratio": test / train,
            "test_error": own["test_error"],
            "gap": own["normalized_test_loss"] - own["normalized_train_loss"],
            "product_norm": own["product_norm"],
            "norm_over_margin": own["product_norm"] / train,
            "norm_bound": own["product_norm"] / train / np.sqrt(size),
        }
        assert set(expected) == set(PER_NETWORK)
        for name, values in expected.items():
            means = [values[own["level"] == level].mean() for level in (0, 0.1, 0.5, 1)]
            row = found[name]
            limits = [np.mean(means), min(means), max(means)]
            np.testing.assert_allclose([row.value, row.low, row.high], limits, rtol=1e-9)
            assert (row.levels, row.networks, row.reason) == (4, 12, "")
        line = explain_line(table, num_draws=1)
        fit = line.fit_without_random_labels
        slope = found["slope"]
        assert (slope.value, slope.low, slope.high) == (fit.slope, *fit.intervals.slope)
        assert ("slope_with_random_labels" in found) == (size == 1000)
        if size == 1000:
            assert found["slope_with_random_labels"].value == line.fit.slope
            assert found["slope_with_random_labels"].networks == 13
    assert set(QUANTITIES) == set(values_of(rows, 1000))


def test_levels_count_alike_whatever_their_seeds():
    table = synthetic_table()
    fewer = table[(table["level"] > 0) | (table["seed"] == 0)]
    rows, _ = compare_sizes({10: table, 20: fewer})
    own = fewer[fewer["norm"] == "2"].groupby("level")["test_error"].mean()
    found = values_of(rows, 20)["test_error"]
    assert found.value == pytest.approx(own.mean(), rel=1e-12) and found.networks == 10


def test_selection_and_norm_are_chosen():
    table = synthetic_table(selections=("final", "loss=0.01"))
    rows, networks = compare_sizes({10: table, 20: table}, "loss=0.01", "1/100")
    assert set(networks["selection"]) == {"loss=0.01"} and set(networks["norm"]) == {"1/100"}
    plain, _ = compare_sizes({10: table, 20: table})
    assert values_of(rows, 10)["product_norm"].value != values_of(plain, 10)["product_norm"].value


def test_what_is_missing_has_a_reason():
    table = synthetic_table(levels=(0.0, 0.5))
    zero = table.copy()
    zero.loc[0, ["normalized_train_excess"]] = 0.0
    zero.loc[0, ["normalized_train_loss"]] = np.log(10)
    rows, _ = compare_sizes({10: table, 20: zero})
    slope = values_of(rows, 10)["slope"]
    assert slope.value is not None and slope.low is None and "at least 4" in slope.reason
    ratio = values_of(rows, 20)["margin_ratio"]
    assert ratio.value is None and ratio.reason == "a training margin is zero"
    assert values_of(rows, 20)["gap"].value is not None


def test_what_can_not_be_compared_is_refused():
    table = synthetic_table()
    with pytest.raises(ValueError, match="two or more numbers of training images"):
        compare_sizes({10: table})
    with pytest.raises(ValueError, match=r"equal levels .*: 10 training images: pretrain 0, .*20"):
        compare_sizes({10: table, 20: synthetic_table(levels=(0.0, 0.2, 0.5, 1.0))})
    with pytest.raises(ValueError, match=r"^20 training images: no results for selection 'loss=1'"):
        both = pd.concat([table, table.assign(selection="loss=1")], ignore_index=True)
        compare_sizes({10: both, 20: table}, "loss=1")
    diverged = table.assign(test_loss=np.nan)
    with pytest.raises(ValueError, match=r"^20 training images: no network with true labels"):
        compare_sizes({10: table, 20: diverged})
