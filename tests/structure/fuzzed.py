"""Is the certificate of a random program right?"""

from typing import NamedTuple

import jax
import numpy as np

import normjax
from normjax.structure import NetworkStructure
from tests.helpers.random_programs import primitives
from tests.helpers.rescaling import draw_exponents, expected, rescaled


class Outcome(NamedTuple):
    """What became of a random program.

    Attributes:
      structure: its structure.
      is_tested: whether it has layers, and an output to tell by.
      primitives: the primitives in its jaxpr.
    """

    structure: NetworkStructure
    is_tested: bool
    primitives: set[str]


def examine(program, num_values=1):
    """Trace a program; raise AssertionError if rescaling its layers does not do what it must.

    Everything is float64, evaluated operation by operation: a factor of a power of two changes no
    bit of a mantissa. Cube roots are the exception.
    """
    with jax.enable_x64(True):
        params, x = program.draw()
        structure = normjax.trace_structure(program.apply, params, x)
        names = primitives(jax.make_jaxpr(program.apply)(params, x).jaxpr)
        is_tested = False
        for index in range(num_values if structure.matrices else 0):
            params, x = program.draw(index)
            exponents = draw_exponents(structure, np.random.default_rng(index), largest=1)
            with jax.disable_jit():
                output = np.asarray(program.apply(params, x))
                found = program.apply(rescaled(structure, params, exponents), x)
            rtol = 1e-12 if "cbrt" in names else 0.0
            promised = expected(structure, output, exponents)
            np.testing.assert_allclose(np.asarray(found), promised, rtol=rtol)
            is_tested |= bool(np.any(np.isfinite(output) & (output != 0)))
    return Outcome(structure, is_tested, names)
