"""A convolution by Toom-Cook tiles ("Winograd convolution"), for stride 1, fast on a CPU.

A tile Y of m x m outputs needs n x n inputs d, n = m + r - 1 for an r x r kernel g, and is
Y = A [(G g G') * (B d B')] A': n^2 products instead of m^2 r^2, e.g. 64 instead of 400 for 5 x 5
kernels and 4 x 4 tiles (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
2016). Summed over channels, the elementwise product is n^2 matrix products. G and B evaluate
polynomials at n - 1 points and at infinity, A interpolates (Toom-Cook). The points are the first of
0, +-1, +-2, +-1/2; n <= 8 keeps the float32 error near 5e-6 of the norm of the result.

Channels are the first axis and images the last: every shift moves whole rows of images, and the
products need no transposition.
"""

import operator
from functools import cache, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from normjax.networks.patches import matmul, output_size, stage

_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)


def saves_half(x, kernel, strides, pads):
    """Return whether tiles save half of the products, and those left are large enough."""
    kh, kw = kernel.shape[:2]
    if strides != (1, 1) or min(kh, kw) < 2 or max(kh, kw) > len(_POINTS):
        return False
    if x.dtype not in (jnp.float32, jnp.float64):
        return False
    h, w = output_size(x.shape[1:3], (kh, kw), strides, pads)
    rows, cols = _tiling(h, kh), _tiling(w, kw)
    is_half = 2 * rows.num * rows.n * cols.num * cols.n <= h * w * kh * kw
    columns = rows.num * cols.num * x.shape[3]
    return is_half and min(kernel.shape[2:]) >= 8 and columns >= 64


class _Tiling(NamedTuple):
    """One axis, split into `num` tiles of `m` outputs that are computed at `n` points."""

    num: int
    m: int
    n: int
    a: np.ndarray  # [m, n] from points to outputs
    b: np.ndarray  # [n, n] from inputs to points
    g: np.ndarray  # [n, r] from the kernel to points


