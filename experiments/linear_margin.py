"""The linear network (section 3.1.1): does the larger margin, the smaller norm, generalize better?

    python -m experiments.linear_margin --flagfile=experiments/flagfiles/linear_margin.flags

Many training sets of one size are drawn from one distribution. On each, plain gradient descent runs
on the logistic loss, and its direction is compared with the hard-margin solution. Over the training
sets, the norm of that solution at unit margin is ranked against its exact test error.

The outcome depends on the distribution. Where classes overlap (the default), the smaller norm goes
with the smaller test error, as the paper expects. With the labels of a noiseless linear teacher it
is the other way round. Likely reasons, not tested here: with overlap, a small margin is due to the
few examples far on the wrong side, which also turn the solution away from the best one; without
noise, a large margin is a wide gap that happens to contain no examples, and nothing says where in
the gap the teacher is. All training sets of a run share size, dimension and distribution, so none
of these causes the correlation. Training sets that are not separable are left out and named: all
results are given separability.

    DIR/flags.txt  run.json
    DIR/results.csv   a row for each separable training set (`linear_sweep.measure`)
    DIR/angles.csv    draw, step, angle_deg: gradient descent's angle to the hard-margin solution
    DIR/summary.json  the rank correlations with their intervals, and the first two training sets
    DIR/figures/linear_margin.png and .pdf
"""

import contextlib
import dataclasses
import importlib.metadata
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import flags as shared_flags
from normjax.files import one_line, read_object, replacing, write_json
from normjax.generalization import linear_sweep
from normjax.generalization.linear_sweep import DISTRIBUTIONS, MIN_SETS
from normjax.plots.linear_margin import plot_linear_margin
from normjax.plots.style import save_figure
from normjax.results.table import RESULTS_FILE, read_columns, write_columns
from normjax.training import record as records
from normjax.training.checkpoints import RUN_FILE
from normjax.training.config import check_seed, to_flagfile

EXPERIMENT = "linear_margin"
ANGLES_FILE, SUMMARY_FILE = "angles.csv", "summary.json"
PACKAGES = ("numpy", "scipy", "scikit-learn")


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run; each field is the flag of the same name."""

    workdir: str
    distribution: str
    train_size: int
    dimension: int
    num_draws: int
    num_steps: int
    relative_step: float
    seed: int
    resume: bool


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define this experiment's flags."""
    own = {"flag_values": values}
    flags.DEFINE_string(
        "workdir", f"runs/{EXPERIMENT}", "Folder that the run is written to.", **own
    )
    flags.DEFINE_enum(
        "distribution", "classes", list(DISTRIBUTIONS), "What the examples are drawn from.", **own
    )
    flags.DEFINE_integer("train_size", 40, "Examples in a training set.", **own)
    flags.DEFINE_integer("dimension", 20, "Dimension of the examples.", **own)
    flags.DEFINE_integer("num_draws", 200, "Training sets drawn.", **own)
    flags.DEFINE_integer("num_steps", 300_000, "Steps of gradient descent.", **own)
    flags.DEFINE_float(
        "relative_step", 1.0, "Step size in units of 1 / smoothness of the loss.", **own
    )
    flags.DEFINE_integer("seed", 0, "Seed of the whole run.", **own)
    flags.DEFINE_bool("resume", False, "Run again what was not finished in --workdir.", **own)


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> Config:
    """Parse the command line; a mistake is one line on stderr and exit code 1."""

    def make_config() -> Config:
        config = Config(**{f.name: values[f.name].value for f in dataclasses.fields(Config)})
        validate(config)
        return config

    return shared_flags.parse(argv, make_config, values)


def validate(config: Config) -> None:
    """Check the values.

    Raises:
      ValueError: one line that names the flag, its value and what is allowed.
    """
    least = {"train_size": 2, "dimension": 2, "num_draws": MIN_SETS, "num_steps": 1}
    for name, minimum in least.items():
        if getattr(config, name) < minimum:
            raise ValueError(f"--{name}={getattr(config, name)}: must be at least {minimum}")
    if not 0 < config.relative_step < 2:
        raise ValueError(f"--relative_step={config.relative_step}: must lie between 0 and 2")
    check_seed(config.seed)


def main(config: Config) -> None:
    """Run the experiment."""
    started = time.monotonic()
    run_dir = Path(config.workdir)
    is_new = not (run_dir / RUN_FILE).exists()
    with contextlib.ExitStack() as stack:
        try:
            if records.is_finished(run_dir, EXPERIMENT, config) or _is_marked_finished(run_dir):
                print(f"{run_dir}: this run is finished, there is nothing to do")
                return
            sets = linear_sweep.draw_training_sets(
                config.distribution,
                num_draws=config.num_draws,
                train_size=config.train_size,
                dimension=config.dimension,
                seed=config.seed,
            )
            stack.enter_context(records.locked(run_dir, is_new))
            start_run(run_dir, config)
        except (ValueError, OSError) as error:
            sys.exit(f"error: {one_line(error)}")
        descend_and_measure(run_dir, config, sets)
        records.finish_run(run_dir, time.monotonic() - started)
    print(f"{run_dir / RESULTS_FILE}: {len(sets.draws)} rows; figure: {run_dir / 'figures'}")


def descend_and_measure(run_dir: Path, config: Config, sets: linear_sweep.TrainingSets) -> None:
    """Write the tables, the summary and the figure."""
    weights, angles = linear_sweep.descend_all(sets, config.num_steps, config.relative_step)
    table = linear_sweep.measure(config.distribution, sets, weights)
    write_columns(run_dir / ANGLES_FILE, angles)
    write_columns(run_dir / RESULTS_FILE, table)
    names = ("distribution", "train_size", "dimension", "num_draws", "num_steps")
    summary = {
        "experiment": EXPERIMENT,
        "data_name": DISTRIBUTIONS[config.distribution].title,
        **{name: getattr(config, name) for name in names},
        "not_separable": list(sets.not_separable),
        **linear_sweep.summarize(table, seed=config.seed),
    }
    write_json(run_dir / SUMMARY_FILE, summary)
    save_figure(draw_figure(run_dir), run_dir / "figures" / EXPERIMENT)


def draw_figure(run_dir: Path) -> Any:
    """Draw a run's figure from its saved tables.

    Raises:
      OSError: a table can not be read.
      ValueError: a table is damaged, or they do not fit together; the message names it.
    """
    summary = read_object(run_dir / SUMMARY_FILE)
    draws = read_columns(run_dir / RESULTS_FILE, linear_sweep.DRAW_COLUMNS)
    angles = read_columns(run_dir / ANGLES_FILE, linear_sweep.ANGLE_COLUMNS)
    try:
        return plot_linear_margin(draws, angles, summary)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"{run_dir}: its tables do not fit together ({reason})") from None


def start_run(run_dir: Path, config: Config) -> None:
    """Write flags.txt and run.json before the descent."""
    with replacing(run_dir / "flags.txt") as path:
        path.write_text(to_flagfile(config), encoding="utf-8")
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    run = {
        "experiment": EXPERIMENT,
        "finished": False,
        "wall_time_s": None,
        "seed": config.seed,
        "versions": {"python": platform.python_version(), **versions},
        "git_commit": records.git_commit(),
        "config": dataclasses.asdict(config),
    }
    write_json(run_dir / RUN_FILE, run)


def _is_marked_finished(run_dir: Path) -> bool:
    """Return whether run.json says so; `records.is_finished` also asks for a report."""
    path = run_dir / RUN_FILE
    return path.exists() and read_object(path, finished=bool)["finished"]


if __name__ == "__main__":
    define_flags()
    shared_flags.run_command(main, parse)
