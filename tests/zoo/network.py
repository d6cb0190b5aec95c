"""What a network of the zoo is, and random values for its leaves."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class BatchNorm(NamedTuple):
    """Paths of a batch normalization's leaves, and its epsilon."""

    mean: str
    var: str
    scale: str | None = None
    bias: str | None = None
    epsilon: float = 1e-5


class Layer(NamedTuple):
    """A layer and the batch normalization that follows it, as paths of leaves.

    Attributes:
      kernel: the kernel.
      bias: its bias, if any.
      batch_norm: the batch normalization of its outputs, if any.
      outputs: the kernel's axis of outputs.
      joint: whether the absorbed bias is part of the matrix, as in a network's first layer.
    """

    kernel: str
    bias: str | None = None
    batch_norm: BatchNorm | None = None
    outputs: int = -1
    joint: bool = False


class Network(NamedTuple):
    """A network as its users write it.

    Attributes:
      library: the library.
      name: what is special about it.
      container: what holds its leaves.
      make: returns `(apply_fn, params, x)`.
      refused: what the structure must say of it: for each weight that cannot be scaled on its own,
        the primitive that ties or holds it. Empty for a certified network.
      layers: the layers with batch normalization absorbed, in order; for the product of norms.
      trace: how to trace it, if not by `normjax.trace_structure`.
    """

    library: str
    name: str
    container: str
    make: Callable[[], tuple[Callable, Any, Any]]
    refused: Mapping[str, str] = {}
    layers: tuple[Layer, ...] = ()
    trace: Callable | None = None


def is_floating(leaf):
    """Whether a leaf is a floating-point array, or the shape of one."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def random_leaves(tree, seed=0):
    """Give every floating-point leaf random values; variances are positive, integers are zeros."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        if not is_floating(leaf):
            is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
            return jnp.zeros(leaf.shape, leaf.dtype) if is_shape else leaf
        values = rng.standard_normal(leaf.shape)
        values *= 1.4 * values.size**-0.25 if values.ndim > 1 else 0.5
        is_variance = "var" in jax.tree_util.keystr(path)
        return jnp.asarray(np.exp(values) if is_variance else values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, tree)


def random_inputs(shape, dtype=np.float32, seed=1):
    """Standard normal inputs, or integers from 0 to 9."""
    rng = np.random.default_rng(seed)
    if np.issubdtype(dtype, np.integer):
        return jnp.asarray(rng.integers(0, 10, shape), dtype)
    return jnp.asarray(rng.standard_normal(shape), dtype)
