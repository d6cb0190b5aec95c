"""Exponents: how a value scales when the leaves of a network are scaled, and the equations on them.

Leaf i of a network is multiplied by `exp(s_i)`. A value of the network's computation is then
multiplied by `exp(e)`, where `e` is linear in s, as long as linear equations in s hold. Exponents
and equations are exact: their coefficients are integers or fractions.
"""

from collections.abc import Collection, Iterable, Mapping
from fractions import Fraction
from typing import NamedTuple


class Leaf(NamedTuple):
    """A leaf of the parameter tree, or the part of it that one step of a scan reads.

    Attributes:
      number: position in `jax.tree.leaves(params)`.
      part: index along the leaf's first axis, or None for the whole leaf.
    """

    number: int
    part: int | None = None


def leaf_key(leaf: Leaf) -> tuple[int, int]:
    """Return a sort key: leaves in order, a whole leaf before its parts."""
    return leaf.number, -1 if leaf.part is None else leaf.part


Number = int | Fraction

Exponents = Mapping[Leaf, Number]
"""A linear form in s, `{leaf: coefficient}`, without zeros."""


class Equation(NamedTuple):
    """The equation `form = 0`, and the operation that demands it."""

    form: Exponents
    reason: str


class Solution(NamedTuple):
    """All s that satisfy the equations.

    Attributes:
      dependent: the exponents of each leaf that is not free, in terms of free leaves.
      reasons: the operation that made each of these leaves dependent.
    """

    dependent: dict[Leaf, Exponents]
    reasons: dict[Leaf, str]

    def exponents(self, form: Exponents) -> Exponents:
        """Return a linear form in terms of free leaves."""
        return substitute(form, self.dependent)


def combine(*terms: tuple[Number, Exponents]) -> Exponents:
    """Return the sum of multiples of linear forms."""
    total: dict[Leaf, Number] = {}
    for factor, form in terms:
        for leaf, coefficient in form.items():
            total[leaf] = total.get(leaf, 0) + factor * coefficient
    return {leaf: coefficient for leaf, coefficient in total.items() if coefficient}


def substitute(form: Exponents, values: Mapping[Leaf, Exponents]) -> Exponents:
    """Replace leaves of a linear form with linear forms."""
    if not any(leaf in values for leaf in form):
        return form
    return combine(*((k, values.get(leaf, {leaf: 1})) for leaf, k in form.items()))


def solve(
    equations: Iterable[Equation], order: Mapping[Leaf, int], terms: Collection[Leaf]
) -> Solution:
    """Solve homogeneous linear equations for as many leaves as needed.

    Leaves that are added to other values (biases) become dependent before leaves that multiply
    (kernels), and later leaves before earlier ones.

    Args:
      equations: the equations.
      order: the position of each leaf's first use.
      terms: the leaves that are added to, or compared with, other values.
    """
    dependent: dict[Leaf, Exponents] = {}
    reasons: dict[Leaf, str] = {}
    users: dict[Leaf, set[Leaf]] = {}  # the dependent leaves whose forms contain a free leaf
    for form, reason in equations:
        form = substitute(form, dependent)
        if not form:
            continue
        pivot = max(form, key=lambda leaf: (leaf in terms, order.get(leaf, -1)))
        value = {leaf: _ratio(-k, form[pivot]) for leaf, k in form.items() if leaf != pivot}
        for user in users.pop(pivot, ()):
            dependent[user] = substitute(dependent[user], {pivot: value})
            for leaf in dependent[user]:
                users.setdefault(leaf, set()).add(user)
        dependent[pivot], reasons[pivot] = value, reason
        for leaf in value:
            users.setdefault(leaf, set()).add(pivot)
    return Solution(dependent, reasons)


def _ratio(numerator: Number, denominator: Number) -> Number:
    """Divide exactly; keep integers, which are faster than fractions."""
    ratio = Fraction(numerator) / denominator
    return ratio.numerator if ratio.denominator == 1 else ratio
