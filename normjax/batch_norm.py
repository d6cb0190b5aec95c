"""Fold batch normalization into the preceding layers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normjax.channel_vectors import vector_leaves
from normjax.eager import as_given
from normjax.layers import (
    TRACE,
    Parent,
    check_chain,
    check_names,
    choose_structure,
    group_leaves,
    path_string,
)
from normjax.matrices import layer_matrix, restore
from normjax.structure import NetworkStructure
from normjax.types import Array, Params, at_least_float32

_ADVICE = f"pass {TRACE} of the variables, or pairs="


def absorb_batch_norm(
    variables: Mapping[str, Any],
    *,
    epsilon: float | None = None,
    pairs: Mapping[str, str] | None = None,
    structure: NetworkStructure | None = None,
) -> Params:
    """Fold batch normalization, as used at test time, into the preceding layers.

    With `s = scale / sqrt(var + epsilon)`, a layer becomes `W' = W * s` and
    `b' = (b - mean) * s + bias`. The result is the parameters of an equivalent network without
    batch normalization, whose layers have biases. This works under `jit` and, for stacked networks,
    `vmap`.

    Each batch normalization must act on a layer's output, before the activation. A structure shows
    where each one acts, and its epsilon. Names and shapes cannot. Without a structure, the caller
    is responsible for the position and epsilon, and the names must prove the pairs, as they prove
    the order in `find_layers`: the n-th batch normalization with a given number of features follows
    the n-th layer with that number of features. `pairs` may define the pairs instead.

    `normalize_params` with a structure normalizes the network as it is; nothing needs to be
    absorbed.

    Examples:
      >>> import numpy as np
      >>> import normjax
      >>> variables = {
      ...     "params": {"Dense_0": {"kernel": np.ones((1, 1), np.float32)},
      ...                "BatchNorm_0": {"scale": np.float32([6]), "bias": np.float32([1])}},
      ...     "batch_stats": {"BatchNorm_0": {"mean": np.float32([2]), "var": np.float32([9])}}}
      >>> params = normjax.absorb_batch_norm(variables, epsilon=0.0)
      >>> params["Dense_0"]["kernel"].item(), params["Dense_0"]["bias"].item()
      (2.0, -3.0)

    Args:
      variables: `{"params": ..., "batch_stats": ...}` as in Flax, with optional leaves `scale` and
        `bias` in "params", and leaves `mean` and `var` in "batch_stats".
      epsilon: without a structure, the epsilon of the network; 1e-5 by default, as in Flax.
      pairs: without a structure, `{path of the batch normalization: path of the layer}` for each
        batch normalization.
      structure: the result of `trace_structure` for `variables`.

    Returns:
      The parameters without batch normalization, as nested dicts, in the dtypes of the kernels;
      `params` itself if there are no batch statistics.

    Raises:
      ValueError: a batch normalization has no matching layer or does not follow a layer, the names
        do not prove the pairs, or leaves are unknown; see also `normalize_params`.
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError(
            "variables must be {'params': ..., 'batch_stats': ...}, not "
            + (f"{sorted(variables)}" if isinstance(variables, Mapping) else f"{type(variables)}")
        )
    if structure is not None:
        if epsilon is not None or pairs:
            raise ValueError("give structure, or epsilon and pairs: a structure has its own")
        structure = choose_structure(variables, None, structure)
    if not pairs and not jax.tree.leaves(variables.get("batch_stats", {})):
        return variables["params"]

    def absorb() -> Params:
        if structure is None:
            return _absorb_by_name(variables, epsilon, pairs)
        return _absorb_traced(variables, structure)

    return as_given(absorb, jax.tree.leaves(variables))


def _absorb_by_name(
    variables: Mapping[str, Any], epsilon: float | None, pairs: Mapping[str, str] | None
) -> Params:
    """Fold each batch normalization into the layer that names or `pairs` prove it to follow."""
    modules, stats = (
        group_leaves(variables["params"]),
        group_leaves(variables.get("batch_stats", {})),
    )
    for parent, leaves in stats.items():
        affine = modules.get(parent, {})
        if leaves.keys() != {"mean", "var"} or not affine.keys() <= {"scale", "bias"}:
            raise ValueError(
                f"{path_string(parent)!r} is not a batch normalization: its statistics are "
                f"{sorted(leaves)}, not ['mean', 'var'], or its parameters {sorted(affine)} are "
                "not among ['bias', 'scale']"
            )
    epsilon = 1e-5 if epsilon is None else epsilon
    for batch_norm, layer in _pair_batch_norms(modules, stats, pairs).items():
        affine = modules.pop(batch_norm, {})
        modules[layer] = _absorb(modules[layer], affine, **stats[batch_norm], epsilon=epsilon)
    return _nested_dict(modules)


