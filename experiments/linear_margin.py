"""The linear network (section 3.1.1): do larger margins, i.e. smaller norms, generalize better?

    python -m experiments.linear_margin --flagfile=experiments/flagfiles/linear_margin.flags

Many training sets of one size are drawn from one distribution. For each, gradient descent minimizes
the logistic loss, and its direction is compared with the hard-margin solution. The norm of that
solution at unit margin is then correlated with its exact test error over the training sets.

The outcome depends on the distribution. If the classes overlap (the default), smaller norms go with
smaller test errors, as the paper expects. With the labels of a noiseless linear teacher, it is the
reverse. Likely reasons, not tested here: with overlap, a small margin is due to a few examples far
on the wrong side, which also turn the solution away from the optimum. Without noise, a large
margin is a wide gap without examples, and the teacher can be anywhere in the gap. All training sets
of a run share size, dimension and distribution, so none of these causes the correlation. Training
sets that are not separable are excluded and listed: all results are conditional on separability.

    DIR/flags.txt  run.json
    DIR/results.csv   a row per separable training set (`linear_sweep.measure`)
    DIR/angles.csv    draw, step, angle_deg: angle of gradient descent to the hard-margin solution
    DIR/summary.json  the rank correlations with intervals, and the first two training sets
    DIR/figures/linear_margin.png and .pdf
"""

import contextlib
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from experiments import flags
from normjax.files import one_line, read_object, write_json
from normjax.generalization import linear_sweep
from normjax.generalization.linear_sweep import DISTRIBUTIONS, MIN_SETS
from normjax.plots.linear_margin import plot_linear_margin
from normjax.plots.style import save_figure
from normjax.results.columns import read_columns, write_columns
from normjax.results.table import RESULTS_FILE
from normjax.training import record
from normjax.training.checkpoints import RUN_FILE
from normjax.training.config import (
    at_least,
    check_seed,
    check_that,
    check_workdir,
    setting,
)

EXPERIMENT = "linear_margin"
ANGLES_FILE, SUMMARY_FILE = "angles.csv", "summary.json"
PACKAGES = ("normjax", "numpy", "scipy", "scikit-learn")


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the experiment."""

    workdir: str = setting(
        f"runs/{EXPERIMENT}", "Folder for the output of the run.", check=check_workdir, is_path=True
    )
    distribution: str = setting(
        "classes", "Distribution of the examples.", allowed=tuple(DISTRIBUTIONS)
    )
    train_size: int = setting(40, "Examples per training set.", check=at_least(2))
    dimension: int = setting(20, "Dimension of the examples.", check=at_least(2))
    num_draws: int = setting(200, "Number of training sets.", check=at_least(MIN_SETS))
    num_steps: int = setting(300_000, "Steps of gradient descent.", check=at_least(1))
    relative_step: float = setting(
        1.0,
        "Step size in units of 1 / smoothness of the loss.",
        check=check_that(lambda step: 0 < step < 2, "must lie between 0 and 2"),
    )
    seed: int = setting(0, "Random seed of the run.", check=check_seed)
    resume: bool = setting(False, "Restart the unfinished run in --workdir.")


def main(config: Config) -> None:
    """Run the experiment."""
    started = time.monotonic()
    run_dir = Path(config.workdir)
    is_new = not (run_dir / RUN_FILE).exists()
    with contextlib.ExitStack() as stack:
        try:
            if record.is_finished(run_dir, EXPERIMENT, config) or record.is_marked_finished(
                run_dir
            ):
                print(f"{run_dir}: this run is finished; nothing to do")
                return
            sets = linear_sweep.draw_training_sets(
                config.distribution,
                num_draws=config.num_draws,
                train_size=config.train_size,
                dimension=config.dimension,
                seed=config.seed,
            )
            stack.enter_context(record.locked(run_dir, is_new))
            record.start_plain_run(run_dir, EXPERIMENT, config, PACKAGES)
        except (ValueError, OSError) as error:
            sys.exit(f"error: {one_line(error)}")
        descend_and_measure(run_dir, config, sets)
        record.finish_run(run_dir, time.monotonic() - started)
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
      OSError: a table cannot be read.
      ValueError: a table is damaged, or the tables do not match; the message names the file.
    """
    summary = read_object(run_dir / SUMMARY_FILE)
    draws = read_columns(run_dir / RESULTS_FILE, linear_sweep.DRAW_COLUMNS)
    angles = read_columns(run_dir / ANGLES_FILE, linear_sweep.ANGLE_COLUMNS)
    try:
        return plot_linear_margin(draws, angles, summary)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"{run_dir}: its tables do not match ({reason})") from None


if __name__ == "__main__":
    flags.run(main, Config)
