"""Normalization of layers, ``W_k = rho_k * W~_k`` with ``||W~_k|| = 1`` (paper, eq. 2)."""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from normjax.layers import Parent, find_layers, group_leaves, path_string
from normjax.norms import make_norm
from normjax.types import ApplyFn, Array, Norm, Params, at_least_float32


class HomogeneityCheck(NamedTuple):
    """How closely a network obeys eq. 2, ``f(W; x) = (prod rho_k) * f(W~; x)``, on given inputs.

    Attributes:
        max_abs_error: largest ``|f(W; x) - (prod rho_k) * f(W~; x)|`` over examples and classes.
        relative_error: the same, divided by the largest ``|f(W; x)|``.
        same_classes: whether both networks predict the same class for every input.
        product_norm: ``prod rho_k``.
        layers: paths of the layers that were found, in order of application.
    """

    max_abs_error: float
    relative_error: float
    same_classes: bool
    product_norm: float
    layers: tuple[str, ...]


def param_norms(
    params: Params,
    norm: Norm = 2,
    *,
    scale: float = 1.0,
    layers: Sequence[str] | None = None,
) -> dict[str, Array]:
    """Return the norm of each layer, the paper's ``rho_k``.

    The first layer's kernel and bias count as one matrix ``[W_1, b_1]``: its bias is one more
    input held constant. Biases of later layers are no part of their layer's norm, because they
    scale with the product of all norms up to theirs.

    Args:
        params: nested mapping of ``kernel`` and ``bias`` leaves, of one network; stacked networks
            are handled by ``jax.vmap``.
        norm: see ``make_norm``.
        scale: each norm is divided by it.
        layers: paths in order of application, where the natural order of the paths is not it.

    Returns:
        ``{path: norm}`` in order of application; float32 scalars (float64 for float64 leaves), 0
        for a layer of zeros.

    Raises:
        ValueError: see ``find_layers`` and ``make_norm``.
    """
    norm_fn = make_norm(norm, scale)
    leaves = jax.tree.leaves(params)
    norms = {}
    for depth, layer in enumerate(find_layers(params, layers)):
        parts = {"kernel": leaves[layer.kernel]}
        if depth == 0 and layer.bias is not None:
            parts["bias"] = leaves[layer.bias]
        norms[layer.path] = norm_fn(parts)
    return norms


def product_norm(
    params: Params,
    norm: Norm = 2,
    *,
    scale: float = 1.0,
    layers: Sequence[str] | None = None,
) -> Array:
    """Return the product of the layers' norms, ``rho_1 * ... * rho_K`` (paper, eq. 2 and fig. 9).

    Inside ``jit``, ``vmap`` and ``grad`` a layer of norm 0 counts as 1, as it does in
    ``normalize_params``, so that eq. 2 stays exact.

    Args:
        params, norm, scale, layers: see ``param_norms``.

    Returns:
        A float32 scalar (float64 for float64 leaves).

    Raises:
        ValueError: a layer of norm 0 outside of transformations; see also ``param_norms``.
    """
    divisors = _divisors(param_norms(params, norm, scale=scale, layers=layers))
    return functools.reduce(operator.mul, divisors.values())


def normalize_params(
    params: Params,
    norm: Norm = 2,
    *,
    scale: float = 1.0,
    layers: Sequence[str] | None = None,
) -> Params:
    """Divide each layer by its norm, so that ``f(W; x) = (prod rho_k) f(W~; x)`` (paper, eq. 2).

    This holds exactly for a chain of layers with positively homogeneous activations (ReLU, leaky
    ReLU, max and average pooling, none); ``check_homogeneity`` tests it. Kernels are divided by
    their layer's norm; the first bias too, being part of ``[W_1, b_1]``; the bias of a later layer
    k by ``rho_1 * ... * rho_k``. Inside ``jit``, ``vmap`` and ``grad`` a layer of norm 0 is left as
    it is, with finite gradients.

    Example:
        >>> normalized = normalize_params(params, norm=1, scale=100.0)
        >>> stacked = jax.vmap(normalize_params)(stacked_params)

    Args:
        params, norm, scale, layers: see ``param_norms``.

    Returns:
        The normalized parameters ``W~``: same tree, shapes and dtypes.

    Raises:
        ValueError: a layer of norm 0 outside of transformations; see also ``param_norms``.
    """
    divisors = _divisors(param_norms(params, norm, scale=scale, layers=layers))
    leaves, treedef = jax.tree.flatten(params)
    passed = []
    for layer in find_layers(params, layers):
        passed.append(divisors[layer.path])
        leaves[layer.kernel] = _divide(leaves[layer.kernel], passed[-1:])
        if layer.bias is not None:
            leaves[layer.bias] = _divide(leaves[layer.bias], passed)
    return jax.tree.unflatten(treedef, leaves)


def check_homogeneity(
    apply_fn: ApplyFn,
    params: Params,
    x: Array,
    *,
    norm: Norm = 2,
    scale: float = 1.0,
    layers: Sequence[str] | None = None,
) -> HomogeneityCheck:
    """Measure how closely a network obeys eq. 2 of the paper on the inputs ``x``.

    Both networks run at the highest matmul precision. A relative error around 1e-6 is float32
    rounding; one above 1e-4 means that the network is not homogeneous, or that the layers were
    taken in a wrong order (see ``layers``).

    Args:
        apply_fn: pure function ``(params, x) -> logits [batch, num_classes]``.
        params, norm, scale, layers: see ``param_norms``.
        x: inputs ``[batch, ...]``.

    Returns:
        The errors, as Python numbers.

    Raises:
        ValueError: see ``normalize_params``.
    """
    product = product_norm(params, norm, scale=scale, layers=layers)
    normalized = normalize_params(params, norm, scale=scale, layers=layers)
    with jax.default_matmul_precision("highest"):
        logits = apply_fn(params, x)
        normalized_logits = apply_fn(normalized, x)
    max_abs_error = float(jnp.max(jnp.abs(logits - product * normalized_logits)))
    largest = float(jnp.max(jnp.abs(logits)))
    same_classes = jnp.argmax(logits, axis=-1) == jnp.argmax(normalized_logits, axis=-1)
    return HomogeneityCheck(
        max_abs_error=max_abs_error,
        relative_error=max_abs_error / largest if largest else max_abs_error,
        same_classes=bool(jnp.all(same_classes)),
        product_norm=float(product),
        layers=tuple(layer.path for layer in find_layers(params, layers)),
    )


