"""The networks of each experiment and the labels that they are trained and evaluated on."""

from collections.abc import Callable

import numpy as np

from normjax.data import Dataset, corrupt_labels
from normjax.training.config import SweepConfig
from normjax.training.ensemble import Member

RANDOM_LABELS_STD = 0.05  # the point "RL" in figure 8 of the paper


def random_pretrain(config: SweepConfig) -> list[Member]:
    """Pretrain a network on corrupted labels, for each corruption level and seed."""
    levels = config.corruption_levels
    return [Member(0, seed, "pretrain", x) for x in levels for seed in range(config.num_seeds)]


def init_scale(config: SweepConfig) -> list[Member]:
    """Draw all parameters from N(0, std^2), for each std and seed; add fits to random labels.

    Raises:
      ValueError: `init_stds` is empty.
    """
    if not config.init_stds:
        raise ValueError("--init_stds=: at least one standard deviation is needed")
    stds, seeds = config.init_stds, range(config.num_seeds)
    scaled = [Member(0, seed, "init_scale", x, x) for x in stds for seed in seeds]
    return [*scaled, *_with_random_labels(config, RANDOM_LABELS_STD)]


def default_init(config: SweepConfig) -> list[Member]:
    """Initialize by default and train on the true labels, for each seed (figure 6)."""
    return [Member(0, seed, "default_init", 0.0) for seed in range(config.num_seeds)]


def random_labels(config: SweepConfig) -> list[Member]:
    """Extend random pretraining with a network per seed that fits random labels (figure 10)."""
    return [*random_pretrain(config), *_with_random_labels(config)]


EXPERIMENTS: dict[str, Callable[[SweepConfig], list[Member]]] = {
    experiment.__name__: experiment
    for experiment in (random_pretrain, init_scale, default_init, random_labels)
}


def make_members(experiment: str, config: SweepConfig) -> list[Member]:
    """Return the networks of an experiment, numbered as in results.csv.

    Raises:
      ValueError: the experiment is unknown, or a setting that it needs is missing.
    """
    if experiment not in EXPERIMENTS:
        raise ValueError(f"experiment {experiment!r}: allowed are {', '.join(EXPERIMENTS)}")
    members = EXPERIMENTS[experiment](config)
    return [member._replace(index=index) for index, member in enumerate(members)]


def first_labels(config: SweepConfig, dataset: Dataset, member: Member) -> np.ndarray:
    """Return the training labels of the first phase, int32 [N]."""
    if member.family == "pretrain":
        return _corrupted(config, dataset.train.labels, dataset, member.level, member)
    return own_labels(config, dataset, member, "train")


def own_labels(config: SweepConfig, dataset: Dataset, member: Member, split: str) -> np.ndarray:
    """Return the labels of a network's second phase, int32 [N].

    Args:
      config: the configuration of the sweep.
      dataset: the data with the true labels.
      member: the network.
      split: "train" or "test".
    """
    labels = getattr(dataset, split).labels
    if member.family != "random_labels":
        return labels
    return _corrupted(config, labels, dataset, 1.0, member, ("train", "test").index(split))


def _with_random_labels(config: SweepConfig, init_std: float | None = None) -> list[Member]:
    """Return a network per seed with random labels in both phases and on the test set."""
    return [Member(0, seed, "random_labels", 1.0, init_std) for seed in range(config.num_seeds)]


def _corrupted(config, labels, dataset, level, member, *stream) -> np.ndarray:
    """Corrupt labels with the member's own random stream; `stream` separates several draws."""
    corrupted, _ = corrupt_labels(
        labels,
        level,
        method=config.corruption,
        num_classes=dataset.num_classes,
        rng=np.random.default_rng([*member.stream(config.seed), *stream]),
    )
    return corrupted
