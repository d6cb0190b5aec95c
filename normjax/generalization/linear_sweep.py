"""Many training sets from one distribution: do smaller norms at unit margin generalize better?

Each training set is solved twice, by the hard-margin solution and by gradient descent. Test errors
are exact. Norms are correlated with test errors over the training sets, which are independent: each
is its own level.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import special
from tqdm import tqdm

from normjax.generalization.linear_margin import (
    HardMargin,
    NotSeparableError,
    angles_deg,
    descend,
    hard_margin,
    log_spaced_steps,
    norm_at_unit_margin,
    training_margins,
)
from normjax.statistics.rank_correlation import NUM_DRAWS, rank_correlation

CLASS_MEAN = 2.0
MIN_SETS = 10
DRAW_COLUMNS = {
    "draw": int,
    "train_size": int,
    "dimension": int,
    "norm_at_unit_margin": float,
    "gd_norm_at_unit_margin": float,
    "angle_final_deg": float,
    "train_error": float,
    "test_error": float,
    "gd_train_error": float,
    "gd_test_error": float,
    "data_radius": float,
    "num_support_vectors": int,
    "duality_gap": float,
}
ANGLE_COLUMNS = {"draw": int, "step": int, "angle_deg": float}


def draw_classes(
    rng: np.random.Generator, num_examples: int, dimension: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw from two Gaussian classes, x ~ N(CLASS_MEAN * y e_1, I), with y = ±1 equally likely.

    The classes overlap: the optimal classifier e_1 has an error of 2.3%. A training set can still
    be separable, and almost surely is if d >= n.

    Returns:
      x, float64 [n, d], and y, float64 [n] of -1 and 1.
    """
    y = rng.choice([-1.0, 1.0], num_examples)
    x = rng.standard_normal((num_examples, dimension))
    x[:, 0] += CLASS_MEAN * y
    return x, y


