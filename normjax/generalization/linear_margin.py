"""Linear classifiers on separable data: gradient descent, and the maximum margin it goes to.

Section 3.1.1 of the paper. A linear f(x) = <w, x> without bias is trained on n examples by the
logistic loss. Its loss goes to zero, its norm to infinity and its direction to that of the
hard-margin support vector machine (Soudry, Hoffer, Nacson, Gunasekar and Srebro 2018, "The Implicit
Bias of Gradient Descent on Separable Data", theorem 3). Scaled to a smallest margin of 1, the norm
||w|| is one over the distance of the nearest example from the hyperplane.

Everything is NumPy float64: the angle falls as 1 / log(time), so that many steps of tiny updates
are needed, and JAX's default is float32.
"""

import warnings
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from normjax.statistics.regression import check_points

CLASS_MEAN = 2.0
MAX_DUALITY_GAP = 0.01
NUM_RESAMPLES = 10_000
MIN_DRAWS = 10


class NotSeparableError(ValueError):
    """No hyperplane through the origin that separates the examples was found."""


class HardMargin(NamedTuple):
    """The solution of: minimize ||w||^2 subject to y_i <w, x_i> >= 1.

    Attributes:
      weights: w [d] float64, scaled so that the smallest margin is exactly 1.
      dual: alpha [n] float64, not negative, with w = sum_i alpha_i y_i x_i; positive at support
        vectors only.
      duality_gap: 1 - (largest dual value along alpha) / (||w||^2 / 2). ||w|| exceeds the true
        minimum by at most about half of it, relatively, and the angle to the true solution is at
        most arcsin(sqrt(duality_gap)); in practice it is far smaller.
    """

    weights: np.ndarray
    dual: np.ndarray
    duality_gap: float


class RankCorrelation(NamedTuple):
    """Whether one number orders the draws as the other does.

    Attributes:
      spearman: Spearman's rank correlation.
      interval: (low, high), 95% percentile bootstrap interval over the draws.
      pairs_in_order: fraction of pairs of draws in which the smaller x has the smaller y,
        (1 + Kendall's tau) / 2; 0.5 without a relation.
      n: number of draws.
    """

    spearman: float
    interval: tuple[float, float]
    pairs_in_order: float
    n: int


