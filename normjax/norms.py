"""Norms of a layer: entrywise Lp, Frobenius, and the spectral norm of the operator."""

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from normjax.formatting import plain
from normjax.types import Array, Norm, NormFn, at_least_float32

_DECIMAL = r"[0-9]+\.?[0-9]*|\.[0-9]+"


@dataclass(frozen=True)
class NamedNorm:
    """A norm with its name in commands and results.csv.

    Attributes:
      name: the canonical name; equal norms have equal names.
      norm: the argument of `make_norm`: p, or `"spectral"`.
      scale: divisor of the norm.
    """

    name: str
    norm: float | str
    scale: float = 1.0


def make_norm(norm: Norm = 2, scale: float = 1.0) -> NormFn:
    """Return the function that computes the norm of one layer, `rho_k = ||W_k|| / scale`.

    The function maps `{"kernel": k}` or, jointly, `{"kernel": k, "bias": b}` to a float32 scalar
    (float64 for float64 leaves). For any norm, a layer of zeros has norm 0 with gradient 0. The
    entrywise norms neither overflow nor underflow unless their value does.

    Args:
      norm: 2 or `"fro"`, the Frobenius norm; any p >= 1, the entrywise Lp norm
        `(sum |w|^p)^(1/p)`; `jnp.inf`, the largest `|w|`; `"spectral"`, see `spectral_norm`; or a
        function of the leaves.
      scale: divisor of the norm. The paper's "L1 norm / 100" is `norm=1, scale=100.`.

    Raises:
      ValueError: an unknown norm, p < 1, or a scale that is not positive and finite. The returned
        function raises it if a custom `norm` does not return a scalar.
    """
    norms_fn = make_norms(norm, scale)
    return lambda leaves: norms_fn([leaves])[0]


def make_norms(
    norm: Norm = 2, scale: float = 1.0
) -> Callable[[Sequence[Mapping[str, Array]]], list[Array]]:
    """Return the function that computes the norms of several layers; see `make_norm`."""
    if not _is_real(scale) or not 0 < scale < math.inf:
        raise ValueError(f"scale must be a positive finite number, not {plain(scale)}")
    unscaled_norms = _norms_function(norm)

    def norms_fn(layers: Sequence[Mapping[str, Array]]) -> list[Array]:
        wide = [{name: at_least_float32(x) for name, x in leaves.items()} for leaves in layers]
        values = list(unscaled_norms(wide))
        for value in values:
            if jnp.shape(value) != ():
                raise ValueError(f"a norm must return a scalar, not shape {jnp.shape(value)}")
        return [value / scale for value in values]

    return norms_fn


def parse_norm(text: str) -> NamedNorm:
    """Parse a norm: "2", "fro", "1", "inf", "spectral", "3.5", or "1/100" (L1, scale 100).

    Examples:
      >>> from normjax.norms import parse_norm
      >>> parse_norm("1/100")
      NamedNorm(name='1/100', norm=1.0, scale=100.0)
      >>> parse_norm("fro") == parse_norm("2.0") == parse_norm("2")
      True

    Raises:
      ValueError: an unknown norm, p < 1, or a scale that is not positive.
    """
    order, slash, divisor = text.strip().partition("/")
    allowed = "allowed: spectral, fro, inf, any p >= 1 in decimals; optional: /SCALE (1/100)"
    try:
        scale = _decimal(divisor) if slash else 1.0
        norm = order if order == "spectral" else 2.0 if order == "fro" else _decimal(order)
    except ValueError:
        raise ValueError(f"unknown norm {text!r}; {allowed}") from None
    if not 0 < scale < math.inf:
        raise ValueError(f"norm {text!r} has a scale that is not a positive number; {allowed}")
    if not isinstance(norm, str) and not norm >= 1:
        raise ValueError(f"norm {text!r} has p < 1, which is not a norm; {allowed}")
    name = norm if isinstance(norm, str) else _shortest(norm)
    return NamedNorm(name if scale == 1 else f"{name}/{_shortest(scale)}", norm, scale)


def norm_name(name: str) -> str:
    """Return the display name: "2" is "Frobenius norm", "1/100" is "L1 norm / 100"."""
    base, _, scale = name.partition("/")
    words = {"2": "Frobenius norm", "inf": "L∞ norm", "spectral": "spectral norm"}
    default = f"L{base} norm" if re.fullmatch(r"[0-9.]+", base) else base
    return words.get(base, default) + (f" / {scale}" if scale else "")


def entrywise_exponent(norm: Norm) -> float | None:
    """Return the p of an entrywise Lp norm, 2 for `"fro"`; None for any other norm."""
    p = 2 if isinstance(norm, str) and norm == "fro" else norm
    return float(p) if _is_real(p) and p >= 1 else None


