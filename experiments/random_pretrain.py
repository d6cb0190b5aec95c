"""Random pretraining (figures 1, 3, 4, 5, 7, 9, 12, 14): corrupted labels first, then true ones.

    python -m experiments.random_pretrain --flagfile=experiments/flagfiles/quickstart.flags

Each network is first trained on labels a fraction of which is corrupted, then, with a fresh
optimizer state, on the true labels. Networks of one training loss then differ in test error.
"""

from experiments import flags
from normjax.sweep import run_sweep
from normjax.training import members
from normjax.training.config import SweepConfig


def main(config: SweepConfig) -> None:
    """Runs the experiment."""
    run_sweep("random_pretrain", config, members.pretrained(config))


if __name__ == "__main__":
    flags.define_flags("random_pretrain")
    flags.run(main)
