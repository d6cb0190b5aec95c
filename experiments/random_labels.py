"""Random labels (figures 10 and 11): do networks that fit noise lie on the same line?

    python -m experiments.random_labels --flagfile=experiments/flagfiles/fig10.flags

The networks of random pretraining, and for each seed one that is trained and evaluated on
completely random labels.
"""

from experiments import flags
from normjax.sweep import run_sweep
from normjax.training import members
from normjax.training.config import SweepConfig


def main(config: SweepConfig) -> None:
    """Runs the experiment."""
    random = members.randomly_labeled(config)
    run_sweep("random_labels", config, [*members.pretrained(config), *random])


if __name__ == "__main__":
    flags.define_flags("random_labels")
    flags.run(main)
