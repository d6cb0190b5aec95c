"""Classification losses, errors and margins, one value per example, in nats."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from normjax import powers
from normjax.layers import choose_structure
from normjax.normalize import norm_product
from normjax.structure import NetworkStructure
from normjax.types import Array, Norm, Params, at_least_float32


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Return the cross entropy `-ln softmax(z)_y` of each example.

    Small losses have full relative precision: with `d_j = z_j - z_y` and `m = max d`, the loss is
    `m + log1p(sum exp(d_j - m))`, where the sum omits the largest term, which is 1. The gradient is
    `softmax(z) - onehot(y)`.

    Examples:
      >>> import numpy as np
      >>> import normjax
      >>> logits = np.array([[0.0, 0.0], [40.0, 0.0]], np.float32)
      >>> losses = normjax.cross_entropy(logits, np.array([0, 0]))
      >>> [f"{float(loss):.4g}" for loss in losses]
      ['0.6931', '4.248e-18']

    Args:
      logits: `[..., K]` floating point, K >= 2; half precision is computed in float32.
      labels: `[...]` integers in [0, K).

    Returns:
      `[...]` losses in nats, float32 (float64 for float64 logits); NaN for labels out of range.

    Raises:
      ValueError: shapes or dtypes other than these.
    """
    return _per_example(_cross_entropy, *_checked(logits, labels))


def excess_cross_entropy(logits: Array, labels: Array) -> Array:
    """Return the excess over chance, `cross_entropy - ln K`, of each example, without cancellation.

    It is computed as `log1p(mean_j expm1(z_j - z_y))`, with full relative precision even if the
    logits of a normalized network are so small that `cross_entropy` rounds to ln K. To first order
    it is `mean_j z_j - z_y`; its rounding errors are tracked in a second float. The precision is
    absolute, about 1e-7 nats, only if logits of order 1 happen to give a loss close to ln K. The
    gradient is `softmax(z) - onehot(y)`.

    Examples:
      >>> import numpy as np
      >>> import normjax
      >>> excess = normjax.excess_cross_entropy(np.array([[2e-9, 0.0]], np.float32), np.array([0]))
      >>> f"{float(excess[0]):.4g}"
      '-1e-09'

    Args:
      logits: `[..., K]` floating point, K >= 2; half precision is computed in float32.
      labels: `[...]` integers in [0, K).

    Returns:
      `[...]` nats, at least `-ln K`, float32 (float64 for float64 logits); NaN for labels out of
      range.

    Raises:
      ValueError: shapes or dtypes other than these.
    """
    return _per_example(_excess_cross_entropy, *_checked(logits, labels))


def classification_error(logits: Array, labels: Array) -> Array:
    """Return 1 where the predicted class (the first maximum of the logits) is wrong, else 0.

    Examples:
      >>> import numpy as np
      >>> import normjax
      >>> logits = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
      >>> normjax.classification_error(logits, np.array([0, 1])).tolist()
      [0.0, 1.0]

    Args:
      logits: `[..., K]` floating point, K >= 2.
      labels: `[...]` integers in [0, K).

    Returns:
      `[...]` zeros and ones, float32 (float64 for float64 logits); 1 where a logit is NaN.

    Raises:
      ValueError: shapes or dtypes other than these.
    """
    logits, labels = _checked(logits, labels)
    is_wrong = (jnp.argmax(logits, axis=-1).astype(jnp.int32) != labels) | jnp.isnan(logits).any(
        axis=-1
    )
    return is_wrong.astype(logits.dtype)


def margins(logits: Array, labels: Array) -> Array:
    """Return the margin `z_y - max_{j != y} z_j` of each example, positive if it is correct.

    Examples:
      >>> import numpy as np
      >>> import normjax
      >>> normjax.margins(np.array([[3.0, 1.0, 2.0]], np.float32), np.array([0])).tolist()
      [1.0]

    Args:
      logits: `[..., K]` floating point, K >= 2; half precision is computed in float32.
      labels: `[...]` integers in [0, K).

    Returns:
      `[...]` margins, float32 (float64 for float64 logits); NaN for labels out of range.

    Raises:
      ValueError: shapes or dtypes other than these.
    """
    return _margins(*_checked(logits, labels))


