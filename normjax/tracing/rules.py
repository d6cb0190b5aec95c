"""How the result of every primitive scales with its operands.

Values that are added, compared or selected must scale alike, a product adds the exponents of its
factors, and so on. Operands of a primitive without a rule must not scale, so an unknown operation
is never misjudged.
"""

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from normjax.exponents import Equation, Exponents, Leaf, combine
from normjax.tracing.layer_maps import MOVES, Facts, Spread


class Value(NamedTuple):
    """What is known about a value of the network's computation.

    Attributes:
      exponents: how it scales; None if it is 0, infinite or NaN everywhere, so no scale changes it.
      is_data: whether it depends on the network's inputs.
      leaves: the leaves that it depends on, if it does not depend on the inputs.
      facts: see `Facts`.
    """

    exponents: Exponents | None
    is_data: bool = False
    leaves: frozenset[Leaf] = frozenset()
    facts: Facts = Facts()


class Demands:
    """The equations that operations demand of exponents.

    Attributes:
      equations: all equations so far.
    """

    def __init__(self, equations: list[Equation]) -> None:
        """Collect equations in a list."""
        self.equations = equations

    def reason(self) -> str:
        """Return what demands the next equation."""
        raise NotImplementedError

    def equate(self, values: Iterable[Value], reason: str | None = None) -> Exponents | None:
        """Demand that all values scale alike; return their exponents."""
        common = None
        for value in values:
            if value.exponents is None:
                continue
            if common is None:
                common = value.exponents
            elif difference := combine((1, value.exponents), (-1, common)):
                self.equations.append(Equation(difference, reason or self.reason()))
        return common

    def hold(self, values: Iterable[Value]) -> None:
        """Demand that no value scales."""
        self.equate([Value({}), *values])


def constant_value(value: Any) -> Value:
    """Return a constant: scaling preserves 0, infinity and NaN, but no other number."""
    if isinstance(value, Tracer) or not jnp.issubdtype(jnp.result_type(value), jnp.number):
        return Value({})
    numbers: Any = np.asarray(value)
    facts = Facts()
    if numbers.ndim == 0 and jnp.issubdtype(numbers.dtype, jnp.floating) and np.isfinite(numbers):
        facts = Facts(spread=Spread(float(numbers), ()))
    is_number = any(
        np.any(np.isfinite(part) & (part != 0)) for part in (numbers.real, numbers.imag)
    )
    return Value({} if is_number else None, facts=facts)


_MAX_DENOMINATOR = 64
"""Limit for a constant power: 1/3 in floating point is not 1/3 and would give absurd fractions."""

Rule = Callable[[Demands, Any, list[Value]], Exponents | list[Exponents | None] | None]
"""(demands, equation, operands) -> exponents of the output, or of each of several outputs."""


def _held(demands: Demands, eqn: Any, values: list[Value]) -> Exponents | None:
    demands.hold(values)
    return {}


def _kept(demands: Demands, eqn: Any, values: list[Value]) -> Exponents | None:
    return values[0].exponents


def _each_kept(
    demands: Demands, eqn: Any, values: list[Value]
) -> Exponents | list[Exponents | None] | None:
    return [v.exponents for v in values] if len(values) > 1 else values[0].exponents


def _alike(demands: Demands, eqn: Any, values: list[Value]) -> Exponents | None:
    if not _is_inexact(eqn):
        return _held(demands, eqn, values)
    return demands.equate(values)


def _compared(demands: Demands, eqn: Any, values: list[Value]) -> Exponents | None:
    demands.equate(values)
    return {}


def _product(demands: Demands, eqn: Any, values: list[Value]) -> Exponents | None:
    sign = -1 if eqn.primitive.name == "div" else 1
    first, second = values[0].exponents, values[1].exponents
    if not _is_inexact(eqn):
        return _held(demands, eqn, values)
    return None if first is None or second is None else combine((1, first), (sign, second))


def _power(exponent: int | Fraction) -> Callable:
    def rule(demands: Demands, eqn: Any, values: list[Value]) -> Exponents | None:
        return _times(exponent, values[0].exponents)

    return rule


