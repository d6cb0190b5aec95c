"""A walk over the jaxpr of a network: how every value scales, and what its leaves are used for."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from normjax.channel_vectors import statistics, vector_leaves
from normjax.exponents import Equation, Leaf, leaf_key
from normjax.tracing.layer_maps import MOVES, Facts, LayerMaps, leaf_facts, leaf_part, part_axes
from normjax.tracing.rules import ADDITIVE, Demands, Value, apply_rule, constant_value
from normjax.tracing.source_lines import source_line
from normjax.tracing.units import UnitFlow

_UNROLLED_STEPS = 32
"""Longer scans that read no leaf step by step are treated as loops with a fixed scaling."""


_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vmap_call": "call",
}
"""Primitives that call a function, and the parameter that holds it."""


class Walk(Demands):
    """The equations and the roles of leaves, collected during a walk.

    Attributes:
      equations: what must hold for the exponents to be right.
      order: the position of each leaf's first use with data.
      multiplied: how many values that depend on the inputs each leaf multiplies.
      added: leaves that are added to such values, or compared with them.
      divided: leaves that divide such values, or multiply them under a root, as variances do.
      whole: leaves that are used as a whole.
      maps: the linear maps of the layers.
      units: the hidden units of the layers.
    """

    def __init__(self, equations: list[Equation], calls: Sequence[Any] = ()) -> None:
        """Start without leaves.

        Args:
          equations: the list to which equations are added.
          calls: the operations whose functions are being walked through, outermost first.
        """
        super().__init__(equations)
        self.order: dict[Leaf, int] = {}
        self.multiplied: Counter[Leaf] = Counter()
        self.added: set[Leaf] = set()
        self.divided: set[Leaf] = set()
        self.whole: set[Leaf] = set()
        self.maps = LayerMaps()
        self.units = UnitFlow()
        self.calls: list[Any] = list(calls)

    def reason(self) -> str:
        """Return the operation that is being walked through, and its line."""
        return source_line(self.calls)

    def run(
        self, jaxpr: Jaxpr | ClosedJaxpr, arguments: Sequence[Value], wanted: Sequence[bool] = ()
    ) -> list[Value]:
        """Return the outputs of a jaxpr, with placeholders for those that are not `wanted`."""
        plain, consts = (
            (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, ClosedJaxpr) else (jaxpr, ())
        )
        names = [*plain.constvars, *plain.invars]
        known = dict(zip(names, [*map(constant_value, consts), *arguments], strict=True))

        def read(variables):
            return [
                constant_value(v.val) if isinstance(v, Literal) else known[v] for v in variables
            ]

        wanted = wanted or [True] * len(plain.outvars)
        outputs = [v for v, is_wanted in zip(plain.outvars, wanted, strict=True) if is_wanted]
        equations, used = live_equations(plain, outputs)
        for eqn in equations:
            self.calls.append(eqn)
            results = self._apply(eqn, read(eqn.invars), [v in used for v in eqn.outvars])
            known.update(zip(eqn.outvars, results, strict=True))
            self.calls.pop()
        return [
            read([v])[0] if is_wanted else Value({})
            for v, is_wanted in zip(plain.outvars, wanted, strict=True)
        ]

    def end(self, values: Sequence[Value]) -> None:
        """Stop following channels and units through these values, which something else uses."""
        self.maps.end([value.facts for value in values])
        self.units.lose(values)

    def note_whole(self, values: Sequence[Value]) -> None:
        """Note which leaves these values depend on as a whole."""
        self.whole.update(leaf for v in values for leaf in v.leaves if leaf.part is None)

    def _apply(self, eqn: Any, values: list[Value], wanted: list[bool]) -> list[Value]:
        """Return the outputs of one operation."""
        name, params = eqn.primitive.name, eqn.params
        if name in _CALLS:
            return self.run(params[_CALLS[name]], values, wanted)
        if name in _CONTROL_FLOW:
            if not params.get("branches_platforms"):
                self.end(values)
            return _CONTROL_FLOW[name](self, params, values)
        self._note_roles(name, values)
        is_part = name == "slice" and leaf_part(eqn.params, values[0].facts.relaid, eqn.invars[0])
        if name not in MOVES and not is_part:
            self.note_whole(values)
        exponents = apply_rule(self, eqn, values)
        is_data = any(value.is_data for value in values)
        leaves = frozenset() if is_data else frozenset().union(*(v.leaves for v in values))
        if isinstance(exponents, list):
            self.end(values)
            return [Value(e, is_data, leaves) for e in exponents]
        facts = Facts()
        if values and len(eqn.outvars) == 1:
            facts = self.maps.follow(eqn, [v.facts for v in values], [v.is_data for v in values])
            facts = facts._replace(units=self.units.follow(eqn, values))
            if (part := facts.relaid) and part.leaf not in leaves and not is_data:
                exponents, leaves = {part.leaf: 1}, frozenset([part.leaf])
        else:
            self.end(values)
        return [Value(exponents, is_data, leaves, facts)] * len(eqn.outvars)

    def _note_roles(self, name: str, values: Sequence[Value]) -> None:
        """Note what the leaves in values without data do to values with data."""
        if name in MOVES or not any(value.is_data for value in values):
            return
        for value in values:
            for leaf in sorted(value.leaves, key=leaf_key):
                self.order.setdefault(leaf, len(self.order))
            if value.is_data or not value.leaves:
                continue
            if name in ADDITIVE:
                self.added |= value.leaves
                continue
            below = _divisors(name, value)
            self.divided |= below
            self.multiplied.update(value.leaves - below)


def _divisors(name: str, value: Value) -> set[Leaf]:
    """Return the leaves of a value without data that divide a value with data."""
    spread = value.facts.spread
    if spread is None or name not in ("mul", "div"):
        return set()
    return set(vector_leaves(spread.vector)) if name == "div" else statistics(spread.vector)


def live_equations(jaxpr: Jaxpr, outputs: Sequence[Any]) -> tuple[list[Any], set[Any]]:
    """Return the equations that the outputs may depend on, in order, and the variables in use."""
    used = {v for v in outputs if not isinstance(v, Literal)}
    live = []
    for eqn in reversed(jaxpr.eqns):
        has_effects = bool(eqn.effects) and not eqn.primitive.name.startswith("debug_")
        if has_effects or any(v in used for v in eqn.outvars):
            live.append(eqn)
            used.update(v for v in eqn.invars if not isinstance(v, Literal))
    return live[::-1], used


# Control flow.


def _cond(walk: Walk, params: Any, values: list[Value]) -> list[Value]:
    index, *operands = values
    walk.hold([index])
    walk.note_whole([index])
    if params.get("branches_platforms"):
        # Implementations of one function: all must scale alike, and the last one shows the layers.
        *others, shown = params["branches"]
        results = walk.run(shown, operands)
        for branch in others:
            side = Walk(walk.equations, walk.calls)
            for pair in zip(results, side.run(branch, operands), strict=True):
                walk.equate(pair)
        return results
    results = [walk.run(branch, operands) for branch in params["branches"]]
    return [_chosen_by(_merge(walk, outputs), [index]) for outputs in zip(*results, strict=True)]


def _while(walk: Walk, params: Any, values: list[Value]) -> list[Value]:
    num_cond, num_body = params["cond_nconsts"], params["body_nconsts"]
    consts = values[num_cond : num_cond + num_body]

    def step(carry):
        conditions = walk.run(params["cond_jaxpr"], [*values[:num_cond], *carry])
        walk.hold(conditions)
        walk.note_whole(conditions)
        results = walk.run(params["body_jaxpr"], [*consts, *carry])
        return [_chosen_by(value, conditions) for value in results]

    return _settled(walk, step, values[num_cond + num_body :])


def _scan(walk: Walk, params: Any, values: list[Value]) -> list[Value]:
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts, carry = values[:num_consts], values[num_consts : num_consts + num_carry]
    rows = values[num_consts + num_carry :]
    if params["length"] == 0:
        empty = len(params["jaxpr"].out_avals) - num_carry
        return [*(v._replace(facts=Facts()) for v in carry), *[Value(None)] * empty]
    has_parts = any(_has_parts(value) for value in rows)
    if not has_parts and params["length"] > _UNROLLED_STEPS:
        outputs: list[Value] = []
        plain_rows = [value._replace(facts=Facts()) for value in rows]

        def step(carry):
            found = walk.run(params["jaxpr"], [*consts, *carry, *plain_rows])
            outputs[:] = found[num_carry:]
            return found[:num_carry]

        carry = _settled(walk, step, carry)
        return [*carry, *(v._replace(facts=Facts()) for v in outputs)]
    steps = range(params["length"])
    shapes = [aval.shape for aval in params["jaxpr"].in_avals[num_consts + num_carry :]]
    collected = []
    for i in reversed(steps) if params["reverse"] else steps:
        found = walk.run(
            params["jaxpr"], [*consts, *carry, *map(_row, rows, shapes, [i] * len(rows))]
        )
        carry = found[:num_carry]
        collected.append(found[num_carry:])
    walk.end([value for values in collected for value in values])
    return [*carry, *(_merge(walk, outputs) for outputs in zip(*collected, strict=True))]


def _settled(walk: Walk, step: Callable, carry: list[Value]) -> list[Value]:
    """Repeat a loop's body until its carry scales the same way before and after it."""
    carry = [value._replace(facts=Facts()) for value in carry]
    while True:
        merged = [_merge(walk, pair) for pair in zip(carry, step(carry), strict=True)]
        if merged == carry:
            return carry
        carry = merged


