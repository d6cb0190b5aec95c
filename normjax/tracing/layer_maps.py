"""The linear maps of a traced network: the layouts of kernels, and the factors that follow them.

A layer's matrix is its kernel, times whatever multiplies each output channel before the next
nonlinear operation: batch normalization in evaluation mode, or a learned scale. `LayerMaps` follows
the output channels of each kernel through the operations of a traced network.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from normjax.channel_vectors import Vector, divided_by, factors, vector_leaves
from normjax.exponents import Leaf
from normjax.structure import ELEMENTWISE, Layout

Dims = tuple[int, ...]

MOVES = frozenset(
    "reshape transpose broadcast_in_dim squeeze convert_element_type copy copy_p name"
    " device_put optimization_barrier stop_gradient rev".split()
)
"""Primitives that move the entries of one operand without changing their values."""

_VECTOR_OPERATIONS = frozenset("add sub mul div neg sqrt rsqrt square integer_pow pow".split())


class Relaid(NamedTuple):
    """A leaf whose entries may have been moved, but not changed.

    Attributes:
      leaf: the leaf.
      axes: for each axis of the value, the leaf's axes that it merges; None if unknown.
      flipped: the leaf's axes whose order is reversed.
    """

    leaf: Leaf
    axes: tuple[Dims, ...] | None
    flipped: frozenset[int] = frozenset()


class Spread(NamedTuple):
    """A vector along some axes of a value, repeated along the others.

    Attributes:
      vector: the vector.
      dims: the axes along which it varies, without axes of size 1.
    """

    vector: Vector
    dims: Dims


class Channels(NamedTuple):
    """The output channels of a layer.

    Attributes:
      step: the last operation of the layer's linear map so far.
      dims: the axes of the channels, without axes of size 1.
    """

    step: int
    dims: Dims


class Units(NamedTuple):
    """The units of the layer behind a value, each of which may still be rescaled alone.

    Attributes:
      kernel: the kernel of the layer.
      dim: the axis of the units; along it, index i belongs to unit `i // inner % number of units`.
      inner: see `dim`.
      is_scaled: whether the value scales with the units; a comparison with 0 does not.
    """

    kernel: Leaf
    dim: int
    inner: int = 1
    is_scaled: bool = True


class Facts(NamedTuple):
    """What is known about a value besides its exponents; see the classes of these names."""

    relaid: Relaid | None = None
    spread: Spread | None = None
    channels: Channels | None = None
    units: Units | None = None


class LinearMap(NamedTuple):
    """The linear map of one layer; see `LayerMatrix`."""

    layout: Layout | None
    factor: Vector | None = None
    offset: Vector | None = None


class LayerMaps:
    """The linear maps of a network, collected during a walk over its operations."""

    def __init__(self) -> None:
        """Start without layers."""
        # A step is one operation of a layer's map: ("kernel", layout) or ("mul", vector).
        self._steps: list[tuple[str, Any]] = []
        self._next: dict[int, int | None] = {}  # None: the channels have another use
        self._first: dict[Leaf, list[int]] = defaultdict(list)
        self._scales: dict[Leaf, list[Vector]] = defaultdict(list)

    def follow(self, eqn: Any, facts: Sequence[Facts], is_data: Sequence[bool]) -> Facts:
        """Return what is known about the output of an operation with one output.

        Args:
          eqn: the operation.
          facts: what is known about its operands.
          is_data: whether each operand depends on the network's inputs.
        """
        name, params = eqn.primitive.name, eqn.params
        shapes = [var.aval.shape for var in eqn.invars]
        if name in MOVES:
            fact = facts[0]
            if name == "convert_element_type":
                fact = _converted(fact, eqn.outvars[0].aval.dtype)
            moved = _moved(fact, shapes[0], name, params, eqn.outvars[0].aval.shape)
            if moved.channels is None:
                self.end(facts)
            return moved
        if not any(is_data):
            relaid = facts[0].relaid if name == "slice" else None
            part = leaf_part(params, relaid, eqn.invars[0]) if relaid else None
            if relaid is None or relaid.axes is None or part is None:
                return Facts(spread=_operate(eqn, facts))
            return leaf_facts(part, ((), *part_axes(relaid.axes)), (1, *shapes[0][1:]))
        channels = None
        if name == "gather" and is_data[1] and facts[0].relaid is not None:
            self._look_up(params["dimension_numbers"], facts[0].relaid, shapes[0])
        elif len(facts) == 2 and is_data[0] != is_data[1]:
            data = is_data.index(True)
            if name in ("conv_general_dilated", "dot_general"):
                channels = self._start(eqn, data, facts[1 - data].relaid, shapes)
            elif name in ("mul", "add") or (name in ("sub", "div") and data == 0):
                channels = self._extend(name, facts[data].channels, facts[1 - data].spread)
        if channels is None or name in ("conv_general_dilated", "dot_general"):
            self.end(facts)
        return Facts(channels=channels)

    def end(self, facts: Sequence[Facts]) -> None:
        """End the linear maps whose channels are used here."""
        for fact in facts:
            if fact.channels is not None:
                self._next[fact.channels.step] = None

    def linear_map(self, kernel: Leaf, num_uses: Mapping[Leaf, int]) -> LinearMap:
        """Return the linear map of a layer.

        A kernel that is applied several times has the layout that all applications share, and
        neither factor nor offset. A factor that is also used elsewhere is not part of the map.

        Args:
          kernel: the layer's kernel.
          num_uses: how many values each leaf multiplies.
        """
        first = self._first.get(kernel, [])
        if not first:
            scales = self._scales.get(kernel, [])
            rest = divided_by(scales[0], kernel) if len(scales) == 1 else None
            return LinearMap(ELEMENTWISE if scales else None, rest)
        layouts = {_unordered(self._steps[number][1]) for number in first}
        layout = self._steps[first[0]][1] if len(layouts) == 1 else None
        factor = offset = None
        number = self._next.get(first[0]) if len(first) == 1 else None
        while number is not None:
            operation, vector = self._steps[number]
            if operation in ("add", "sub"):
                is_plain = offset is None and operation == "add"
                offset = vector if is_plain else (operation, _known(offset, 0.0), vector)
            else:
                if any(num_uses[leaf] > 1 for leaf in factors(vector)):
                    break
                is_plain = factor is None and operation == "mul"
                factor = vector if is_plain else (operation, _known(factor, 1.0), vector)
                offset = None if offset is None else (operation, offset, vector)
            number = self._next.get(number)
        return LinearMap(layout, factor, offset)

    def _start(
        self, eqn: Any, data: int, kernel: Relaid | None, shapes: Sequence[Dims]
    ) -> Channels | None:
        """Return the channels after a kernel that acts on data."""
        if kernel is None:
            return None
        read = _conv_layout if eqn.primitive.name == "conv_general_dilated" else _dot_layout
        found = read(eqn.params, 1 - data, shapes, kernel)
        layout, dims = (None, None) if found is None else found
        if layout is not None:
            layout = _on_leaf(layout, kernel, shapes[1 - data])
        self._steps.append(("kernel", layout))
        step = len(self._steps) - 1
        self._first[kernel.leaf].append(step)
        if dims is None:
            return None
        shape = eqn.outvars[0].aval.shape
        return Channels(step, tuple(dim for dim in dims if shape[dim] > 1))

    def _extend(
        self, name: str, channels: Channels | None, spread: Spread | None
    ) -> Channels | None:
        """Return the channels after an operation with a vector; None ends the linear map."""
        if spread is None or not any(True for _ in vector_leaves(spread.vector)):
            return None
        if name == "mul":
            for leaf in factors(spread.vector):
                self._scales[leaf].append(spread.vector)
        if channels is None or spread.dims not in ((), channels.dims):
            return None
        self._next[channels.step] = None if channels.step in self._next else len(self._steps)
        self._steps.append((name, spread.vector))
        return channels._replace(step=len(self._steps) - 1)

    def _look_up(self, dimensions: Any, table: Relaid, shape: Dims) -> None:
        """Record an embedding: a row of the table is its product with a one-hot vector."""
        if dimensions.start_index_map == (0,) and dimensions.collapsed_slice_dims == (0,):
            layout = _on_leaf(Layout((), (0,), tuple(range(1, len(shape)))), table, shape)
            self._steps.append(("kernel", layout))
            self._first[table.leaf].append(len(self._steps) - 1)


def _known(vector: Vector | None, default: float) -> Vector:
    return default if vector is None else vector


def _unordered(layout: Layout | None) -> Any:
    """Return the same key for a matrix and its transpose, whose norms are equal."""
    if layout is None or layout.window or layout.groups > 1:
        return layout
    return frozenset((layout.inputs, layout.outputs))


def _on_leaf(layout: Layout, kernel: Relaid, shape: Dims) -> Layout | None:
    """Return a layout in terms of the leaf's axes.

    The result is None if the axes are unknown or out of order, or if the kernel repeats entries.
    """
    axes = kernel.axes
    if axes is None:
        return None
    if any(shape[a] > 1 and not axes[a] for part in layout[:3] for a in part):
        return None
    window, inputs, outputs = (
        tuple(itertools.chain.from_iterable(axes[axis] for axis in part)) for part in layout[:3]
    )
    if not kernel.flipped <= set(window):
        return None
    return Layout(window, inputs, outputs, layout.groups)


def _conv_layout(
    params: Any, side: int, shapes: Sequence[Dims], kernel: Relaid
) -> tuple[Layout, Dims] | None:
    """Return the layout of a convolution's kernel, and the axis of the channels in its output."""
    if side == 0 or params["batch_group_count"] != 1:
        return None
    dimensions = params["dimension_numbers"]
    outputs, inputs, *window = dimensions.rhs_spec
    layout = Layout(tuple(window), (inputs,), (outputs,), params["feature_group_count"])
    return layout, (dimensions.out_spec[1],)


