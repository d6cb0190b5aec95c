"""Convolution, batch normalization and ReLU in training as one function, fast on a CPU.

Batch normalization needs the statistics of the whole batch, whose activations do not fit in a CPU's
cache. So a block begins where statistics are known: `relu(factor * y + offset)` of the block
before, then its own convolution, and sums over the batch for its own statistics. It takes a few
images at a time, forward and backward. What lies between the sums and the next block's factor and
offset is a few numbers per channel, which JAX differentiates.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from normjax.networks.algorithms import conv_images_last, convolve
from normjax.networks.convolution import check_conv
from normjax.networks.patches import stage
from normjax.types import Array

MICROBATCH = 8  # images; their activations fit in the cache of a CPU core


class Activations(NamedTuple):
    """Activations `relu(factor * y + offset)` that are not computed yet, or y itself.

    Attributes:
      y: [N, H, W, C].
      affine: factor and offset, [C] each; None for y itself.
    """

    y: Array
    affine: tuple[Array, Array] | None = None

    def compute(self) -> Array:
        """Return the activations [N, H, W, C]."""
        if self.affine is None:
            return self.y
        factor, offset = (v[None, None, None] for v in self.affine)
        return jax.nn.relu(self.y * factor + offset)


class Moments(NamedTuple):
    """Mean and variance of each channel over the batch, [C] each."""

    mean: Array
    var: Array


def conv_batch_norm(
    x: Activations,
    kernel: Array,
    scale: Array,
    bias: Array,
    weights: Array,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str = "VALID",
    algorithm: str = "platform",
    epsilon: float = 1e-5,
    axis_name: str | None = None,
) -> tuple[Activations, Moments]:
    """Convolve, normalize with the statistics of the batch and apply ReLU.

    It equals `conv2d`, `flax.linen.BatchNorm` in training mode and `relu`. Differentiable once,
    only in reverse mode, and not with respect to the weights.

    Args:
      x: the inputs, `Activations(images)` or those of the block before.
      kernel: filters [KH, KW, Cin, Cout].
      scale: the scale of the normalized channels [Cout].
      bias: the bias of the normalized channels [Cout].
      weights: the weight of each image in the statistics [N]: 1, or 0 to exclude it.
      strides: strides along H and W, positive.
      padding: "VALID" or "SAME", as in `conv2d`.
      algorithm: as in `conv2d`; "platform" takes a few images at a time on a CPU.
      epsilon: added to the variance.
      axis_name: the mesh axis whose devices each hold a part of the batch; their statistics are
        combined, as by `flax.linen.BatchNorm`.

    Returns:
      The activations and the statistics of the batch; the variance is biased.

    Raises:
      ValueError: arguments that `conv2d` refuses.
    """
    y, total, squares = _apply_block(x, kernel, weights, strides, padding, algorithm)
    count = jnp.sum(weights) * y.shape[1] * y.shape[2]
    if axis_name is not None:
        total, squares, count = lax.psum((total, squares, count), axis_name)
    mean = total / count
    var = jnp.maximum(squares / count - mean * mean, 0)
    factor = scale * lax.rsqrt(var + epsilon)
    return Activations(y, (factor, bias - mean * factor)), Moments(mean, var)


def conv_activations(
    x: Activations,
    kernel: Array,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str = "VALID",
    algorithm: str = "platform",
) -> Array:
    """Convolve activations as `conv2d` does, after the last batch normalization."""
    weights = jnp.ones(len(x.y), x.y.dtype)
    return _apply_block(x, kernel, weights, strides, padding, algorithm)[0]


def _apply_block(x, kernel, weights, strides, padding, algorithm):
    pads = check_conv(x.y, kernel, strides, padding, algorithm)
    return _compiled_block(x, kernel, weights, tuple(strides), pads, algorithm)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _block(x, kernel, weights, strides, pads, algorithm):
    """Return the convolved activations, and their weighted sums and sums of squares by channel."""
    whole = partial(_block_at_once, strides=strides, pads=pads, algorithm=algorithm)
    if algorithm != "platform":
        return whole(x, kernel, weights)
    cpu = partial(_block_cpu, strides=strides, pads=pads)
    return lax.platform_dependent(x, kernel, weights, cpu=cpu, default=whole)


def _block_fwd(x, kernel, weights, strides, pads, algorithm):
    outputs = _block(x, kernel, weights, strides, pads, algorithm)
    return outputs, (x, kernel, weights, outputs)


def _block_bwd(strides, pads, algorithm, residuals, cotangents):
    x, kernel, weights, (y, _, _) = residuals
    args = (x, kernel, weights, y, cotangents)
    whole = partial(_gradients_at_once, strides=strides, pads=pads, algorithm=algorithm)
    if algorithm == "platform":
        cpu = partial(_gradients_cpu, strides=strides, pads=pads)
        dx, dkernel = lax.platform_dependent(*args, cpu=cpu, default=whole)
    else:
        dx, dkernel = whole(*args)
    return dx, dkernel, jnp.zeros_like(weights)


_block.defvjp(_block_fwd, _block_bwd)
_compiled_block = jax.jit(_block, static_argnums=(3, 4, 5))  # outside jit: compile once per shape


def _block_at_once(x, kernel, weights, strides, pads, algorithm):
    """Compute the block for all images at once."""
    y = convolve(x.compute(), kernel, strides, pads, algorithm)
    weighted = y * weights[:, None, None, None]
    return y, jnp.sum(weighted, (0, 1, 2)), jnp.sum(weighted * y, (0, 1, 2))


def _gradients_at_once(x, kernel, weights, y, cotangents, strides, pads, algorithm):
    """Return the gradients of the block for all images at once."""
    dy, dtotal, dsquares = (c if c.ndim == 4 else c[None, None, None] for c in cotangents)
    dy = dy + weights[:, None, None, None] * (dtotal + 2 * dsquares * y)

    def convolve_activations(x, kernel):
        return convolve(x.compute(), kernel, strides, pads, algorithm)

    return jax.vjp(convolve_activations, x, kernel)[1](dy)


class _Pieces(NamedTuple):
    """An array [N, H, W, C] as microbatches with channels first and images last."""

    rows: Array  # [pieces * C, H * W * images]: flat, so that reading a piece fuses with its use
    shape: tuple[int, int, int, int]  # (C, H, W, images) of a piece


def _cut(x):
    """Cut an array [N, H, W, C] into pieces; the last one is zero-padded."""
    num, h, w, c = x.shape
    size = min(MICROBATCH, num)
    x = jnp.pad(x, [(0, -num % size), (0, 0), (0, 0), (0, 0)])
    x = x.reshape(-1, size, h, w, c).transpose(0, 4, 2, 3, 1)
    return _Pieces(x.reshape(-1, h * w * size), (c, h, w, size))


def _join(x, num):
    """Return the array [num, H, W, C] of pieces [pieces, C, H, W, images]."""
    x = x.transpose(0, 4, 2, 3, 1)
    return x.reshape(-1, *x.shape[2:])[:num]


def _cut_weights(weights):
    """Cut weights [N] into [pieces, images]."""
    size = min(MICROBATCH, len(weights))
    return jnp.pad(weights, (0, -len(weights) % size)).reshape(-1, size)


def _take(rows, i, channels):
    """Return the i-th piece of stacked rows."""
    return lax.dynamic_slice_in_dim(rows, i * channels, channels)


def _activate(pieces, affine, i):
    """Return the i-th piece's activations [C, H, W, images]."""
    c = pieces.shape[0]
    if affine is None:
        return _take(pieces.rows, i, c).reshape(pieces.shape)

    def relu(rows, i, factor, offset):
        return jnp.maximum(_take(rows, i, c) * factor[:, None] + offset[:, None], 0)

    return stage(relu, pieces.rows, i, *affine).reshape(pieces.shape)