def draw_teacher(
    rng: np.random.Generator, num_examples: int, dimension: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw standard Gaussian examples with noiseless labels of the teacher e_1, y = sign(x_1).

    Returns:
      x, float64 [n, d], and y, float64 [n] of -1 and 1; always separable.
    """
    x = rng.standard_normal((num_examples, dimension))
    return x, np.where(x[:, 0] > 0, 1.0, -1.0)


def classes_error(weights: np.ndarray) -> np.ndarray:
    """Return the exact test error [...] of weights [..., d] on `draw_classes`."""
    return special.ndtr(-CLASS_MEAN * weights[..., 0] / np.linalg.norm(weights, axis=-1))


def teacher_error(weights: np.ndarray) -> np.ndarray:
    """Return the exact test error [...] of weights [..., d] on `draw_teacher`."""
    teacher = np.zeros(weights.shape[-1])
    teacher[0] = 1.0
    return np.deg2rad(angles_deg(weights, teacher)) / np.pi


@dataclasses.dataclass(frozen=True)
class Distribution:
    """A distribution of labeled examples.

    Attributes:
      title: name in figures.
      draw: (rng, num_examples, dimension) -> x [n, d], y [n].
      error: weights [..., d] -> exact test error [...].
    """

    title: str
    draw: Callable[[np.random.Generator, int, int], tuple[np.ndarray, np.ndarray]]
    error: Callable[[np.ndarray], np.ndarray]


DISTRIBUTIONS = {
    "classes": Distribution("Two overlapping Gaussian classes", draw_classes, classes_error),
    "teacher": Distribution(
        "Gaussian examples, labels of a linear teacher", draw_teacher, teacher_error
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingSets:
    """Separable training sets with their hard-margin solutions.

    Attributes:
      draws: numbers of the training sets, int [D].
      x: examples, float64 [D, n, d].
      y: labels, float64 [D, n].
      solutions: D hard-margin solutions.
      not_separable: numbers of the excluded training sets.
    """

    draws: np.ndarray
    x: np.ndarray
    y: np.ndarray
    solutions: Sequence[HardMargin]
    not_separable: Sequence[int]

    @property
    def weights(self) -> np.ndarray:
        """Return the weights of the solutions, float64 [D, d]."""
        return np.stack([solution.weights for solution in self.solutions])


def draw_training_sets(
    distribution: str, *, num_draws: int, train_size: int, dimension: int, seed: int
) -> TrainingSets:
    """Draw training sets and solve those that are separable.

    Training set i depends only on the seed and on i.

    Args:
      distribution: a key of `DISTRIBUTIONS`.
      num_draws: number of training sets.
      train_size: examples per training set.
      dimension: dimension of the examples.
      seed: seed of all draws.

    Raises:
      ValueError: fewer than MIN_SETS training sets are separable.
    """
    found, not_separable = [], []
    for i in tqdm(range(num_draws), "hard margins", unit="set", disable=None):
        rng = np.random.default_rng((seed, i))
        x, y = DISTRIBUTIONS[distribution].draw(rng, train_size, dimension)
        try:
            found.append((i, x, y, hard_margin(x, y)))
        except NotSeparableError:
            not_separable.append(i)
    if len(found) < MIN_SETS:
        raise ValueError(
            f"{len(found)} of {num_draws} training sets are separable, {MIN_SETS} are needed: "
            "increase --dimension or reduce --train_size"
        )
    draws, x, y, solutions = zip(*found, strict=True)
    return TrainingSets(np.array(draws), np.array(x), np.array(y), solutions, not_separable)


def descend_all(
    sets: TrainingSets, num_steps: int, relative_step: float
) -> tuple[np.ndarray, pd.DataFrame]:
    """Run gradient descent on every training set.

    Args:
      sets: the training sets.
      num_steps: steps of gradient descent.
      relative_step: step size in units of 1 / smoothness, see `descend`.

    Returns:
      The last weights, float64 [D, d], and the table of angles to the hard-margin solutions:
      draw, step, angle_deg.
    """
    steps = log_spaced_steps(num_steps)
    bar = tqdm(steps.tolist(), "gradient descent, log-spaced steps", unit="point", disable=None)
    weights = descend(sets.x, sets.y, bar, relative_step)
    angles = pd.DataFrame(
        {
            "draw": np.repeat(sets.draws, len(steps)),
            "step": np.tile(steps, len(sets.draws)),
            "angle_deg": angles_deg(weights, sets.weights).T.ravel(),
        }
    )
    return weights[-1], angles


def measure(distribution: str, sets: TrainingSets, weights: np.ndarray) -> pd.DataFrame:
    """Measure the hard-margin solutions and the last weights of gradient descent.

    | column | meaning |
    | --- | --- |
    | draw, train_size, dimension | the training set |
    | norm_at_unit_margin, num_support_vectors, duality_gap | of the hard-margin solution |
    | train_error, test_error | of the hard-margin solution, fractions; test errors are exact |
    | data_radius | the largest norm of a training example |
    | gd_norm_at_unit_margin | of the last weights; NaN if they do not separate the examples |
    | gd_train_error, gd_test_error | of the last weights |
    | angle_final_deg | between the last weights and the hard-margin solution |

    Args:
      distribution: a key of `DISTRIBUTIONS`.
      sets: the training sets.
      weights: the last weights of gradient descent, float64 [D, d].

    Returns:
      A row per training set, with the columns `DRAW_COLUMNS`.
    """
    error = DISTRIBUTIONS[distribution].error
    solutions = sets.weights

    def train_error(w: np.ndarray) -> np.ndarray:
        return np.mean(training_margins(w, sets.x, sets.y) <= 0, axis=-1)

    columns = {
        "draw": sets.draws,
        "train_size": sets.x.shape[1],
        "dimension": sets.x.shape[2],
        "norm_at_unit_margin": np.linalg.norm(solutions, axis=-1),
        "gd_norm_at_unit_margin": norm_at_unit_margin(weights, sets.x, sets.y),
        "angle_final_deg": angles_deg(weights, solutions),
        "train_error": train_error(solutions),
        "test_error": error(solutions),
        "gd_train_error": train_error(weights),
        "gd_test_error": error(weights),
        "data_radius": np.linalg.norm(sets.x, axis=-1).max(axis=-1),
        "num_support_vectors": [np.count_nonzero(one.dual) for one in sets.solutions],
        "duality_gap": [one.duality_gap for one in sets.solutions],
    }
    return pd.DataFrame(columns)


def summarize(table: pd.DataFrame, *, seed: int) -> dict[str, Any]:
    """Correlate norms with test errors over the training sets of `measure`.

    Each norm is correlated with the test error of the same solution. `radius_times_norm` is the
    product in the paper's bound for linear f (R_N <= X * W / sqrt(N)). `two_draws` are the first
    two separable training sets; they are not selected by their results.

    Returns:
      Values for summary.json; `reasons` explains correlations that are None.
    """
    separates = table[table["gd_train_error"] == 0]
    measures = {
        "norm_at_unit_margin": (table["norm_at_unit_margin"], table["test_error"]),
        "radius_times_norm": (
            table["data_radius"] * table["norm_at_unit_margin"],
            table["test_error"],
        ),
        "gd_norm_at_unit_margin": (
            separates["gd_norm_at_unit_margin"],
            separates["gd_test_error"],
        ),
    }
    first = table.head(2).astype(object)
    correlations, reasons = {}, {}
    for name, (x, y) in measures.items():
        try:
            found = rank_correlation(x.to_numpy(), y.to_numpy(), [""] * len(x), seed=seed)
            correlations[name] = dataclasses.asdict(found)
        except ValueError as error:
            correlations[name], reasons[name] = None, str(error)
    return {
        "gd_not_separating": table.loc[table["gd_train_error"] != 0, "draw"].tolist(),
        "method": (
            "rank correlations with the exact test error over separable training sets; "
            f"95% jackknife intervals over training sets, {NUM_DRAWS} random orders"
        ),
        "correlations": correlations,
        "reasons": reasons,
        "angle_final_deg_quantiles": {
            str(q): float(table["angle_final_deg"].quantile(q)) for q in (0.05, 0.5, 0.95)
        },
        "two_draws": first.where(first.notna(), None).to_dict("records"),
    }
