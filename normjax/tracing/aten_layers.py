"""ATen operations of layers in JAX: convolution, batch normalization, pooling, upsampling."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from normjax.types import Array

Sizes = Sequence[int]
"""One number for each axis of a window, or one for all of them."""


def convolution(
    x: Array,
    kernel: Array,
    bias: Array | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    is_transposed: bool,
    output_padding: Sizes,
    groups: int,
) -> Array:
    """Convolve `x [batch, channels, *window]`; a transposed kernel is `[inputs, outputs, ...]`."""
    axes = tuple(range(x.ndim))
    num_axes = x.ndim - 2
    ones = [1] * num_axes
    stride, padding, dilation, output_padding = _for_axes(
        num_axes, stride, padding, dilation, output_padding
    )
    kernel_axes, pads, repeats = axes, [(pad, pad) for pad in padding], ones
    if is_transposed:
        reaches = [d * (width - 1) for d, width in zip(dilation, kernel.shape[2:], strict=True)]
        pads = [
            (reach - pad, reach - pad + more)
            for reach, pad, more in zip(reaches, padding, output_padding, strict=True)
        ]
        kernel_axes, stride, repeats = (1, 0, *axes[2:]), ones, stride
        kernel = lax.rev(kernel, axes[2:])
        if groups > 1:  # [groups * inputs, outputs] -> [inputs, groups * outputs]
            inputs, outputs, *window = kernel.shape
            kernel = kernel.reshape(groups, inputs // groups, outputs, *window)
            kernel = jnp.moveaxis(kernel, 0, 1).reshape(inputs // groups, -1, *window)
    x = lax.conv_general_dilated(
        x,
        kernel,
        stride,
        pads,
        lhs_dilation=repeats,
        rhs_dilation=dilation,
        dimension_numbers=lax.ConvDimensionNumbers(axes, kernel_axes, axes),
        feature_group_count=groups,
    )
    return x if bias is None else x + _for_channels(bias, x)


def batch_norm(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    mean: Array,
    var: Array,
    momentum: float,
    epsilon: float,
) -> tuple[Array, None, None]:
    """Normalize with given statistics; PyTorch's other results, batch statistics, are None."""
    factor = lax.rsqrt(var + epsilon)
    factor = factor if scale is None else scale * factor
    x = (x - _for_channels(mean, x)) * _for_channels(factor, x)
    return x if bias is None else x + _for_channels(bias, x), None, None


def batch_norm_without_statistics(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    is_training: bool,
    momentum: float,
    epsilon: float,
) -> tuple[Array, None, None]:
    """Normalize each channel over the batch."""
    y = _standardize(x, (0, *range(2, x.ndim)), epsilon)
    y = y if scale is None else y * _for_channels(scale, x)
    return y if bias is None else y + _for_channels(bias, x), None, None


def layer_norm(
    x: Array, shape: Sizes, scale: Array | None, bias: Array | None, epsilon: float
) -> tuple[Array, None, None]:
    """Normalize over the last axes, which have the given shape."""
    y = _standardize(x, tuple(range(-len(shape), 0)), epsilon)
    y = y if scale is None else y * scale
    return y if bias is None else y + bias, None, None


def group_norm(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    batch: int,
    num_channels: int,
    size: int,
    num_groups: int,
    epsilon: float,
) -> tuple[Array, None, None]:
    """Normalize each group of channels."""
    y = _standardize(x.reshape(batch, num_groups, -1), (2,), epsilon).reshape(x.shape)
    y = y if scale is None else y * _for_channels(scale, x)
    return y if bias is None else y + _for_channels(bias, x), None, None


