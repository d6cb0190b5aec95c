"""Random programs that read leaves, drawn by hypothesis.

Their steps are in `program_steps.py` and `program_control_flow.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax.extend.core import ClosedJaxpr, Jaxpr

from tests.helpers import program_control_flow  # noqa: F401 - adds steps
from tests.helpers.program_steps import SHAPE, STEPS

MATRICES, VECTORS = ("w0", "w1", "w2"), ("g0", "g1", "g2")
NUM_CHOICES = 2**40  # one integer holds all choices of a step


class Program(NamedTuple):
    """A program of some steps.

    Attributes:
      steps: names of steps, each with an integer that holds its choices.
      bodies: the functions that steps call.
      seed: draws the leaves and the inputs.
    """

    steps: tuple[tuple[str, int], ...]
    bodies: tuple[tuple[tuple[str, int], ...], ...]
    seed: int

    def apply(self, params, x):
        """Return the program's output."""
        start = np.arange(9, dtype=np.int32).reshape(SHAPE) % 3
        integers, flags = jnp.asarray(start), jnp.asarray(start > 0)
        pool = Pool([jnp.asarray(x)], [integers], [flags], jax.tree.map(jnp.asarray, params))
        return run(self.steps, pool, self.bodies)

    def draw(self, index=0):
        """Return random parameters and inputs, float64; another index gives other ones."""
        rng = np.random.default_rng([self.seed, index])
        shapes = dict.fromkeys(MATRICES, SHAPE) | dict.fromkeys(VECTORS, SHAPE[:1])
        shapes |= {"stack": (2, *SHAPE), "single": (1, *SHAPE)}
        params = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        return params, rng.standard_normal(SHAPE)


class Pool(NamedTuple):
    """The arrays that steps choose from, latest last."""

    values: list
    integers: list
    flags: list
    params: dict


class Pick:
    """The choices of one step."""

    def __init__(self, number, pool, bodies):
        self._number, self._pool, self._bodies = number, pool, bodies

    def choose(self, count):
        """Return one of `0, ..., count - 1`."""
        self._number, chosen = divmod(self._number, count)
        return chosen

    def number(self, choices):
        return choices[self.choose(len(choices))]

    def value(self):
        """Return a value, most often the latest."""
        return self._late(self._pool.values, (0, 0, 0, 0, 1, 2))

    def operand(self):
        """Return a leaf, or an earlier value."""
        return self.leaf() if self.choose(3) == 0 else self._late(self._pool.values, (1, 0, 2, 3))

    def integers(self):
        return self._late(self._pool.integers, (0, 0, 1))

    def flags(self):
        return self._late(self._pool.flags, (0, 0, 1))

    def index(self):
        """Return one integer from 0 to 2."""
        return jnp.abs(self.integers()[0, 1]) % 3

    def leaf(self):
        return self._pool.params[self.number(MATRICES)]

    def vector(self):
        return self._pool.params[self.number(VECTORS)]

    def stack(self):
        """Return several matrices in one leaf."""
        return self._pool.params["stack"]

    def single(self):
        """Return one matrix with an axis before it."""
        return self._pool.params["single"]

    def body(self):
        """Return a function of a value."""
        steps = self._bodies[self.choose(len(self._bodies))] if self._bodies else ()

        def function(value):
            pool = self._pool._replace(values=[value])
            return run(steps, Pool(*map(list, pool[:3]), pool.params), ())

        return function

    def _late(self, pool, places):
        return pool[-1 - min(self.number(places), len(pool) - 1)]


def run(steps, pool, bodies):
    """Add the results of steps to a pool; return the latest value."""
    dtype = pool.values[0].dtype
    for name, number in steps:
        result = STEPS[name][0](Pick(number, pool, bodies))
        assert result.shape == SHAPE, name
        if result.dtype == bool:
            pool.flags.append(result)
        elif np.issubdtype(result.dtype, np.integer):
            pool.integers.append(result.astype(np.int32))
        else:
            pool.values.append(result.astype(dtype))
    return pool.values[-1]


def programs():
    """Return the strategy: steps of all kinds between two layers."""

    def one(*kinds):
        names = [[name for name in STEPS if STEPS[name][1] == kind] for kind in kinds]
        name = st.sampled_from(names).flatmap(st.sampled_from)
        return st.tuples(name, st.integers(0, NUM_CHOICES))

    inner = ("kept", "kept", "integers", "kept", "held", "kept", "layer", "held")
    middle = st.lists(one(*inner, "control", "control"), min_size=2, max_size=6)
    steps = st.builds(
        lambda first, rest, last: (first, *rest, last), one("layer"), middle, one("layer")
    )
    body = st.lists(one(*inner), min_size=1, max_size=3).map(tuple)
    return st.builds(Program, steps, st.tuples(body, body), st.integers(0, 2**32 - 1))


def primitives(jaxpr):
    """Return the names of all primitives in a jaxpr and in those inside it."""
    found = set()
    for eqn in jaxpr.eqns:
        found.add(eqn.primitive.name)
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if isinstance(inner, ClosedJaxpr):
                    inner = inner.jaxpr
                if isinstance(inner, Jaxpr):
                    found |= primitives(inner)
    return found
