"""The linear network (section 3.1.1): does the larger margin, the smaller norm, generalize better?

    python -m experiments.linear_margin --flagfile=experiments/flagfiles/linear_margin.flags

Many training sets of one size are drawn from one distribution. On each, plain gradient descent runs
on the logistic loss, and its direction is compared with the hard-margin solution. Over the
training sets, the norm of that solution at unit margin is ranked against its exact test error.

What comes out depends on the distribution. Where classes overlap (the default), the smaller norm
goes with the smaller test error, as the paper expects. With the labels of a noiseless linear
teacher it is the other way round. Likely reasons, not tested here: with overlap, a small margin is
the work of the few examples far on the wrong side, which also turn the solution away from the best
one; without noise, a large margin is a wide gap that happens to have no examples in it, and within
the gap nothing says where the teacher is. Size, dimension and distribution are the same for all
training sets of a run, so that none of them is behind the correlation. Training sets that are not
separable are left out and named: all that is found is given separability.

    DIR/flags.txt  run.json
    DIR/results.csv   a row for each separable training set (see `measure`)
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import flags as shared_flags
from normjax.files import one_line, read_object, replacing, write_json
from normjax.generalization import linear_margin
from normjax.plots import linear_margin as linear_plots
from normjax.plots import paper as plotting
from normjax.results.columns import read_table, write_table
from normjax.results.rows import RESULTS_FILE
from normjax.results.summary import SUMMARY_FILE, write_summary
from normjax.training import record as records
from normjax.training.checkpoints import RUN_FILE
from normjax.training.config import check_seed, to_flagfile

EXPERIMENT = "linear_margin"
ANGLES_FILE = "angles.csv"
PACKAGES = ("normjax", "numpy", "scipy", "scikit-learn")


class Distribution(NamedTuple):
    """A distribution of labeled examples: its name in figures, a sampler, the exact error."""

    title: str
    draw: Callable[[np.random.Generator, int, int], tuple[np.ndarray, np.ndarray]]
    error: Callable[[np.ndarray], np.ndarray]


DISTRIBUTIONS = {
    "classes": Distribution(
        "Two overlapping Gaussian classes", linear_margin.draw_classes, linear_margin.classes_error
    ),
    "teacher": Distribution(
        "Gaussian examples, labels of a linear teacher",
        linear_margin.draw_teacher,
        linear_margin.teacher_error,
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run; every field is the flag of the same name."""

    workdir: str
    distribution: str
    train_size: int
    dimension: int
    num_draws: int
    num_steps: int
    relative_step: float
    seed: int
    resume: bool


class TrainingSets(NamedTuple):
    """The separable training sets, and their hard-margin solutions.

    Attributes:
      draws: [D] their numbers.
      x: [D, n, d], y: [D, n].
      weights: [D, d] hard-margin solutions at unit margin.
      duality_gaps: [D].
      num_support: [D] numbers of support vectors.
    """

    draws: np.ndarray
    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    duality_gaps: np.ndarray
    num_support: np.ndarray


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines this experiment's flags."""
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
    """The command line as a configuration; a mistake is one line on stderr and exit code 1."""

    def make_config() -> Config:
        config = Config(**{f.name: values[f.name].value for f in dataclasses.fields(Config)})
        validate(config)
        return config

    return shared_flags.parse(argv, make_config, values)


def validate(config: Config) -> None:
    """Checks the values.

    Raises:
      ValueError: one line that names the flag, its value and what is allowed.
    """
    least = {"train_size": 2, "dimension": 2, "num_draws": linear_margin.MIN_DRAWS, "num_steps": 1}
    for name, minimum in least.items():
        if getattr(config, name) < minimum:
            raise ValueError(f"--{name}={getattr(config, name)}: must be at least {minimum}")
    if not 0 < config.relative_step < 2:
        raise ValueError(f"--relative_step={config.relative_step}: must lie between 0 and 2")
    check_seed(config.seed)


