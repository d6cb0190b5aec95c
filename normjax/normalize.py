"""Normalization of layers, `W_k = rho_k * W~_k` with `||W~_k|| = 1` (paper, eq. 2)."""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from normjax.layers import find_layers
from normjax.norms import make_norm
from normjax.types import ApplyFn, Array, Norm, Params, at_least_float32


class HomogeneityCheck(NamedTuple):
    """The errors of eq. 2, `f(W; x) = (prod rho_k) * f(W~; x)`, on given inputs.

    Attributes:
      max_abs_error: largest `|f(W; x) - (prod rho_k) * f(W~; x)|` over examples and classes.
      relative_error: `max_abs_error` divided by the largest `|f(W; x)|`.
      same_classes: whether both networks predict the same class for every input.
      product_norm: `prod rho_k`.
      layers: paths of the layers in order of application.
    """

    max_abs_error: float
    relative_error: float
    same_classes: bool
    product_norm: float
    layers: tuple[str, ...]


def param_norms(
    params: Params,
    norm: Norm = 2,
    *,
    scale: float = 1.0,
    layers: Sequence[str] | None = None,
) -> dict[str, Array]:
    """Return the norm of each layer, the paper's `rho_k`.

    The first layer's kernel and bias form one matrix `[W_1, b_1]`: the bias multiplies a constant
    input. Later biases are not part of a norm, because they scale with the product of all norms up
    to their layer.

    Example:
      >>> import numpy as np
      >>> import normjax
      >>> params = {"Dense_0": {"kernel": np.full((2, 2), 2, np.float32)},
      ...           "Dense_1": {"kernel": np.ones((2, 2), np.float32)}}
      >>> {path: float(norm) for path, norm in normjax.param_norms(params).items()}
      {'Dense_0': 4.0, 'Dense_1': 2.0}

    Args:
      params: nested mapping of `kernel` and `bias` leaves of one network; use `jax.vmap` for
        stacked networks.
      norm: see `make_norm`.
      scale: divisor of each norm.
      layers: paths in order of application, if it differs from the natural order.

    Returns:
      `{path: norm}` in order of application; float32 scalars (float64 for float64 leaves), 0
      for a layer of zeros.

    Raises:
      ValueError: see `find_layers` and `make_norm`.
    """
    norm_fn = make_norm(norm, scale)
    leaves = jax.tree.leaves(params)
    norms = {}
    for depth, layer in enumerate(find_layers(params, layers)):
        parts = {"kernel": leaves[layer.kernel]}
        if depth == 0 and layer.bias is not None:
            parts["bias"] = leaves[layer.bias]
        norms[layer.path] = norm_fn(parts)
    return norms


def product_norm(
    params: Params,
    norm: Norm = 2,
    *,
    scale: float = 1.0,
    layers: Sequence[str] | None = None,
) -> Array:
    """Return the product of the layers' norms, `rho_1 * ... * rho_K` (paper, eq. 2 and fig. 9).

    Inside `jit`, `vmap` and `grad`, a norm of 0 counts as 1, as in `normalize_params`, which keeps
    eq. 2 exact.

    Example:
      >>> import numpy as np
      >>> import normjax
      >>> params = {"Dense_0": {"kernel": np.full((2, 2), 2, np.float32)},
      ...           "Dense_1": {"kernel": np.ones((2, 2), np.float32)}}
      >>> float(normjax.product_norm(params, norm=1, scale=4.0))
      2.0

    Args:
      params, norm, scale, layers: see `param_norms`.

    Returns:
      A float32 scalar (float64 for float64 leaves).

    Raises:
      ValueError: a layer has norm 0, outside of transformations; see also `param_norms`.
    """
    divisors = _divisors(param_norms(params, norm, scale=scale, layers=layers))
    return functools.reduce(operator.mul, divisors.values())


