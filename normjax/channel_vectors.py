"""Small expressions in leaves, one value per channel, such as `scale / sqrt(var + epsilon)`.

An expression is a nested tuple of an operation and its operands, so that it can be compared and
hashed: a `Leaf`, a float, `("add" | "sub" | "mul" | "div", a, b)`, `("neg" | "sqrt" | "rsqrt", a)`
or `("pow", a, exponent)`.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

from jax import lax

from normjax.exponents import Exponents, Leaf, combine
from normjax.types import Array, at_least_float32

Vector = Leaf | float | tuple[Any, ...]

_OPERATIONS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
    "sqrt": lax.sqrt,
    "rsqrt": lax.rsqrt,
}


def evaluate(vector: Vector, leaves: Sequence[Any]) -> Array | float:
    """Return the values, `[channels]`, or `[1]` or a number for all channels; at least float32.

    Args:
      vector: the expression; all leaves in it have one value per channel, or a single value.
      leaves: the leaves of the parameter tree.
    """
    if isinstance(vector, Leaf):
        return at_least_float32(take(leaves, vector)).reshape(-1)
    if not isinstance(vector, tuple):
        return vector
    name, first, *rest = vector
    if name == "pow":
        return evaluate(first, leaves) ** rest[0]
    return _OPERATIONS[name](*(evaluate(operand, leaves) for operand in (first, *rest)))


def take(leaves: Sequence[Any], leaf: Leaf) -> Any:
    """Return a leaf, or the part of it that `leaf` names."""
    return leaves[leaf.number] if leaf.part is None else leaves[leaf.number][leaf.part]


def vector_leaves(vector: Vector) -> Iterator[Leaf]:
    """Yield the leaves in an expression."""
    if isinstance(vector, Leaf):
        yield vector
    elif isinstance(vector, tuple):
        for operand in vector[1:]:
            yield from vector_leaves(operand)


def factors(vector: Vector) -> list[Leaf]:
    """Return the leaves to which an expression is proportional."""
    if isinstance(vector, Leaf):
        return [vector]
    if not isinstance(vector, tuple):
        return []
    name, first, *rest = vector
    if name == "mul":
        return [*factors(first), *factors(rest[0])]
    return factors(first) if name in ("div", "neg") else []


def divided_by(vector: Vector, leaf: Leaf) -> Vector | None:
    """Return an expression divided by a leaf to which it is proportional; None stands for 1."""
    if not isinstance(vector, tuple) or vector == leaf:
        return None

    def rest_of(operand: Any) -> Any:
        if leaf not in factors(operand):
            return operand
        rest = divided_by(operand, leaf)
        return 1.0 if rest is None else rest

    return (vector[0], *map(rest_of, vector[1:]))


def statistics(vector: Vector) -> set[Leaf]:
    """Return the leaves that an expression uses only under a root or in a denominator."""
    return set(vector_leaves(vector)) - set(_numerator_leaves(vector))


def _numerator_leaves(vector: Vector) -> Iterator[Leaf]:
    """Yield the leaves of an expression that are not under a root or in a denominator."""
    if not isinstance(vector, tuple) or isinstance(vector, Leaf):
        yield from vector_leaves(vector)
    elif vector[0] not in ("sqrt", "rsqrt") and not (vector[0] == "pow" and vector[2] < 0):
        for operand in vector[1:2] if vector[0] == "div" else vector[1:]:
            yield from _numerator_leaves(operand)


def vector_exponents(vector: Vector, exponents: Callable[[Leaf], Exponents]) -> Exponents:
    """Return how an expression scales; the terms of each sum are known to scale alike."""
    if isinstance(vector, Leaf):
        return exponents(vector)
    if not isinstance(vector, tuple):
        return {}
    name, first, *rest = vector
    form = vector_exponents(first, exponents)
    if name in ("add", "sub"):
        # 0 and numbers beside leaves have no exponents of their own.
        return form or vector_exponents(rest[0], exponents)
    if name in ("mul", "div"):
        sign = 1 if name == "mul" else -1
        return combine((1, form), (sign, vector_exponents(rest[0], exponents)))
    powers = {"neg": 1, "sqrt": Fraction(1, 2), "rsqrt": Fraction(-1, 2)}
    return combine((powers[name] if name in powers else Fraction(rest[0]), form))
