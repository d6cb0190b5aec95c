"""How every value of a traced network scales with its leaves: a walk over the jaxpr.

Every primitive has a rule: what is added, compared or selected must scale alike, what is multiplied
adds its exponents, and so on. Operands of a primitive without a rule must not scale, so that an
unknown operation is never wrong.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from normjax.channel_vectors import statistics
from normjax.exponents import Equation, Exponents, Leaf, combine
from normjax.layer_maps import MOVES, Facts, LayerMaps, Spread, leaf_facts, part_axes
from normjax.source_lines import source_line

_UNROLLED_STEPS = 32
"""Longer scans that read no leaf step by step are treated as loops with a fixed scaling."""


class Value(NamedTuple):
    """What is known of a value of the network's computation.

    Attributes:
      exponents: how it scales; None if it is 0, infinite or NaN everywhere, which any factor keeps.
      is_data: whether it depends on the network's inputs.
      leaves: the leaves that it depends on, if it does not depend on the inputs.
      facts: see `Facts`.
    """

    exponents: Exponents | None
    is_data: bool = False
    leaves: frozenset[Leaf] = frozenset()
    facts: Facts = Facts()


class Walk:
    """The equations and the roles of leaves, collected during a walk.

    Attributes:
      equations: what must hold for the exponents to be right.
      order: the position of each leaf's first use with data.
      multiplied: how many values that depend on the inputs each leaf multiplies.
      added: leaves that are added to such values, or compared with them.
      divided: leaves that divide such values, or multiply them below a root, as variances do.
      maps: the linear maps of the layers.
    """

    def __init__(self, equations: list[Equation] | None = None) -> None:
        """Start without leaves; equations are added to those given."""
        self.equations: list[Equation] = [] if equations is None else equations
        self.order: dict[Leaf, int] = {}
        self.multiplied: Counter[Leaf] = Counter()
        self.added: set[Leaf] = set()
        self.divided: set[Leaf] = set()
        self.maps = LayerMaps()
        self._calls: list[Any] = []

    def equate(self, values: Iterable[Value], reason: str | None = None) -> Exponents | None:
        """Demand that all values scale alike; return their exponents."""
        common = None
        for value in values:
            if value.exponents is None:
                continue
            if common is None:
                common = value.exponents
            elif difference := combine((1, value.exponents), (-1, common)):
                reason = reason or source_line(self._calls)
                self.equations.append(Equation(difference, reason))
        return common

    def hold(self, values: Iterable[Value]) -> None:
        """Demand that no value scales."""
        self.equate([Value({}), *values])

    def run(
        self, jaxpr: Jaxpr | ClosedJaxpr, arguments: Sequence[Value], wanted: Sequence[bool] = ()
    ) -> list[Value]:
        """Return the outputs of a jaxpr; those that are not `wanted` are left open."""
        consts: Sequence[Any] = ()
        if isinstance(jaxpr, ClosedJaxpr):
            jaxpr, consts = jaxpr.jaxpr, jaxpr.consts
        names = [*jaxpr.constvars, *jaxpr.invars]
        known = dict(zip(names, [*map(_constant, consts), *arguments], strict=True))

        def read(variables):
            return [_constant(v.val) if isinstance(v, Literal) else known[v] for v in variables]

        wanted = wanted or [True] * len(jaxpr.outvars)
        outputs = [v for v, is_wanted in zip(jaxpr.outvars, wanted, strict=True) if is_wanted]
        equations, used = live_equations(jaxpr, outputs)
        for eqn in equations:
            self._calls.append(eqn)
            results = self._apply(eqn, read(eqn.invars), [v in used for v in eqn.outvars])
            known.update(zip(eqn.outvars, results, strict=True))
            self._calls.pop()
        return [
            read([v])[0] if is_wanted else Value({})
            for v, is_wanted in zip(jaxpr.outvars, wanted, strict=True)
        ]

    def _apply(self, eqn: Any, values: list[Value], wanted: list[bool]) -> list[Value]:
        """Return the outputs of one operation."""
        name, params = eqn.primitive.name, eqn.params
        if name in _CALLS:
            return self.run(params[_CALLS[name]], values, wanted)
        if name in _CONTROL_FLOW:
            if not params.get("branches_platforms"):
                self.maps.end([value.facts for value in values])
            return _CONTROL_FLOW[name](self, params, values)
        self._note_roles(name, values)
        exponents = RULES.get(name, _held)(self, eqn, values)
        is_data = any(value.is_data for value in values)
        leaves = frozenset() if is_data else frozenset().union(*(v.leaves for v in values))
        if isinstance(exponents, list):
            self.maps.end([value.facts for value in values])
            return [Value(e, is_data, leaves) for e in exponents]
        facts = Facts()
        if values and len(eqn.outvars) == 1:
            facts = self.maps.follow(eqn, [v.facts for v in values], [v.is_data for v in values])
            if (part := facts.relaid) and part.leaf not in leaves and not is_data:
                exponents, leaves = {part.leaf: 1}, frozenset([part.leaf])
        else:
            self.maps.end([value.facts for value in values])
        return [Value(exponents, is_data, leaves, facts)] * len(eqn.outvars)

    def _note_roles(self, name: str, values: Sequence[Value]) -> None:
        """Note what the leaves in values without data do to values with data."""
        if name in MOVES or not any(value.is_data for value in values):
            return
        for value in values:
            for leaf in sorted(value.leaves):
                self.order.setdefault(leaf, len(self.order))
            if value.is_data or not value.leaves:
                continue
            if name in _ADDITIVE:
                self.added |= value.leaves
                continue
            spread = value.facts.spread if name in ("mul", "div") else None
            below = statistics(spread.vector) if spread else set()
            self.divided |= below
            self.multiplied.update(value.leaves - below)


def live_equations(jaxpr: Jaxpr, outputs: Sequence[Any]) -> tuple[list[Any], set[Any]]:
    """Return the equations that the outputs depend on, in order, and the variables in use."""
    used = {v for v in outputs if not isinstance(v, Literal)}
    live = []
    for eqn in reversed(jaxpr.eqns):
        if any(v in used for v in eqn.outvars):
            live.append(eqn)
            used.update(v for v in eqn.invars if not isinstance(v, Literal))
    return live[::-1], used


def _constant(value: Any) -> Value:
    """Return a constant: 0, infinity and NaN are kept by any factor, other numbers by none."""
    if isinstance(value, jax.core.Tracer) or not jnp.issubdtype(jnp.result_type(value), jnp.number):
        return Value({})
    numbers = np.asarray(value)
    facts = Facts()
    if numbers.ndim == 0 and jnp.issubdtype(numbers.dtype, jnp.floating):
        facts = Facts(spread=Spread(float(numbers), ()))
    numbers = numbers.astype(np.complex128 if numbers.dtype.kind == "c" else np.float64)
    return Value({} if np.any(np.isfinite(numbers) & (numbers != 0)) else None, facts=facts)


# Rules: (walk, equation, operands) -> exponents of the outputs.


def _held(walk: Walk, eqn: Any, values: list[Value]) -> Exponents | None:
    walk.hold(values)
    return {}


def _kept(walk: Walk, eqn: Any, values: list[Value]) -> Exponents | None:
    return values[0].exponents


def _each_kept(
    walk: Walk, eqn: Any, values: list[Value]
) -> Exponents | list[Exponents | None] | None:
    return [v.exponents for v in values] if len(values) > 1 else values[0].exponents


def _alike(walk: Walk, eqn: Any, values: list[Value]) -> Exponents | None:
    if not _is_inexact(eqn):
        return _held(walk, eqn, values)
    return walk.equate(values)


def _compared(walk: Walk, eqn: Any, values: list[Value]) -> Exponents | None:
    walk.equate(values)
    return {}


def _product(walk: Walk, eqn: Any, values: list[Value]) -> Exponents | None:
    sign = -1 if eqn.primitive.name == "div" else 1
    first, second = values[0].exponents, values[1].exponents
    if not _is_inexact(eqn):
        return _held(walk, eqn, values)
    return None if first is None or second is None else combine((1, first), (sign, second))


def _power(exponent: int | Fraction) -> Callable:
    def rule(walk: Walk, eqn: Any, values: list[Value]) -> Exponents | None:
        return _times(exponent, values[0].exponents)

    return rule


def _integer_power(walk: Walk, eqn: Any, values: list[Value]) -> Exponents | None:
    return _times(eqn.params["y"], values[0].exponents)


def _general_power(walk: Walk, eqn: Any, values: list[Value]) -> Exponents | None:
    exponent = eqn.invars[1]
    if isinstance(exponent, Literal) and math.isfinite(exponent.val):
        return _times(Fraction(float(exponent.val)), values[0].exponents)
    return _held(walk, eqn, values)


def _reduced_product(walk: Walk, eqn: Any, values: list[Value]) -> Exponents | None:
    shape = eqn.invars[0].aval.shape
    count = math.prod(shape[axis] for axis in eqn.params["axes"])
    return _times(count, values[0].exponents)


def _times(exponent: int | Fraction, exponents: Exponents | None) -> Exponents | None:
    if exponent == 0:
        return {}  # 0 ** 0 is 1
    return None if exponents is None else combine((exponent, exponents))


def _converted(walk: Walk, eqn: Any, values: list[Value]) -> Exponents | None:
    was_inexact = jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.inexact)
    if was_inexact and not _is_inexact(eqn):
        return _held(walk, eqn, values)
    return values[0].exponents


def _chosen(*positions: int) -> Callable:
    """Return the rule of what selects from the operands at `positions`; others must not scale."""

    def rule(walk: Walk, eqn: Any, values: list[Value]) -> Exponents | None:
        if not _is_inexact(eqn):  # integers are filled with their lowest number
            return _held(walk, eqn, values)
        chosen = [values[i] for i in positions]
        walk.hold(value for i, value in enumerate(values) if i not in positions)
        fill = eqn.params.get("fill_value")
        if fill is not None and math.isfinite(fill) and fill != 0:
            chosen.append(Value({}))
        return walk.equate(chosen)

    return rule


def _selected(walk: Walk, eqn: Any, values: list[Value]) -> Exponents | None:
    walk.hold(values[:1])
    return walk.equate(values[1:])


def _top_k(walk: Walk, eqn: Any, values: list[Value]) -> list[Exponents | None]:
    return [values[0].exponents, {}]


def _is_inexact(eqn: Any) -> bool:
    return jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact)


def _rules() -> dict[str, Callable]:
    kept = """reshape transpose broadcast_in_dim squeeze expand_dims rev slice reduce_sum reduce_max
        reduce_min cumsum cummax cummin reduce_window_sum reduce_window_max reduce_window_min neg
        abs copy copy_p real imag conj reduce_precision name split unstack tile fft"""
    return {
        **dict.fromkeys(kept.split(), _kept),
        **dict.fromkeys(["sort", "optimization_barrier", "device_put"], _each_kept),
        **dict.fromkeys(
            [
                "add",
                "sub",
                "max",
                "min",
                "add_any",
                "concatenate",
                "stack",
                "clamp",
                "pad",
                "rem",
                "complex",
            ],
            _alike,
        ),
        **dict.fromkeys(
            ["eq", "ne", "lt", "le", "gt", "ge", "sign", "is_finite", "argmax", "argmin", "atan2"],
            _compared,
        ),
        **dict.fromkeys(["mul", "div", "dot_general", "conv_general_dilated"], _product),
        "square": _power(2),
        "sqrt": _power(Fraction(1, 2)),
        "rsqrt": _power(Fraction(-1, 2)),
        "cbrt": _power(Fraction(1, 3)),
        "integer_pow": _integer_power,
        "pow": _general_power,
        "reduce_prod": _reduced_product,
        "convert_element_type": _converted,
        "select_n": _selected,
        "gather": _chosen(0),
        "dynamic_slice": _chosen(0),
        "dynamic_update_slice": _chosen(0, 1),
        **dict.fromkeys(["scatter", "scatter-add", "scatter-min", "scatter-max"], _chosen(0, 2)),
        "top_k": _top_k,
    }


RULES = _rules()

_ADDITIVE = frozenset(
    [
        "add",
        "sub",
        "max",
        "min",
        "add_any",
        "concatenate",
        "stack",
        "clamp",
        "pad",
        "select_n",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "scatter",
        "scatter-add",
        "dynamic_update_slice",
    ]
)

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


# Control flow.


def _cond(walk: Walk, params: Any, values: list[Value]) -> list[Value]:
    index, *operands = values
    walk.hold([index])
    if params.get("branches_platforms"):
        # One function in several algorithms: all must scale alike, the last shows its layers.
        *others, shown = params["branches"]
        results = walk.run(shown, operands)
        for branch in others:
            side = Walk(walk.equations)
            for pair in zip(results, side.run(branch, operands), strict=True):
                walk.equate(pair)
        return results
    results = [walk.run(branch, operands) for branch in params["branches"]]
    merged = [_merge(walk, outputs) for outputs in zip(*results, strict=True)]
    return [v._replace(is_data=True) if index.is_data else v for v in merged]


def _while(walk: Walk, params: Any, values: list[Value]) -> list[Value]:
    num_cond, num_body = params["cond_nconsts"], params["body_nconsts"]
    consts = values[num_cond : num_cond + num_body]

    def step(carry):
        walk.hold(walk.run(params["cond_jaxpr"], [*values[:num_cond], *carry]))
        return walk.run(params["body_jaxpr"], [*consts, *carry])

    return _settled(walk, step, values[num_cond + num_body :])


def _scan(walk: Walk, params: Any, values: list[Value]) -> list[Value]:
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts, carry = values[:num_consts], values[num_consts : num_consts + num_carry]
    rows = values[num_consts + num_carry :]
    has_parts = any(_has_parts(value) for value in rows)
    if not has_parts and not 0 < params["length"] <= _UNROLLED_STEPS:
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
    walk.maps.end([value.facts for values in collected for value in values])
    return [*carry, *(_merge(walk, outputs) for outputs in zip(*collected, strict=True))]


def _settled(walk: Walk, step: Callable, carry: list[Value]) -> list[Value]:
    """Repeat a loop's body until its carry scales in the same way before and after it."""
    carry = [value._replace(facts=Facts()) for value in carry]
    while True:
        merged = [_merge(walk, pair) for pair in zip(carry, step(carry), strict=True)]
        if merged == carry:
            return carry
        carry = merged


def _merge(walk: Walk, values: Sequence[Value]) -> Value:
    """Return a value that is one of several."""
    is_data = any(value.is_data for value in values)
    leaves = frozenset() if is_data else frozenset().union(*(v.leaves for v in values))
    return Value(walk.equate(values), is_data, leaves)


def _has_parts(value: Value) -> bool:
    """Whether each step of a scan reads its own part of a leaf."""
    relaid = value.facts.relaid
    is_whole = relaid is not None and relaid.leaf.part is None and relaid.axes is not None
    return is_whole and relaid.axes[0] == (0,)


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
