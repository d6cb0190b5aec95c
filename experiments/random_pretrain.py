"""Random pretraining (figures 1, 3, 4, 5, 7, 9, 12, 14): corrupted labels, then true labels.

    python -m experiments.random_pretrain --flagfile=experiments/flagfiles/quickstart.flags

Each network is first trained on partly corrupted labels and then, with a fresh optimizer state, on
the true labels. Networks with the same training loss then differ in test error.
"""

from experiments import flags
from normjax.sweep import finish_sweep
from normjax.training.config import SweepConfig
from normjax.training.processes import prepare_cpu


def main(config: SweepConfig) -> None:
    """Run the experiment."""
    prepare_cpu()
    finish_sweep(config, "random_pretrain")


if __name__ == "__main__":
    flags.run(main, SweepConfig, workdir="runs/random_pretrain")