@cache
def _tiling(size, r):
    """Return the Toom-Cook tiling with the fewest products for `size` outputs, kernel size r."""
    m = min(range(1, len(_POINTS) + 3 - r), key=lambda m: -(-size // m) * (m + r - 1))
    n = m + r - 1
    points = np.array(_POINTS[: n - 1])
    a, b, g = np.zeros((m, n)), np.zeros((n, n)), np.zeros((n, r))
    for k, point in enumerate(points):
        others = np.delete(points, k)
        a[:, k] = point ** np.arange(m)
        b[k, : n - 1] = np.atleast_1d(np.poly(others))[::-1]
        g[k] = point ** np.arange(r) / np.prod(point - others)
    a[-1, -1] = g[-1, -1] = 1  # the point at infinity
    b[-1] = np.poly(points)[::-1]
    return _Tiling(-(-size // m), m, n, a, b, g)


@jax.custom_vjp
def conv_by_toom_cook(x, kernel):
    """Convolve x [Cin, H, W, N] to [Cout, H', W', N], stride 1, no padding."""
    return _fwd(x, kernel)[0]


def _fwd(x, kernel):
    (kh, kw, cin, cout), images = kernel.shape, x.shape[3]
    h, w = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    rows, cols = _tiling(h, kh), _tiling(w, kw)
    x = jnp.pad(x, [(0, 0), (0, rows.num * rows.m - h), (0, cols.num * cols.m - w), (0, 0)])
    width = x.shape[2]
    x = x.reshape(cin, x.shape[1], width * images)
    x = stage(lambda x: _to_points(rows, x, 1), x)
    x = x.reshape(rows.n, cin * rows.num, width, images)
    # Points along W for one point along H at a time: the working set fits in the cache.
    u, v, y = _kernel_at_points(rows, cols, kernel), [], []
    for k in range(rows.n):
        v.append(stage(lambda x, k=k: _to_points(cols, x[k], 1), x).reshape(cols.n, cin, -1))
        yk = _batch_matmul(u[k], v[k], 1, 1).reshape(cols.n, -1)
        y.append(matmul(cols.a, yk, 1, 0))
    y = stage(lambda y: jnp.stack([_combine(row, y) for row in rows.a]), y)
    y = y.reshape(rows.m, cols.m, cout, rows.num, cols.num, images)
    y = stage(lambda y: y.transpose(2, 3, 0, 4, 1, 5), y)
    y = y.reshape(cout, rows.num * rows.m, cols.num * cols.m, images)
    return y[:, :h, :w], (kernel, v)


def _bwd(residuals, dy):
    kernel, v = residuals
    (kh, kw, cin, cout), (_, h, w, images) = kernel.shape, dy.shape
    rows, cols = _tiling(h, kh), _tiling(w, kw)
    dy = jnp.pad(dy, [(0, 0), (0, rows.num * rows.m - h), (0, cols.num * cols.m - w), (0, 0)])
    dy = dy.reshape(cout, rows.num, rows.m, cols.num, cols.m, images)
    dy = stage(lambda dy: dy.transpose(2, 4, 0, 1, 3, 5), dy).reshape(cols.m * rows.m, -1)
    u, du, dx = _kernel_at_points(rows, cols, kernel), [], []
    for k in range(rows.n):
        dyk = matmul(np.kron(rows.a[:, k : k + 1], cols.a), dy, 0, 0).reshape(cols.n, cout, -1)
        du.append(_batch_matmul(v[k], dyk, 2, 2))
        dvk = _batch_matmul(u[k], dyk, 2, 1).reshape(cols.n, cin * rows.num, cols.num, images)
        dx.append(stage(lambda dv: _from_points(cols, dv, 1), dvk))
    du = stage(jnp.concatenate, du).reshape(cols.n * rows.n, -1)
    dkernel = matmul(np.kron(rows.g, cols.g), du, 0, 0).reshape(kh, kw, cin, cout)
    width = dx[0].shape[1] * cols.m
    dx = [dxk.reshape(cin, rows.num, -1) for dxk in dx]
    dx = stage(lambda dx: _from_points(rows, dx, 1), dx)
    dx = dx.reshape(cin, -1, width, images)
    return dx[:, : h + kh - 1, : w + kw - 1], dkernel


conv_by_toom_cook.defvjp(_fwd, _bwd)


def _kernel_at_points(rows, cols, kernel):
    """Map a kernel [KH, KW, Cin, Cout] to G g G' [n along H, n along W, Cin, Cout]."""
    kh, kw, cin, cout = kernel.shape
    u = matmul(np.kron(rows.g, cols.g), kernel.reshape(kh * kw, -1), 1, 0)
    return u.reshape(rows.n, cols.n, cin, cout)


def _to_points(tiling, x, axis):
    """Return B times the tiles of x along the axis: [n, ..., num tiles, ...]."""
    stop = tiling.m * (tiling.num - 1) + 1
    tiles = [lax.slice_in_dim(x, j, j + stop, tiling.m, axis) for j in range(tiling.n)]
    b = tiling.b.astype(x.dtype)
    return sum(b[:, j].reshape(-1, *[1] * x.ndim) * tile[None] for j, tile in enumerate(tiles))


def _from_points(tiling, dv, axis):
    """Apply the transpose of `_to_points` to n arrays: sum the overlapping tiles.

    The tile axis becomes two, (tiles + overlap, m).
    """
    last = -(-tiling.n // tiling.m) - 1  # the last output tile that an input tile reaches

    def shifted(j):
        before = j // tiling.m
        pads = [(0, 0, 0)] * dv[0].ndim
        pads[axis] = (before, last - before, 0)
        tile = _combine(tiling.b[:, j], dv)
        return lax.pad(tile, jnp.zeros((), tile.dtype), pads)

    phases = [sum(map(shifted, range(p, tiling.n, tiling.m))) for p in range(tiling.m)]
    return jnp.stack(phases, axis + 1)


def _combine(coefficients, xs):
    """Return the linear combination of arrays, without its zero terms."""
    terms = zip(coefficients, xs, strict=True)
    products = (x if c == 1 else x * np.asarray(c, x.dtype) for c, x in terms if c != 0)
    return reduce(operator.add, products)


def _batch_matmul(a, b, axis_a, axis_b):
    """Multiply stacked matrices, contracting the given axes."""
    return lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((0,), (0,))))