def spectral_norm(leaves: Mapping[str, Array], input_size: int = 32) -> Array:
    """Return the spectral norm of a layer, the largest singular value of its linear operator.

    For a dense kernel `[inputs, outputs]`, the operator is the matrix. For a convolution kernel
    `[*window, inputs, outputs]`, it is the *circular*, stride-1, ungrouped, undilated convolution
    over a grid with side `input_size`, not the flattened kernel. The discrete Fourier transform
    splits this operator into one `inputs x outputs` matrix per frequency; the norm is their largest
    singular value (Sedghi, Gupta & Long, "The Singular Values of Convolutional Layers", ICLR 2019).

    The bias, if present, acts as an additional input channel with a 1x1 window: an additional row
    of each frequency's matrix, or of the dense matrix.

    The result bounds the convolutions in networks. Let `c(n)` be the norm on a grid of side `n`.

    - A VALID convolution of an `n x n` input is part of the circular one: its norm is at most
      `c(n)`. With zero padding and a window of k it is at most `c(n + k - 1)`.
    - A strided convolution drops outputs of the stride-1 convolution: the same bound holds.
    - `c(n)` samples a function of continuous frequency. The maximum of this function, the limit of
      large n, is the norm on the infinite plane and bounds all of these.

    Examples:
      >>> import numpy as np
      >>> import normjax
      >>> kernel = np.diag([3.0, 4.0]).astype(np.float32)
      >>> float(normjax.spectral_norm({"kernel": kernel}))
      4.0

    Args:
      leaves: `{"kernel": k}` or `{"kernel": k, "bias": b}`; any number of window dimensions.
      input_size: side of the grid, at least the size of the window.

    Returns:
      The norm, a scalar of the leaves' dtype.

    Raises:
      ValueError: the window is larger than the grid.
    """
    matrices = leaves["kernel"]
    window = matrices.shape[:-2]
    if max(window, default=0) > input_size:
        raise ValueError(f"the window {window} is larger than the grid: input_size={input_size}")
    if window:
        matrices = _transfer_matrices(matrices, input_size)
    if "bias" in leaves:
        row = jnp.broadcast_to(leaves["bias"], (*matrices.shape[:-2], 1, matrices.shape[-1]))
        matrices = jnp.concatenate([matrices, row.astype(matrices.dtype)], axis=-2)
    return jnp.max(_largest_singular_values(matrices))


