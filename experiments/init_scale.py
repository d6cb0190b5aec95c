"""Initialization at several scales (figures 2, 8, 13, 15): all weights from N(0, std^2).

    python -m experiments.init_scale --flagfile=experiments/flagfiles/fig08.flags

All networks are trained on the true labels, except one per seed that is trained and evaluated on
random labels: the point "RL" in figure 8.
"""

from experiments import flags
from normjax.sweep import finish_sweep
from normjax.training.config import SweepConfig
from normjax.training.processes import prepare_cpu


def main(config: SweepConfig) -> None:
    """Run the experiment."""
    prepare_cpu()
    finish_sweep(config, "init_scale")


if __name__ == "__main__":
    flags.run(
        main,
        SweepConfig,
        workdir="runs/init_scale",
        pretrain_epochs=0,
        init_stds=(0.025, 0.05, 0.1, 0.15),
    )