def normalize_params(
    params: Params,
    norm: Norm = 2,
    *,
    scale: float = 1.0,
    layers: Sequence[str] | None = None,
) -> Params:
    """Divide each layer by its norm: `f(W; x) = (prod rho_k) f(W~; x)` (paper, eq. 2).

    Eq. 2 holds exactly for a chain of layers with positively homogeneous activations (ReLU, leaky
    ReLU, max and average pooling, identity); `check_homogeneity` tests it. Kernels and the first
    bias are divided by the norm of their layer, the bias of a later layer k by `rho_1 * ... *
    rho_k`. Inside `jit`, `vmap` and `grad`, a layer of norm 0 is unchanged, with finite gradients.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> import normjax
      >>> params = {"kernel": np.ones((2, 2), np.float32)}
      >>> normjax.normalize_params(params)["kernel"].tolist()
      [[0.5, 0.5], [0.5, 0.5]]
      >>> stacked = {"kernel": np.ones((3, 2, 2), np.float32)}  # three networks
      >>> jax.vmap(normjax.normalize_params)(stacked)["kernel"].shape
      (3, 2, 2)

    Args:
      params, norm, scale, layers: see `param_norms`.

    Returns:
      The normalized parameters `W~`: same tree, shapes and dtypes.

    Raises:
      ValueError: a layer has norm 0, outside of transformations; see also `param_norms`.
    """
    divisors = _divisors(param_norms(params, norm, scale=scale, layers=layers))
    leaves, treedef = jax.tree.flatten(params)
    passed = []
    for layer in find_layers(params, layers):
        passed.append(divisors[layer.path])
        leaves[layer.kernel] = _divide(leaves[layer.kernel], passed[-1:])
        if layer.bias is not None:
            leaves[layer.bias] = _divide(leaves[layer.bias], passed)
    return jax.tree.unflatten(treedef, leaves)


def check_homogeneity(
    apply_fn: ApplyFn,
    params: Params,
    x: Array,
    *,
    norm: Norm = 2,
    scale: float = 1.0,
    layers: Sequence[str] | None = None,
) -> HomogeneityCheck:
    """Measure how accurately a network satisfies eq. 2 of the paper on the inputs `x`.

    Both networks run at the highest matmul precision. A relative error near 1e-6 is float32
    rounding. A relative error above 1e-4 means that the network is not homogeneous, or that the
    order of its layers is wrong (see `layers`).

    Example:
      >>> import jax
      >>> import numpy as np
      >>> import normjax
      >>> params = {"Dense_0": {"kernel": np.ones((3, 2), np.float32)},
      ...           "Dense_1": {"kernel": np.eye(2, dtype=np.float32)}}
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["Dense_0"]["kernel"]) @ params["Dense_1"]["kernel"]
      >>> check = normjax.check_homogeneity(apply_fn, params, np.ones((1, 3), np.float32))
      >>> check.layers, check.relative_error < 1e-6, check.same_classes
      (('Dense_0', 'Dense_1'), True, True)

    Args:
      apply_fn: pure function `(params, x) -> logits [batch, num_classes]`.
      params, norm, scale, layers: see `param_norms`.
      x: inputs `[batch, ...]`.

    Returns:
      The errors, as Python numbers.

    Raises:
      ValueError: see `normalize_params`.
    """
    product = product_norm(params, norm, scale=scale, layers=layers)
    normalized = normalize_params(params, norm, scale=scale, layers=layers)
    with jax.default_matmul_precision("highest"):
        logits = apply_fn(params, x)
        normalized_logits = apply_fn(normalized, x)
    max_abs_error = float(jnp.max(jnp.abs(logits - product * normalized_logits)))
    largest = float(jnp.max(jnp.abs(logits)))
    same_classes = jnp.argmax(logits, axis=-1) == jnp.argmax(normalized_logits, axis=-1)
    return HomogeneityCheck(
        max_abs_error=max_abs_error,
        relative_error=max_abs_error / largest if largest else max_abs_error,
        same_classes=bool(jnp.all(same_classes)),
        product_norm=float(product),
        layers=tuple(layer.path for layer in find_layers(params, layers)),
    )


def _divisors(norms: Mapping[str, Array]) -> dict[str, Array]:
    """Replace norms of 0 by 1; raise if a concrete norm is 0 or negative."""
    if not any(isinstance(rho, Tracer) for rho in norms.values()):
        for path, rho in jax.device_get(norms).items():
            if rho <= 0:
                raise ValueError(f"layer {path!r} has norm {rho}: it cannot be normalized")
    return {path: jnp.where(rho == 0, 1, rho) for path, rho in norms.items()}


def _divide(leaf: Array, norms: Sequence[Array]) -> Array:
    """Divide by one norm at a time, because their product may overflow; keep the dtype."""
    wide = at_least_float32(leaf)
    return functools.reduce(operator.truediv, norms, wide).astype(jnp.result_type(leaf))
