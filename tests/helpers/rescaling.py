"""Does a structure keep its promise? Leaves are multiplied by powers of two, outputs compared."""

import math
from fractions import Fraction

import jax
import numpy as np


def rescaled(structure, params, exponents):
    """Divide every leaf as if the norm of layer k were `2**exponents[k]`."""
    leaves, treedef = jax.tree.flatten(params)
    for leaf, powers in structure.divisors:
        factor = _power_of_two(-_total(powers, exponents))
        old = np.asarray(leaves[leaf.number])
        new = old.copy()
        new[... if leaf.part is None else leaf.part] *= factor.astype(old.dtype)
        leaves[leaf.number] = new
    return jax.tree.unflatten(treedef, leaves)


def expected(structure, outputs, exponents):
    """Return what the network gives with rescaled leaves, from its outputs without."""
    degrees = [(number, matrix.degree) for number, matrix in enumerate(structure.matrices)]
    factor = _power_of_two(-_total(degrees, exponents))
    return jax.tree.map(lambda output: _times(np.asarray(output), factor), outputs)


def draw_exponents(structure, rng, largest=2):
    """Draw an exponent for each layer such that all leaves and the output scale by powers of 2."""
    powers = [power for _, terms in structure.divisors for _, power in terms]
    powers += [matrix.degree for matrix in structure.matrices]
    step = math.lcm(*(Fraction(power).denominator for power in powers))
    drawn = rng.integers(1, largest + 1, len(structure.matrices))
    signs = rng.choice((-1, 1), len(structure.matrices))
    return [int(k) * step for k in drawn * signs]


def degrees_of_leaves(structure):
    """Return the degree of each layer by its kernel, `{"w": 1, "stack[0]": 2}`."""
    names = {}
    for matrix in structure.matrices:
        path, _ = structure.leaves[matrix.kernel.number]
        part = "" if matrix.kernel.part is None else f"[{matrix.kernel.part}]"
        names[path + part] = matrix.degree
    return names


def assert_rescales(apply_fn, params, x, structure, seed=0, rtol=0.0):
    """Outputs are the promised multiples, bit for bit unless `rtol` is given."""
    compiled, rng = jax.jit(apply_fn), np.random.default_rng(seed)
    outputs = compiled(params, x)
    for _ in range(2):
        exponents = draw_exponents(structure, rng)
        found = compiled(rescaled(structure, params, exponents), x)
        promised = expected(structure, outputs, exponents)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(np.asarray(a), b, rtol=rtol), found, promised
        )


def _total(powers, exponents):
    total = sum((Fraction(power) * exponents[number] for number, power in powers), Fraction())
    assert total.denominator == 1
    return int(total)


def _power_of_two(exponent):
    return np.ldexp(np.float64(1), exponent)


def _times(output, factor):
    """Multiply floats; integers and booleans must stay as they are."""
    is_inexact = np.issubdtype(output.dtype, np.inexact) or output.dtype.name == "bfloat16"
    return output * factor.astype(output.dtype) if is_inexact else output