def _absorb_traced(variables: Mapping[str, Any], structure: NetworkStructure) -> Params:
    """Fold each batch normalization into the layer whose outputs it acts on."""
    leaves, treedef = jax.tree.flatten(variables)
    numbers = jax.tree.unflatten(treedef, range(len(leaves)))
    stats = set(jax.tree.leaves(numbers.get("batch_stats", {})))
    modules = group_leaves(numbers["params"])
    owners = {module["kernel"]: parent for parent, module in modules.items() if "kernel" in module}
    absorbed: dict[Parent, dict[str, Array]] = {}
    folded: set[int] = set()
    for layer in structure.matrices:
        vectors = [vector for vector in (layer.factor, layer.offset) if vector is not None]
        used = {leaf.number for vector in vectors for leaf in vector_leaves(vector)}
        if used & stats and layer.kernel.number in owners and layer.layout is not None:
            stored = leaves[layer.kernel.number]
            matrix = layer_matrix(leaves, dataclasses.replace(layer, is_joint=True))
            matrix["kernel"] = restore(matrix["kernel"], layer.layout, stored.shape)
            absorbed[owners[layer.kernel.number]] = {
                name: leaf.astype(stored.dtype) for name, leaf in matrix.items()
            }
            folded |= used
    if stats - folded:
        path = structure.leaves[min(stats - folded)][0]
        raise ValueError(
            f"the batch normalization of {path!r} cannot be absorbed: it does not directly follow "
            "a layer of its own; normalize_params takes the network as it is"
        )
    kept = {
        parent: {name: leaves[i] for name, i in module.items() if i not in folded}
        for parent, module in modules.items()
    }
    return _nested_dict({p: {**kept[p], **absorbed.get(p, {})} for p in kept if kept[p]})


def _pair_batch_norms(
    modules: Mapping[Parent, Mapping[str, Array]],
    stats: Mapping[Parent, Mapping[str, Array]],
    pairs: Mapping[str, str] | None,
) -> dict[Parent, Parent]:
    """Return the layer that each batch normalization follows."""
    batch_norms = {path_string(parent): parent for parent in stats}
    layers = {path_string(parent): parent for parent in modules if "kernel" in modules[parent]}
    features = {path: stats[parent]["mean"].shape[-1] for path, parent in batch_norms.items()}
    kernels = {path: modules[parent]["kernel"].shape for path, parent in layers.items()}
    if not pairs:
        check_names(list(batch_norms.values()), _ADVICE)
        check_names(list(layers.values()), _ADVICE)
        check_chain(kernels, _ADVICE)
        pairs = _pairs_in_order(features, {path: kernel[-1] for path, kernel in kernels.items()})
    for path, known in [*((p, batch_norms) for p in pairs), *((p, layers) for p in pairs.values())]:
        if path not in known:
            raise ValueError(f"pairs has {path!r}, which is not one of {list(known)}")
    if len(set(pairs.values())) < len(pairs):
        raise ValueError(f"pairs maps two batch normalizations to one layer: {dict(pairs)}")
    for path, layer in pairs.items():
        if features[path] != kernels[layer][-1]:
            raise ValueError(
                f"{path!r} has {features[path]} features and cannot follow {layer!r} with "
                f"{kernels[layer][-1]}"
            )
    if missing := batch_norms.keys() - pairs.keys():
        raise ValueError(f"pairs lacks {min(missing)!r}: it must name every batch normalization")
    return {batch_norms[path]: layers[layer] for path, layer in pairs.items()}


def _pairs_in_order(features: Mapping[str, int], outputs: Mapping[str, int]) -> dict[str, str]:
    """Pair batch normalizations and layers of equal width in order; both are in order of use."""
    pairs = {}
    for width in set(features.values()):
        members = [path for path, size in features.items() if size == width]
        candidates = [path for path, size in outputs.items() if size == width]
        if len(candidates) != len(members):
            raise ValueError(
                f"cannot tell which layers the batch normalizations {members} follow: "
                f"{candidates} have {width} features; {_ADVICE}"
            )
        pairs.update(zip(members, candidates, strict=True))
    return pairs


def _absorb(
    layer: Mapping[str, Array],
    affine: Mapping[str, Array],
    *,
    mean: Array,
    var: Array,
    epsilon: float,
) -> dict[str, Array]:
    """Return a layer's leaves with one batch normalization folded in."""
    # One dtype and equal ranks, so that this works under strict dtype and rank promotion.
    leaves = jax.tree.map(at_least_float32, (dict(layer), dict(affine), mean, var))
    dtype = np.result_type(*(leaf.dtype for leaf in jax.tree.leaves(leaves)))
    wide, affine, mean, var = jax.tree.map(lambda leaf: leaf.astype(dtype), leaves)
    factor = affine.get("scale", 1) / jnp.sqrt(var + epsilon)
    bias = (wide.get("bias", 0) - mean) * factor + affine.get("bias", 0)
    kernel = wide["kernel"] * jnp.expand_dims(factor, range(wide["kernel"].ndim - 1))
    kept = layer["kernel"].dtype
    return {**layer, "kernel": kernel.astype(kept), "bias": bias.astype(kept)}


def _nested_dict(modules: Mapping[Parent, Mapping[str, Array]]) -> dict[Any, Any]:
    """Undo `group_leaves`."""
    tree: dict[Any, Any] = {}
    for parent, leaves in modules.items():
        node = tree
        for key in parent:
            node = node.setdefault(key, {})
        node.update(leaves)
    return tree
