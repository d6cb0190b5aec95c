"""2-D convolution, fast for many small networks on a CPU: Toom-Cook (Lavin and Gray, 2016)."""

from __future__ import annotations
import functools
from typing import NamedTuple
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata


def conv2d(x, kernel, *, strides=(1, 1), padding="VALID"):
    y = conv2d_chwn(x.transpose(3, 1, 2, 0), kernel, strides=strides, padding=padding)
    return y.transpose(3, 1, 2, 0)


def conv2d_chwn(x, kernel, *, strides=(1, 1), padding="VALID"):
    _check(x, kernel, strides, padding)
    pads = [
        (int(a), int(b))
        for a, b in lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    ]
    if jax.default_backend() != "cpu":
        return lax.conv_general_dilated(
            x, kernel, strides, pads, dimension_numbers=("CHWN", "HWIO", "CHWN")
        )
    if any(p != (0, 0) for p in pads):
        x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    if (
        tuple(strides) == (1, 1)
        and kernel.shape[2] >= 8
        and all(3 <= k <= 5 for k in kernel.shape[:2])
    ):
        return _toom(x, kernel)
    return _patches_conv(x, kernel, strides)


def _check(x, kernel, strides, padding):
    """One clear line for what cannot be convolved."""
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(f"conv2d needs 4-D x and kernel, not {x.shape} and {kernel.shape}")
    if not (jnp.issubdtype(x.dtype, jnp.floating) and jnp.issubdtype(kernel.dtype, jnp.floating)):
        raise ValueError(f"conv2d needs floating dtypes, not {x.dtype} and {kernel.dtype}")
    if x.shape[0] != kernel.shape[2]:
        raise ValueError(f"conv2d: x has {x.shape[0]} channels, the kernel takes {kernel.shape[2]}")
    if padding not in ("VALID", "SAME"):
        raise ValueError(f"conv2d: padding must be 'VALID' or 'SAME', not {padding!r}")
    if len(strides) != 2 or any(s < 1 for s in strides):
        raise ValueError(f"conv2d: strides must be two positive integers, not {strides!r}")
    if 0 in x.shape or 0 in kernel.shape:
        raise ValueError(f"conv2d: empty input or kernel, {x.shape} and {kernel.shape}")
    if padding == "VALID" and any(n < k for n, k in zip(x.shape[1:3], kernel.shape, strict=False)):
        raise ValueError(
            f"conv2d: image {x.shape[1:3]} is smaller than the kernel {kernel.shape[:2]} (VALID)"
        )


def _stage(f, *args):
    with set_xla_metadata(inlineable="false"):
        return jax.jit(f)(*args)


class Tiles(NamedTuple):
    """1-D F(m, r)"""

    a: np.ndarray  # [m, n]
    b: np.ndarray  # [n, n]
    g: np.ndarray  # [n, r]
    num: int
    m: int
    n: int


