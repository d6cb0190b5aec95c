"""Linear classifiers on separable data: gradient descent and its limit, the maximum margin.

Section 3.1.1 of the paper. A linear f(x) = <w, x> without bias is trained on n examples with the
logistic loss. The loss converges to zero, the norm diverges, and the direction converges to the
hard-margin support vector machine (Soudry, Hoffer, Nacson, Gunasekar and Srebro 2018, "The Implicit
Bias of Gradient Descent on Separable Data", theorem 3). Scaled to a smallest margin of 1, ||w|| is
the inverse distance of the nearest example from the hyperplane.

All computations use NumPy float64: the angle decreases as 1 / log(time), which takes many tiny
updates, and JAX defaults to float32.
"""

import dataclasses
import warnings
from collections.abc import Iterable

import numpy as np
from scipy import special

MAX_DUALITY_GAP = 0.01


class NotSeparableError(ValueError):
    """No hyperplane through the origin that separates the examples was found."""


@dataclasses.dataclass(frozen=True, eq=False)
class HardMargin:
    """The solution of: minimize ||w||^2 subject to y_i <w, x_i> >= 1.

    Attributes:
      weights: w, float64 [d], scaled so that the smallest margin is exactly 1.
      dual: alpha, float64 [n], nonnegative, with w = sum_i alpha_i y_i x_i; positive only at
        support vectors.
      duality_gap: 1 - (largest dual value along alpha) / (||w||^2 / 2). The relative excess of
        ||w|| over the true minimum is at most about half the gap, and the angle to the true
        solution is at most arcsin(sqrt(duality_gap)); in practice it is far smaller.
    """

    weights: np.ndarray
    dual: np.ndarray
    duality_gap: float


def hard_margin(x: np.ndarray, y: np.ndarray) -> HardMargin:
    """Find the maximum-margin hyperplane through the origin with scikit-learn's SVC, C = 1e10.

    SVC always fits an intercept b. It receives every example twice, as (y_i x_i, +1) and as
    (-y_i x_i, -1). The constraints are then y_i <w, x_i> >= 1 + |b|, so b = 0 at the optimum and w
    solves the problem without intercept. The duality gap certifies the solution independently of
    the solver.

    Args:
      x: finite, [n, d].
      y: -1 or 1, [n].

    Raises:
      NotSeparableError: no hyperplane separates the examples, or the duality gap exceeds
        MAX_DUALITY_GAP.
      ValueError: invalid shapes or values.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import SVC

    signed = _signed_examples(x, y)
    n = len(signed)
    with warnings.catch_warnings():  # if there is no solution, SVC does not converge
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
    """Return integers [T] from 1 to `num_steps`, about `per_decade` per factor of ten."""
    if num_steps < 1 or per_decade < 1:
        raise ValueError(f"{num_steps} steps, {per_decade} per decade: both must be at least 1")
    count = 1 + int(np.ceil(per_decade * np.log10(num_steps)))
    return np.unique(np.rint(np.geomspace(1, num_steps, count)).astype(int))


def descend(
    x: np.ndarray, y: np.ndarray, steps: Iterable[int], relative_step: float = 1.0
) -> np.ndarray:
    """Run full-batch gradient descent on the mean logistic loss from w = 0.

    The gradient of L(w) = mean_i log(1 + exp(-y_i <w, x_i>)) has the Lipschitz constant
    beta = ||X||^2 / (4 n), with the spectral norm of X. The step size is relative_step / beta for
    each data set; below 2 / beta the loss decreases monotonically.

    Args:
      x: finite, [..., n, d]; leading axes are separate data sets.
      y: -1 or 1, [..., n].
      steps: T increasing step counts at which to record the weights; may be a progress bar.
      relative_step: step size in units of 1 / beta, in (0, 2).

    Returns:
      The weights, float64 [T, ..., d].

    Raises:
      ValueError: invalid shapes or values, a data set of zeros, or no steps.
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
    """Return the angles [...] in degrees between vectors [..., d], accurate near 0 (Kahan)."""
    u = u / np.linalg.norm(u, axis=-1, keepdims=True)
    v = v / np.linalg.norm(v, axis=-1, keepdims=True)
    half = np.arctan2(np.linalg.norm(u - v, axis=-1), np.linalg.norm(u + v, axis=-1))
    return np.rad2deg(2 * half)


def training_margins(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return y_i <w, x_i> [..., n] for weights [..., d]."""
    return (_signed_examples(x, y) @ np.asarray(weights, np.float64)[..., None])[..., 0]


def norm_at_unit_margin(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return ||w|| / min_i y_i <w, x_i> [...]; NaN if the weights do not separate the examples."""
    smallest = training_margins(weights, x, y).min(axis=-1)
    norms = np.linalg.norm(weights, axis=-1)
    return np.divide(norms, smallest, out=np.full_like(norms, np.nan), where=smallest > 0)


def _signed_examples(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return y_i x_i, float64 [..., n, d].

    Raises:
      ValueError: shapes do not match, x is not finite, or a label is not -1 or 1.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim < 2 or y.shape != x.shape[:-1] or 0 in x.shape:
        raise ValueError(f"x of shape {x.shape} and y of {y.shape}: [..., n, d] and [..., n] fit")
    if not np.isfinite(x).all():
        raise ValueError("x has values that are not finite")
    if not np.isin(y, (-1, 1)).all():
        raise ValueError("labels y must be -1 or 1")
    return x * y[..., None]
