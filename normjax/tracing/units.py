"""Follow the hidden units of each layer to the layer that reads them.

Rescaling a single unit preserves a network's function if everything between its layer and the next
acts on each unit alone and is positively homogeneous, and if nothing else reads the unit.
`UnitFlow` tracks units through such operations only.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from normjax.exponents import Leaf
from normjax.structure import Reads
from normjax.tracing.layer_maps import MOVES, Units, merged_axes
from normjax.tracing.rules import Value

_COMPARISONS = frozenset("eq ne lt le gt ge".split())
_JOINS = frozenset("add sub max min select_n clamp mul div".split())
_REDUCTIONS = frozenset("reduce_sum reduce_max reduce_min".split())
_WINDOWS = frozenset("reduce_window_sum reduce_window_max reduce_window_min".split())
_MAPS = frozenset("neg abs reduce_precision".split())


class UnitFlow:
    """The units of all layers, collected during a walk.

    Attributes:
      biases: what is added to the units of each kernel, anywhere before the next layer.
    """

    def __init__(self) -> None:
        """Start without layers."""
        self._reads: dict[Leaf, list[tuple[Leaf | None, int] | None]] = defaultdict(list)
        self._readers: dict[Leaf, int] = defaultdict(int)
        self._lost: set[Leaf] = set()
        self.biases: dict[Leaf, list[Leaf]] = defaultdict(list)

    def follow(self, eqn: Any, values: Sequence[Value]) -> Units | None:
        """Return the units of the output of an operation."""
        name = eqn.primitive.name
        is_kernel = name in ("conv_general_dilated", "dot_general")
        if is_kernel and values[0].is_data != values[1].is_data:
            data = 0 if values[0].is_data else 1
            if (relaid := values[1 - data].facts.relaid) is not None:
                return self._apply(eqn, data, values[data], relaid.leaf)
        units = _kept(eqn, values)
        if units is None:
            self.lose(values)
        elif name in ("add", "sub"):
            self.biases[units.kernel] += [leaf for v in values for leaf in v.leaves]
        return units

    def lose(self, values: Sequence[Value]) -> None:
        """Note that the units in these values are used by something other than a single layer."""
        self._lost.update(v.facts.units.kernel for v in values if v.facts.units is not None)

    def reads(self, kernels: Sequence[Leaf], number: int) -> Reads | None:
        """Return whose units a layer reads, or None if that is not known for certain.

        Args:
          kernels: the kernels of all layers in order of application.
          number: the number of the layer.
        """
        found = self._reads.get(kernels[number], [])
        if len(found) != 1 or found[0] is None:
            return None
        before, inner = found[0]
        if before is None:
            return Reads(None, 1)
        if before in self._lost or self._readers[before] != 1 or before not in kernels:
            return None
        return Reads(kernels.index(before), inner)

    def _apply(self, eqn: Any, data: int, value: Value, kernel: Leaf) -> Units | None:
        """Note whose units a kernel reads; return the kernel's own units."""
        params, units = eqn.params, value.facts.units
        if eqn.primitive.name == "dot_general":
            contracted, batch = params["dimension_numbers"]
            axes, is_plain = tuple(contracted[data]), not batch[0]
            rank = len(eqn.invars[data].aval.shape)
            free = len(eqn.invars[1 - data].aval.shape) - len(axes)
            is_plain = is_plain and free == 1
            dim = rank - len(axes) if data == 0 else 0
        else:
            dimensions = params["dimension_numbers"]
            axes, dim = (dimensions.lhs_spec[1],), dimensions.out_spec[1]
            groups = (params["feature_group_count"], params["batch_group_count"])
            is_plain = data == 0 and groups == (1, 1)
        if units is None:
            is_input = value.exponents == {} and is_plain
            self._reads[kernel].append((None, 1) if is_input else None)
        else:
            self._readers[units.kernel] += 1
            is_read = is_plain and axes == (units.dim,) and units.is_scaled
            self._reads[kernel].append((units.kernel, units.inner) if is_read else None)
        return Units(kernel, dim) if is_plain else None


def _kept(eqn: Any, values: Sequence[Value]) -> Units | None:
    """Return the units of the output of an operation that acts on each unit alone, else None."""
    name, params = eqn.primitive.name, eqn.params
    present = [value.facts.units for value in values if value.facts.units is not None]
    if not present or len(eqn.outvars) != 1:
        return None
    units = present[0]
    if any(other[:3] != units[:3] for other in present):
        return None
    if name in _COMPARISONS:
        others = [value for value in values if value.facts.units is None]
        return units._replace(is_scaled=False) if all(v.exponents is None for v in others) else None
    if name in _JOINS:
        return _joined(name, units, values)
    if len(values) > 1 and name != "pad":
        return None
    shape = eqn.invars[0].aval.shape
    if name == "rev" and units.dim in params["dimensions"]:
        return None
    if name in MOVES:
        return _moved(units, merged_axes(name, params, shape, eqn.outvars[0].aval.shape), shape)
    if name in _MAPS:
        return units
    if name in _REDUCTIONS and units.dim not in params["axes"]:
        return units._replace(dim=units.dim - sum(axis < units.dim for axis in params["axes"]))
    if name in _WINDOWS:
        sizes = [params[key][units.dim] for key in ("window_dimensions", "window_strides")]
        is_alone = sizes == [1, 1] and tuple(params["padding"][units.dim]) == (0, 0)
        return units if is_alone else None
    if name == "pad":
        config = tuple(int(size) for size in params["padding_config"][units.dim])
        return units if config == (0, 0, 0) and values[1].exponents is None else None
    return None


def _joined(name: str, units: Units, values: Sequence[Value]) -> Units | None:
    """Return the units of a sum, product, maximum or selection."""
    if name in ("mul", "div"):
        first, second = values
        if name == "mul" and first.facts.units is None:
            first, second = second, first
        if first.facts.units is None:
            return None
        if second.facts.units is not None:  # x * (x > 0)
            scaled = [v.facts.units for v in values if v.facts.units and v.facts.units.is_scaled]
            return scaled[0] if name == "mul" and len(scaled) == 1 else None
        is_number = not second.is_data and not second.leaves and second.facts.spread is not None
        return first.facts.units if is_number else None
    if name == "select_n":
        predicate, *values = values
        is_sign = predicate.facts.units is not None and not predicate.facts.units.is_scaled
        if predicate.is_data and not is_sign:
            return None
    for value in values:
        spread, own = value.facts.spread, value.facts.units
        is_bias = (
            name in ("add", "sub")
            and isinstance(spread and spread.vector, Leaf)
            and (spread is not None and spread.dims == (units.dim,) and units.inner == 1)
        )
        if value.exponents is not None and not (own and own.is_scaled) and not is_bias:
            return None
    return units._replace(is_scaled=True)


def _moved(
    units: Units, merged: list[tuple[int, ...]] | None, shape: tuple[int, ...]
) -> Units | None:
    """Return the units of a value whose entries were moved."""
    for new, group in enumerate(merged or ()):
        if units.dim in group:
            inner = units.inner
            for axis in group[group.index(units.dim) + 1 :]:
                inner *= shape[axis]
            return units._replace(dim=new, inner=inner)
    return None