@functools.cache
def _tiles(size, r):
    out = size - r + 1
    m = min(range(1, 9 - r + 1), key=lambda m: -(-out // m) * (m + r - 1))
    pts = [0, 1, -1, 2, -2, 0.5, -0.5][: m + r - 2]
    n = m + r - 1
    a, g, b = np.zeros((m, n)), np.zeros((n, r)), np.zeros((n, n))
    for k, p in enumerate(pts):
        rest = [q for q in pts if q != p]
        f = np.prod([p - q for q in rest])
        a[:, k] = [p**i for i in range(m)]
        g[k] = [p**i / f for i in range(r)]
        c = np.poly(rest)[::-1]
        b[k, : len(c)] = c
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = np.poly(pts)[::-1]
    return Tiles(*(np.asarray(z, np.float32) for z in (a, b, g)), -(-out // m), m, n)


def _combine(matrix, xs):
    """stack over rows of matrix of sum_i matrix[row, i] xs[i] (broadcast form)"""
    return sum(matrix[:, i].reshape((-1,) + (1,) * x.ndim) * x for i, x in enumerate(xs))


def _lin(row, xs):
    out = None
    for c, x in zip(row, xs, strict=True):
        if c != 0:
            t = x if c == 1 else x * c
            out = t if out is None else out + t
    return out


@jax.custom_vjp
def _toom(x, kernel):
    return _toom_fwd(x, kernel)[0]


def _setup(xshape, kshape):
    return _tiles(xshape[1], kshape[0]), _tiles(xshape[2], kshape[1])


def _toom_fwd(x, kernel):
    cin, h, w, N = x.shape
    kh, kw, _, cout = kernel.shape
    th, tw = _setup(x.shape, kernel.shape)
    hp, wp = th.m * th.num + kh - 1, tw.m * tw.num + kw - 1
    if (hp, wp) != (h, w):
        x = jnp.pad(x, [(0, 0), (0, hp - h), (0, wp - w), (0, 0)])
    P = th.num * tw.num * N
    u = _stage(
        lambda k: lax.dot_general(np.kron(th.g, tw.g), k, (((1,), (0,)), ((), ()))),
        kernel.reshape(kh * kw, cin * cout),
    ).reshape(th.n * tw.n, cin, cout)
    v = _stage(
        lambda x: _combine(
            th.b, [x[:, i : i + th.m * (th.num - 1) + 1 : th.m] for i in range(th.n)]
        ),
        x.reshape(cin, hp, wp * N),
    )
    # [a, C, TH, W*N]
    v = v.reshape(th.n * cin * th.num, wp, N)
    v = _stage(
        lambda v: _combine(
            tw.b, [v[:, j : j + tw.m * (tw.num - 1) + 1 : tw.m] for j in range(tw.n)]
        ),
        v,
    )
    # [b, a, C, P]
    v = v.reshape(tw.n * th.n, cin, P)
    ub = u.reshape(th.n, tw.n, cin, cout).transpose(1, 0, 3, 2).reshape(tw.n * th.n, cout, cin)
    y = lax.dot_general(ub, v, (((2,), (1,)), ((0,), (0,))))
    y = _stage(
        lambda y: lax.dot_general(np.kron(tw.a, th.a), y, (((1,), (0,)), ((), ()))),
        y.reshape(tw.n * th.n, cout * P),
    )
    y = y.reshape(tw.m, th.m, cout, th.num, tw.num, N)
    y = _stage(lambda y: y.transpose(2, 3, 1, 4, 0, 5), y)
    y = y.reshape(cout, th.m * th.num, tw.m * tw.num, N)[:, : h - kh + 1, : w - kw + 1]
    return y, (u, v, (x.shape, h, w, kernel.shape))


def _fold(rows, t, axis):
    """rows: n arrays -> m phases summed with overlap; tile axis num -> q"""
    q = -(-t.n // t.m)

    def pad(x, s):
        return lax.pad(
            x, np.float32(0), [(s, q - 1 - s, 0) if k == axis else (0, 0, 0) for k in range(x.ndim)]
        )

    return [sum(pad(rows[j], j // t.m) for j in range(p, t.n, t.m)) for p in range(t.m)]


def _toom_bwd(res, dy):
    u, v, (xs, h, w, ks) = res
    cin, hp, wp, N = xs
    kh, kw, _, cout = ks
    th, tw = _setup((cin, h, w, N), ks)
    P = th.num * tw.num * N
    if dy.shape[1:3] != (th.m * th.num, tw.m * tw.num):
        dy = jnp.pad(
            dy, [(0, 0), (0, th.m * th.num - dy.shape[1]), (0, tw.m * tw.num - dy.shape[2]), (0, 0)]
        )
    d = dy.reshape(cout, th.num, th.m, tw.num, tw.m, N)
    d = _stage(lambda d: d.transpose(4, 2, 0, 1, 3, 5), d).reshape(tw.m * th.m, cout * P)
    d = lax.dot_general(np.kron(tw.a, th.a), d, (((0,), (0,)), ((), ()))).reshape(
        tw.n * th.n, cout, P
    )
    du = lax.dot_general(v, d, (((2,), (2,)), ((0,), (0,))))  # [ba, cin, cout]
    du = du.reshape(tw.n * th.n, cin * cout)
    dk = _stage(lambda du: lax.dot_general(np.kron(tw.g, th.g), du, (((0,), (0,)), ((), ()))), du)
    dk = dk.reshape(kw, kh, cin, cout).transpose(1, 0, 2, 3)
    ub = u.reshape(th.n, tw.n, cin, cout).transpose(1, 0, 2, 3).reshape(tw.n * th.n, cin, cout)
    dv = lax.dot_general(ub, d, (((2,), (1,)), ((0,), (0,))))  # [b a, cin, P]
    dv = dv.reshape(tw.n, th.n * cin * th.num, tw.num, N)
    dx = _stage(
        lambda dv: jnp.stack(_fold([_lin(c, dv) for c in tw.b.T], tw, 1), 2), dv
    )  # [a*C*TH, TW+q, m, N]
    wx = dx.shape[1] * tw.m
    dx = dx.reshape(th.n, cin, th.num, wx * N)
    dx = _stage(lambda dv: jnp.stack(_fold([_lin(c, dv) for c in th.b.T], th, 1), 2), dx)
    dx = dx.reshape(cin, -1, wx, N)[:, :h, :w]
    return dx, dk


_toom.defvjp(_toom_fwd, _toom_bwd)


def _patches_conv(x, kernel, strides):
    kh, kw, cin, cout = kernel.shape
    h = (x.shape[1] - kh) // strides[0] + 1
    w = (x.shape[2] - kw) // strides[1] + 1
    patches = jnp.concatenate(
        [
            x[
                :,
                i : i + (h - 1) * strides[0] + 1 : strides[0],
                j : j + (w - 1) * strides[1] + 1 : strides[1],
            ]
            for i in range(kh)
            for j in range(kw)
        ]
    ).reshape(kh * kw * cin, h * w * x.shape[3])
    y = lax.dot_general(kernel.reshape(kh * kw * cin, cout), patches, (((0,), (0,)), ((), ())))
    return y.reshape(cout, h, w, x.shape[3])