def _flatten(x):
    return x.reshape(len(x), -1)


def _sum_rows(x):
    """Sum x [C, H, W, images] over H, to [C, W * images]; longer sums are not vectorized."""
    return stage(lambda x: jnp.sum(x, 1), x.reshape(*x.shape[:2], -1))


def _block_cpu(x, kernel, weights, strides, pads):
    """Compute the block a few images at a time."""
    pieces, weights = _cut(x.y), _cut_weights(weights)

    def body(sums, i_and_weights):
        i, w = i_and_weights
        y = conv_images_last(_activate(pieces, x.affine, i), kernel, strides, pads)
        w = jnp.tile(w, y.shape[2])
        total = _sum_rows(y) @ w
        squares = _sum_rows(stage(jnp.square, _flatten(y)).reshape(y.shape)) @ w
        return (sums[0] + total, sums[1] + squares), y

    zero = jnp.zeros(kernel.shape[3], x.y.dtype)
    (total, squares), y = lax.scan(body, (zero, zero), (jnp.arange(len(weights)), weights))
    return _join(y, len(x.y)), total, squares


def _gradients_cpu(x, kernel, weights, y, cotangents, strides, pads):
    """Return the gradients of the block, a few images at a time."""
    dy, dtotal, dsquares = cotangents
    xs, ys, dys, weights = _cut(x.y), _cut(y), _cut(dy), _cut_weights(weights)

    def total_gradient(dys, ys, i, w, dtotal, dsquares):
        dy, y = _take(dys, i, len(dtotal)), _take(ys, i, len(dtotal))
        return dy + w[None] * (dtotal[:, None] + 2 * dsquares[:, None] * y)

    def body(sums, i_and_weights):
        i, w = i_and_weights
        pixels = ys.shape[1] * ys.shape[2]
        dy = stage(total_gradient, dys.rows, ys.rows, i, jnp.tile(w, pixels), dtotal, dsquares)
        a = _activate(xs, x.affine, i)
        conv = partial(conv_images_last, strides=strides, pads=pads)
        da, dkernel = jax.vjp(conv, a, kernel)[1](dy.reshape(ys.shape))
        if x.affine is None:
            return (sums[0] + dkernel, None), da
        da = stage(lambda a, da: da * (a > 0).astype(da.dtype), _flatten(a), _flatten(da))
        dfactor = stage(lambda da, x, i: da * _take(x, i, len(da)), da, xs.rows, i)
        daffine = tuple(jnp.sum(_sum_rows(d.reshape(a.shape)), 1) for d in (dfactor, da))
        da = (da * x.affine[0][:, None]).reshape(a.shape)
        return jax.tree.map(jnp.add, sums, (dkernel, daffine)), da

    start = (jnp.zeros_like(kernel), jax.tree.map(jnp.zeros_like, x.affine))
    (dkernel, daffine), dx = lax.scan(body, start, (jnp.arange(len(weights)), weights))
    return Activations(_join(dx, len(x.y)), daffine), dkernel
