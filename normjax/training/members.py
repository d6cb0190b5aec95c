"""Which networks there are, and the labels that each is trained and evaluated on.

The grids of members that the experiments are made of; each entry file puts some of them together.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from normjax.data import Dataset, corrupt_labels, load_dataset
from normjax.training.config import SweepConfig
from normjax.training.ensemble import Ensemble, Member


class Sweep(NamedTuple):
    """What the stages of one run share."""

    experiment: str
    config: SweepConfig
    dataset: Dataset
    ensemble: Ensemble
    groups: list[list[Member]]  # those that are trained at once
    signal: Callable[[], int] = lambda: 0  # the number of the signal that came, 0: none


def pretrained(config: SweepConfig) -> list[Member]:
    """For each corruption level and seed: pretrained on corrupted labels."""
    levels = config.corruption_levels
    return [Member(0, seed, "pretrain", x) for x in levels for seed in range(config.num_seeds)]


def scaled(config: SweepConfig) -> list[Member]:
    """For each initial standard deviation and seed: parameters from N(0, std^2)."""
    stds = config.init_stds
    return [Member(0, seed, "init_scale", x, x) for x in stds for seed in range(config.num_seeds)]


def repeated(config: SweepConfig) -> list[Member]:
    """For each seed: default initialization and the true labels (figure 6)."""
    return [Member(0, seed, "default_init", 0.0) for seed in range(config.num_seeds)]


def randomly_labeled(config: SweepConfig, init_std: float | None = None) -> list[Member]:
    """For each seed: random labels in both phases and on the test set (figures 8, 10, 11, 15)."""
    return [Member(0, seed, "random_labels", 1.0, init_std) for seed in range(config.num_seeds)]


def numbered(members: Iterable[Member]) -> list[Member]:
    """The members of a run, with their numbers in its tables."""
    return [member._replace(index=index) for index, member in enumerate(members)]


def first_labels(config: SweepConfig, dataset: Dataset, member: Member) -> np.ndarray:
    """The training labels of the first phase, int32 [N]."""
    if member.family == "pretrain":
        return _corrupted(config, dataset.train.labels, dataset, member.level, member)
    return own_labels(config, dataset, member, "train")


def own_labels(config: SweepConfig, dataset: Dataset, member: Member, split: str) -> np.ndarray:
    """The labels that a network is trained to fit in the end, "train" or "test", int32 [N]."""
    labels = getattr(dataset, split).labels
    if member.family != "random_labels":
        return labels
    return _corrupted(config, labels, dataset, 1.0, member, ("train", "test").index(split))


def _corrupted(config, labels, dataset, level, member, *stream) -> np.ndarray:
    """Labels corrupted by the member's own randomness; `stream` tells several draws apart."""
    corrupted, _ = corrupt_labels(
        labels,
        level,
        method=config.corruption,
        num_classes=dataset.num_classes,
        rng=np.random.default_rng([*member.stream(config.seed), *stream]),
    )
    return corrupted


def load_data(config: SweepConfig) -> Dataset:
    """The data set of the configuration, checked against the batch size."""
    dataset = load_dataset(
        config.dataset,
        data_dir=config.data_dir,
        train_size=config.train_size,
        test_size=config.test_size,
    )
    num_examples = len(dataset.train.labels)
    if config.batch_size > num_examples:
        raise ValueError(
            f"--batch_size={config.batch_size}: must not exceed the {num_examples} training images"
        )
    return dataset