class Monitored(NamedTuple):
    """The result of `monitor`, scalars; the losses are means over a batch.

    Attributes:
      normalized_loss: cross entropy of the normalized network, nats.
      normalized_excess: `normalized_loss - ln K`, computed without cancellation.
      product_norm: product of the layers' norms; infinite if it is too large.
      log_product_norm: its natural logarithm.
    """

    normalized_loss: Array
    normalized_excess: Array
    product_norm: Array
    log_product_norm: Array


def monitor(
    params: Params,
    logits: Array,
    labels: Array,
    norm: Norm = 2,
    *,
    scale: float = 1.0,
    layers: Sequence[str] | None = None,
    structure: NetworkStructure | None = None,
    tied: str = "refuse",
) -> Monitored:
    """Return the normalized training loss of a batch, from the logits of a training step.

    The paper recommends monitoring this loss. The function makes one pass over the parameters and
    none over the data, works under `jit`, `vmap` and `shard_map`, and has no side effects. The mean
    over the batches of an epoch is the loss of the epoch.

    Examples:
      >>> import numpy as np
      >>> import normjax
      >>> params = {"Dense_0": {"kernel": np.eye(2, dtype=np.float32)}}
      >>> x = np.array([[3.0, 0.0]], np.float32)
      >>> seen = normjax.monitor(params, x @ params["Dense_0"]["kernel"], np.array([0]))
      >>> [f"{float(value):.4f}" for value in seen]
      ['0.1132', '-0.5799', '1.4142', '0.3466']

    Args:
      params: the parameters that produced the logits. With batch normalization, they are the
        variables that `structure` was traced with, and the logits are those of evaluation mode; or
        the parameters from `absorb_batch_norm`.
      logits: `[..., K]` floating point, of a network that obeys eq. 2.
      labels: `[...]` integers in [0, K).
      norm, scale, layers, structure, tied: see `param_norms`.

    Returns:
      Scalars, float32 (float64 for float64 logits).

    Raises:
      ValueError: outside of transformations, the normalized logits are too small or too large for
        their dtype; see also `log_product_norm` and `excess_cross_entropy`.
    """
    logits, labels = _checked(logits, labels)
    structure = choose_structure(params, layers, structure, tied)
    product, product_norm, log_product_norm = norm_product(params, norm, scale, structure)
    normalized, is_representable = _divide(logits, product)
    if not isinstance(is_representable, Tracer) and not is_representable:
        raise ValueError(
            f"the logits, divided by the product of the norms, exp({float(log_product_norm):.6g}), "
            f"are too {'small' if log_product_norm > 0 else 'large'} for {logits.dtype}"
        )
    excess = jnp.mean(excess_cross_entropy(normalized, labels))
    loss = excess + math.log(logits.shape[-1])
    return Monitored(loss, excess, product_norm, log_product_norm)


@partial(jax.jit, inline=True)
def _divide(logits: Array, product: powers.Product) -> tuple[Array, Array]:
    """Return logits divided by a product, and whether the dtype can hold them; NaN if not."""
    normalized = powers.divide(logits, product)
    # The largest logit must be large enough that rounding the others to 0 does not matter.
    info = jnp.finfo(logits.dtype)
    largest = jnp.max(jnp.abs(normalized))
    is_too_small = (largest < info.tiny / info.eps) & jnp.any(logits != 0)
    is_too_large = jnp.any(jnp.isinf(normalized) & jnp.isfinite(logits))
    is_representable = ~(is_too_small | is_too_large)
    return jnp.where(is_representable, normalized, jnp.nan), is_representable


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _per_example(loss_fn: Callable[[Array, Array], Array], logits: Array, labels: Array) -> Array:
    """Apply a loss that equals the cross entropy up to a constant, with the exact derivative."""
    return loss_fn(logits, labels)


@_per_example.defjvp
def _per_example_jvp(
    loss_fn: Callable[[Array, Array], Array],
    primals: tuple[Array, Array],
    tangents: tuple[Array, Array],
) -> tuple[Array, Array]:
    """Apply softmax - onehot; the entry at the label is minus the sum of the others."""
    logits, labels = primals
    is_label = _is_label(logits, labels)
    others = jnp.where(is_label, 0, jax.nn.softmax(logits))
    gradient = jnp.where(is_label, -jnp.sum(others, axis=-1, keepdims=True), others)
    return _per_example(loss_fn, logits, labels), jnp.sum(gradient * tangents[0], axis=-1)