def main(config: Config) -> None:
    """Runs the experiment."""
    started = time.monotonic()
    run_dir = Path(config.workdir)
    is_new = not (run_dir / RUN_FILE).exists()
    with contextlib.ExitStack() as stack:
        try:
            if records.is_finished(run_dir, EXPERIMENT, config) or _is_marked_finished(run_dir):
                print(f"{run_dir}: this run is finished, there is nothing to do")
                return
            sets, not_separable = draw_training_sets(config)
            stack.enter_context(records.locked(run_dir, is_new))
            start_run(run_dir, config)
        except (ValueError, OSError) as error:
            sys.exit(f"error: {one_line(error)}")
        descend_and_measure(run_dir, config, sets, not_separable)
        records.finish_run(run_dir, time.monotonic() - started)
    print(f"{run_dir / RESULTS_FILE}: {len(sets.draws)} rows; figure: {run_dir / 'figures'}")


def descend_and_measure(
    run_dir: Path, config: Config, sets: TrainingSets, not_separable: list[int]
) -> None:
    """Writes the tables, the summary and the figure."""
    steps = linear_margin.log_spaced_steps(config.num_steps)
    bar = tqdm(steps.tolist(), "gradient descent, log-spaced steps", unit="point", disable=None)
    weights = linear_margin.descend(sets.x, sets.y, bar, config.relative_step)
    angles = linear_margin.angles_deg(weights, sets.weights)
    columns = {
        "draw": np.repeat(sets.draws, len(steps)),
        "step": np.tile(steps, len(sets.draws)),
        "angle_deg": angles.T.ravel(),
    }
    write_table(run_dir / ANGLES_FILE, columns)
    measured = measure(config, sets, weights[-1])
    write_table(run_dir / RESULTS_FILE, measured)
    write_summary(run_dir / SUMMARY_FILE, summarize(config, measured, not_separable))
    plotting.save_figure(draw_figure(run_dir), run_dir / "figures" / EXPERIMENT)


def draw_training_sets(config: Config) -> tuple[TrainingSets, list[int]]:
    """The separable training sets, and the numbers of those that are not.

    Draw i depends on the seed and on i only.

    Raises:
      ValueError: too few are separable.
    """
    found, not_separable = [], []
    for i in tqdm(range(config.num_draws), "hard margins", unit="set", disable=None):
        rng = np.random.default_rng((config.seed, i))
        x, y = DISTRIBUTIONS[config.distribution].draw(rng, config.train_size, config.dimension)
        try:
            solution = linear_margin.hard_margin(x, y)
        except linear_margin.NotSeparableError:
            not_separable.append(i)
            continue
        num_support = np.count_nonzero(solution.dual)
        found.append((i, x, y, solution.weights, solution.duality_gap, num_support))
    if len(found) < linear_margin.MIN_DRAWS:
        raise ValueError(
            f"{len(found)} of {config.num_draws} training sets are separable, "
            f"{linear_margin.MIN_DRAWS} are needed: a larger --dimension or a smaller --train_size"
        )
    return TrainingSets(*map(np.array, zip(*found, strict=True))), not_separable


