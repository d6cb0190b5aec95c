"""Find the layers of a parameter tree and their order."""

import itertools
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from normjax.types import Params

Parent = tuple[Any, ...]
"""The keys that lead to a module, outermost first."""


class Layer(NamedTuple):
    """One layer of a network: the positions of its leaves in `jax.tree.leaves(params)`.

    Attributes:
      path: the module's keys joined by `/`, such as `"block/Dense_1"`; `"."` if the tree itself is
        a layer.
      kernel: position of the kernel.
      bias: position of the bias, or None.
    """

    path: str
    kernel: int
    bias: int | None


def find_layers(params: Params, layers: Sequence[str] | None = None) -> tuple[Layer, ...]:
    """Find a network's layers in order of application.

    A layer is a leaf `kernel` with an optional sibling `bias`. Layers have the natural order of
    their paths, as Flax numbers its modules: `Conv_2` before `Conv_10`, and both before `Dense_0`.
    If names do not sort in order of application, `layers` is needed; a warning is given if a
    layer's outputs cannot be the next layer's inputs. Only shapes and dtypes are used, so leaves
    may be traced or abstract.

    Args:
      params: nested mapping (any pytree with keys) of floating-point leaves.
      layers: the paths of all layers in order of application.

    Returns:
      The layers in order of application.

    Raises:
      ValueError: the tree is empty, a leaf is not part of a layer or not a floating-point array,
        the shapes are not those of one network, or `layers` does not name every layer once.
    """
    leaves, treedef = jax.tree.flatten(params)
    if not leaves:
        raise ValueError("the parameter tree has no leaves")
    found = {}
    for parent, positions in group_leaves(jax.tree.unflatten(treedef, range(len(leaves)))).items():
        path = path_string(parent)
        for name, position in positions.items():
            _check_leaf(f"{path}/{name}" if parent else name, name, leaves[position], positions)
        layer = Layer(path, positions["kernel"], positions.get("bias"))
        _check_shapes(layer, leaves)
        found[path] = layer
    if layers is not None:
        return _in_given_order(found, layers)
    _warn_of_broken_chain(found.values(), leaves)
    return tuple(found.values())


def group_leaves(tree: Params) -> dict[Parent, dict[Any, Any]]:
    """Group leaves by module, `{module's keys: {leaf name: leaf}}`, in natural order."""
    modules: dict[Parent, dict[Any, Any]] = {}
    for entries, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        *parent, name = [_key(entry) for entry in entries] or [""]
        modules.setdefault(tuple(parent), {})[name] = leaf
    return dict(sorted(modules.items(), key=lambda module: _natural_order(module[0])))


def path_string(parent: Parent) -> str:
    """Return a module's keys as a path, `"."` for the root."""
    return "/".join(map(str, parent)) or "."


def _key(entry: Any) -> Any:
    """Return the key of one entry of a JAX key path."""
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return str(entry)


def _natural_order(parent: Parent) -> list[list[str | int]]:
    """Return a sort key that compares the numbers inside names as numbers."""
    # re.split alternates text (even indices) and digits (odd indices): types never mix.
    return [
        [int(piece) if i % 2 else piece for i, piece in enumerate(re.split(r"(\d+)", str(key)))]
        for key in parent
    ]


def _check_leaf(path: str, name: Any, leaf: Any, siblings: dict[Any, int]) -> None:
    """Raise unless the leaf is a floating-point kernel or its bias."""
    if name not in ("kernel", "bias") or "kernel" not in siblings:
        hint = ""
        if "scale" in siblings or {"mean", "var"} & siblings.keys():
            hint = "; absorb batch normalization first with absorb_batch_norm"
        raise ValueError(
            f"leaf {path!r} is not part of a layer: a 'kernel' with an optional 'bias'{hint}"
        )
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        kind = type(leaf).__name__ if dtype is None else dtype
        raise ValueError(f"leaf {path!r} must be a floating-point array, not {kind}")


def _check_shapes(layer: Layer, leaves: Sequence[Any]) -> None:
    """Raise unless kernel and bias have the shapes of a layer of one network."""
    kernel = leaves[layer.kernel].shape
    if len(kernel) < 2 or 0 in kernel:
        raise ValueError(
            f"the kernel of layer {layer.path!r} has shape {kernel}; it must be non-empty, "
            "[..., inputs, outputs]"
        )
    bias = kernel[-1:] if layer.bias is None else leaves[layer.bias].shape
    if bias != kernel[-1:]:
        raise ValueError(
            f"layer {layer.path!r} has a kernel of shape {kernel} and a bias of shape {bias}, not "
            f"{kernel[-1:]}; stacked networks are handled by jax.vmap"
        )


def _warn_of_broken_chain(chain: Iterable[Layer], leaves: Sequence[Any]) -> None:
    """Warn if a layer's number of outputs does not match the next layer's inputs."""
    for layer, following in itertools.pairwise(chain):
        outputs, inputs = leaves[layer.kernel].shape[-1], leaves[following.kernel].shape[-2]
        # Flattening multiplies the number of channels; a grouped convolution's kernel divides it.
        if inputs % outputs and outputs % inputs:
            warnings.warn(
                f"layer {layer.path!r} has {outputs} outputs, but {following.path!r} takes "
                f"{inputs} inputs: if the names do not sort in order of application, give layers",
                stacklevel=2,
            )


def _in_given_order(found: dict[str, Layer], layers: Sequence[str]) -> tuple[Layer, ...]:
    """Return the found layers in the given order."""
    if isinstance(layers, str):
        raise ValueError(f"layers must be a sequence of paths, not the string {layers!r}")
    if sorted(layers) != sorted(found):
        raise ValueError(
            f"layers must name each of {list(found)} once, in order of application; "
            f"got {list(layers)}"
        )
    return tuple(found[path] for path in layers)
