"""How often a quantity picks the better of two, by counting one pair at a time."""

import itertools

import numpy as np
import pytest

from normjax.controls import picks
from normjax.controls.picks import epoch_picks, network_picks
from tests.helpers.synthetic_metrics import make_lines
from tests.helpers.synthetic_results import synthetic_table


def by_key(found):
    return {(p.choice, p.outcome, p.quantity): p for p in found}


def noisy_table():
    """Networks whose order no quantity knows: every rate is between 0 and 1."""
    table = synthetic_table(np.linspace(0, 1, 8).tolist(), num_seeds=5, norms=("2",))
    noise = np.random.default_rng(0).normal(size=(5, len(table)))
    for name, own in zip((*picks.NETWORK_QUANTITIES, *picks.OUTCOMES), noise, strict=True):
        table[name] += table[name].std() * own
    return table


def counted(pairs):
    """The fraction of (values, outcomes) pairs in which the smaller value has the lower outcome."""
    points = []
    for (a, b), (u, v) in pairs:
        if u != v:
            points.append(0.5 if a == b else float((a < b) == (u < v)))
    return np.mean(points), len(points)


@pytest.mark.parametrize("quantity", picks.NETWORK_QUANTITIES)
@pytest.mark.parametrize("outcome", picks.OUTCOMES)
def test_networks_are_compared_pair_by_pair(quantity, outcome):
    table = noisy_table()
    own = table[table["norm"] == "2"]
    rows = list(zip(own["level"], own[quantity], own[outcome], strict=True))
    found = by_key(network_picks(table))
    for choice, is_same in ((picks.OF_LEVELS, False), (picks.OF_ONE_LEVEL, True)):
        chosen = [p for p in itertools.combinations(rows, 2) if (p[0][0] == p[1][0]) == is_same]
        rate, number = counted([((a[1], b[1]), (a[2], b[2])) for a, b in chosen])
        pick = found[choice, outcome, picks.NETWORK_QUANTITIES[quantity]]
        assert pick.rate == pytest.approx(rate) and pick.num_pairs == number
        assert pick.selection == "final" and pick.unit == "levels" and not pick.reason
        assert 0 <= pick.low < pick.rate < pick.high <= 1
    best = own.loc[own[quantity].idxmin(), outcome] - own[outcome].min()
    assert found[picks.OF_LEVELS, outcome, picks.NETWORK_QUANTITIES[quantity]].loss == best


def test_the_interval_is_the_jackknifes_over_levels():
    table = noisy_table()
    whole = by_key(network_picks(table))
    key = picks.OF_ONE_LEVEL, "test_error", "product of norms"
    without = [
        by_key(network_picks(table[table["level"] != level]))[key].rate
        for level in table["level"].unique()
    ]
    error = np.sqrt(7 / 8 * np.sum((np.array(without) - np.mean(without)) ** 2))
    assert whole[key].rate - whole[key].low == pytest.approx(2.4469 * error, rel=1e-4)  # t of 6


def test_too_few_levels_have_no_interval():
    (pick, *_) = network_picks(synthetic_table(levels=(0.0, 0.5), num_seeds=2))
    assert pick.low is None and pick.reason == "2 levels; an interval needs at least 4"
    alone = network_picks(synthetic_table(levels=(0.0,), num_seeds=6))
    assert {p.choice for p in alone} == {picks.OF_ONE_LEVEL}
    assert {p.unit for p in alone} == {"networks"} and {p.num_pairs for p in alone} == {15}
    with pytest.raises(ValueError, match=r"^1 networks with true labels; two are needed$"):
        network_picks(synthetic_table(levels=(0.0,), num_seeds=1))


def test_epochs_of_each_network_count_alike():
    """Raw loss falls throughout, the test loss is least at the second epoch of five or three."""
    first = [(0.9, -0.1, 3.0), (0.5, -0.3, 1.0), (0.3, -0.4, 1.5), (0.2, -0.2, 2.0), (0.1, -0.2, 4)]
    second = [(0.9, -0.3, 2.0), (0.5, -0.3, 1.0), (0.3, -0.1, 3.0)]
    lines = [*make_lines(0, 0.5, first), *make_lines(1, 1.0, second)]
    found = by_key(epoch_picks(lines))
    raw = found[picks.OF_EPOCHS, "test_loss", "training loss as trained"]
    assert raw.rate == pytest.approx((3 / 10 + 1 / 3) / 2) and raw.num_pairs == 13
    assert raw.loss == pytest.approx((3 + 2) / 2)
    normalized = found[picks.OF_EPOCHS, "test_loss", "normalized training loss"]
    # Of the first network's pairs, (0, 4) and (1, 2) are wrong and (3, 4) is a tie.
    assert normalized.rate == pytest.approx((7.5 / 10 + 2.5 / 3) / 2)
    later = found[picks.OF_EPOCHS, "test_loss", "the later epoch"]
    assert later.rate == raw.rate and later.loss == raw.loss
    assert "product of norms" not in {p.quantity for p in found.values()}
    lines = [line | {"running_log_product_norm": line["epoch"]} for line in lines]
    product = by_key(epoch_picks(lines))[picks.OF_EPOCHS, "test_loss", "product of norms"]
    assert product.rate == pytest.approx(1 - raw.rate)


def test_where_there_is_no_choice_nothing_is_lost():
    """One level of two networks, the better one with the larger loss; two levels of one network."""
    table = synthetic_table(levels=(0.0, 0.5, 1.0), num_seeds=2, norms=("2",)).iloc[[0, 1, 2, 4]]
    table.loc[[0, 1], "train_loss"], table.loc[[0, 1], "test_loss"] = [0.1, 0.2], [3.0, 2.0]
    found = by_key(network_picks(table))
    pick = found[picks.OF_ONE_LEVEL, "test_loss", "training loss as trained"]
    assert (pick.rate, pick.loss, pick.num_pairs, pick.num_networks) == (0, 1, 1, 4)


def test_epochs_that_cannot_be_compared_are_left_out():
    assert epoch_picks([]) == []
    lines = make_lines(0, 0.5, [(0.9, -0.1, 3.0), (0.5, -0.3, None)])
    assert epoch_picks(lines) == []  # one test loss
    lines = make_lines(0, 0.5, [(0.9, -0.1, 3.0), (None, -0.3, 1.0), (0.1, -0.5, 2.0)])
    assert epoch_picks(lines) == []  # a loss that is not finite
