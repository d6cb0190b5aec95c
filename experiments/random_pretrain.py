"""Random pretraining (figures 1, 3, 4, 5, 7, 9): corrupted labels first, then the true ones.

    python -m experiments.random_pretrain --flagfile=experiments/flagfiles/quickstart.flags

Each network is first trained on labels a fraction of which is corrupted, then, with a fresh
optimizer state, on the true labels. Networks of one training loss then differ in test error.
"""

import numpy as np

from experiments import flags
from experiments.sweep import run_sweep
from normjax.data import Dataset, corrupt_labels
from normjax.ensemble import Member


def make_members(config: flags.Config) -> list[Member]:
    """A network for each corruption level and seed."""
    definitions = [(x, s) for x in config.corruption_levels for s in range(config.num_seeds)]
    return [Member(i, seed, "pretrain", x) for i, (x, seed) in enumerate(definitions)]


def main(config: flags.Config) -> None:
    """Runs the experiment."""

    def pretrain_labels(member: Member, dataset: Dataset) -> np.ndarray:
        labels, _ = corrupt_labels(
            dataset.train.labels,
            member.level,
            method=config.corruption,
            num_classes=dataset.num_classes,
            rng=np.random.default_rng(member.stream(config.seed)),
        )
        return labels

    run_sweep("random_pretrain", config, make_members(config), pretrain_labels)


if __name__ == "__main__":
    flags.define_flags("random_pretrain")
    flags.run(main)
