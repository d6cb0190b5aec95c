"""The layers of a network with batch normalization absorbed, and the network with other layers.

Batch normalization multiplies each output channel by a factor and adds an offset. The kernel times
the factor, with the offset as its bias, is the layer of the same network without batch
normalization.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from normjax.channel_vectors import Vector, evaluate, factors, vector_leaves
from normjax.exponents import Leaf
from normjax.matrices import layer_matrix, restore
from normjax.structure import NetworkStructure
from normjax.types import Array, at_least_float32

Layers = list[dict[str, Array]]
"""`{"kernel": [*window, inputs, outputs]}` of each layer, and `"bias": [outputs]` if it has one."""


def absorbed_layers(params: Any, structure: NetworkStructure) -> Layers:
    """Return the layers of a network in order of application, with all biases."""
    leaves = jax.tree.leaves(params)
    with_biases = (dataclasses.replace(matrix, is_joint=True) for matrix in structure.matrices)
    return [layer_matrix(leaves, matrix) for matrix in with_biases]


def with_layers(params: Any, structure: NetworkStructure, layers: Layers) -> Any:
    """Return parameters of the same network whose `absorbed_layers` are `layers`.

    The scales of batch normalization become 1, and its statistics are kept. The structure must have
    passed `check_layers`.
    """
    leaves, treedef = jax.tree.flatten(params)
    for matrix, layer in zip(structure.matrices, layers, strict=True):
        kernel = layer["kernel"]
        if matrix.factor is not None:
            for scale in factors(matrix.factor):
                leaves[scale.number] = jnp.ones_like(leaves[scale.number])
            factor = at_least_float32(evaluate(matrix.factor, leaves))
            kernel = kernel / jnp.expand_dims(factor, range(kernel.ndim - factor.ndim))
        assert matrix.layout is not None
        number = matrix.kernel.number
        leaves[number] = restore(kernel, matrix.layout, structure.leaves[number][1])
        if matrix.offset is not None:
            number = _bias_of(matrix.offset).number
            change = layer["bias"] - evaluate(matrix.offset, leaves)
            leaves[number] = leaves[number] + change.reshape(leaves[number].shape)
    return jax.tree.unflatten(treedef, leaves)


def check_layers(structure: NetworkStructure) -> None:
    """Check that a network consists of kernels, biases and batch normalization, each used once.

    Raises:
      ValueError: the network has other parts; one line names them.
    """
    if structure.problems:
        raise ValueError(
            f"measures need a network whose layers can be normalized: {structure.problems[0]}"
        )
    used: list[Leaf] = []
    for matrix in structure.matrices:
        if matrix.layout is None or matrix.degree != 1 or matrix.kernel.part is not None:
            raise ValueError(f"measures need layers that are applied once, unlike {matrix.path!r}")
        vectors = [vector for vector in (matrix.factor, matrix.offset) if vector is not None]
        if matrix.offset is not None and _bias_of(matrix.offset) is None:
            raise ValueError(f"measures need a bias in the normalization after {matrix.path!r}")
        used += {matrix.kernel, *(leaf for vector in vectors for leaf in vector_leaves(vector))}
    for leaf in {*used, *(leaf for leaf, _ in structure.divisors)}:
        if used.count(leaf) != 1:
            path = structure.leaves[leaf.number][0]
            raise ValueError(f"measures need layers: {path!r} is in {used.count(leaf)} of them")


def _bias_of(offset: Vector) -> Any:
    """Return the leaf that is added to the rest of an offset, or None."""
    if isinstance(offset, Leaf):
        return offset
    if isinstance(offset, tuple) and offset[0] == "add":
        return _bias_of(offset[1]) or _bias_of(offset[2])
    return _bias_of(offset[1]) if isinstance(offset, tuple) and offset[0] == "sub" else None