def draw_classes(
    rng: np.random.Generator, num_examples: int, dimension: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two Gaussian classes, x ~ N(CLASS_MEAN * y e_1, I), y a fair coin.

    They overlap: the best classifier, e_1, is wrong on 2.3% of them. A training set can still be
    separable, and is so almost surely if d >= n.

    Returns:
      x [n, d] float64, y [n] float64 of -1 and 1.
    """
    y = rng.choice([-1.0, 1.0], num_examples)
    x = rng.standard_normal((num_examples, dimension))
    x[:, 0] += CLASS_MEAN * y
    return x, y


def draw_teacher(
    rng: np.random.Generator, num_examples: int, dimension: int
) -> tuple[np.ndarray, np.ndarray]:
    """Standard Gaussian examples with the labels of the teacher e_1, y = sign(x_1): no noise.

    Returns:
      x [n, d] float64, y [n] float64 of -1 and 1; always separable.
    """
    x = rng.standard_normal((num_examples, dimension))
    return x, np.where(x[:, 0] > 0, 1.0, -1.0)


def classes_error(weights: np.ndarray) -> np.ndarray:
    """Exact test error [...] of weights [..., d] on `draw_classes`: Phi(-CLASS_MEAN cos)."""
    return special.ndtr(-CLASS_MEAN * weights[..., 0] / np.linalg.norm(weights, axis=-1))


def teacher_error(weights: np.ndarray) -> np.ndarray:
    """Exact test error [...] of weights [..., d] on `draw_teacher`: their angle to e_1 / pi."""
    teacher = np.zeros(weights.shape[-1])
    teacher[0] = 1.0
    return np.deg2rad(angles_deg(weights, teacher)) / np.pi


def hard_margin(x: np.ndarray, y: np.ndarray) -> HardMargin:
    """The maximum-margin hyperplane through the origin, by scikit-learn's SVC with C = 1e10.

    SVC always fits an intercept b. It is given every example twice, as (y_i x_i, +1) and as
    (-y_i x_i, -1). The constraints are then y_i <w, x_i> >= 1 + |b|, so that b = 0 at the optimum
    and w is that of the problem without an intercept. What comes back is checked by its duality
    gap, which proves it whatever the solver did.

    Args:
      x: [n, d] finite.
      y: [n] of -1 and 1.

    Raises:
      NotSeparableError: none separates the examples, or SVC left a gap above MAX_DUALITY_GAP.
      ValueError: shapes or values that are not as above.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import SVC

    signed = _signed_examples(x, y)
    n = len(signed)
    with warnings.catch_warnings():  # without a solution there is no convergence; see below
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine = SVC(kernel="linear", C=1e10, tol=1e-8, max_iter=200_000)
        machine.fit(np.concatenate([signed, -signed]), np.repeat([1, -1], n))
    doubled = np.zeros(2 * n)
    doubled[machine.support_] = np.abs(machine.dual_coef_[0])
    dual = doubled[:n] + doubled[n:]
    weights = dual @ signed
    margin = (signed @ weights).min()
    if margin > 0:
        # The dual value of c * alpha is largest at c = sum(alpha) / ||w||^2.
        gap = float(1 - (dual.sum() * margin / (weights @ weights)) ** 2)
        if gap <= MAX_DUALITY_GAP:
            return HardMargin(weights / margin, dual / margin, gap)
    raise NotSeparableError(
        f"no hyperplane through the origin that separates these {n} examples was found"
    )


def log_spaced_steps(num_steps: int, per_decade: int = 10) -> np.ndarray:
    """Whole numbers [T] from 1 to `num_steps`, about `per_decade` in each factor of ten."""
    if num_steps < 1 or per_decade < 1:
        raise ValueError(f"{num_steps} steps, {per_decade} a decade: both must be at least 1")
    count = 1 + int(np.ceil(per_decade * np.log10(num_steps)))
    return np.unique(np.rint(np.geomspace(1, num_steps, count)).astype(int))


def descend(
    x: np.ndarray, y: np.ndarray, steps: Iterable[int], relative_step: float = 1.0
) -> np.ndarray:
    """Plain gradient descent on the mean logistic loss, full batch, from w = 0.

    L(w) = mean_i log(1 + exp(-y_i <w, x_i>)) has a gradient of Lipschitz constant
    beta = ||X||^2 / (4 n), with the spectral norm of X. The step size is constant, relative_step /
    beta of each data set; below 2 / beta the loss falls monotonically.

    Args:
      x: [..., n, d] finite; leading axes are separate data sets.
      y: [..., n] of -1 and 1.
      steps: T increasing numbers of steps after which the weights are kept; a progress bar over
        such numbers is fine.
      relative_step: step size in units of 1 / beta, in (0, 2).

    Returns:
      The weights [T, ..., d] float64.

    Raises:
      ValueError: shapes or values that are not as above, a data set of zeros, or no steps.
    """
    signed = _signed_examples(x, y)
    if not 0 < relative_step < 2:
        raise ValueError(f"relative_step is {relative_step}; it must lie between 0 and 2")
    squared_norm = np.linalg.norm(signed, 2, axis=(-2, -1)) ** 2
    if not squared_norm.all():
        raise ValueError("all examples of a data set are zero")
    rate = (4 * relative_step / squared_norm)[..., None, None]  # the mean's 1 / n cancels
    transposed = np.ascontiguousarray(np.swapaxes(signed, -1, -2))
    weights = np.zeros((*signed.shape[:-2], signed.shape[-1], 1))
    done, kept = 0, []
    for step in steps:
        if step <= done:
            raise ValueError(f"step {step} after step {done}: steps must be positive and increase")
        for _ in range(step - done):
            weights += rate * (transposed @ special.expit(-(signed @ weights)))
        done = step
        kept.append(weights[..., 0].copy())
    if not kept:
        raise ValueError("no steps: at least one is needed")
    return np.stack(kept)


def angles_deg(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Angles [...] in degrees between vectors [..., d]; accurate also near 0 (Kahan's formula)."""
    u = u / np.linalg.norm(u, axis=-1, keepdims=True)
    v = v / np.linalg.norm(v, axis=-1, keepdims=True)
    half = np.arctan2(np.linalg.norm(u - v, axis=-1), np.linalg.norm(u + v, axis=-1))
    return np.rad2deg(2 * half)


def training_margins(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """y_i <w, x_i> [..., n] of weights [..., d] on their own examples; negative where wrong."""
    return (_signed_examples(x, y) @ np.asarray(weights, np.float64)[..., None])[..., 0]


def norm_at_unit_margin(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """||w|| / min_i y_i <w, x_i> [...]; NaN where an example is not on its own side."""
    smallest = training_margins(weights, x, y).min(axis=-1)
    norms = np.linalg.norm(weights, axis=-1)
    return np.divide(norms, smallest, out=np.full_like(norms, np.nan), where=smallest > 0)


def rank_correlation(x: np.ndarray, y: np.ndarray, seed: int = 0) -> RankCorrelation:
    """Spearman's correlation of two numbers over n draws, with its bootstrap interval.

    Whole draws are resampled, NUM_RESAMPLES times (`scipy.stats.bootstrap`, percentile method).

    Raises:
      ValueError: fewer than MIN_DRAWS draws, unequal lengths, values that are not finite, or one
        of the two without spread.
    """
    x, y = check_points(x, y, minimum=MIN_DRAWS)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("no spread: all draws have the same value")
    bootstrap = stats.bootstrap(
        (x, y),
        _spearman,
        paired=True,
        n_resamples=NUM_RESAMPLES,
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    low, high = bootstrap.confidence_interval
    tau = stats.kendalltau(x, y).statistic
    spearman = stats.spearmanr(x, y).statistic
    return RankCorrelation(float(spearman), (float(low), float(high)), float((1 + tau) / 2), x.size)


def _spearman(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
    """Spearman's correlation along one axis: Pearson's of the ranks."""
    ranks = [stats.rankdata(values, axis=axis) for values in (x, y)]
    dx, dy = (rank - rank.mean(axis=axis, keepdims=True) for rank in ranks)
    spread = np.sqrt(np.sum(dx**2, axis=axis) * np.sum(dy**2, axis=axis))
    return np.sum(dx * dy, axis=axis) / spread


def _signed_examples(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """y_i x_i [..., n, d] in float64, if the data are as they should be."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim < 2 or y.shape != x.shape[:-1] or 0 in x.shape:
        raise ValueError(f"x of shape {x.shape} and y of {y.shape}: [..., n, d] and [..., n] fit")
    if not np.isfinite(x).all():
        raise ValueError("x has values that are not finite")
    if not np.isin(y, (-1, 1)).all():
        raise ValueError("labels y must be -1 or 1")
    return x * y[..., None]
