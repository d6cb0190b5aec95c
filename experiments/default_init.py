"""Plain repetition (figure 6): default initialization, true labels, nothing but the seed differs.

python -m experiments.default_init --flagfile=experiments/flagfiles/fig06.flags
"""

from experiments import flags
from normjax.sweep import run_sweep
from normjax.training import members
from normjax.training.config import SweepConfig


def main(config: SweepConfig) -> None:
    """Runs the experiment."""
    run_sweep("default_init", config, members.repeated(config))


if __name__ == "__main__":
    flags.define_flags("default_init", pretrain_epochs=0, num_seeds=8)
    flags.run(main)
