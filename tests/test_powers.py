from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normjax import powers
from normjax.normalize import log_product_norm, normalize_params, product_norm
from tests.helpers.networks import mlp_params

pytestmark = pytest.mark.numerics

POWERS = [1, 2, 3, -1, 0, 17, Fraction(1, 2), Fraction(-3, 2), Fraction(2, 3)]


@jax.jit
def plain(numbers):
    product = numbers[0]
    for number in numbers[1:]:
        product = product * number
    return product


@jax.jit
def in_pieces(numbers):
    (product,) = powers.multiply(numbers, [tuple((k, 1) for k in range(len(numbers)))])
    return powers.value(product)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(2**-20, 2**20, width=32), min_size=6, max_size=6))
def test_ordinary_products_are_the_plain_ones_bit_for_bit(numbers):
    numbers = [jnp.float32(number) for number in numbers]
    assert in_pieces(numbers) == plain(numbers)


@pytest.mark.parametrize("x64", [False, True])
def test_powers_agree_with_float64(x64):
    with jax.enable_x64(x64):
        dtype = np.float64 if x64 else np.float32
        rtol = 1e-14 if x64 else 5e-6
        numbers = [dtype(x) for x in (3.7e20, 1.5e-25, 1.0, 123.0)]
        products = [((k, power),) for k in range(4) for power in POWERS]
        products += [((0, 1), (1, 1), (3, 2)), ((0, 1), (1, 1), (3, 2), (2, -1))]
        found = jax.jit(lambda x: powers.multiply(x, products))(list(map(jnp.asarray, numbers)))
        for exponents, product in zip(products, found, strict=True):
            expected = sum(float(power) * np.log(np.float64(numbers[k])) for k, power in exponents)
            assert 1 <= product.mantissa < 2 and product.mantissa.dtype == dtype
            np.testing.assert_allclose(powers.log(product), expected, rtol=rtol, atol=rtol)
            if abs(expected) < 80:
                np.testing.assert_allclose(powers.value(product), np.exp(expected), rtol=4 * rtol)
                np.testing.assert_allclose(
                    powers.divide(jnp.asarray(dtype(3)), product),
                    3 / np.exp(expected),
                    rtol=4 * rtol,
                )


def test_beyond_the_range_values_are_infinite_or_zero():
    (large,) = powers.multiply([jnp.float32(1e30)], [((0, 5),)])
    assert powers.value(large) == np.inf and powers.divide(jnp.float32(1), large) == 0
    (small,) = powers.multiply([jnp.float32(1e30)], [((0, -5),)])
    assert powers.value(small) == 0 and powers.divide(jnp.float32(1), small) == np.inf
    for number in (np.nan, np.inf):
        (product,) = powers.multiply([jnp.float32(number)], [((0, 1),)])
        np.testing.assert_equal(float(powers.value(product)), number)
        np.testing.assert_equal(float(powers.log(product)), number)


def test_gradients_flow_through_the_mantissa():
    exponents = ((0, 2), (1, Fraction(-1, 2)))

    @jax.jit
    def value_and_log(x, y):
        (product,) = powers.multiply([x, y], [exponents])
        return powers.value(product), powers.log(product)

    slopes = jax.jit(jax.jacobian(value_and_log, (0, 1)))(3.0, 7.0)
    expected = ((6 / 7**0.5, -9 / 2 / 7**1.5), (2 / 3, -1 / 14))
    np.testing.assert_allclose(slopes, expected, rtol=1e-6)


# Products that no dtype holds.


def deep_params(num_layers=16, width=256):
    rng = np.random.default_rng(0)
    params = {}
    for k in range(num_layers):
        kernel = rng.standard_normal((width, width)).astype(np.float32) / 16
        params[f"Dense_{k}"] = {"kernel": jnp.asarray(kernel)}
    return params


@pytest.mark.parametrize("factor", [1, 1e-6])
def test_a_product_beyond_float32_has_a_logarithm(factor):
    """Sixteen 256-wide layers, of L1 norm about 3,000, or 0.003."""
    params = jax.tree.map(lambda leaf: leaf * np.float32(factor), deep_params())
    wide = jax.tree.map(np.float64, params)
    expected = sum(np.log(np.abs(layer["kernel"]).sum()) for layer in wide.values())
    assert abs(expected) > 89
    np.testing.assert_allclose(log_product_norm(params, 1), expected, rtol=1e-6)
    np.testing.assert_allclose(product_norm(wide, 1), np.exp(expected), rtol=1e-10)
    with pytest.raises(ValueError, match=r"is too (large|small) for float32; log_product_norm giv"):
        product_norm(params, 1)
    inside = float(jax.jit(product_norm, static_argnums=1)(params, 1))
    assert inside == (np.inf if factor == 1 else 0)
    gradient = jax.jit(jax.grad(log_product_norm), static_argnums=1)(params, 1)["Dense_0"]["kernel"]
    kernel = wide["Dense_0"]["kernel"]
    np.testing.assert_allclose(gradient, np.sign(kernel) / np.abs(kernel).sum(), rtol=1e-5)


def test_nothing_overflows_on_the_way():
    """Norms of 1e30 and of 1e-30 whose product is 1."""
    params = jax.tree.map(jnp.asarray, mlp_params([3] * 13))
    sizes = [1e30] * 6 + [1e-30] * 6
    params = {
        name: {"kernel": layer["kernel"] * size / jnp.linalg.norm(layer["kernel"])}
        for (name, layer), size in zip(params.items(), sizes, strict=True)
    }
    params["Dense_11"]["bias"] = jnp.ones(3)
    np.testing.assert_allclose(product_norm(params), 1, rtol=1e-5)
    normalized = normalize_params(params)
    np.testing.assert_allclose(normalized["Dense_11"]["bias"], 1, rtol=1e-5)


def test_a_product_beyond_float32_leaves_no_nan():
    params = jax.tree.map(lambda leaf: leaf * 1e6, mlp_params([3] * 12))
    normalized = normalize_params(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(normalized))
    assert np.all(normalized["Dense_10"]["bias"] == 0)


def test_a_bias_too_large_for_its_dtype_is_an_error():
    params = mlp_params([3, 3, 3])
    for layer in params.values():
        layer["kernel"] *= 1e-25
    params["Dense_0"]["bias"] *= 1e-25
    with pytest.raises(ValueError, match="'Dense_1/bias', normalized, is not finite in float32"):
        normalize_params(params)
    normalized = jax.jit(normalize_params)(params)
    assert np.isinf(normalized["Dense_1"]["bias"]).all()
    assert np.isfinite(normalized["Dense_1"]["kernel"]).all()