def _standardize(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    centered = x - jnp.mean(x, axes, keepdims=True)
    var = jnp.mean(centered * centered, axes, keepdims=True)
    return centered * lax.rsqrt(var + epsilon)


def max_pool(
    num_axes: int,
    x: Array,
    size: Sizes,
    stride: Sizes = (),
    padding: Sizes = (0,),
    dilation: Sizes = (1,),
    is_ceil: bool = False,
) -> tuple[Array, None]:
    """Return the maxima of windows along the last axes; their indices are unknown."""
    size, stride, padding, dilation = _for_axes(num_axes, size, stride or size, padding, dilation)
    pads = _pads(x.shape[-num_axes:], size, stride, padding, dilation, is_ceil)
    return _reduce_windows(x, -np.inf, lax.max, size, stride, dilation, pads), None


def avg_pool(
    num_axes: int,
    x: Array,
    size: Sizes,
    stride: Sizes = (),
    padding: Sizes = (0,),
    is_ceil: bool = False,
    counts_padding: bool = True,
    divisor: int | None = None,
) -> Array:
    """Return the means of windows along the last axes."""
    size, stride, padding, dilation = _for_axes(num_axes, size, stride or size, padding, [1])
    pads = _pads(x.shape[-num_axes:], size, stride, padding, dilation, is_ceil)
    total = _reduce_windows(x, 0, lax.add, size, stride, dilation, pads)
    if divisor is not None:
        return total / divisor
    ones = np.ones(x.shape[-num_axes:], x.dtype)
    counted = np.pad(ones, [(pad, pad) for pad in padding], constant_values=int(counts_padding))
    rest = [(0, after - before) for before, after in pads]
    return total / _reduce_windows(jnp.asarray(counted), 0, lax.add, size, stride, dilation, rest)


def adaptive_pool(reduce: Callable, x: Array, sizes: Sizes) -> Array:
    """Cut the last axes into windows, as many as `sizes` says, and reduce each."""
    for axis, size in enumerate(sizes, x.ndim - len(sizes)):
        length = x.shape[axis]
        windows = [
            lax.slice_in_dim(x, i * length // size, -(-(i + 1) * length // size), axis=axis)
            for i in range(size)
        ]
        x = jnp.concatenate([reduce(part, axis=axis, keepdims=True) for part in windows], axis)
    return x


def upsample(weights: Callable, x: Array, sizes: Sizes | None, *options: Any) -> Array:
    """Resample the last axes, each by a matrix `weights(length, size, scale, ...)`.

    Args:
      weights: see above.
      x: the array.
      sizes: the new lengths of the axes, or None.
      options: those of `weights`, then the scale of each axis, or None.
    """
    scales = options[-1]
    count = len(sizes or scales)
    for i, axis in enumerate(range(x.ndim - count, x.ndim)):
        length = x.shape[axis]
        size = sizes[i] if sizes else int(length * scales[i])
        scale = scales[i] if scales else size / length
        matrix = jnp.asarray(weights(length, size, scale, *options[:-1]), x.dtype)
        x = jnp.moveaxis(jnp.tensordot(x, matrix, (axis, 0)), -1, axis)
    return x


def nearest(length: int, size: int, scale: float) -> np.ndarray:
    """Return the matrix of nearest neighbors, `[length, size]`."""
    positions = (np.arange(size) / scale).astype(int)
    return np.eye(length)[:, np.minimum(positions, length - 1)]


def linear(length: int, size: int, scale: float, aligns_corners: bool) -> np.ndarray:
    """Return the matrix of linear interpolation, `[length, size]`."""
    positions = np.maximum((np.arange(size) + 0.5) / scale - 0.5, 0)
    if aligns_corners:
        positions = np.arange(size) * ((length - 1) / max(size - 1, 1))
    lower = np.minimum(positions.astype(int), length - 1)
    upper = np.minimum(lower + 1, length - 1)
    fraction = positions - lower
    return np.eye(length)[:, lower] * (1 - fraction) + np.eye(length)[:, upper] * fraction


def _for_channels(vector: Array, x: Array) -> Array:
    """Lay a vector along the channels of `x [batch, channels, ...]`."""
    return vector.reshape(-1, *[1] * (x.ndim - 2))


def _for_axes(num_axes: int, *sizes: Sizes) -> list[list[int]]:
    return [list(size) * (num_axes if len(size) == 1 else 1) for size in sizes]


def _pads(
    lengths: Sizes, size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, is_ceil: bool
) -> list[tuple[int, int]]:
    """Return the padding of each axis; with `is_ceil`, the end is padded to fit the last window."""
    pads = []
    for length, width, step, pad, spread in zip(
        lengths, size, stride, padding, dilation, strict=True
    ):
        spare = length + 2 * pad - spread * (width - 1) - 1
        more = -spare % step if is_ceil else 0
        is_empty = spare + more >= length + pad  # the last window would start past the values
        pads.append((pad, pad if is_empty else pad + more))
    return pads


def _reduce_windows(
    x: Array,
    initial: float,
    combine: Callable,
    size: Sizes,
    stride: Sizes,
    dilation: Sizes,
    pads: Sequence[tuple[int, int]],
) -> Array:
    """Reduce windows along the last axes."""
    ones = [1] * (x.ndim - len(size))
    return lax.reduce_window(
        x,
        x.dtype.type(initial),
        combine,
        (*ones, *size),
        (*ones, *stride),
        [*[(0, 0) for _ in ones], *pads],
        window_dilation=(*ones, *dilation),
    )
