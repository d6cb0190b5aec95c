"""A 2D convolution as one matrix product with the patches of the images ("im2col"), on a CPU.

Channels are the first axis and images the last, so that every shift moves whole rows of images.
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata


def output_size(size, kernel_size, strides, pads):
    """Return (H', W') of a convolution of images of `size` with explicit pads."""
    return tuple(
        (n + sum(pad) - k) // stride + 1
        for n, k, stride, pad in zip(size, kernel_size, strides, pads, strict=True)
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv_by_patches(x, kernel, strides, pads):
    """Convolve x [Cin, H, W, N] with a kernel [KH, KW, Cin, Cout] to [Cout, H', W', N]."""
    out = output_size(x.shape[1:3], kernel.shape[:2], strides, pads)
    cout = kernel.shape[3]
    w, patches = kernel.reshape(-1, cout), _patches(x, kernel.shape[:2], strides, pads)
    # Many rows are faster transposed first, in a stage because XLA undoes a plain transpose.
    w, axis = (stage(jnp.transpose, w), 1) if cout >= 32 else (w, 0)
    return matmul(w, patches, axis, 0).reshape(cout, *out, -1)


def _fwd(x, kernel, strides, pads):
    return conv_by_patches(x, kernel, strides, pads), (x, kernel)


def _bwd(strides, pads, residuals, dy):
    x, kernel = residuals
    (kh, kw, cin, cout), (_, h, w, images) = kernel.shape, dy.shape
    dy = dy.reshape(cout, -1)
    dkernel = matmul(_patches(x, (kh, kw), strides, pads), dy, 1, 1).reshape(kernel.shape)
    d = matmul(kernel.reshape(-1, cout), dy, 1, 0).reshape(kh, kw * cin, h, w * images)
    d = stage(lambda d: _add_taps(d, 1, strides[0], pads[0][0], x.shape[1]), d)
    d = d.reshape(kw, cin, -1, w, images)[:, :, : x.shape[1]]
    dx = stage(lambda d: _add_taps(d, 2, strides[1], pads[1][0], x.shape[2]), d)
    dx = dx.reshape(cin, x.shape[1], -1, images)[:, :, : x.shape[2]]
    return dx, dkernel


conv_by_patches.defvjp(_fwd, _bwd)


def _patches(x, kernel_size, strides, pads):
    """Return the patches of x [Cin, H, W, N], [KH * KW * Cin, H' * W' * N]."""
    (kh, kw), (sh, sw) = kernel_size, strides
    h, w = output_size(x.shape[1:3], kernel_size, strides, pads)
    # As wide as the patches reach, in whole strides.
    reach = (sh * (h - 1) + kh, -(-(sw * (w - 1) + kw) // sw) * sw)
    (top, _), (left, _) = pads
    after = (reach[0] - x.shape[1] - top, reach[1] - x.shape[2] - left)
    config = [(0, 0, 0), (top, after[0], 0), (left, after[1], 0), (0, 0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    # Columns a stride apart are brought side by side, so that each patch copies whole rows.
    x = x.reshape(len(x), reach[0], -1, sw, x.shape[3])
    x = x[None, :, :, :, 0] if sw == 1 else stage(lambda x: x.transpose(3, 0, 1, 2, 4), x)

    def tap(x, i, j):
        return x[j % sw, :, i : i + sh * (h - 1) + 1 : sh, j // sw : j // sw + w]

    patches = stage(
        lambda x: jnp.concatenate([tap(x, i, j) for i in range(kh) for j in range(kw)]), x
    )
    return patches.reshape(len(patches), -1)


def _add_taps(d, axis, stride, before, size):
    """Add d [taps, ...] where the taps come from: the transpose of strided slices along an axis.

    The axis of d[0] becomes two, (ceil(size / stride), stride).
    """
    taps, reached = d.shape[0], d.shape[axis + 1]
    count = -(-size // stride)

    def place(tap):
        shift = (tap - before) // stride
        config = [(0, 0, 0)] * (d.ndim - 1)
        config[axis] = (shift, count - reached - shift, 0)
        return lax.pad(d[tap], jnp.zeros((), d.dtype), config)

    def phase(number):
        own = [tap for tap in reversed(range(taps)) if (tap - before) % stride == number]
        if not own:
            return jnp.zeros_like(place(0))
        return reduce(jnp.add, map(place, own))

    return jnp.stack([phase(number) for number in range(stride)], axis + 1)


def matmul(a, b, axis_a, axis_b):
    """Multiply two matrices, contracting the given axes."""
    return lax.dot_general(jnp.asarray(a, b.dtype), b, (((axis_a,), (axis_b,)), ((), ())))


def stage(f, *args):
    """Call f(*args) as a separate function in the compiled code.

    XLA recomputes a cheap producer in each of its consumers, which would repeat the same sums many
    times. It never fuses across the boundary of a function that is not inlineable. Keep reshapes
    outside: inside they become one division per element.
    """
    with set_xla_metadata(inlineable="false"):
        return jax.jit(f)(*args)
