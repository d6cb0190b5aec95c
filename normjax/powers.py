"""Products of powers of norms, as mantissas and exponents that neither overflow nor underflow."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from normjax.exponents import Number
from normjax.types import Array

Powers = tuple[tuple[int, Number], ...]
"""The product of `norms[k]^power` over pairs `(k, power)`."""


class Product(NamedTuple):
    """The positive number `mantissa * 2^exponent`.

    Splitting a number is exact, so that a product of ordinary size is, bit for bit, the one of
    direct multiplication. Gradients flow through the mantissa.

    Attributes:
      mantissa: in [1, 2), unless it is NaN or infinite.
      exponent: int32.
    """

    mantissa: Array
    exponent: Array


def multiply(norms: Sequence[Array], products: Sequence[Powers]) -> list[Product]:
    """Return products of powers of positive norms, multiplied in order."""
    dtype = jnp.result_type(*norms)
    known: dict[Powers, Product] = {(): Product(jnp.ones((), dtype), jnp.zeros((), jnp.int32))}
    for powers in products:
        for end, (k, power) in enumerate(powers):  # products often begin with another one
            if powers[: end + 1] not in known:
                factor = _power(norms[k].astype(dtype), power)
                known[powers[: end + 1]] = _multiply(known[powers[:end]], factor)
    return [known[powers] for powers in products]


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
    """Split a positive number into mantissa and exponent."""
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


def _power(x: Array, power: Number) -> Product:
    """Return a power of a positive number."""
    numerator, denominator = Fraction(power).as_integer_ratio()
    base = _split(x)
    if denominator > 1:
        # x = (mantissa * 2^rest) * (2^quotient)^denominator
        quotient, rest = jnp.divmod(base.exponent, denominator)
        root = _scale(base.mantissa, rest)
        root = lax.sqrt(root) if denominator == 2 else root ** (1 / denominator)
        base = Product(root, quotient)
    if numerator < 0:
        base = Product(1 / base.mantissa, -base.exponent)
    if not numerator:
        return Product(jnp.ones_like(x), jnp.zeros((), jnp.int32))
    result = base
    for bit in f"{abs(numerator):b}"[1:]:
        result = _multiply(result, result)
        if bit == "1":
            result = _multiply(result, base)
    return result


def _multiply(a: Product, b: Product) -> Product:
    """Return the product of two products."""
    mantissa, exponent = _split(a.mantissa * b.mantissa)
    return Product(mantissa, a.exponent + b.exponent + exponent)