def _integer_power(demands: Demands, eqn: Any, values: list[Value]) -> Exponents | None:
    return _times(eqn.params["y"], values[0].exponents)


def _general_power(demands: Demands, eqn: Any, values: list[Value]) -> Exponents | None:
    exponent = values[1].facts.spread
    if exponent is not None and isinstance(exponent.vector, float):
        power = Fraction(exponent.vector)
        if power.denominator <= _MAX_DENOMINATOR:
            return _times(power, values[0].exponents)
    return _held(demands, eqn, values)


def _reduced_product(demands: Demands, eqn: Any, values: list[Value]) -> Exponents | None:
    shape = eqn.invars[0].aval.shape
    count = math.prod(shape[axis] for axis in eqn.params["axes"])
    return _times(count, values[0].exponents)


def _times(exponent: int | Fraction, exponents: Exponents | None) -> Exponents | None:
    if exponent == 0:
        return {}  # 0 ** 0 is 1
    return None if exponents is None else combine((exponent, exponents))


def _converted(demands: Demands, eqn: Any, values: list[Value]) -> Exponents | None:
    was_inexact = jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.inexact)
    if was_inexact and not _is_inexact(eqn):
        return _held(demands, eqn, values)
    return values[0].exponents


def _chosen(*positions: int) -> Callable:
    """Return the rule for selecting from the operands at `positions`; others must not scale."""

    def rule(demands: Demands, eqn: Any, values: list[Value]) -> Exponents | None:
        if not _is_inexact(eqn):  # integers are filled with their lowest number
            return _held(demands, eqn, values)
        chosen = [values[i] for i in positions]
        demands.hold(value for i, value in enumerate(values) if i not in positions)
        if (fill := eqn.params.get("fill_value")) is not None:
            chosen.append(constant_value(fill))
        update = eqn.params.get("update_jaxpr")
        if eqn.primitive.name == "scatter" and update and update.outvars != update.invars[1:]:
            return _held(demands, eqn, values)  # x.at[i].apply(function)
        return demands.equate(chosen)

    return rule


def _selected(demands: Demands, eqn: Any, values: list[Value]) -> Exponents | None:
    demands.hold(values[:1])
    return demands.equate(values[1:])


def _top_k(demands: Demands, eqn: Any, values: list[Value]) -> list[Exponents | None]:
    return [values[0].exponents, {}]


def _is_inexact(eqn: Any) -> bool:
    return jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact)


_KEPT = """
    reshape transpose broadcast_in_dim squeeze expand_dims rev slice split unstack tile
    reduce_sum reduce_max reduce_min cumsum cummax cummin
    reduce_window_sum reduce_window_max reduce_window_min neg abs copy copy_p
    real imag conj reduce_precision name fft stop_gradient
"""
_ALIKE = "add sub max min add_any concatenate stack clamp pad rem complex"
_COMPARED = "eq ne lt le gt ge sign is_finite argmax argmin atan2"
_SCATTERED = "scatter scatter-add scatter-min scatter-max"

RULES: dict[str, Rule] = {
    **dict.fromkeys(_KEPT.split(), _kept),
    **dict.fromkeys(_ALIKE.split(), _alike),
    **dict.fromkeys(_COMPARED.split(), _compared),
    **dict.fromkeys(_SCATTERED.split(), _chosen(0, 2)),
    **dict.fromkeys(("sort", "optimization_barrier", "device_put"), _each_kept),
    **dict.fromkeys(("mul", "div", "dot_general", "conv_general_dilated"), _product),
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
    "top_k": _top_k,
}

ADDITIVE = frozenset(f"{_ALIKE} {_COMPARED} {_SCATTERED} select_n dynamic_update_slice".split())
"""Primitives that add, compare or select: a leaf that they join with data is a bias."""


def apply_rule(demands: Demands, eqn: Any, values: list[Value]) -> Any:
    """Return the exponents of the output of an operation, or a list for several outputs."""
    exponents = RULES.get(eqn.primitive.name, _held)(demands, eqn, values)
    # Among integers, only the constant 0 is the same at every scale: operations may wrap around.
    is_exact_zero = exponents is None and eqn.primitive.name in MOVES
    return {} if exponents is None and not _is_inexact(eqn) and not is_exact_zero else exponents
