"""Find the layers of a parameter tree by their names, where names prove the order."""

import functools
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey

from normjax.exponents import Leaf
from normjax.formatting import plain
from normjax.matrices import flax_layout
from normjax.powers import Powers
from normjax.structure import LayerMatrix, NetworkStructure, Reads, leaf_kind
from normjax.types import Params

Parent = tuple[Any, ...]
"""The keys that lead to a module, outermost first."""

TRACE = "structure=normjax.trace_structure(apply_fn, params, x)"
_ADVICE = f"pass {TRACE}, or layers=, the paths of all layers in order of application"
_MAX_LISTED = 6  # problems of a structure in an error message


def find_layers(params: Params, layers: Sequence[str] | None = None) -> NetworkStructure:
    """Find a network's layers in order of application by their names.

    A layer is a leaf `kernel`, laid out `[*window, inputs, outputs]`, with an optional sibling
    `bias`. Names are accepted only where they prove the order: all layers are in one module, with
    automatic names of one kind (`Dense_0`, `Dense_1`, ... or `layers_0`, ... or the indices of a
    list), and each layer's inputs equal the previous outputs, or those times a flattened window.

    Names and shapes cannot see activations, skip connections, groups of channels, or a layer that
    is applied twice. `trace_structure` can.

    Only shapes and dtypes are used, so leaves may be traced or abstract.

    Args:
      params: nested mappings or lists of floating-point leaves.
      layers: the paths of all layers in order of application; the names may then be arbitrary.

    Returns:
      The structure, with `is_traced=False`.

    Raises:
      ValueError: the names or shapes do not prove the order, a leaf is not part of a layer or not a
        floating-point array, or `layers` does not name every layer once.
    """
    if layers is not None and not _are_paths(layers):
        raise ValueError(f"layers must be a sequence of paths, not {plain(layers)}")
    leaves, treedef = jax.tree.flatten(params)
    kinds = tuple(getattr(leaf, "dtype", type(leaf)) for leaf in leaves)
    return _find_layers(
        treedef, leaf_shapes(leaves), kinds, None if layers is None else tuple(layers)
    )


def _are_paths(layers: Any) -> bool:
    """Return whether `layers` is a sequence of strings, but not a string."""
    is_sequence = isinstance(layers, Sequence) and not isinstance(layers, str)
    return is_sequence and all(isinstance(path, str) for path in layers)


def choose_structure(
    params: Params,
    layers: Sequence[str] | None,
    structure: NetworkStructure | None,
    tied: str = "refuse",
) -> NetworkStructure:
    """Return the given structure if it is certified and fits the tree, or find the layers by name.

    Args:
      params, layers: see `find_layers`.
      structure: the structure of the network whose parameters are given, or None.
      tied: `"refuse"`, or `"keep"` to accept a structure with weights that cannot be scaled on
        their own.

    Raises:
      ValueError: see `find_layers`; or the structure belongs to another tree, or is not certified.
    """
    if tied not in ("refuse", "keep"):
        raise ValueError(f"tied must be 'refuse' or 'keep', not {tied!r}")
    if structure is None:
        return find_layers(params, layers)
    if not isinstance(structure, NetworkStructure):
        raise ValueError(
            f"structure must be the result of normjax.trace_structure, not {type(structure)}"
        )
    if layers is not None:
        raise ValueError("give structure or layers, not both: a structure has its own layers")
    leaves, treedef = jax.tree.flatten(params)
    _check_tree(structure, treedef, leaf_shapes(leaves))
    kinds = tuple(map(leaf_kind, leaves))
    if structure.kinds and kinds != structure.kinds:
        number = next(i for i, kind in enumerate(kinds) if kind != structure.kinds[i])
        raise ValueError(
            f"leaf {structure.leaves[number][0]!r} is {kinds[number] or 'no array'}; the structure "
            f"was traced with {structure.kinds[number] or 'no array'}"
        )
    if structure.problems and tied == "refuse":
        listed = "; ".join(structure.problems[:_MAX_LISTED])
        more = len(structure.problems) - _MAX_LISTED
        raise ValueError(
            f"the structure is not certified: {listed}{f'; and {more} more' * (more > 0)} "
            "(tied='keep' normalizes the other layers)"
        )
    if not structure.matrices:
        raise ValueError("the structure has no layer that can be normalized")
    return structure


