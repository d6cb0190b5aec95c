"""Read the structure of a network from its computation."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from normjax.channel_vectors import factors, vector_exponents, vector_leaves
from normjax.exponents import Equation, Exponents, Leaf, leaf_key, solve, substitute
from normjax.structure import ELEMENTWISE, LayerMatrix, Layout, NetworkStructure, Reads, leaf_kind
from normjax.tracing.rules import Value
from normjax.tracing.walk import Walk, leaf_value

LeafShapes = Sequence[tuple[str, tuple[int, ...]]]


def trace_structure(apply_fn: Callable[[Any, Any], Any], params: Any, x: Any) -> NetworkStructure:
    """Read from a network's computation how its leaves may be scaled.

    The network is traced, not run. Every leaf is given an unknown scale, and each operation demands
    what keeps the result a multiple of the original one: added values must scale alike, the
    argument of a nonlinear function such as tanh must not scale, and neither must the operands of
    an operation that is not known to be homogeneous. The solution names the layers: weights whose
    scale only changes the scale of the output. Names of leaves play no role.

    The certificate holds in exact arithmetic, for all values of the parameters and all inputs of
    these shapes. It does not cover overflow and underflow, or Python control flow that depends on
    anything other than shapes.

    Examples:
      >>> import jax
      >>> import normjax
      >>> def apply_fn(params, x):
      ...     hidden = jax.nn.relu(x @ params["stem"] + params["shift"])
      ...     return hidden @ params["head"]
      >>> shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, "float32")
      >>> params = {"head": shape(8, 3), "shift": shape(1, 8), "stem": shape(5, 8)}
      >>> structure = normjax.trace_structure(apply_fn, params, shape(1, 5))
      >>> structure.is_certified, structure.layers
      (True, ('stem', 'head'))

    Args:
      apply_fn: the network, `apply_fn(params, x) -> logits`, as it is used at test time. A network
        with state returns only the logits here.
      params: any pytree; floating-point arrays are the leaves that may scale, all others are
        constants. Batch statistics that the network reads belong in it. Shapes are enough
        (`jax.ShapeDtypeStruct`).
      x: inputs, or their shapes.

    Returns:
      The structure, certified or with its problems.
    """
    entries, treedef = jax.tree_util.tree_flatten_with_path(params)
    arrays = {i: leaf for i, (_, leaf) in enumerate(entries) if _is_array(leaf)}

    def apply_to_arrays(arrays: Mapping[int, Any], x: Any) -> Any:
        leaves = [arrays.get(i, leaf) for i, (_, leaf) in enumerate(entries)]
        return apply_fn(jax.tree.unflatten(treedef, leaves), x)

    shapes = {i: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for i, leaf in arrays.items()}
    try:
        closed = jax.make_jaxpr(apply_to_arrays)(shapes, x)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise ValueError(
            "apply_fn cannot be traced, because its Python code depends on values of params or x, "
            f"as in an `if` or a NumPy function ({type(error).__name__})"
        ) from error
    values = [_argument(i, arrays[i]) for i in sorted(arrays)]
    values += [Value({}, is_data=True)] * (len(closed.jaxpr.invars) - len(values))
    walk = Walk([])
    outputs = [
        value
        for value, aval in zip(walk.run(closed, values), closed.out_avals, strict=True)
        if jnp.issubdtype(aval.dtype, jnp.inexact)
    ]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in entries]
    leaves = [(name, tuple(arrays[i].shape) if i in arrays else ()) for i, name in enumerate(names)]
    structure = build_structure(leaves, walk, outputs)
    return dataclasses.replace(structure, kinds=tuple(leaf_kind(leaf) for _, leaf in entries))


def build_structure(leaves: LeafShapes, walk: Walk, outputs: Sequence[Value]) -> NetworkStructure:
    """Solve the equations of a walk; return the structure of the network.

    Args:
      leaves: path and shape of every leaf of the parameter tree.
      walk: the walk over the network's operations.
      outputs: the outputs that must scale alike.
    """
    output = walk.equate(outputs, "the network's outputs, which do not scale alike")
    walk.end(outputs)
    walk.note_whole(outputs)
    whole = _whole_leaves(walk, output or {})
    form = substitute(output or {}, whole)
    equations = [Equation(substitute(form, whole), why) for form, why in walk.equations]
    order: dict[Leaf, int] = {}
    for leaf in [*walk.order, *sorted(_leaves_of(equations, form), key=leaf_key)]:
        order.setdefault(_only(whole, leaf), len(order))
    uses = _counted(walk.multiplied, whole)
    added = {_only(whole, leaf) for leaf in walk.added | walk.divided} - uses.keys()
    solution = solve(equations, order, added)

    bound = [leaf for leaf in solution.dependent if leaf not in added]
    involved = {leaf for weight in bound for leaf in solution.dependent[weight]} - added
    tied = sorted({*bound, *involved}, key=order.__getitem__)
    statistics_only = {_only(whole, leaf) for leaf in walk.divided} & added
    free = [
        leaf
        for leaf in sorted(order, key=order.__getitem__)
        if leaf not in solution.dependent and leaf not in involved | statistics_only
    ]
    maps, carriers = _group(free, set(tied), walk, uses)

    numbers = {carrier: number for number, carrier in enumerate(carriers.values())}

    def exponents(leaf: Leaf) -> Exponents:
        form = solution.exponents({leaf: 1})
        return {free: power for free, power in form.items() if free in numbers}

    scaled = solution.exponents(form)
    paths = [leaf_name(leaves[leaf.number][0], leaf.part) for leaf in (*carriers, *tied)]
    paths = _layer_paths(paths)[: len(carriers)]
    matrices = []
    for (kernel, carrier), path in zip(carriers.items(), paths, strict=True):
        layout, factor, offset = maps[kernel]
        is_joint = offset is not None and vector_exponents(offset, exponents) == {carrier: 1}
        shape = leaves[kernel.number][1][0 if kernel.part is None else 1 :]
        if layout == ELEMENTWISE:
            layout = Layout((), (), tuple(range(len(shape))), math.prod(shape))
        degree = scaled.get(carrier, 0)
        reads = walk.units.reads(list(carriers), len(matrices))
        is_used_once = walk.multiplied[kernel] == 1 and kernel not in walk.added
        if reads and reads.layer is not None:
            is_used_once &= _has_own_biases(walk, carriers, maps, reads)
        reads = reads if is_used_once else None
        matrices.append(LayerMatrix(path, kernel, layout, degree, factor, offset, is_joint, reads))
    divisors = []
    for leaf in sorted(order, key=leaf_key):
        powers = sorted((numbers[free], power) for free, power in exponents(leaf).items())
        if powers:
            divisors.append((leaf, tuple(powers)))

    def name(leaf: Leaf) -> str:
        return leaf_name(leaves[leaf.number][0], leaf.part)

    problems = [
        _problem(name(leaf), [name(other) for other in solution.dependent[leaf]], why)
        for leaf, why in sorted(solution.reasons.items(), key=lambda item: order[item[0]])
        if leaf not in added
    ]
    if output is None:
        problems.append("the network has no output of floating point that is not 0")
    elif not matrices and not problems:
        problems.append("no weight scales the output")
    return NetworkStructure(
        tuple((path, tuple(shape)) for path, shape in leaves),
        tuple(matrices),
        tuple(divisors),
        tuple(map(name, tied)),
        tuple(problems),
    )


def _has_own_biases(
    walk: Walk, kernels: Collection[Leaf], maps: Mapping[Leaf, Any], reads: Reads
) -> bool:
    """Whether all that is added to the units of a layer is the offset of its matrix, once."""
    kernel = list(kernels)[reads.layer or 0]
    added, offset = walk.units.biases[kernel], maps[kernel].offset
    known = [] if offset is None else list(vector_leaves(offset))
    everywhere = [leaf for biases in walk.units.biases.values() for leaf in biases]
    is_own = all(everywhere.count(leaf) == 1 and not walk.multiplied[leaf] for leaf in added)
    return is_own and sorted(added) == sorted(known)


def leaf_name(path: str, part: int | None) -> str:
    """Return the name of a leaf, or of one part of it."""
    return path if part is None else f"{path}[{part}]"


def _group(
    free: Sequence[Leaf], tied: Collection[Leaf], walk: Walk, uses: Mapping[Leaf, int]
) -> tuple[dict[Leaf, Any], dict[Leaf, Leaf]]:
    """Return the linear map of each layer by its kernel, and the leaf that carries its norm.

    A kernel and the scales that multiply its outputs are one layer. The scale carries the norm, so
    batch statistics stay as they are.
    """
    maps, carriers, absorbed = {}, {}, set()
    for leaf in free:
        if leaf in absorbed:
            continue
        found = walk.maps.linear_map(leaf, uses)
        others = [] if found.factor is None else factors(found.factor)
        if any(other in tied for other in others):
            continue
        others = [other for other in others if other in free]
        maps[leaf], carriers[leaf] = found, others[-1] if others else leaf
        absorbed.update(others)
    return maps, carriers


def _problem(name: str, others: Sequence[str], reason: str) -> str:
    """Return one sentence about a weight that is not free."""
    if others:
        return f"{name} is tied to {', '.join(others)} by {reason}"
    return f"{name} is held by {reason}"


def _layer_paths(weights: Sequence[str]) -> list[str]:
    """Return the path of each weight's module, or of the weight if its module has several."""
    modules = []
    for path in weights:
        path = path.removesuffix("/value")  # the last key of an NNX variable
        modules.append(path.rpartition("/" if "/" in path else ".")[0])
    names = [
        module if module and modules.count(module) == 1 else path
        for module, path in zip(modules, weights, strict=True)
    ]
    return [
        name if names.count(name) == 1 else path for name, path in zip(names, weights, strict=True)
    ]


