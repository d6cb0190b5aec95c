"""Fold batch normalization into the preceding layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normjax.layers import Parent, group_leaves, path_string
from normjax.types import Array, Params, at_least_float32


def absorb_batch_norm(
    variables: Mapping[str, Any],
    *,
    epsilon: float = 1e-5,
    pairs: Mapping[str, str] | None = None,
) -> Params:
    """Fold batch normalization, as used at test time, into the preceding layers.

    With `s = scale / sqrt(var + epsilon)`, a layer becomes `W' = W * s` and
    `b' = (b - mean) * s + bias`. The result is the parameters of an equivalent network without
    batch normalization, whose layers have biases. This works under `jit` and, for stacked networks,
    `vmap`.

    Each batch normalization must act on a layer's output, before the activation. Within a module,
    the n-th batch normalization (in natural order) with a given number of features follows the n-th
    layer with that number of features. If the counts differ, `pairs` must define the pairs.

    Example:
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
      epsilon: the epsilon of the network; default: that of Flax.
      pairs: `{path of the batch normalization: path of the layer}`, if shapes are ambiguous.

    Returns:
      The parameters without batch normalization, as nested dicts, in the dtypes of the kernels;
      `params` itself if there are no batch statistics.

    Raises:
      ValueError: a batch normalization has no matching layer, or its leaves are unknown.
    """
    if "params" not in variables:
        raise ValueError(f"variables must have 'params'; they have {sorted(variables)}")
    modules, stats = (
        group_leaves(variables["params"]),
        group_leaves(variables.get("batch_stats", {})),
    )
    if not stats and not pairs:
        return variables["params"]
    for parent, leaves in stats.items():
        affine = modules.get(parent, {})
        if leaves.keys() != {"mean", "var"} or not affine.keys() <= {"scale", "bias"}:
            raise ValueError(
                f"{path_string(parent)!r} is not a batch normalization: its statistics are "
                f"{sorted(leaves)}, not ['mean', 'var'], or its parameters {sorted(affine)} are "
                "not among ['bias', 'scale']"
            )
    for batch_norm, layer in _pair_batch_norms(modules, stats, pairs or {}).items():
        affine = modules.pop(batch_norm, {})
        modules[layer] = _absorb(modules[layer], affine, **stats[batch_norm], epsilon=epsilon)
    return _nested_dict(modules)


def _pair_batch_norms(
    modules: Mapping[Parent, Mapping[str, Array]],
    stats: Mapping[Parent, Mapping[str, Array]],
    pairs: Mapping[str, str],
) -> dict[Parent, Parent]:
    """Return the layer that each batch normalization follows."""
    batch_norms = {path_string(parent): parent for parent in stats}
    layers = {path_string(parent): parent for parent in modules if "kernel" in modules[parent]}
    for path, known in [*((p, batch_norms) for p in pairs), *((p, layers) for p in pairs.values())]:
        if path not in known:
            raise ValueError(f"pairs has {path!r}, which is not one of {list(known)}")
    if len(set(pairs.values())) < len(pairs):
        raise ValueError(f"pairs maps two batch normalizations to one layer: {dict(pairs)}")

    paired = {batch_norms[path]: layers[layer] for path, layer in pairs.items()}
    for parent, layer in paired.items():
        features, outputs = stats[parent]["mean"].shape[-1], modules[layer]["kernel"].shape[-1]
        if features != outputs:
            raise ValueError(
                f"{path_string(parent)!r} has {features} features and cannot follow "
                f"{path_string(layer)!r} with {outputs}"
            )
    open_norms = _by_features(
        {parent: leaf["mean"] for parent, leaf in stats.items() if parent not in paired}
    )
    open_layers = _by_features(
        {p: modules[p]["kernel"] for p in layers.values() if p not in paired.values()}
    )
    for group, members in open_norms.items():
        candidates = open_layers.get(group, [])
        if len(candidates) != len(members):
            raise ValueError(
                f"cannot tell which layers the batch normalizations {_paths(members)} follow: "
                f"{_paths(candidates)} have {group[1]} features in the same module; use pairs"
            )
        paired.update(zip(members, candidates, strict=True))
    return paired


def _by_features(leaves: Mapping[Parent, Array]) -> dict[tuple[Parent, int], list[Parent]]:
    """Group modules by parent module and number of features."""
    groups: dict[tuple[Parent, int], list[Parent]] = {}
    for parent, leaf in leaves.items():
        groups.setdefault((parent[:-1], leaf.shape[-1]), []).append(parent)
    return groups


def _paths(parents: Sequence[Parent]) -> list[str]:
    """Return the paths of modules."""
    return [path_string(parent) for parent in parents]


def _absorb(
    layer: Mapping[str, Array],
    affine: Mapping[str, Array],
    *,
    mean: Array,
    var: Array,
    epsilon: float,
) -> dict[str, Array]:
    """Return a layer's leaves with one batch normalization folded in."""
    # One dtype and equal ranks: strict dtype and rank promotion must work.
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