def _merge(walk: Walk, values: Sequence[Value]) -> Value:
    """Return what is known about a value that is one of several."""
    is_data = any(value.is_data for value in values)
    leaves = frozenset() if is_data else frozenset().union(*(v.leaves for v in values))
    return Value(walk.equate(values), is_data, leaves)


def _chosen_by(value: Value, conditions: Sequence[Value]) -> Value:
    """Return a value that also depends on conditions."""
    if value.is_data or any(condition.is_data for condition in conditions):
        return value._replace(is_data=True, leaves=frozenset(), facts=Facts())
    leaves = value.leaves.union(*(condition.leaves for condition in conditions))
    return value._replace(leaves=leaves, facts=Facts())


def _has_parts(value: Value) -> bool:
    """Whether each step of a scan reads its own part of a leaf."""
    relaid = value.facts.relaid
    if relaid is None or relaid.leaf.part is not None or not relaid.axes:
        return False
    return relaid.axes[0] == (0,) and not relaid.flipped


def _row(value: Value, shape: tuple[int, ...], step: int) -> Value:
    """Return what one step of a scan reads of a value."""
    relaid = value.facts.relaid
    if relaid is None or not _has_parts(value):
        return value._replace(facts=Facts())
    return leaf_value(Leaf(relaid.leaf.number, step), part_axes(relaid.axes or ()), shape)


def leaf_value(leaf: Leaf, axes: tuple[tuple[int, ...], ...], shape: tuple[int, ...]) -> Value:
    """Return a leaf, or a part of it, as a value of a given shape; `axes` as in `Relaid`."""
    return Value({leaf: 1}, False, frozenset([leaf]), leaf_facts(leaf, axes, shape))


_CONTROL_FLOW = {"cond": _cond, "while": _while, "scan": _scan}
