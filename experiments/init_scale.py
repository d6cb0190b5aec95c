"""Initialization at several scales (figures 2, 8, 13, 15): every weight from N(0, std^2).

    python -m experiments.init_scale --flagfile=experiments/flagfiles/fig08.flags

All networks see the true labels from the start, but for one of each seed: the point "RL" of figure
8, trained and evaluated on random labels.
"""

import sys

from experiments import flags
from normjax.sweep import run_sweep
from normjax.training import members
from normjax.training.config import SweepConfig

RANDOM_LABELS_STD = 0.05  # the paper's, for its point "RL"


def main(config: SweepConfig) -> None:
    """Runs the experiment."""
    if not config.init_stds:
        sys.exit("error: --init_stds=: at least one standard deviation is needed")
    random = members.randomly_labeled(config, RANDOM_LABELS_STD)
    run_sweep("init_scale", config, [*members.scaled(config), *random])


if __name__ == "__main__":
    flags.define_flags("init_scale", pretrain_epochs=0, init_stds="0.025,0.05,0.1,0.15")
    flags.run(main)
