"""Repeated training (figure 6): default initialization, true labels, different seeds.

python -m experiments.default_init --flagfile=experiments/flagfiles/fig06.flags
"""

from experiments import flags
from normjax.sweep import finish_sweep
from normjax.training.config import SweepConfig
from normjax.training.processes import prepare_cpu


def main(config: SweepConfig) -> None:
    """Run the experiment."""
    prepare_cpu()
    finish_sweep(config, "default_init")


if __name__ == "__main__":
    flags.run(main, SweepConfig, workdir="runs/default_init", pretrain_epochs=0, num_seeds=8)