def _dot_layout(
    params: Any, side: int, shapes: Sequence[Dims], kernel: Relaid
) -> tuple[Layout, Dims]:
    """Return the layout of a matrix, and the axes of its outputs in the product.

    The axes of a product are batch axes, free axes of the left and free axes of the right operand.
    A batch axis of the kernel makes one group for each index, unless it repeats the kernel.
    """
    contracted, batch = params["dimension_numbers"]
    shape, inputs = shapes[side], contracted[side]
    free = tuple(a for a in range(len(shape)) if a not in (*inputs, *batch[side]))
    num_others = len(shapes[1 - side]) - len(inputs) - len(batch[side])
    start = len(batch[side]) + (num_others if side == 1 else 0)
    own = [i for i, a in enumerate(batch[side]) if kernel.axes is None or kernel.axes[a]]
    groups = [batch[side][i] for i in own]
    dims = (*own, *range(start, start + len(free)))
    num_groups = math.prod(shape[axis] for axis in groups)
    return Layout((), tuple(inputs), (*groups, *free), num_groups), dims


def _converted(fact: Facts, dtype: Any) -> Facts:
    """Return what is known about a value after a cast: integers drop fractions, numbers round."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return Facts()
    spread = fact.spread
    if spread is not None and isinstance(spread.vector, float):
        spread = spread._replace(vector=float(np.asarray(spread.vector, dtype)))
    return fact._replace(spread=spread)


def _moved(fact: Facts, shape: Dims, name: str, params: Any, new_shape: Dims) -> Facts:
    """Return what is known about a value whose entries were moved."""
    merged = merged_axes(name, params, shape, new_shape)
    flipped_dims = params["dimensions"] if name == "rev" else ()
    relaid, spread, channels, _ = fact
    if relaid is not None:
        axes = None
        if merged is not None and relaid.axes is not None:
            old = relaid.axes
            axes = tuple(tuple(itertools.chain(*(old[a] for a in group))) for group in merged)
        flipped = [axes[dim] for dim in flipped_dims] if axes else ()
        flipped = relaid.flipped ^ frozenset(itertools.chain(*flipped))
        relaid = Relaid(relaid.leaf, axes, flipped)
    if spread is not None:
        dims = _moved_dims(spread.dims, merged, shape, flipped_dims)
        spread = None if dims is None else spread._replace(dims=dims)
    if channels is not None:
        dims = _moved_dims(channels.dims, merged, shape, flipped_dims)
        channels = None if dims is None else channels._replace(dims=dims)
    return Facts(relaid, spread, channels)


def merged_axes(name: str, params: Any, shape: Dims, new_shape: Dims) -> list[Dims] | None:
    """Return the old axes that each new axis merges, `()` for a new one; None if it splits one."""
    if name == "transpose":
        return [(axis,) for axis in params["permutation"]]
    if name == "broadcast_in_dim":
        origin = {
            new: (old,)
            for old, new in enumerate(params["broadcast_dimensions"])
            if shape[old] == new_shape[new]
        }
        return [origin.get(axis, ()) for axis in range(len(new_shape))]
    if name == "squeeze":
        return [(axis,) for axis in range(len(shape)) if axis not in params["dimensions"]]
    if name != "reshape":
        return [(axis,) for axis in range(len(shape))]
    merged, axis = [], 0
    for size in new_shape:
        group, product = [], 1
        while axis < len(shape) and product < size:
            group.append(axis)
            product *= shape[axis]
            axis += 1
        if product != size:
            return None
        merged.append(tuple(a for a in group if shape[a] > 1))
    return merged


def _moved_dims(dims: Dims, merged: list[Dims] | None, shape: Dims, flipped: Dims) -> Dims | None:
    """Return the new axes of some old ones; None if their order changes or others join them."""
    if merged is None or any(dim in flipped for dim in dims):
        return None
    new = [i for i, group in enumerate(merged) if any(axis in dims for axis in group)]
    old = [axis for i in new for axis in merged[i] if shape[axis] > 1]
    return tuple(new) if tuple(old) == dims else None


def _operate(eqn: Any, facts: Sequence[Facts]) -> Spread | None:
    """Return the vector after an operation on vectors and numbers."""
    name = eqn.primitive.name
    known = [fact.spread for fact in facts if fact.spread is not None]
    if name not in _VECTOR_OPERATIONS or len(known) < len(facts):
        return None
    dims = {spread.dims for spread in known} - {()}
    if len(dims) > 1:
        return None
    operands = [spread.vector for spread in known]
    if name == "pow" and not isinstance(operands[1], float):
        return None
    if name in ("square", "integer_pow"):
        name, operands = "pow", [*operands, float(eqn.params.get("y", 2))]
    return Spread((name, *operands), dims.pop() if dims else ())


def leaf_facts(leaf: Leaf, axes: tuple[Dims, ...], shape: Dims) -> Facts:
    """Return what is known about a leaf, or of a part of it, of the given shape."""
    varying = tuple(axis for axis, size in enumerate(shape) if size > 1)
    return Facts(Relaid(leaf, axes), Spread(leaf, varying))


def part_axes(axes: tuple[Dims, ...]) -> tuple[Dims, ...]:
    """Return the axes of a part of a leaf, given those of the leaf whose first axis is split."""
    return tuple(tuple(axis - 1 for axis in group) for group in axes[1:])


def leaf_part(params: Any, relaid: Relaid | None, operand: Any) -> Leaf | None:
    """Return the part of a leaf that a slice reads as `leaf[index:index + 1]`, else None."""
    shape = operand.aval.shape
    if relaid is None or relaid.leaf.part is not None or not relaid.axes:
        return None
    (start, *starts), (stop, *stops) = params["start_indices"], params["limit_indices"]
    is_row = stop == start + 1 and shape[0] > 1 and params["strides"] is None
    is_whole_row = not any(starts) and tuple(stops) == shape[1:] and relaid.axes[0] == (0,)
    is_plain = not relaid.flipped
    return Leaf(relaid.leaf.number, start) if is_row and is_whole_row and is_plain else None
