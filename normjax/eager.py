"""Compute layer norms and what depends on them: inline if leaves are traced, else compiled once."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from normjax.channel_vectors import vector_leaves
from normjax.matrices import layer_norms
from normjax.norms import make_norm
from normjax.structure import NetworkStructure
from normjax.types import Norm, Params


def with_norms(
    fn: Callable[..., Any], params: Params, structure: NetworkStructure, norm: Norm, scale: float
) -> tuple[np.ndarray | None, Any]:
    """Return the layers' norms, None if they are traced, and `fn(leaves, norms, structure)`.

    Outside of transformations, everything is compiled. Only the leaves that the structure uses are
    passed to `fn`; the others are None. If all of them are NumPy arrays, so are the results. NumPy
    float64 stays float64, with or without JAX's x64 mode.

    Raises:
      ValueError: see `layer_norms`.
    """
    make_norm(norm, scale)  # raises ValueError
    used = _used_leaves(structure)
    leaves = [leaf if i in used else None for i, leaf in enumerate(jax.tree.leaves(params))]
    arrays = [leaf for leaf in leaves if leaf is not None]
    if any(isinstance(leaf, Tracer) for leaf in arrays):
        return None, fn(leaves, layer_norms(leaves, structure, norm, scale), structure)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in arrays):
        raise ValueError("params must be arrays; for shapes alone, use jax.eval_shape")

    def compute() -> Any:
        if callable(norm):  # a custom norm may not be traceable
            return _compile(fn)(leaves, layer_norms(leaves, structure, norm, scale), structure)
        return _compile_with_norms(fn)(leaves, structure, norm, scale)

    norms, result = as_given(compute, arrays)
    return None if isinstance(norms, Tracer) else np.asarray(norms), result


def as_given(compute: Callable[[], Any], arrays: Sequence[Any]) -> Any:
    """Return `compute()`, as NumPy arrays if all `arrays` are NumPy arrays.

    NumPy float64 stays float64, with or without JAX's x64 mode.
    """
    kinds = {leaf.dtype if is_numpy(leaf) else None for leaf in arrays}
    needs_x64 = np.dtype(np.float64) in kinds and not isinstance(jnp.zeros(()), Tracer)
    with jax.enable_x64(True) if needs_x64 else contextlib.nullcontext():
        result = compute()

    def as_numpy(x: Any) -> Any:
        is_double = x.dtype == np.float64
        is_kept = isinstance(x, Tracer) or is_numpy(x) or (None in kinds and not is_double)
        return x if is_kept else np.asarray(x)[()]

    return result if kinds <= {None} else jax.tree.map(as_numpy, result)


def is_numpy(leaf: Any) -> bool:
    """Return whether a leaf is a NumPy array or scalar."""
    return isinstance(leaf, (np.ndarray, np.generic))


@functools.cache
def _compile(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the compiled function that also returns the norms, in one array."""

    def run(leaves: Any, norms: Any, structure: NetworkStructure) -> Any:
        dtype = np.result_type(*(rho.dtype for rho in norms))
        stacked = jnp.stack([rho.astype(dtype) for rho in norms])
        return stacked, fn(leaves, norms, structure)

    return jax.jit(run, static_argnums=2)


@functools.cache
def _compile_with_norms(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the compiled function that also computes the norms it returns."""

    def run(leaves: Any, structure: NetworkStructure, norm: Norm, scale: float) -> Any:
        return _compile(fn)(leaves, layer_norms(leaves, structure, norm, scale), structure)

    return jax.jit(run, static_argnums=(1, 2, 3))


@functools.lru_cache(maxsize=256)
def _used_leaves(structure: NetworkStructure) -> frozenset[int]:
    """Return the numbers of the leaves that are scaled or part of a norm."""
    leaves = {leaf for leaf, _ in structure.divisors}
    for layer in structure.matrices:
        leaves.add(layer.kernel)
        for vector in (layer.factor, layer.bias):
            leaves.update([] if vector is None else vector_leaves(vector))
    return frozenset(leaf.number for leaf in leaves)