def absorb_batch_norm(
    variables: Mapping[str, Any],
    *,
    epsilon: float = 1e-5,
    pairs: Mapping[str, str] | None = None,
) -> Params:
    """Fold batch normalization, as used at test time, into the layers before it.

    With ``s = scale / sqrt(var + epsilon)`` a layer becomes ``W' = W * s`` and
    ``b' = (b - mean) * s + bias``, and the batch normalization disappears. The result is the
    parameters of the twin network without it, whose layers have biases. It works under ``jit``
    and, for stacked networks, ``vmap``.

    A batch normalization must act on a layer's output, before the activation. Within a module, the
    n-th one (in natural order) of some number of features is taken to follow the n-th layer of that
    number of features; unless there are as many of one as of the other, ``pairs`` must say.

    Args:
        variables: ``{"params": ..., "batch_stats": ...}`` as in Flax: leaves ``scale`` and
            ``bias`` (each may be absent) in the former, ``mean`` and ``var`` in the latter.
        epsilon: that of the network's batch normalization (Flax's default).
        pairs: ``{batch normalization's path: layer's path}``, for those to be paired by name.

    Returns:
        The twin's parameters, as nested dicts; ``params`` itself if there are no batch statistics.

    Raises:
        ValueError: a batch normalization that cannot be paired, or leaves that are not its own.
    """
    if "params" not in variables:
        raise ValueError(f"variables must hold 'params'; they hold {sorted(variables)}")
    modules, stats = group_leaves(variables["params"]), group_leaves(variables.get("batch_stats"))
    if not stats and not pairs:
        return variables["params"]
    for parent, leaves in stats.items():
        affine = modules.get(parent, {})
        if leaves.keys() != {"mean", "var"} or not affine.keys() <= {"scale", "bias"}:
            raise ValueError(
                f"{path_string(parent)!r} is no batch normalization: its statistics are "
                f"{sorted(leaves)}, not ['mean', 'var'], or its parameters {sorted(affine)} are "
                "not among ['bias', 'scale']"
            )
    for batch_norm, layer in _pair_batch_norms(modules, stats, pairs or {}).items():
        affine = modules.pop(batch_norm, {})
        modules[layer] = _absorb(modules[layer], affine, **stats[batch_norm], epsilon=epsilon)
    return _nested_dict(modules)


def _divisors(norms: Mapping[str, Array]) -> dict[str, Array]:
    """Return the norms with 1 for 0; raise for those known to be 0 or negative."""
    if not any(isinstance(rho, jax.core.Tracer) for rho in norms.values()):
        for path, rho in jax.device_get(norms).items():
            if rho <= 0:
                raise ValueError(f"layer {path!r} has norm {rho}: it cannot be normalized")
    return {path: jnp.where(rho == 0, 1, rho) for path, rho in norms.items()}


def _divide(leaf: Array, norms: Sequence[Array]) -> Array:
    """Divide by the norms one after the other, as their product may overflow; keep the dtype."""
    wide = at_least_float32(leaf)
    return functools.reduce(operator.truediv, norms, wide).astype(jnp.result_type(leaf))


def _pair_batch_norms(
    modules: Mapping[Parent, Mapping[str, Array]],
    stats: Mapping[Parent, Mapping[str, Array]],
    pairs: Mapping[str, str],
) -> dict[Parent, Parent]:
    """Return which layer each batch normalization follows."""
    batch_norms = {path_string(parent): parent for parent in stats}
    layers = {path_string(parent): parent for parent in modules if "kernel" in modules[parent]}
    for path, known in [*((p, batch_norms) for p in pairs), *((p, layers) for p in pairs.values())]:
        if path not in known:
            raise ValueError(f"pairs names {path!r}, which is not one of {list(known)}")
    if len(set(pairs.values())) < len(pairs):
        raise ValueError(f"pairs gives one layer two batch normalizations: {dict(pairs)}")

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
    """Group modules by the module that holds them and their number of features."""
    groups: dict[tuple[Parent, int], list[Parent]] = {}
    for parent, leaf in leaves.items():
        groups.setdefault((parent[:-1], leaf.shape[-1]), []).append(parent)
    return groups


def _paths(parents: Sequence[Parent]) -> list[str]:
    """Return the modules' paths."""
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
    kernel = layer["kernel"]
    factor = affine.get("scale", 1) / jnp.sqrt(var + epsilon)
    bias = (layer.get("bias", 0) - mean) * factor + affine.get("bias", 0)
    return {
        **layer,
        "kernel": (kernel * factor).astype(kernel.dtype),
        "bias": bias.astype(kernel.dtype),
    }


def _nested_dict(modules: Mapping[Parent, Mapping[str, Array]]) -> dict[Any, Any]:
    """Undo ``group_leaves``."""
    tree: dict[Any, Any] = {}
    for parent, leaves in modules.items():
        node = tree
        for key in parent:
            node = node.setdefault(key, {})
        node.update(leaves)
    return tree
