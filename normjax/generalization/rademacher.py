"""The empirical Rademacher complexity of classes of unit norm, the R_N of the paper's eq. 4.

`R_N(G) = E_s sup_{g in G} (1/N) sum_i s_i g(x_i)` with independent fair signs `s_i`, without an
absolute value (Bartlett and Mendelson 2002, up to their factor 2). It depends on the class and the
inputs, not on a single network.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from normjax.generalization.absorbed import check_layers
from normjax.losses import excess_cross_entropy
from normjax.normalize import normalize_params
from normjax.structure import NetworkStructure
from normjax.tracing.trace import trace_structure
from normjax.training.ensemble import map_members
from normjax.types import ApplyFn, Array, Params

Outputs = Callable[[Array, Array], Array]
"""A function that defines the class: from logits [n, K] and labels [n] to values [n, M]."""


@dataclasses.dataclass(frozen=True, eq=False)
class RademacherEstimate:
    """A Monte Carlo estimate of R_N.

    Attributes:
      values: the supremum for each draw, or a lower estimate of it, float64 [num_draws].
      num_examples: N.
      by_step: best value before each ascent step and at the end, averaged over draws, float64
        [num_steps + 1]; None without ascent.
    """

    values: np.ndarray
    num_examples: int
    by_step: np.ndarray | None = None

    @property
    def mean(self) -> float:
        """Return the mean over the draws."""
        return float(self.values.mean())

    @property
    def standard_error(self) -> float:
        """Return the standard error of the mean; NaN for a single draw."""
        if self.values.size < 2:
            return math.nan
        return float(self.values.std(ddof=1)) / math.sqrt(self.values.size)


def one_logit(logits: Array, labels: Array) -> Array:
    """Return the first logit, [n, 1]: the class of real-valued networks."""
    return logits[:, :1]


def all_logits(logits: Array, labels: Array) -> Array:
    """Return all logits: vector-valued networks with one sign per logit (Maurer 2016)."""
    return logits


def excess_loss(logits: Array, labels: Array) -> Array:
    """Return the excess, [n, 1]: the class of losses, to which eq. 4 applies.

    Subtracting ln K does not change R_N, but reduces the noise of the estimate.
    """
    return excess_cross_entropy(logits, labels)[:, None]


def estimate_rademacher(
    apply_fn: ApplyFn,
    init_fn: Callable[[Array], Params],
    inputs: Array,
    labels: Array,
    outputs: Outputs,
    key: Array,
    *,
    num_signs: int = 8,
    num_steps: int = 60,
    num_restarts: int = 1,
    batch_size: int = 16,
) -> RademacherEstimate:
    """Return a lower estimate of R_N of the networks whose layers have Frobenius norm 1.

    For each draw of signs, projected gradient ascent maximizes `F(W~) = (1/N) sum_i s_i g(x_i)`:
    each step moves all layers to `W_k + dF/dW_k / ||dF/dW_k||` and back to norm 1. For a linear
    class this reaches the supremum in a few steps. The largest F is returned. The problem is not
    convex and the ascent can stop below the supremum, so this is a LOWER estimate; more restarts
    and steps increase it.

    Args:
      apply_fn: (params, inputs) -> logits [n, K]; a network that obeys eq. 2 and has no biases
        after the first layer, because no norm contains them.
      init_fn: key -> initial parameters of an ascent.
      inputs: inputs of the network, float [N, ...].
      labels: int [N]; only the class of losses depends on them.
      outputs: `one_logit`, `all_logits`, `excess_loss` or similar.
      key: a JAX random key; draw i depends only on it and on i.
      num_signs: number of sign draws.
      num_steps: ascent steps.
      num_restarts: ascents per draw, from different starts.
      batch_size: examples per forward and backward pass; gradients use all examples.

    Raises:
      ValueError: numbers below 1, labels that do not match, or a later layer with a bias.
    """
    numbers = {
        "num_signs": num_signs,
        "num_steps": num_steps,
        "num_restarts": num_restarts,
        "batch_size": batch_size,
    }
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} is {number}; at least 1 is needed")
    if len(labels) != len(inputs) or not len(inputs):
        raise ValueError(f"{len(labels)} labels do not fit {len(inputs)} inputs")
    inputs, labels = jnp.asarray(inputs), jnp.asarray(labels)
    structure = trace_structure(apply_fn, jax.eval_shape(init_fn, key), inputs[:batch_size])
    check_first_bias_only(structure)
    climb = map_members(
        _make_climb(apply_fn, init_fn, outputs, num_steps, batch_size, structure), num_shared=2
    )
    draws = np.repeat(np.arange(num_signs), num_restarts)
    draws = np.append(draws, np.full(-draws.size % len(jax.local_devices()), draws[-1]))
    keys = jax.vmap(partial(jax.random.fold_in, key))(draws)
    init_keys = jax.vmap(jax.random.fold_in)(keys, 1 + np.arange(draws.size) % num_restarts)
    signs_keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
    met = climb(signs_keys, init_keys, inputs, labels)
    met = np.asarray(met, np.float64)[: num_signs * num_restarts]
    best = np.maximum.accumulate(met.reshape(num_signs, num_restarts, -1).max(axis=1), axis=1)
    return RademacherEstimate(best[:, -1], len(inputs), by_step=best.mean(axis=0))


def rademacher_by_labels(train_excess: ArrayLike, num_examples: int) -> RademacherEstimate:
    """Return a lower estimate of R_N of the losses, from networks trained on random labels.

    The labels are independent of the inputs, so on average over the labels no network is better
    than chance. Symmetrization (other labels, same inputs) gives `E sup_f (ln K - L(f)) <= 2 R_N`.
    The expected difference between ln K and the training loss L of a normalized network is
    therefore at most `2 R_N`. This is the R_N of losses with random labels; it bounds nothing for
    the true labels. Swapped labels keep the class counts and are otherwise independent.

    Args:
      train_excess: `L - ln K` in nats for normalized networks, each trained on its own random
        labels.
      num_examples: N.

    Raises:
      ValueError: no networks.
    """
    values = -np.asarray(train_excess, np.float64) / 2
    if not values.size:
        raise ValueError("there are no networks trained on random labels")
    return RademacherEstimate(values, num_examples)


def check_first_bias_only(structure: NetworkStructure) -> None:
    """Raise ValueError if a later layer has a bias: no norm bounds it, and R_N is infinite."""
    for layer in structure.matrices[1:]:
        if layer.offset is not None:
            raise ValueError(
                f"layer {layer.path!r} has a bias, which its norm does not include: the Rademacher "
                "complexity of networks of unit norm is then infinite"
            )
    check_layers(structure)


def linear_rademacher(
    inputs: np.ndarray,
    norm: float = 2,
    radius: float = 1.0,
    *,
    num_signs: int = 1000,
    seed: int = 0,
) -> RademacherEstimate:
    """Estimate R_N of the linear functions `w . x` with `||w||_p <= W`; suprema are exact.

    By duality R_N is `(W / N) E || sum_i s_i x_i ||_q` with `1/p + 1/q = 1`.

    Args:
      inputs: float [N, ...], flattened.
      norm: p >= 1, including infinity.
      radius: W.
      num_signs: number of sign draws.
      seed: seed of the draws.

    Raises:
      ValueError: p < 1, a negative radius, or no draws.
    """
    x, dual = _linear_class(inputs, norm, radius)
    if num_signs < 1:
        raise ValueError(f"num_signs is {num_signs}; at least 1 is needed")
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (num_signs, len(x)))
    values = radius / len(x) * np.linalg.norm(signs @ x, dual, axis=1)
    return RademacherEstimate(values, len(x))


def linear_bound(inputs: np.ndarray, norm: float = 2, radius: float = 1.0) -> float:
    """Return an upper bound on R_N of the linear functions with `||w||_p <= W`.

    For p = 2 it is the paper's `X W / sqrt(N)` with `X^2` the mean of `||x||^2`, by Jensen's
    inequality. For other norms:

    * p > 2: `(W / N) (sum_j (sum_i x_ij^2)^(q/2))^(1/q)`, by the same inequality;
    * 1 < p < 2: `W sqrt(q - 1) X / sqrt(N)` with the q-norm in X (as in Kakade, Sridharan and
      Tewari 2008; docs/bounds.md);
    * p = 1: `(W / N) sqrt(2 ln(2d)) max_j sqrt(sum_i x_ij^2)` (Massart's finite class lemma).

    Args:
      inputs: float [N, ...], flattened to dimension d.
      norm: p >= 1, including infinity.
      radius: W.

    Raises:
      ValueError: p < 1 or a negative radius.
    """
    x, dual = _linear_class(inputs, norm, radius)
    columns = np.linalg.norm(x, axis=0)
    if dual <= 2:
        total = np.linalg.norm(columns, dual)
    elif dual < math.inf:
        total = math.sqrt(dual - 1) * np.linalg.norm(np.linalg.norm(x, dual, axis=1))
    else:
        total = math.sqrt(2 * math.log(2 * columns.size)) * columns.max()
    return float(radius / len(x) * total)


def _linear_class(inputs: np.ndarray, norm: float, radius: float) -> tuple[np.ndarray, float]:
    """Return the flattened inputs, float64 [N, d], and the dual exponent."""
    if not norm >= 1:
        raise ValueError(f"norm is {norm}; p >= 1 is needed")
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius is {radius}; it must not be negative")
    x = np.asarray(inputs, np.float64).reshape(len(inputs), -1)
    return x, 1.0 if norm == math.inf else math.inf if norm == 1 else norm / (norm - 1)


def _make_climb(apply_fn, init_fn, outputs, num_steps, batch_size, structure):
    """Make `climb(signs_key, init_key, inputs, labels)` -> objectives [num_steps + 1]."""

    def climb(signs_key, init_key, inputs, labels):
        num_examples = len(inputs)
        fill = -num_examples % batch_size

        def batches(x):
            padded = jnp.concatenate([x, jnp.repeat(x[-1:], fill, axis=0)])
            return padded.reshape(-1, batch_size, *x.shape[1:])

        pieces = batches(inputs), batches(labels)
        normalize = partial(normalize_params, structure=structure)
        start = normalize(init_fn(init_key))
        first = jax.tree.map(lambda piece: piece[0], pieces)
        shape = jax.eval_shape(lambda x, y: outputs(apply_fn(start, x), y), *first).shape
        signs = jax.random.rademacher(signs_key, (num_examples, shape[1]), jnp.float32)
        signs = jnp.pad(signs, ((0, fill), (0, 0))).reshape(-1, *shape)

        def objective(params, x, y, s):
            return jnp.sum(s * outputs(apply_fn(params, x), y)) / num_examples

        def value_and_grad(params):
            def add(total, piece):
                terms = jax.value_and_grad(objective)(params, *piece)
                return jax.tree.map(jnp.add, total, terms), None

            zeros = jax.tree.map(jnp.zeros_like, (signs[0, 0, 0], params))
            return jax.lax.scan(add, zeros, (*pieces, signs))[0]

        def step(params, _):
            value, grads = value_and_grad(params)
            # A zero gradient, as for an unused layer, stays zero.
            moved = jax.tree.map(jnp.add, params, normalize(grads))
            return normalize(moved), value

        params, values = jax.lax.scan(step, start, None, length=num_steps)
        return jnp.append(values, value_and_grad(params)[0])

    return climb