def leaf_shapes(leaves: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of leaves, `()` for those that are not arrays."""
    return tuple(getattr(leaf, "shape", ()) for leaf in leaves)


def group_leaves(tree: Params) -> dict[Parent, dict[Any, Any]]:
    """Group leaves by module, `{module's keys: {leaf name: leaf}}`, in natural order.

    In the natural order, numbers in names count as numbers: `Conv_2` before `Conv_10`.
    """
    modules: dict[Parent, dict[Any, Any]] = {}
    for entries, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        *parent, name = [_key(entry) for entry in entries] or [""]
        modules.setdefault(tuple(parent), {})[name] = leaf
    return dict(sorted(modules.items(), key=lambda module: _natural_order(module[0])))


def path_string(parent: Parent) -> str:
    """Return a module's keys as a path, `"."` for the root."""
    return "/".join(map(str, parent)) or "."


def check_names(parents: Sequence[Parent], advice: str) -> None:
    """Raise unless the names of modules, in natural order, prove their order of application.

    Args:
      parents: the keys that lead to each module.
      advice: what to do if they do not.
    """
    if len(parents) == 1:
        return
    names = [_automatic_name(parent[-1]) if parent else None for parent in parents]
    if len({parent[:-1] for parent in parents}) > 1:
        reason = "they are not all in one module"
    elif len({name and name[0] for name in names}) > 1 or None in names:
        reason = "they are not automatic names of one kind, such as Dense_0, Dense_1"
    elif [name and name[1] for name in names] != list(range(len(names))):
        reason = "their numbers are not 0, 1, 2, ..."
    else:
        return
    raise ValueError(
        f"the names {list(map(path_string, parents))} do not prove an order: {reason}; {advice}"
    )


def check_chain(kernels: Mapping[str, tuple[int, ...]], advice: str) -> None:
    """Raise unless each layer's inputs equal the prior outputs, or those times a flattened window.

    Args:
      kernels: paths of the layers in order, and the shapes of their `[*window, inputs, outputs]`.
      advice: what to do if they do not.
    """
    for (path, kernel), (following, next_kernel) in pairwise(kernels.items()):
        outputs, inputs = kernel[-1], next_kernel[-2]
        is_flattened = len(kernel) > 2 and len(next_kernel) == 2 and inputs % outputs == 0
        if inputs != outputs and not is_flattened:
            raise ValueError(
                f"layer {following!r} takes {inputs} inputs, which does not match the {outputs} "
                f"outputs of {path!r} before it: in this order, the layers are not a chain; "
                f"{advice}"
            )


@functools.lru_cache(maxsize=256)
def _find_layers(
    treedef: Any,
    shapes: tuple[tuple[int, ...], ...],
    kinds: tuple[Any, ...],
    layers: tuple[str, ...] | None,
) -> NetworkStructure:
    """Find the layers of a tree with leaves of these shapes and dtypes."""
    if not shapes:
        raise ValueError("the parameter tree has no leaves")
    entries = [entry for entry, _ in _with_paths(treedef)]
    modules = group_leaves(treedef.unflatten(range(len(shapes))))
    for module, positions in modules.items():
        for name, i in positions.items():
            _check_leaf(entries[i], name, kinds[i], positions)
        _check_shapes(path_string(module), {name: shapes[i] for name, i in positions.items()})
    found = {path_string(module): positions for module, positions in modules.items()}
    if layers is None:
        check_names(list(modules), _ADVICE)
        layers = tuple(found)
    elif sorted(layers) != sorted(found):
        raise ValueError(
            f"layers must name each of {list(found)} once, in order of application; "
            f"got {list(layers)}"
        )
    check_chain({path: shapes[found[path]["kernel"]] for path in layers}, _ADVICE)
    matrices, divisors = [], []
    powers: Powers = ()
    for depth, path in enumerate(layers):
        kernel, bias = Leaf(found[path]["kernel"]), found[path].get("bias")
        layout = flax_layout(len(shapes[kernel.number]))
        reads = Reads(depth - 1 if depth else None, 1)
        powers = (*powers, (depth, 1))
        divisors.append((kernel, powers[-1:]))
        if bias is not None:
            divisors.append((Leaf(bias), powers))
        offset = None if bias is None else Leaf(bias)
        is_joint = depth == 0 and bias is not None
        matrices.append(
            LayerMatrix(path, kernel, layout, offset=offset, is_joint=is_joint, reads=reads)
        )
    leaves = tuple(zip(_leaf_paths(treedef), shapes, strict=True))
    return NetworkStructure(leaves, tuple(matrices), tuple(divisors), is_traced=False)


@functools.lru_cache(maxsize=256)
def _check_tree(
    structure: NetworkStructure, treedef: Any, shapes: tuple[tuple[int, ...], ...]
) -> None:
    """Raise unless a structure belongs to trees with leaves of these shapes."""
    leaves = dict(zip(_leaf_paths(treedef), shapes, strict=True))
    expected = dict(structure.leaves)
    for path in [*expected, *leaves]:
        if path not in leaves:
            raise ValueError(f"the structure belongs to another tree: it has a leaf {path!r}")
        if path not in expected:
            raise ValueError(f"the structure belongs to another tree: it has no leaf {path!r}")
        if leaves[path] != expected[path]:
            raise ValueError(
                f"the structure belongs to another tree: leaf {path!r} has shape {leaves[path]}, "
                f"there {expected[path]}; stacked networks are handled by jax.vmap"
            )
    if tuple(leaves) != tuple(expected):
        raise ValueError("the structure belongs to another tree: its leaves have another order")


def _with_paths(treedef: Any) -> list[tuple[Any, int]]:
    """Return the key path and the position of each leaf."""
    numbered = treedef.unflatten(range(treedef.num_leaves))
    return jax.tree_util.tree_flatten_with_path(numbered)[0]


def _leaf_paths(treedef: Any) -> list[str]:
    """Return the paths of the leaves, as structures have them."""
    return [
        jax.tree_util.keystr(entries, simple=True, separator="/")
        for entries, _ in _with_paths(treedef)
    ]


def _key(entry: Any) -> Any:
    """Return the key of one entry of a JAX key path."""
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return str(entry)


def _automatic_name(key: Any) -> tuple[str, int] | None:
    """Split `Dense_3` into "Dense" and 3, an index into "" and the index; None for other names."""
    match = re.fullmatch(r"(?:(.*)_)?(0|[1-9][0-9]*)", str(key))
    return (match[1] or "", int(match[2])) if match else None


def _natural_order(parent: Parent) -> list[list[Any]]:
    """Return a sort key that compares the numbers in names as numbers."""
    # re.split alternates text (even indices) and digits (odd indices): types never mix.
    return [
        [int(piece) if i % 2 else piece for i, piece in enumerate(re.split(r"(\d+)", str(key)))]
        for key in parent
    ]


def _check_leaf(entries: Any, name: Any, kind: Any, siblings: Mapping[Any, int]) -> None:
    """Raise unless the leaf is a floating-point kernel or its bias."""
    path = jax.tree_util.keystr(entries, simple=True, separator="/")
    if any(isinstance(entry, GetAttrKey) for entry in entries):
        raise ValueError(
            f"leaf {path!r} is in an object, not in nested mappings: if the object is a network's "
            f"parameters, pass {TRACE}; an optimizer's state is not normalized"
        )
    if isinstance(kind, type) or not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(
            f"leaf {path!r} must be a floating-point array, not "
            f"{kind.__name__ if isinstance(kind, type) else kind}"
        )
    if name in ("kernel", "bias") and "kernel" in siblings:
        return
    hint = ""
    if {"mean", "var"} & siblings.keys():
        hint = ", which handles batch normalization, or absorb it with absorb_batch_norm"
    elif "scale" in siblings:
        hint = "; batch normalization needs its statistics in params"
    raise ValueError(
        f"leaf {path!r} is not part of a layer: a 'kernel' with an optional 'bias'; "
        f"for other networks, pass {TRACE}{hint}"
    )


def _check_shapes(path: str, shapes: Mapping[Any, tuple[int, ...]]) -> None:
    """Raise unless kernel and bias have the shapes of a layer of one network."""
    kernel = shapes["kernel"]
    if len(kernel) < 2 or 0 in kernel:
        raise ValueError(
            f"the kernel of layer {path!r} has shape {kernel}; it must be non-empty, "
            "[..., inputs, outputs]"
        )
    bias = shapes.get("bias", kernel[-1:])
    if bias != kernel[-1:]:
        raise ValueError(
            f"layer {path!r} has a kernel of shape {kernel} and a bias of shape {bias}, not "
            f"{kernel[-1:]}; stacked networks are handled by jax.vmap"
        )
