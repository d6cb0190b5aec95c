"""The types of the library."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

Array = jax.Array

Params = Any
"""A network's parameters: any pytree of arrays that fits a `NetworkStructure`.

Without a structure, nested mappings whose leaves are floating-point arrays.
"""


class ApplyFn(Protocol):
    """A network as a pure function of its parameters."""

    def __call__(self, params: Params, x: Array, /) -> Array:
        """Return the logits `[batch, num_classes]` of the inputs `x` `[batch, ...]`."""
        ...


class NormFn(Protocol):
    """A norm of one layer."""

    def __call__(self, leaves: Mapping[str, Array], /) -> Array:
        """Return the norm of `{"kernel": k}` or, jointly, of `{"kernel": k, "bias": b}`.

        Kernels are laid out as in Flax: `[inputs, outputs]`, or `[*window, inputs, outputs]`
        for a convolution, with the inputs of one group if the outputs form groups. Biases are
        `[outputs]`. Leaves are float32 or float64; the norm is a scalar.
        """
        ...


Norm = float | str | NormFn
"""A norm: p >= 1, `"fro"`, `"spectral"`, or a function of a layer's leaves."""


def at_least_float32(x: Any) -> Array:
    """Return `x` as an array of at least float32; wider dtypes are kept."""
    x = jnp.asarray(x)
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
