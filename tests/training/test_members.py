"""Which networks the experiments have, and the labels that each is trained and evaluated on."""

import types

import numpy as np
import pytest

from normjax.data import Dataset, load_dataset
from normjax.training import members
from normjax.training.ensemble import Member

CONFIG = types.SimpleNamespace(
    corruption_levels=(0.0, 0.5), init_stds=(0.02, 0.1), num_seeds=2, seed=0, corruption="swap"
)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("digits", train_size=400, test_size=200)


def test_grids_of_members():
    pretrained = [("pretrain", x, seed, None) for x in (0.0, 0.5) for seed in (0, 1)]
    random = {std: [("random_labels", 1.0, seed, std) for seed in (0, 1)] for std in (None, 0.05)}
    scaled = [("init_scale", x, seed, x) for x in (0.02, 0.1) for seed in (0, 1)]
    expected = {
        "random_pretrain": pretrained,
        "init_scale": [*scaled, *random[0.05]],
        "default_init": [("default_init", 0.0, seed, None) for seed in (0, 1)],
        "random_labels": [*pretrained, *random[None]],
    }
    assert members.EXPERIMENTS.keys() == expected.keys()
    for experiment, grid in expected.items():
        found = members.make_members(experiment, CONFIG)
        assert [(m.family, m.level, m.seed, m.init_std) for m in found] == grid
        assert [m.index for m in found] == list(range(len(grid)))


def test_experiments_without_networks_are_refused():
    with pytest.raises(ValueError, match="'training': allowed are random_pretrain, init_scale"):
        members.make_members("training", CONFIG)


def test_pretraining_corrupts_the_first_labels_only(dataset):
    true = dataset.train.labels
    half = Member(0, 0, "pretrain", 0.5)
    first = members.first_labels(CONFIG, dataset, half)
    # Half of the 400 labels change places; a tenth of these falls on an equal label.
    assert 150 < np.sum(first != true) <= 200
    np.testing.assert_array_equal(np.bincount(first), np.bincount(true))
    np.testing.assert_array_equal(members.own_labels(CONFIG, dataset, half, "train"), true)
    clean = Member(0, 0, "pretrain", 0.0)
    np.testing.assert_array_equal(members.first_labels(CONFIG, dataset, clean), true)


@pytest.mark.parametrize("family", ["init_scale", "default_init"])
def test_other_networks_see_true_labels(dataset, family):
    member = Member(0, 0, family, 0.1)
    for labels in (
        members.first_labels(CONFIG, dataset, member),
        members.own_labels(CONFIG, dataset, member, "train"),
    ):
        np.testing.assert_array_equal(labels, dataset.train.labels)
    test = members.own_labels(CONFIG, dataset, member, "test")
    np.testing.assert_array_equal(test, dataset.test.labels)


def test_random_labels_are_random_in_both_phases_and_on_the_test_set(dataset):
    one, other = (Member(0, seed, "random_labels", 1.0) for seed in (0, 1))
    first = members.first_labels(CONFIG, dataset, one)
    train = members.own_labels(CONFIG, dataset, one, "train")
    np.testing.assert_array_equal(first, train)
    test = members.own_labels(CONFIG, dataset, one, "test")
    for labels, split in ((train, dataset.train), (test, dataset.test)):
        agreement = np.mean(labels == split.labels)
        assert abs(agreement - 0.1) < 4 * np.sqrt(0.09 / len(labels))  # by chance, ten classes
        np.testing.assert_array_equal(np.bincount(labels), np.bincount(split.labels))
    # Another seed has labels of its own, and the two splits are not one draw.
    assert np.mean(members.own_labels(CONFIG, dataset, other, "train") == train) < 0.2
    assert np.mean(test == train[: len(test)]) < 0.25
