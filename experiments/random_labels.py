"""Random labels (figures 10 and 11): do networks that fit noise lie on the same line?

    python -m experiments.random_labels --flagfile=experiments/flagfiles/fig10.flags

This trains the networks of random pretraining and, per seed, one network that is trained and
evaluated on completely random labels.
"""

from experiments import flags
from normjax.sweep import finish_sweep
from normjax.training.config import SweepConfig
from normjax.training.processes import prepare_cpu


def main(config: SweepConfig) -> None:
    """Run the experiment."""
    prepare_cpu()
    finish_sweep(config, "random_labels")


if __name__ == "__main__":
    flags.run(main, SweepConfig, workdir="runs/random_labels")