@jax.jit
def _cross_entropy(logits: Array, labels: Array) -> Array:
    """Return the cross entropy as `m + log1p(sum exp(d - m))`."""
    differences = logits - _label_logits(logits, labels)
    largest = jnp.max(differences, axis=-1, keepdims=True)
    is_largest = _is_label(differences, jnp.argmax(differences, axis=-1))
    others = jnp.where(is_largest, 0, jnp.exp(differences - largest))
    return largest[..., 0] + jnp.log1p(jnp.sum(others, axis=-1))


@jax.jit
def _excess_cross_entropy(logits: Array, labels: Array) -> Array:
    """Return the cross entropy minus ln K, by the more accurate of two formulas."""
    num_classes = logits.shape[-1]
    # If the logits are a product, compilers fuse it with the subtraction, without rounding, which
    # breaks _two_sum. A clip prevents this; lax.optimization_barrier does not.
    logits = jnp.clip(logits, jnp.finfo(logits.dtype).min, jnp.finfo(logits.dtype).max)
    differences, rounding = _two_sum(logits, -_label_logits(logits, labels))
    # expm1(d) = d + second_order(d); the first part cancels between the classes.
    is_small = jnp.abs(differences) < 0.5
    total, error = _sum_with_error(
        jnp.where(is_small, differences, jnp.expm1(differences)),
        jnp.where(is_small, rounding + _expm1_minus_identity(differences), 0),
    )
    mean = (total + error) / num_classes
    # Away from 0, cross entropy minus ln K neither cancels nor overflows.
    return jnp.where(
        jnp.abs(mean) < 0.5,
        jnp.log1p(mean),
        _cross_entropy(logits, labels) - math.log(num_classes),
    )


@jax.jit
def _margins(logits: Array, labels: Array) -> Array:
    """Return the logit of the label minus the largest other one."""
    others = jnp.where(_is_label(logits, labels), -jnp.inf, logits)
    return _label_logits(logits, labels)[..., 0] - jnp.max(others, axis=-1)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded `a + b` and its exact rounding error (Knuth, TAOCP 2, 4.2.2)."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def _sum_with_error(terms: Array, errors: Array) -> tuple[Array, Array]:
    """Sum `terms + errors` over the last axis; return the rounded sum and its rounding error."""
    while terms.shape[-1] > 1:
        if terms.shape[-1] % 2:
            pad = [(0, 0)] * (terms.ndim - 1) + [(0, 1)]
            terms, errors = jnp.pad(terms, pad), jnp.pad(errors, pad)
        half = terms.shape[-1] // 2
        terms, rounding = _two_sum(terms[..., :half], terms[..., half:])
        errors = errors[..., :half] + errors[..., half:] + rounding
    return terms[..., 0], errors[..., 0]


def _expm1_minus_identity(d: Array) -> Array:
    """Return `exp(d) - 1 - d` for `|d| < 0.5` by its Taylor series, exact to float64."""
    series = jnp.zeros_like(d)
    for power in range(15, 1, -1):
        series = series * d + 1 / math.factorial(power)
    return series * d * d


def _label_logits(logits: Array, labels: Array) -> Array:
    """Return `z_y` as `[..., 1]`, NaN for labels out of range."""
    # Negative labels would index from the end.
    labels = jnp.where(labels < 0, logits.shape[-1], labels)
    return jnp.take_along_axis(logits, labels[..., None], axis=-1, mode="fill", fill_value=jnp.nan)


def _is_label(logits: Array, labels: Array) -> Array:
    """Return the one-hot mask of the labels, with the shape of the logits."""
    return jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)


def _checked(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Return logits of at least 32 bits and int32 labels, or raise ValueError."""
    logits = jnp.asarray(logits)
    if not isinstance(labels, Array):
        labels = np.asarray(labels)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits must be floating point, not {logits.dtype}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, not {labels.dtype}")
    if logits.ndim < 1 or logits.shape[-1] < 2:
        raise ValueError(f"logits must be [..., K] with K >= 2 classes, not {logits.shape}")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels of shape {labels.shape} do not match logits of shape {logits.shape}: "
            f"{logits.shape[:-1]} is needed"
        )
    return at_least_float32(logits), _as_int32(labels, logits.shape[-1])


def _as_int32(labels: Any, num_classes: int) -> Array:
    """Return labels as int32; those out of range stay out of range, whatever their dtype."""
    if labels.dtype.itemsize >= 4 and labels.dtype != np.int32:  # a cast could wrap around
        xp = jnp if isinstance(labels, Array) else np
        labels = xp.where((labels < 0) | (labels >= num_classes), num_classes, labels)
    return jnp.asarray(labels.astype(np.int32))