def _transfer_matrices(kernel: Array, input_size: int) -> Array:
    """Return the discrete Fourier transform of a kernel, complex [frequencies, Cin, Cout].

    The kernel is real, so frequencies f and -f have the same singular values; half of the
    frequencies along one axis suffice.
    """
    *window, num_in, num_out = kernel.shape
    counts = [input_size // 2 + 1] + [input_size] * (len(window) - 1)
    frequencies = np.indices(counts).reshape(len(window), -1)
    taps = np.indices(window).reshape(len(window), -1)
    angles = 2 * np.pi / input_size * (frequencies.T @ taps)
    flat = kernel.reshape(-1, num_in * num_out)
    real, imaginary = (
        jnp.matmul(jnp.asarray(wave(angles), kernel.dtype), flat, precision="highest")
        for wave in (np.cos, np.sin)
    )
    return lax.complex(real, -imaginary).reshape(-1, num_in, num_out)


def _largest_singular_values(matrices: Array) -> Array:
    """Return the largest singular value of each matrix in [..., m, n]."""
    with jax.disable_jit(False):  # a loop over frequencies, op by op, takes a minute
        return _compiled_largest_singular_values(matrices)


@jax.jit
def _compiled_largest_singular_values(matrices: Array) -> Array:
    def largest(matrices):
        return jnp.linalg.svd(matrices, compute_uv=False)[..., 0]

    if matrices.ndim == 2 or jax.default_backend() != "cpu":
        return largest(matrices)
    # On a CPU, a batched SVD waits for threads of the pool that runs the devices. With several
    # devices at once, no thread is free: a deadlock.
    return lax.map(largest, matrices.reshape(-1, *matrices.shape[-2:]))


def _is_real(x: Any) -> TypeGuard[float]:
    """Return whether `x` is a real number; Python counts booleans as integers."""
    return isinstance(x, (int, float, np.integer, np.floating)) and not isinstance(x, bool)


def _decimal(text: str) -> float:
    """Parse a decimal number or "inf"; `float` would also accept "2_0", "nan" and "1e400"."""
    if text != "inf" and not (re.fullmatch(_DECIMAL, text) and float(text) < math.inf):
        raise ValueError(text)
    return float(text)


def _shortest(number: float) -> str:
    """Return the shortest decimal text that identifies a number: "2" for 2.0."""
    return np.format_float_positional(number, trim="-")


def _norms_function(norm: Norm) -> Callable[[Sequence[Mapping[str, Array]]], Iterable[Array]]:
    """Return the unscaled norms of several layers, with value and gradient 0 at zero."""
    if callable(norm):
        return partial(map, _with_zero(norm))
    if norm == "spectral":
        return partial(map, _with_zero(spectral_norm))
    p = entrywise_exponent(norm)
    if p is None:
        raise ValueError(
            f"norm must be a number p >= 1, 'fro', 'spectral' or a function of a layer's leaves, "
            f"not {plain(norm)}"
        )
    if p in (1, math.inf):
        return partial(map, _sum_of_magnitudes if p == 1 else _largest_magnitude)
    return lambda layers: _compiled_entrywise_norms(list(layers), p)


def _with_zero(norm_fn: NormFn) -> NormFn:
    """Return the same norm with value and gradient 0 if all leaves are 0.

    Most norms have no derivative at 0. The norm of ones replaces the norm of zeros, to keep NaN out
    of the value and gradient of the branch that is not selected.
    """

    def safe_norm_fn(leaves: Mapping[str, Array]) -> Array:
        is_zero = jnp.stack([jnp.all(leaf == 0) for leaf in leaves.values()]).all()
        value = norm_fn({name: jnp.where(is_zero, 1, x) for name, x in leaves.items()})
        return jnp.where(is_zero, 0, value)

    return safe_norm_fn


def _sum_of_magnitudes(leaves: Mapping[str, Array]) -> Array:
    """Return the L1 norm of all entries together."""
    return reduce(operator.add, (jnp.sum(_magnitudes(leaf)) for leaf in leaves.values()))


def _largest_magnitude(leaves: Mapping[str, Array]) -> Array:
    """Return the largest magnitude of all entries together."""
    return jnp.stack([jnp.max(_magnitudes(leaf)) for leaf in leaves.values()]).max()


@jax.custom_jvp
def _magnitudes(x: Array) -> Array:
    """Return `|x|`, with derivative 0 at 0, where that of `jnp.abs` is 1."""
    return jnp.abs(x)


_magnitudes.defjvps(lambda direction, _, x: jnp.sign(x) * direction)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _entrywise_norms(layers: Sequence[Mapping[str, Array]], p: float) -> list[Array]:
    """Return the Lp norm of all entries of each layer, 1 < p < infinity.

    One pass over the entries suffices unless powers overflow or underflow; then a second pass
    divides a layer's entries by the largest one. The loop runs at most once. Under `vmap`, a `cond`
    would always run both branches; the loop runs only if some network needs it.
    """

    def sum_of_powers(leaves, unit):
        return reduce(operator.add, (jnp.sum(jnp.abs(x / unit) ** p) for x in leaves.values()))

    def is_in_range(total):
        return (total > 1e-24) & (total < math.inf)

    def must_rescale(carry):
        totals, _, is_rescaled = carry
        return ~(is_rescaled | jnp.stack([is_in_range(total) for total in totals]).all())

    def rescale(carry):
        totals, units, _ = carry
        new_totals, new_units = [], []
        for leaves, total, unit in zip(layers, totals, units, strict=True):
            # The unit was 1. Without the carry, XLA would move this out of the loop.
            largest = _largest_magnitude({name: leaf / unit for name, leaf in leaves.items()})
            largest = jnp.where(is_in_range(total) | (largest == 0), 1, largest)
            new_units.append(largest)
            new_totals.append(jnp.where(is_in_range(total), total, sum_of_powers(leaves, largest)))
        return new_totals, new_units, jnp.bool(True)

    plain = [sum_of_powers(leaves, 1) for leaves in layers]
    start = (plain, [jnp.ones_like(total) for total in plain], jnp.bool(False))
    totals, units, _ = lax.while_loop(must_rescale, rescale, start)
    return [unit * total ** (1 / p) for unit, total in zip(units, totals, strict=True)]


@_entrywise_norms.defjvp
def _entrywise_norms_jvp(p: float, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Apply the derivative sign(w) (|w| / norm)^(p - 1), or 0 for a layer of zeros."""
    (layers,), (directions,) = primals, tangents
    values = _entrywise_norms(layers, p)
    slopes = []
    for leaves, along, value in zip(layers, directions, values, strict=True):
        unit = jnp.where(value == 0, 1, value)
        parts = (
            jnp.sum(jnp.sign(leaf) * jnp.abs(leaf / unit) ** (p - 1) * along[name])
            for name, leaf in leaves.items()
        )
        slopes.append(reduce(operator.add, parts))
    return values, slopes


# Without this, each eager call would compile the loop anew.
_compiled_entrywise_norms = jax.jit(_entrywise_norms, static_argnums=1, inline=True)
