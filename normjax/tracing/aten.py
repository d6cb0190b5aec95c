"""ATen operations in JAX: how a network exported from PyTorch is traced.

PyTorch exports a network as a small set of operations. Those whose result may scale with their
operands are in `OPERATIONS`, written in JAX, so JAX's rules apply to them. All others (gelu,
softmax) are `opaque`: operations without a rule, whose operands must not scale.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive

from normjax.tracing.aten_layers import (
    adaptive_pool,
    avg_pool,
    batch_norm,
    batch_norm_without_statistics,
    convolution,
    group_norm,
    layer_norm,
    linear,
    max_pool,
    nearest,
    upsample,
)
from normjax.types import Array


def call(
    name: str, args: Any, options: Any, operands: Sequence[Array], shapes: Sequence[Any]
) -> list[Array]:
    """Return the results of an operation, opaque where `OPERATIONS` does not give them.

    Args:
      name: the operation and its overload, such as "add.Tensor".
      args, options: its arguments, with JAX arrays.
      operands: the arrays among them.
      shapes: the shapes and dtypes of the results in PyTorch.
    """
    results: Any = OPERATIONS[name](*args, **options) if name in OPERATIONS else NotImplemented
    if results is NotImplemented:
        results = [None] * len(shapes)
    elif not isinstance(results, list | tuple):
        results = [results]
    is_known = [x is not None and x.shape == s.shape for x, s in zip(results, shapes, strict=True)]
    unknown = [] if all(is_known) else opaque(name, operands, shapes)
    return [
        results[i].astype(shape.dtype) if is_known[i] else unknown[i]
        for i, shape in enumerate(shapes)
    ]


def opaque(name: str, operands: Sequence[Array], shapes: Sequence[Any]) -> list[Array]:
    """Return the results, of these shapes and dtypes, of an operation without a rule."""
    primitive = Primitive(f"aten.{name}")
    primitive.multiple_results = True
    results = [ShapedArray(shape.shape, shape.dtype) for shape in shapes]
    primitive.def_abstract_eval(lambda *_: results)
    return primitive.bind(*operands)


# Arithmetic.


def _add(x: Any, y: Any, alpha: float = 1) -> Array:
    return jnp.add(x, y if alpha == 1 else alpha * y)


def _sub(x: Any, y: Any, alpha: float = 1) -> Array:
    return jnp.subtract(x, y if alpha == 1 else alpha * y)


def _pow(x: Array, exponent: float) -> Array:
    if exponent == 0.5:
        return lax.sqrt(x)
    if exponent == int(exponent):
        return lax.integer_pow(x, int(exponent))
    return lax.pow(x, x.dtype.type(exponent))


def _clamp(x: Array, low: Any = None, high: Any = None) -> Array:
    x = x if low is None else jnp.maximum(x, low)
    return x if high is None else jnp.minimum(x, high)


def _leaky_relu(x: Array, slope: float = 0.01) -> Array:
    return jnp.where(x > 0, x, slope * x)


def _addmm(bias: Array, x: Array, y: Array, *, beta: float = 1, alpha: float = 1) -> Array:
    product = jnp.matmul(x, y)
    product = product if alpha == 1 else alpha * product
    return product + (bias if beta == 1 else beta * bias)


def _trilinear(x: Array, y: Array, z: Array, *axes: Sequence[int]) -> Array:
    """Multiply arrays that lack the axes `axes[:3]`, and sum over the axes `axes[3]`."""
    num_axes = x.ndim + len(axes[0])
    letters = ["".join(chr(97 + i) for i in range(num_axes) if i not in left) for left in axes]
    return jnp.einsum(f"{','.join(letters[:3])}->{letters[3]}", x, y, z)


def _embedding(table: Array, indices: Array, *_: Any) -> Array:
    return jnp.take(table, indices, axis=0, mode="clip")


# Reductions.


def _reduced(reduce: Callable) -> Callable:
    """Return a reduction as PyTorch calls it: no axes, or an empty list, means all axes."""

    def apply(x: Array, axes: Any = None, keepdims: bool = False) -> Array:
        axes = tuple(axes) if isinstance(axes, Sequence) else axes
        return reduce(x, axis=None if axes == () else axes, keepdims=keepdims)

    return apply


def _reduced_with_indices(reduce: Callable) -> Callable:
    return lambda *args: (_reduced(reduce)(*args), None)


def _var(x: Array, axes: Any = None, *, correction: Any = 1, keepdim: bool = False) -> Array:
    return _reduced(partial(jnp.var, ddof=correction))(x, axes, keepdim)


def _vector_norm(x: Array, order: float = 2, axes: Any = None, keepdims: bool = False) -> Any:
    if order == 2:
        return lax.sqrt(_reduced(jnp.sum)(x * x, axes, keepdims))
    if order in (1, math.inf):
        return _reduced(jnp.sum if order == 1 else jnp.max)(jnp.abs(x), axes, keepdims)
    return NotImplemented


def _sort(x: Array, axis: int = -1, is_descending: bool = False) -> tuple[Array, None]:
    return jnp.sort(x, axis=axis, descending=is_descending), None


def _top_k(
    x: Array, k: int, axis: int = -1, is_largest: bool = True, is_sorted: bool = True
) -> tuple[Array, None]:
    return lax.slice_in_dim(_sort(x, axis, is_largest)[0], 0, k, axis=axis), None


# Shapes and indices.


def _expand(x: Array, shape: Sequence[int]) -> Array:
    old = [1] * (len(shape) - x.ndim) + list(x.shape)
    sizes = [was if size == -1 else size for size, was in zip(shape, old, strict=True)]
    return jnp.broadcast_to(x, sizes)


def _squeeze(x: Array, axes: Sequence[int]) -> Array:
    return lax.squeeze(x, [axis for axis in axes if x.shape[axis] == 1])


def _slice(x: Array, axis: int = 0, *bounds: int | None) -> Array:
    start, end, step = slice(*(*bounds, None, None, None)[:3]).indices(x.shape[axis])
    return lax.slice_in_dim(x, start, max(start, end), step, axis)


def _split(x: Array, sizes: Sequence[int], axis: int = 0) -> list[Array]:
    ends = itertools.accumulate(sizes)
    pieces = zip(sizes, ends, strict=True)
    return [lax.slice_in_dim(x, end - size, end, axis=axis) for size, end in pieces]


def _unfold(x: Array, axis: int, size: int, step: int) -> Array:
    """Stack the windows along an axis; a new last axis holds the entries of each window."""
    starts = np.arange(0, x.shape[axis] - size + 1, step)
    axis %= x.ndim
    windows = jnp.take(x, starts[:, None] + np.arange(size), axis=axis, mode="clip")
    return jnp.moveaxis(windows, axis + 1, -1)


def _cat(arrays: Sequence[Array], axis: int = 0) -> Array:
    return jnp.concatenate([x for x in arrays if x.shape != (0,)], axis)


def _pad(x: Array, pads: Sequence[int], value: float = 0) -> Array:
    """Pad, or crop; the pads of the last axis come first."""
    edges = [(pads[i], pads[i + 1], 0) for i in range(0, len(pads), 2)]
    edges += [(0, 0, 0)] * (x.ndim - len(edges))
    return lax.pad(x, x.dtype.type(value), edges[::-1])


def _key(indices: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(slice(None) if index is None else index for index in indices)


def _gather(x: Array, axis: int, index: Array) -> Array:
    lengths = list(index.shape)
    lengths[axis] = x.shape[axis]
    return jnp.take_along_axis(x[tuple(map(slice, lengths))], index, axis)


def _index_put(x: Array, indices: Sequence[Any], values: Array, accumulates: bool = False) -> Array:
    at = x.at[_key(indices)]
    return at.add(values) if accumulates else at.set(values)


def _slice_scatter(x: Array, values: Array, axis: int = 0, *bounds: int | None) -> Array:
    positions = np.arange(x.shape[axis])[slice(*(*bounds, None, None, None)[:3])]
    return _index_put(x, [None] * (axis % x.ndim) + [positions], values)


def _same(x: Array, *_: Any) -> Array:
    return x


OPERATIONS: dict[str, Callable] = {
    **dict.fromkeys(["add.Tensor", "add.Scalar"], _add),
    **dict.fromkeys(["sub.Tensor", "sub.Scalar"], _sub),
    **dict.fromkeys(["mul.Tensor", "mul.Scalar"], jnp.multiply),
    **dict.fromkeys(["div.Tensor", "div.Scalar"], jnp.divide),
    **dict.fromkeys(["eq.Tensor", "eq.Scalar"], jnp.equal),
    **dict.fromkeys(["ne.Tensor", "ne.Scalar"], jnp.not_equal),
    **dict.fromkeys(["lt.Tensor", "lt.Scalar"], jnp.less),
    **dict.fromkeys(["le.Tensor", "le.Scalar"], jnp.less_equal),
    **dict.fromkeys(["gt.Tensor", "gt.Scalar"], jnp.greater),
    **dict.fromkeys(["ge.Tensor", "ge.Scalar"], jnp.greater_equal),
    **dict.fromkeys(["clamp", "clamp.Tensor"], _clamp),
    "abs": jnp.abs,
    "hardtanh": lambda x, low=-1, high=1: _clamp(x, low, high),
    "leaky_relu": _leaky_relu,
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    "neg": jnp.negative,
    "pow.Tensor_Scalar": _pow,
    "reciprocal": jnp.reciprocal,
    "relu": lambda x: jnp.maximum(x, 0),
    "rsqrt": lax.rsqrt,
    "sign": jnp.sign,
    "sqrt": lax.sqrt,
    "where.self": jnp.where,
    "_native_batch_norm_legit.no_stats": batch_norm_without_statistics,
    "_native_batch_norm_legit_no_training": batch_norm,
    "_trilinear": _trilinear,
    "addmm": _addmm,
    "bmm": jnp.matmul,
    "convolution": convolution,
    "embedding": _embedding,
    "mm": jnp.matmul,
    "native_group_norm": group_norm,
    "native_layer_norm": layer_norm,
    "_adaptive_avg_pool2d": partial(adaptive_pool, jnp.mean),
    "_adaptive_avg_pool3d": partial(adaptive_pool, jnp.mean),
    "adaptive_max_pool2d": lambda *args: (adaptive_pool(jnp.max, *args), None),
    "adaptive_max_pool3d": lambda *args: (adaptive_pool(jnp.max, *args), None),
    "avg_pool2d": partial(avg_pool, 2),
    "avg_pool3d": partial(avg_pool, 3),
    "max_pool2d_with_indices": partial(max_pool, 2),
    "max_pool3d_with_indices": partial(max_pool, 3),
    "upsample_bilinear2d.vec": partial(upsample, linear),
    "upsample_nearest2d.vec": partial(upsample, nearest),
    **dict.fromkeys(["mean", "mean.dim"], _reduced(jnp.mean)),
    **dict.fromkeys(["prod", "prod.dim_int"], _reduced(jnp.prod)),
    **dict.fromkeys(["amax", "max"], _reduced(jnp.max)),
    **dict.fromkeys(["amin", "min"], _reduced(jnp.min)),
    "cumsum": jnp.cumsum,
    "linalg_vector_norm": _vector_norm,
    "max.dim": _reduced_with_indices(jnp.max),
    "min.dim": _reduced_with_indices(jnp.min),
    "sort": _sort,
    "sum.dim_IntList": _reduced(jnp.sum),
    "topk": _top_k,
    "var.correction": _var,
    **dict.fromkeys(["alias", "clone", "_to_copy"], _same),
    "cat": _cat,
    "constant_pad_nd": _pad,
    "copy": lambda x, values, *_: jnp.broadcast_to(values, x.shape),
    "expand": _expand,
    "flip": lax.rev,
    "full_like": lambda x, value: jnp.full(x.shape, value),
    "gather": _gather,
    "index.Tensor": lambda x, indices: x[_key(indices)],
    "index_put": _index_put,
    "index_select": lambda x, axis, index: jnp.take(x, index, axis=axis),
    "permute": lax.transpose,
    "repeat": jnp.tile,
    "select.int": lambda x, axis, index: lax.index_in_dim(x, index, axis, keepdims=False),
    "slice.Tensor": _slice,
    "slice_scatter": _slice_scatter,
    "split_with_sizes": _split,
    "squeeze.dims": _squeeze,
    "unfold": _unfold,
    "unsqueeze": jnp.expand_dims,
    "view": jnp.reshape,
}
"""ATen operations, called as in PyTorch but without dtype and device; None is an unknown result."""
