"""The matrices of a network's layers, and their norms."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import lax

from normjax.channel_vectors import evaluate, take
from normjax.formatting import plain
from normjax.norms import entrywise_exponent, make_norms
from normjax.structure import LayerMatrix, Layout, NetworkStructure
from normjax.types import Array, Norm, at_least_float32

_Kernel = TypeVar("_Kernel", Array, np.ndarray)


def layer_norms(
    leaves: Sequence[Any], structure: NetworkStructure, norm: Norm, scale: float
) -> list[Array]:
    """Return the norm of each layer; see `normalize.param_norms`.

    Args:
      leaves: the leaves of the parameter tree.
      structure: the structure of the network.
      norm, scale: see `make_norm`.

    Raises:
      ValueError: the norm needs the layout of a kernel that could not be read; see also
        `make_norm`.
    """
    norms_fn = make_norms(norm, scale)
    matrices = []
    for layer in structure.matrices:
        if layer.layout is None and entrywise_exponent(norm) is None:
            raise ValueError(
                f"how the kernel of layer {layer.path!r} acts could not be read: only entrywise "
                f"norms are defined for it, not {plain(norm)}"
            )
        matrices.append(layer_matrix(leaves, layer))
    if callable(norm) or norm != "spectral":
        return norms_fn(matrices)
    norms = []
    for layer, matrix in zip(structure.matrices, matrices, strict=True):
        if layer.layout is not None and layer.layout.groups > 1:
            # The groups have inputs and outputs of their own: the operator is block diagonal.
            groups = _split_groups(matrix, layer.layout.groups)
            norms.append(lax.map(lambda group: norms_fn([group])[0], groups).max())
        else:
            norms += norms_fn([matrix])
    return norms


def layer_matrix(leaves: Sequence[Any], layer: LayerMatrix) -> dict[str, Array]:
    """Return a layer's matrix as `{"kernel": [*window, inputs, outputs], "bias": [outputs]}`.

    The kernel includes the factor of each output channel. It is as stored if its layout could not
    be read. The bias is included only if it is part of the matrix.
    """
    kernel = at_least_float32(take(leaves, layer.kernel))
    factor, bias = (
        None if vector is None else at_least_float32(evaluate(vector, leaves)).reshape(-1)
        for vector in (layer.factor, layer.bias)
    )
    if layer.layout is not None:
        kernel = arrange(kernel, layer.layout)
    elif (factor is not None and factor.size > 1) or (bias is not None and bias.size == 1):
        raise ValueError(
            f"how the kernel of layer {layer.path!r} acts could not be read, and so neither could "
            "the outputs that are scaled or shifted after it"
        )
    if factor is not None:
        dtype = np.result_type(kernel.dtype, factor.dtype)
        factor = jnp.expand_dims(factor, range(kernel.ndim - 1))
        kernel = kernel.astype(dtype) * factor.astype(dtype)
    if bias is None:
        return {"kernel": kernel}
    if bias.size == 1:
        bias = jnp.broadcast_to(bias, kernel.shape[-1:])
    return {"kernel": kernel, "bias": bias}


def arrange(kernel: _Kernel, layout: Layout) -> _Kernel:
    """Transpose a NumPy or JAX kernel to `[*window, inputs, outputs]`."""
    if layout[:3] == flax_layout(kernel.ndim)[:3]:
        return kernel
    shape = [kernel.shape[axis] for axis in layout.window]
    for axes in (layout.inputs, layout.outputs):
        shape.append(math.prod(kernel.shape[axis] for axis in axes))
    return kernel.transpose(_order(layout, kernel.ndim)).reshape(shape)


def restore(matrix: _Kernel, layout: Layout, shape: Sequence[int]) -> _Kernel:
    """Undo `arrange`.

    Args:
      matrix: `[*window, inputs, outputs]`.
      layout: the layout of the kernel.
      shape: the shape of the kernel.
    """
    if layout[:3] == flax_layout(len(shape))[:3]:
        return matrix
    order = _order(layout, len(shape))
    return matrix.reshape([shape[axis] for axis in order]).transpose(tuple(np.argsort(order)))


def flax_layout(ndim: int) -> Layout:
    """Return the layout of Flax's kernels, `[*window, inputs, outputs]`."""
    return Layout(tuple(range(ndim - 2)), (ndim - 2,), (ndim - 1,))


def _order(layout: Layout, ndim: int) -> tuple[int, ...]:
    """Return the axes of a kernel in the order of its matrix, then any others, of size 1."""
    order = (*layout.window, *layout.inputs, *layout.outputs)
    return (*order, *(axis for axis in range(ndim) if axis not in order))


def _split_groups(matrix: dict[str, Array], groups: int) -> dict[str, Array]:
    """Return the matrices of the groups, stacked: equal blocks of consecutive outputs."""
    kernel = matrix["kernel"].reshape(*matrix["kernel"].shape[:-1], groups, -1)
    stacked = {"kernel": jnp.moveaxis(kernel, -2, 0)}
    if "bias" in matrix:
        stacked["bias"] = matrix["bias"].reshape(groups, -1)
    return stacked
