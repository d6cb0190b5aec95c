"""Test that a network scales with its layers, by powers of two, which are exact in every dtype."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normjax.channel_vectors import take
from normjax.powers import Powers
from normjax.structure import NetworkStructure


def find_violation(
    apply_fn: Callable[[list[Any]], Any], leaves: Sequence[Any], structure: NetworkStructure
) -> str:
    """Scale layers by powers of two, and compare outputs bit by bit with the predicted multiples.

    Args:
      apply_fn: `leaves -> outputs`.
      leaves: the leaves of the parameter tree.
      structure: how the leaves and the outputs scale.

    Returns:
      Why the network is not shown to be homogeneous; empty if it is.
    """
    outputs = np.asarray(apply_fn(list(leaves)))
    if not np.isfinite(_values(outputs)).all():
        return "the outputs are not finite"
    if not _values(outputs).any():
        return "all outputs are 0, which hides how they scale"
    kernels = {layer.kernel for layer in structure.matrices}
    for leaf, _ in structure.divisors:
        if leaf not in kernels and not _values(take(leaves, leaf)).any():
            path = structure.leaves[leaf.number][0]
            return f"{path!r} is all zeros, which hides how it scales: use random or trained values"

    degrees = tuple((k, layer.degree) for k, layer in enumerate(structure.matrices))
    unit = _common_denominator([degrees, *(powers for _, powers in structure.divisors)])

    def compare(draw: np.ndarray) -> tuple[np.ndarray, bool] | None:
        """Compare at the first of draw, draw / 2, draw / 4, ... within the range of the dtypes."""
        while draw.any():
            exponents = (unit * draw).tolist()
            total = _exponent(degrees, exponents)
            scaled_leaves = _scale_leaves(leaves, structure, exponents)
            if scaled_leaves is not None and _stays_normal(outputs, total):
                scaled = _values(apply_fn(scaled_leaves))
                if np.isfinite(scaled).all():
                    return draw, np.array_equal(scaled, np.ldexp(_values(outputs), total))
            draw = np.fix(draw / 2).astype(int)
        return None

    dtypes = {leaves[leaf.number].dtype for leaf, _ in structure.divisors} | {outputs.dtype}
    draws = _draws(len(degrees), largest=6 if np.dtype(np.float16) in dtypes else 30)
    alone = [sign * row for row in 3 * np.eye(len(degrees), dtype=int) for sign in (1, -1)]
    untested = set(range(len(degrees)))
    for i, draw in enumerate([*draws, *alone]):
        if i >= len(draws) and untested.isdisjoint(np.flatnonzero(draw)):
            continue
        compared = compare(draw)
        if compared is None:
            continue
        if not compared[1]:
            highest = 2.0 ** (unit * np.abs(compared[0]).max())
            return (
                f"scaling the layers by powers of two (up to {highest:.4g}) does not scale the "
                "outputs alike"
            )
        untested -= set(np.flatnonzero(compared[0]))
    if untested:
        layer = structure.matrices[min(untested)]
        dtype = leaves[layer.kernel.number].dtype
        return f"layer {layer.path!r} cannot be scaled by a power of two in the range of {dtype}"
    return ""


def _draws(num_layers: int, largest: int) -> list[np.ndarray]:
    """Return exponents that make the hidden units slightly larger or smaller, large, and small."""
    rng = np.random.default_rng(0)
    ranges = ((-3, 4), (largest // 2, largest + 1), (-largest, 1 - largest // 2))
    return [np.diff(rng.integers(low, high, num_layers), prepend=0) for low, high in ranges]


def _scale_leaves(
    leaves: Sequence[Any], structure: NetworkStructure, exponents: Sequence[int]
) -> list[Any] | None:
    """Multiply each layer by a power of two; None if an entry would leave its dtype's range."""
    scaled = list(leaves)
    for leaf, powers in structure.divisors:
        exponent = _exponent(powers, exponents)
        if not _stays_normal(take(leaves, leaf), exponent):
            return None
        whole = np.array(scaled[leaf.number])
        place = ... if leaf.part is None else leaf.part
        whole[place] = np.ldexp(_values(whole[place]), exponent).astype(whole.dtype)
        is_jax = isinstance(leaves[leaf.number], jax.Array)
        scaled[leaf.number] = jnp.asarray(whole) if is_jax else whole
    return scaled


def _stays_normal(x: Any, exponent: int) -> bool:
    """Return whether `x * 2^exponent` is exact: finite, and no entry newly subnormal."""
    info, magnitudes = jnp.finfo(x.dtype), np.abs(_values(x))
    magnitudes = magnitudes[magnitudes > 0]
    if not magnitudes.size:
        return True
    lowest, highest = magnitudes.min(), magnitudes.max()
    return bool(
        np.ldexp(highest, exponent) <= float(info.max)
        and np.ldexp(lowest, exponent) >= min(float(info.tiny), lowest)
    )


def _exponent(powers: Powers, exponents: Sequence[int]) -> int:
    """Return the exponent of what scales with these powers of the layers."""
    return int(sum(power * exponents[k] for k, power in powers))


def _common_denominator(all_powers: Sequence[Powers]) -> int:
    return math.lcm(*(Fraction(power).denominator for powers in all_powers for _, power in powers))


def _values(x: Any) -> np.ndarray:
    """Return an array in float64, which holds the values of all narrower dtypes."""
    return np.asarray(x).astype(np.float64)