def _whole_leaves(walk: Walk, output: Exponents) -> dict[Leaf, Exponents]:
    """Map each part of a leaf to the whole leaf, if the leaf is also used as a whole."""
    used = {*walk.order, *_leaves_of(walk.equations, output)}
    wholes = {leaf.number for leaf in used | walk.whole if leaf.part is None}
    return {
        leaf: {Leaf(leaf.number): 1}
        for leaf in used
        if leaf.part is not None and leaf.number in wholes
    }


def _leaves_of(equations: Sequence[Equation], output: Exponents) -> set[Leaf]:
    return {leaf for equation in equations for leaf in equation.form} | set(output)


def _only(whole: Mapping[Leaf, Exponents], leaf: Leaf) -> Leaf:
    return Leaf(leaf.number) if leaf in whole else leaf


def _counted(counts: Mapping[Leaf, int], whole: Mapping[Leaf, Exponents]) -> dict[Leaf, int]:
    total: dict[Leaf, int] = defaultdict(int)
    for leaf, count in counts.items():
        total[_only(whole, leaf)] += count
    return total


def _is_array(leaf: Any) -> bool:
    """Whether a leaf is an array or stands for one, rather than a number or a function."""
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape")


def _argument(number: int, leaf: Any) -> Value:
    """Return a leaf of the parameter tree as a value: only floating-point leaves may scale."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return Value({})
    axes = tuple((axis,) for axis in range(len(leaf.shape)))
    return leaf_value(Leaf(number), axes, tuple(leaf.shape))