def measure(config: Config, sets: TrainingSets, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of results.csv, from gradient descent's last weights [D, d].

    draw, train_size, dimension;
    norm_at_unit_margin, train_error, test_error, num_support_vectors, duality_gap: of the
      hard-margin solution (`linear_margin.HardMargin`); errors are fractions, test errors exact;
    data_radius: the largest norm of an example of the training set;
    gd_norm_at_unit_margin, gd_train_error, gd_test_error, angle_final_deg: of gradient descent's
      last weights; the norm is nan where they don't separate the training set, the angle is that to
      the hard-margin solution.
    """
    error = DISTRIBUTIONS[config.distribution].error

    def train_error(w: np.ndarray) -> np.ndarray:
        return np.mean(linear_margin.training_margins(w, sets.x, sets.y) <= 0, axis=-1)

    return {
        "draw": sets.draws,
        "train_size": np.full(len(sets.draws), config.train_size),
        "dimension": np.full(len(sets.draws), config.dimension),
        "norm_at_unit_margin": np.linalg.norm(sets.weights, axis=-1),
        "gd_norm_at_unit_margin": linear_margin.norm_at_unit_margin(weights, sets.x, sets.y),
        "angle_final_deg": linear_margin.angles_deg(weights, sets.weights),
        "train_error": train_error(sets.weights),
        "test_error": error(sets.weights),
        "gd_train_error": train_error(weights),
        "gd_test_error": error(weights),
        "data_radius": np.linalg.norm(sets.x, axis=-1).max(axis=-1),
        "num_support_vectors": sets.num_support,
        "duality_gap": sets.duality_gaps,
    }


def summarize(
    config: Config, columns: dict[str, np.ndarray], not_separable: Sequence[int]
) -> dict[str, Any]:
    """The contents of summary.json.

    The correlations are with the test error of the same solution. `radius_times_norm` is the
    product that the paper's bound for linear f has (R_N <= X * W / sqrt(N)). `two_draws` are the
    first two separable training sets, chosen by this rule and not by what they show.
    """
    separates = columns["gd_train_error"] == 0
    measures = {
        "norm_at_unit_margin": (columns["norm_at_unit_margin"], columns["test_error"]),
        "radius_times_norm": (
            columns["data_radius"] * columns["norm_at_unit_margin"],
            columns["test_error"],
        ),
        "gd_norm_at_unit_margin": (
            columns["gd_norm_at_unit_margin"][separates],
            columns["gd_test_error"][separates],
        ),
    }
    correlations, reasons = {}, {}
    for name, (x, y) in measures.items():
        try:
            correlations[name] = linear_margin.rank_correlation(x, y, config.seed)._asdict()
        except ValueError as error:
            correlations[name], reasons[name] = None, str(error)
    return {
        "experiment": EXPERIMENT,
        "distribution": config.distribution,
        "data_name": DISTRIBUTIONS[config.distribution].title,
        "train_size": config.train_size,
        "dimension": config.dimension,
        "num_draws": config.num_draws,
        "num_steps": config.num_steps,
        "not_separable": list(not_separable),
        "gd_not_separating": columns["draw"][~separates].tolist(),
        "method": (
            "Spearman's rank correlation with the exact test error over separable training sets; "
            f"95% percentile bootstrap, {linear_margin.NUM_RESAMPLES} resamples of training sets"
        ),
        "correlations": correlations,
        "reasons": reasons,
        "angle_final_deg_quantiles": {
            str(q): float(np.quantile(columns["angle_final_deg"], q)) for q in (0.05, 0.5, 0.95)
        },
        "two_draws": [
            {name: column[i].item() for name, column in columns.items()} for i in range(2)
        ],
    }


def draw_figure(run_dir: Path) -> Any:
    """The figure of a run, from its saved tables.

    Raises:
      OSError: one of them can't be read.
      ValueError: one of them is damaged, or they don't fit together; the message names it.
    """
    summary = read_object(run_dir / SUMMARY_FILE)
    draws = read_table(run_dir / RESULTS_FILE)
    angles = read_table(run_dir / ANGLES_FILE)
    try:
        return linear_plots.plot_linear_margin(draws, angles, summary)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"{run_dir}: its tables don't fit together ({reason})") from None


def start_run(run_dir: Path, config: Config) -> None:
    """Writes flags.txt and run.json before the descent."""
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
    """Whether run.json says so; `records.is_finished` also asks for a page, which there is not."""
    path = run_dir / RUN_FILE
    return path.exists() and read_object(path, finished=bool)["finished"]


if __name__ == "__main__":
    define_flags()
    shared_flags.run_command(main, parse)
