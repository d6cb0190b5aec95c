"""Traps: programs on which a wrong rule of the analysis would give a wrong certificate.

Each says what the structure must be: for a leaf that is held or tied, the primitive that does it,
and for a free leaf, the degree of the output.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

import normjax
from tests.helpers.rescaling import assert_rescales, degrees_of_leaves

SHAPES = {"w": (3, 3), "v": (3, 3), "g": (3,), "stack": (2, 3, 3), "single": (1, 3, 3)}
TRAPS = []


class Trap(NamedTuple):
    """A program, and what its structure must be.

    Attributes:
      apply: the program, `apply(params, x)`.
      expected: a primitive for each leaf that must be tied or held, a degree for each free leaf.
    """

    apply: Callable[[Any, Any], Any]
    expected: Mapping[str, Any]


def trap(**expected):
    def add(apply):
        TRAPS.append(Trap(apply, expected))
        return apply

    return add


def leaves_and_inputs(seed=0):
    """Return random parameters and inputs [2, 3]."""
    rng = np.random.default_rng(seed)
    params = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    return params, rng.standard_normal((2, 3)).astype(np.float32)


def summary(structure):
    """Return what a structure says, in the form of `Trap.expected`."""
    found = degrees_of_leaves(structure)
    for problem in structure.problems:
        if " is held by " in problem or " is tied to " in problem:
            found[problem.split()[0]] = problem.split("by '")[-1].split("'")[0]
    return found


def is_passed(one):
    """Whether a trap has the structure that is expected."""
    return summary(normjax.trace_structure(one.apply, *leaves_and_inputs())) == one.expected


def check(one):
    """Raise AssertionError unless the structure is the expected one, and rescaling is exact."""
    params, x = leaves_and_inputs()
    structure = normjax.trace_structure(one.apply, params, x)
    assert summary(structure) == one.expected, structure.problems
    if structure.matrices:
        assert_rescales(one.apply, params, x, structure)


def spread(vector):
    """Give a vector the axis of the examples."""
    return vector.reshape(1, -1) if vector.size != 2 else vector.reshape(2, 1)
