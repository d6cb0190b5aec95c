"""Which networks are ranked and what they differ in; the tables of the leaderboard."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from normjax.data import load_dataset
from normjax.generalization import leaderboard
from normjax.generalization.ranking import rank_measures
from normjax.results.table import COLUMNS, make_table


def a_table(networks, selection="final", norm="2"):
    """A row for each (family, level, seed), with losses that grow with the number."""
    rows = []
    for member, (family, level, seed) in enumerate(networks):
        row = dict.fromkeys(COLUMNS, 0.1 * (member + 1))
        row |= {"experiment": "e", "member": member, "seed": seed, "family": family}
        row |= {"level": level, "labels": "natural", "selection": selection, "epoch": 1}
        rows.append(row | {"norm": norm})
    return make_table(rows)


PRETRAIN = [("pretrain", level, seed) for level in (0.0, 0.5) for seed in (0, 1)]
RANDOM = [("random_labels", 1.0, 0)]


def a_run(table, run_dir="a"):
    return SimpleNamespace(table=table, run_dir=run_dir)


@pytest.fixture(autouse=True)
def unloaded(monkeypatch):
    """Networks without weights."""

    def networks_at(run, selection):
        members = run.table.loc[run.table["selection"] == selection, "member"]
        return [
            SimpleNamespace(member=SimpleNamespace(index=index), run_dir=run.run_dir)
            for index in sorted(members.unique())
        ]

    monkeypatch.setattr(leaderboard, "networks_at", networks_at)


def test_networks_of_random_labels_and_diverged_ones_are_left_out():
    table = a_table(PRETRAIN + RANDOM)
    table.loc[1, "test_loss"] = np.nan
    # The rows' order is not the networks'.
    chosen = leaderboard.choose_networks([a_run(table[::-1])], "final")
    assert chosen.table["member"].tolist() == [0, 2, 3]
    assert [network.member.index for network in chosen.networks] == [0, 2, 3]
    assert chosen.left_out == [
        "a, member 1 (pretrain, level 0, seed 1): diverged, a loss or norm is not finite",
        "a, member 4 (random_labels, level 1, seed 0): its test error is on random labels",
    ]


def test_networks_of_several_runs_keep_their_run():
    runs = [a_run(a_table(PRETRAIN), "a"), a_run(a_table(PRETRAIN[:2]), "b")]
    chosen = leaderboard.choose_networks(runs, "final")
    assert chosen.table["run"].tolist() == [0, 0, 0, 0, 1, 1]
    assert [network.run_dir for network in chosen.networks] == list("aaaabb")
    factors = leaderboard.factors_of(runs, chosen.table)
    assert factors["run"].tolist() == list("aaaabb")
    assert factors["corruption"].tolist() == ["0", "0", "0.5", "0.5", "0", "0"]


def test_the_frobenius_norm_is_taken_where_there_is_one():
    both = pd.concat([a_table(PRETRAIN, norm="1"), a_table(PRETRAIN, norm="2")])
    chosen = leaderboard.choose_networks([a_run(both)], "final")
    assert set(chosen.table["norm"]) == {"2"} and len(chosen.table) == 4
    lone = leaderboard.choose_networks([a_run(a_table(PRETRAIN, norm="1"))], "final")
    assert set(lone.table["norm"]) == {"1"}


def test_too_few_networks_are_counted():
    table = a_table(PRETRAIN[:2] + RANDOM)
    with pytest.raises(ValueError, match="2 networks to rank at selection 'final'; at least 3"):
        leaderboard.choose_networks([a_run(table)], "final")


def test_a_target_loss_comes_before_the_last_epoch():
    assert leaderboard.first_selection(a_run(a_table(PRETRAIN))) == "final"
    both = pd.concat([a_table(PRETRAIN), a_table(PRETRAIN, selection="loss=0.1")])
    assert leaderboard.first_selection(a_run(both)) == "loss=0.1"


def test_factors_are_what_the_networks_differ_in():
    seeds = ["0", "1", "0", "1"]

    def factors_of(networks):
        table = a_table(networks).assign(run=0)
        return leaderboard.factors_of([a_run(table)], table).to_dict("list")

    assert factors_of(PRETRAIN) == {"corruption": ["0", "0", "0.5", "0.5"], "seed": seeds}
    scaled = [("init_scale", (1 + level) / 8, seed) for _, level, seed in PRETRAIN]
    assert factors_of(scaled) == {"std": ["0.125", "0.125", "0.1875", "0.1875"], "seed": seeds}
    assert factors_of([("default_init", 0.0, 0), ("default_init", 0.0, 1)]) == {"seed": ["0", "1"]}


def test_levels_of_different_runs_are_different(monkeypatch):
    """Four levels in each of two runs make eight, enough for an interval."""
    networks = [("pretrain", level, seed) for level in (0.0, 0.2, 0.5, 1.0) for seed in (0, 1)]
    runs = [a_run(a_table(networks), name) for name in "ab"]
    for run in runs:
        run.dataset = SimpleNamespace(test=SimpleNamespace(labels=np.zeros(1000)))
    chosen = leaderboard.choose_networks(runs, "final")
    measures = pd.DataFrame({"train_loss": np.random.default_rng(0).normal(size=16)})
    (row,) = leaderboard.rank_networks(runs, chosen, measures, seed=0)
    assert row.correlation.unit == "levels" and row.psi_interval is not None
    (row,) = leaderboard.rank_networks(
        runs[:1], leaderboard.choose_networks(runs[:1], "final"), measures[:8], seed=0
    )
    assert row.correlation.kendall_interval is None


def test_the_table_of_the_leaderboard():
    error = 0.1 + 0.05 * np.arange(7)
    holes = np.where(error > 0.3, np.nan, error)
    measures = {"parameter_norm": error**2, "train_loss": holes}
    factors = {"corruption": list("abcdefg")}
    ranked = rank_measures(measures, error, -error, factors, range(7), num_test=5000)
    table = leaderboard.leaderboard_table(ranked)
    first, last = table.to_dict("records")
    assert (first["measure"], last["measure"]) == ("parameter_norm", "train_loss")
    assert first["source"] == "Jiang et al. 2020, eq. 42" and last["source"] == "not published"
    assert first["tau"] == pytest.approx(1) and first["tau_normalized_test_loss"] == -1
    assert math.isnan(first["tau_low"]) and math.isnan(first["mean_psi_high"])
    assert math.isnan(first["p_value"]) and math.isnan(first["p_value_holm"])  # one order
    assert first["psi_corruption"] == first["mean_psi"] == 1
    assert (first["worst_sign_error"], first["num_environments"]) == (0, 21)
    assert first["less_than_best"] == 0
    assert first["information"] == ranked[0].information.value == 1
    assert (first["information_given"], first["tied_with"], last["tied_with"]) == ("", "", "")
    numbers = [value for value in last.values() if not isinstance(value, str)]
    assert len(numbers) == 20 and sum(map(math.isnan, numbers)) == 19


def test_the_table_of_the_measures():
    table = a_table(PRETRAIN)
    run = a_run(table)
    chosen = leaderboard.choose_networks([run], "final")
    found = leaderboard.measures_table([run], chosen, pd.DataFrame({"m": [4.0, 3.0, 2.0, 1.0]}))
    assert found.columns.tolist() == [
        "corruption",
        "seed",
        "member",
        "train_loss_nats",
        "train_error",
        "test_error",
        "normalized_test_loss_nats",
        "m",
    ]
    np.testing.assert_array_equal(found["test_error"], table["test_error"])
    np.testing.assert_array_equal(found["train_loss_nats"], table["train_loss"])


def test_runs_of_another_kind_are_refused():
    def run(model, train_size=9):
        names = dict.fromkeys(leaderboard.SAME_KIND, 1)
        config = SimpleNamespace(**names | {"model": model})
        dataset = load_dataset("digits", train_size=train_size)
        return SimpleNamespace(config=config, run_dir=model, dataset=dataset)

    leaderboard.check_same_kind([run("linear"), run("linear")])
    with pytest.raises(ValueError, match="but the images or labels of linear and linear differ"):
        leaderboard.check_same_kind([run("linear"), run("linear", train_size=8)])
    with pytest.raises(
        ValueError, match="convnet3 has --model=convnet3 and linear has --model=linear"
    ):
        leaderboard.check_same_kind([run("linear"), run("convnet3")])
