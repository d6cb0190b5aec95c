"""Algorithms for the convolutions of many small networks, and their gradients.

Which one is fast depends on the device and the shapes; `normjax/training/tuning.py` measures it.
Under `vmap` over networks with their own kernels and images, XLA's convolution becomes a grouped
convolution, and its kernel gradient a grouped convolution with huge windows. The alternatives avoid
that: loops over the networks, or matrix products, which `vmap` turns into batched products. The
first layer's images are shared, so XLA uses one ordinary convolution there.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap

from normjax.networks import toom_cook
from normjax.networks.patches import conv_by_patches, matmul, output_size
from normjax.types import Array


class Algorithm(NamedTuple):
    """A way to convolve x [N, H, W, Cin] with a kernel [KH, KW, Cin, Cout].

    Attributes:
      forward: (x, kernel, strides, pads) -> y [N, H', W', Cout].
      gradients: (x, kernel, dy, strides, pads) -> (dx, dkernel).
    """

    forward: Callable[..., Array]
    gradients: Callable[..., Any]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolve(x, kernel, strides, pads, algorithm):
    """Convolve by the algorithm of this name in `ALGORITHMS`; pads are ((top, bottom), ...)."""
    return ALGORITHMS[algorithm].forward(x, kernel, strides, pads)


def _fwd(x, kernel, strides, pads, algorithm):
    # Save only the arguments. The backward pass recomputes what it needs of the forward pass; XLA
    # removes the recomputation if both are in one compiled function.
    return convolve(x, kernel, strides, pads, algorithm), (x, kernel)


def _bwd(strides, pads, algorithm, residuals, dy):
    return ALGORITHMS[algorithm].gradients(*residuals, dy, strides, pads)


convolve.defvjp(_fwd, _bwd)


def conv_xla(x, kernel, strides, pads):
    """Convolve with XLA."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=dimensions)


def conv_cpu(x, kernel, strides, pads):
    """Convolve with the matrix products that are fast on a CPU."""
    y = conv_images_last(x.transpose(3, 1, 2, 0), kernel, strides, pads)
    return y.transpose(3, 1, 2, 0)


def conv_images_last(x, kernel, strides, pads) -> Array:
    """Convolve x [Cin, H, W, N] to [Cout, H', W', N] by the fastest matrix products on a CPU."""
    if kernel.shape[:2] == x.shape[1:3] and not any(map(any, pads)):
        rows = x.transpose(1, 2, 0, 3).reshape(-1, x.shape[3])
        return matmul(kernel.reshape(len(rows), -1), rows, 0, 0)[:, None, None]
    if toom_cook.saves_half(x, kernel, strides, pads):
        x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
        return toom_cook.conv_by_toom_cook(x, kernel)
    return conv_by_patches(x, kernel, strides, pads)


def conv_by_tiles(x, kernel, strides, pads, *, tile: int):
    """Convolve by one matrix product with patches that give `tile` x `tile` outputs each.

    With `tile=1` these are the patches of "im2col", which copy each pixel KH * KW times. Larger
    tiles copy less, but multiply by kernels that are padded with zeros.
    """
    (sh, sw), (kh, kw, cin, cout) = strides, kernel.shape
    h, w = output_size(x.shape[1:3], (kh, kw), strides, pads)
    rows, cols = -(-h // tile), -(-w // tile)
    height, width = sh * (tile - 1) + kh, sw * (tile - 1) + kw  # of a patch
    reach = (sh * tile * (rows - 1) + height, sw * tile * (cols - 1) + width)
    (top, _), (left, _) = pads
    after = (reach[0] - x.shape[1] - top, reach[1] - x.shape[2] - left)
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, [(0, 0, 0), (top, after[0], 0), (left, after[1], 0), (0, 0, 0)])
    for axis, step, size in ((2, sw * tile, width), (1, sh * tile, height)):
        last = x.shape[axis] - size
        taps = [lax.slice_in_dim(x, i, last + i + 1, step, axis) for i in range(size)]
        x = jnp.concatenate(taps, 3)
    placed = [
        lax.pad(kernel, zero, [(i, height - kh - i, 0), (j, width - kw - j, 0), *[(0, 0, 0)] * 2])
        for i in range(0, sh * tile, sh)
        for j in range(0, sw * tile, sw)
    ]
    y = x @ jnp.stack(placed, 3).reshape(height * width * cin, -1)
    y = y.reshape(-1, rows, cols, tile, tile, cout).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(-1, rows * tile, cols * tile, cout)[:, :h, :w]


def _by_vjp(conv) -> Algorithm:
    """Return the algorithm of a differentiable convolution."""

    def gradients(x, kernel, dy, strides, pads):
        return jax.vjp(partial(conv, strides=strides, pads=pads), x, kernel)[1](dy)

    return Algorithm(conv, gradients)


def _xla_in_loops(*looped: str) -> Algorithm:
    """Return XLA's convolution whose named passes run one network after another under `vmap`."""

    def run(name, fn, *args):
        return (sequential_vmap(fn) if name in looped else fn)(*args)

    def forward(x, kernel, strides, pads):
        return run("forward", partial(conv_xla, strides=strides, pads=pads), x, kernel)

    def gradients(x, kernel, dy, strides, pads):
        def dx(x, kernel, dy):
            return jax.vjp(lambda x: conv_xla(x, kernel, strides, pads), x)[1](dy)[0]

        def dkernel(x, kernel, dy):
            return jax.vjp(lambda kernel: conv_xla(x, kernel, strides, pads), kernel)[1](dy)[0]

        return run("dx", dx, x, kernel, dy), run("dkernel", dkernel, x, kernel, dy)

    return Algorithm(forward, gradients)


def _by_platform(cpu: Algorithm, other: Algorithm) -> Algorithm:
    """Return the algorithm that chooses by the platform of compilation."""

    def choose(passes):
        def run(*args):
            *arrays, strides, pads = args
            on_cpu, elsewhere = (partial(f, strides=strides, pads=pads) for f in passes)
            return lax.platform_dependent(*arrays, cpu=on_cpu, default=elsewhere)

        return run

    return Algorithm(*map(choose, zip(cpu, other, strict=True)))


_CPU, _XLA = _by_vjp(conv_cpu), _by_vjp(conv_xla)
ALGORITHMS: dict[str, Algorithm] = {
    "platform": _by_platform(_CPU, _XLA),
    "cpu": _CPU,
    "xla": _XLA,
    "xla_loop": _xla_in_loops("forward", "dx", "dkernel"),
    "xla_loop_dkernel": _xla_in_loops("dkernel"),
    "patches": _by_vjp(partial(conv_by_tiles, tile=1)),
    "tiles_2x2": _by_vjp(partial(conv_by_tiles, tile=2)),
    "tiles_4x4": _by_vjp(partial(conv_by_tiles, tile=4)),
}
"""The algorithms by name; "platform" is "cpu" on a CPU and "xla" elsewhere."""
