"""Time the second phase of an experiment, in total and for training alone.

    python -m benchmarks.second_phase --workdir=DIR --epochs=20 --num_seeds=2 ...

This takes the flags of the experiments and prints a JSON object with lists of seconds per epoch.
"""

import dataclasses
import json
import time
from pathlib import Path

import jax

from benchmarks.synthetic import NUM_CLASSES, make_data
from experiments import flags
from normjax.data import Dataset, Split
from normjax.training.config import SweepConfig
from normjax.training.ensemble import Member
from normjax.training.phases import train_group
from normjax.training.plan import Sweep, make_sweep
from normjax.training.processes import prepare_cpu

ROUNDS = 1  # one long round: the number of evaluated epochs depends on the loss
TRAIN_SIZE = 5_000


def main(config: SweepConfig) -> None:
    """Run the second phase `ROUNDS` times, after a short run that compiles."""
    prepare_cpu()
    split = Split(*make_data(config.train_size or TRAIN_SIZE, (32, 32, 3)))
    dataset = Dataset(split, split, tuple(map(str, range(NUM_CLASSES))), "synthetic")
    members = [Member(i, i, "default_init", 0.0) for i in range(config.num_seeds)]
    config = dataclasses.replace(config, pretrain_epochs=0)
    whole = make_sweep("benchmark", config, dataset, members)

    time_phase(whole, Path(config.workdir) / "warm_up", 1)
    rounds = [
        time_phase(whole, Path(config.workdir) / str(i), config.epochs) for i in range(ROUNDS)
    ]
    names = ("whole epoch", "training alone")
    print(json.dumps(dict(zip(names, zip(*rounds, strict=True), strict=True))))


def time_phase(whole: Sweep, run_dir: Path, epochs: int) -> tuple[float, float]:
    """Return the seconds per epoch of `train_group` in total, and of `train_epoch` alone.

    The total includes initialization, evaluation, snapshots, checkpoints and logging.
    """
    run_dir.mkdir(parents=True)
    training = 0.0

    def train_epoch(*args):
        nonlocal training
        started = time.perf_counter()
        out = jax.block_until_ready(whole.ensemble.train_epoch(*args))
        training += time.perf_counter() - started
        return out

    timed = dataclasses.replace(
        whole,
        config=dataclasses.replace(whole.config, epochs=epochs),
        ensemble=whole.ensemble._replace(train_epoch=train_epoch),
    )
    started = time.perf_counter()
    jax.block_until_ready(train_group(timed, run_dir, 0))
    return (time.perf_counter() - started) / epochs, training / epochs


if __name__ == "__main__":
    flags.run(main, SweepConfig, workdir="runs/second_phase")
