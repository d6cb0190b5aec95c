"""Products of powers of norms, as mantissas and exponents that neither overflow nor underflow."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from normjax.exponents import Number
from normjax.types import Array

Powers = tuple[tuple[int, Number], ...]
"""The product of `norms[k]^power` over pairs `(k, power)`."""


_STEPS = 32  # mantissas that can be multiplied without overflow


class Product(NamedTuple):
    """The positive number `mantissa * 2^exponent`.

    Splitting a number is exact, so a product of ordinary size equals that of direct multiplication
    bit for bit. Gradients flow through the mantissa.

    Attributes:
      mantissa: in [1, 2), unless it is NaN or infinite.
      exponent: int32.
    """

    mantissa: Array
    exponent: Array


def multiply(norms: Sequence[Array], products: Sequence[Powers]) -> list[Product]:
    """Return products of powers of positive norms, multiplied in order."""
    if not products:
        return []
    dtype = np.result_type(*(rho.dtype for rho in norms))  # explicit, as promotion may be an error
    bases = _unstack(_split(jnp.stack([rho.astype(dtype) for rho in norms])))
    known: dict[Powers, Product] = {(): Product(jnp.ones((), dtype), jnp.zeros((), jnp.int32))}
    for powers in products:
        for end, (k, power) in enumerate(powers, 1):  # a product often extends another one
            if powers[:end] not in known:
                factor = bases[k] if power == 1 else _power(bases[k], power)
                product = _multiply(known[powers[: end - 1]], factor)
                known[powers[:end]] = product if end % _STEPS else _normalize(product)
    mantissas, exponents = zip(*(known[powers] for powers in products), strict=True)
    return _unstack(_normalize(Product(jnp.stack(mantissas), jnp.stack(exponents))))


def value(product: Product) -> Array:
    """Return the number, infinite or 0 if it is too large or too small."""
    return _scale(*product)


def log(product: Product) -> Array:
    """Return the natural logarithm."""
    mantissa, exponent = product
    return jnp.log(mantissa) + exponent.astype(mantissa.dtype) * math.log(2)


def divide(x: Array, product: Product) -> Array:
    """Return `x / product`, in the dtype of `x`."""
    return _scale(x / product.mantissa.astype(x.dtype), -product.exponent)


def _split(x: Array) -> Product:
    """Split positive numbers into mantissas and exponents."""
    info = jnp.finfo(x.dtype)
    bits = lax.bitcast_convert_type(jnp.abs(x), jnp.dtype(f"int{info.bits}"))
    exponent = jnp.clip((bits >> info.nmant) + (info.minexp - 1), info.minexp, info.maxexp - 1)
    return Product(x / _power_of_two(exponent, x.dtype), exponent.astype(jnp.int32))


def _scale(x: Array, exponent: Array) -> Array:
    """Return `x * 2^exponent`."""
    info = jnp.finfo(x.dtype)
    for _ in range(3):  # enough between the smallest and the largest number
        step = jnp.clip(exponent, info.minexp, info.maxexp - 1)
        x, exponent = x * _power_of_two(step, x.dtype), exponent - step
    return x


def _power_of_two(exponent: Array, dtype: jnp.dtype) -> Array:
    """Return `2^exponent`, exactly, for the exponents of normal numbers."""
    info = jnp.finfo(dtype)
    bits = (exponent - (info.minexp - 1)).astype(f"int{info.bits}") << info.nmant
    return lax.bitcast_convert_type(bits, dtype)


def _power(base: Product, power: Number) -> Product:
    """Return a product raised to a power."""
    numerator, denominator = Fraction(power).as_integer_ratio()
    if not numerator:
        return Product(jnp.ones_like(base.mantissa), jnp.zeros_like(base.exponent))
    if denominator > 1:
        # The base is (mantissa * 2^rest) * (2^quotient)^denominator.
        quotient, rest = jnp.divmod(base.exponent, denominator)
        root = _scale(base.mantissa, rest)
        root = lax.sqrt(root) if denominator == 2 else root ** (1 / denominator)
        base = _normalize(Product(root, quotient))
    if numerator < 0:
        base = Product(1 / base.mantissa, -base.exponent)
    result = base
    for bit in f"{abs(numerator):b}"[1:]:
        result = _multiply(result, result)
        if bit == "1":
            result = _multiply(result, base)
        result = _normalize(result)
    return result


def _multiply(a: Product, b: Product) -> Product:
    """Return the product of two products, whose mantissa may leave [1, 2)."""
    return Product(a.mantissa * b.mantissa, a.exponent + b.exponent)


def _normalize(product: Product) -> Product:
    """Return the same product with a mantissa in [1, 2)."""
    mantissa, exponent = _split(product.mantissa)
    return Product(mantissa, product.exponent + exponent)


def _unstack(stacked: Product) -> list[Product]:
    """Return the products in a vector of products."""
    return [Product(*pair) for pair in zip(*stacked, strict=True)]
