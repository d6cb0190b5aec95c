"""Traps: functions that are not homogeneous, integers that depend on values."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.structure.trap import spread, trap


@trap(w="scatter", v=1)
def function_applied_at_an_index(p, x):
    return (x @ p["w"]).at[0].apply(jnp.exp) @ p["v"]


@trap(w="scatter-mul", v=1)
def product_at_an_index(p, x):
    return (x @ p["w"]).at[0].multiply(2.0) @ p["v"]


@trap(w="round", v=1)
def rounded_straight_through(p, x):
    @jax.custom_vjp
    def rounded(hidden):
        return jnp.round(hidden)

    rounded.defvjp(lambda h: (h, None), lambda _, gradient: (gradient,))
    return rounded(x @ p["w"]) @ p["v"]


@trap(w="tanh", v=1)
def tanh_with_the_tangent_of_identity(p, x):
    function = jax.custom_jvp(jnp.tanh)
    function.defjvp(lambda primals, tangents: (primals[0], tangents[0]))
    return function(x @ p["w"]) @ p["v"]


@trap(w="pure_callback", v=1)
def callback(p, x):
    shape = jax.ShapeDtypeStruct((2, 3), np.float32)
    return jax.pure_callback(np.tanh, shape, x @ p["w"]) @ p["v"]


@trap(w="convert_element_type", v=1)
def cast_to_integers(p, x):
    return (x @ p["w"]).astype(np.int32).astype(np.float32) @ p["v"]


@trap(w="bitcast_convert_type", v=1)
def read_as_integers(p, x):
    return lax.bitcast_convert_type(x @ p["w"], np.int32).astype(np.float32) @ p["v"]


@trap(w=1, v=1)
def cast_to_half_precision(p, x):
    return (x @ p["w"]).astype(np.float16).astype(np.float32) @ p["v"]


@trap(w="cumprod", v=1)
def running_products(p, x):
    return lax.cumprod(x @ p["w"], 1) @ p["v"]


@trap(w=3, v=3)
def product_of_three(p, x):
    return jnp.prod((x @ p["w"])[:, :, None] * p["v"][None], axis=1)


@trap(v="rem")
def remainder(p, x):
    return lax.rem(x @ p["w"], x @ p["v"])


@trap(v="atan2", g=1)
def angle(p, x):
    return lax.atan2(x @ p["w"], x @ p["v"]) * spread(p["g"])


@trap(**{"w": 2, "v": -1, "stack[0]": Fraction(1, 2)})
def squares_and_roots(p, x):
    root = lax.rsqrt(lax.square(x @ p["v"])) * lax.sqrt(lax.abs(x @ p["stack"][0]))
    return lax.square(x @ p["w"]) * root


@trap(w="tanh", v="exp", g=1)
def held_twice(p, x):
    return lax.exp(x @ p["v"]) * jnp.tanh(x @ p["w"]) * spread(p["g"])


@trap(w=0, v=1)
def with_sign(p, x):
    return lax.sign(x @ p["w"]) * (x @ p["v"])


@trap(w="pow", v=1)
def power_from_an_array(p, x):
    return lax.pow(lax.abs(x @ p["w"]), lax.abs(x)) @ p["v"]


@trap(w="pow", v=1)
def complex_power(p, x):
    return lax.real((x @ p["w"]).astype(np.complex64) ** (1 + 1j)) @ p["v"]


@trap(w=1, v=1)
def complex_numbers(p, x):
    number = lax.complex(x @ p["w"], x @ p["w"]) * np.complex64(1 + 2j)
    return lax.abs(number) @ p["v"] + lax.imag(lax.conj(number)) @ p["v"]


@trap(w="add", v=1)
def layer_norm(p, x):
    hidden = x @ p["w"]
    centered = hidden - jnp.mean(hidden, axis=1, keepdims=True)
    return centered * lax.rsqrt(jnp.var(hidden, axis=1, keepdims=True) + 1e-5) @ p["v"]


@trap(w=0, v=1)
def rms_norm_without_epsilon(p, x):
    hidden = x @ p["w"]
    return hidden / jnp.sqrt(jnp.mean(hidden * hidden, axis=1, keepdims=True)) @ p["v"]


@trap(**{"v": "exp", "stack[0]": 1})
def attention(p, x):
    scores = (x @ p["w"]) @ (x @ p["v"]).T
    return jax.nn.softmax(scores, axis=1) @ (x @ p["stack"][0])


@trap(w=1, v=1)
def mask_of_minus_infinity(p, x):
    scores = (x @ p["w"]) @ (x @ p["v"]).T
    return jnp.max(jnp.where(jnp.tri(2, dtype=bool), scores, -np.inf), axis=1)


@trap(v="select_n")
def mask_of_minus_a_billion(p, x):
    scores = (x @ p["w"]) @ (x @ p["v"]).T
    return jnp.max(jnp.where(jnp.tri(2, dtype=bool), scores, -1e9), axis=1)


# Integers and booleans that depend on values.


@trap(w=1)
def largest_place_as_a_number(p, x):
    hidden = x @ p["w"]
    return jnp.argmax(hidden, axis=1, keepdims=True).astype(np.float32) * hidden


@trap(w=0, v=1)
def one_hot_of_largest(p, x):
    return jax.nn.one_hot(jnp.argmax(x @ p["w"], axis=1), 3) * (x @ p["v"])


@trap(w=0, v="add")
def place_of_largest_added(p, x):
    place = jnp.argmax(x @ p["w"], axis=1, keepdims=True)
    return x @ p["v"] + place.astype(np.float32)


@trap(w="add")
def largest_of_a_mixture(p, x):
    return jnp.argmax(x @ p["w"] + x, axis=1).astype(np.float32)


@trap(w=0, v=1)
def sorted_by_keys(p, x):
    return lax.sort((x @ p["w"], x @ p["v"]), dimension=1, num_keys=1)[1]


@trap(w="add", v=1)
def keys_of_two_scales(p, x):
    return lax.sort((x @ p["w"] + x, x @ p["v"]), dimension=1, num_keys=1)[1]


@trap(**{"v": "gt", "stack[0]": 1})
def larger_of_two(p, x):
    return jnp.where(x @ p["w"] > x @ p["v"], x, 0.0) @ p["stack"][0]


@trap(w="convert_element_type", v=1)
def cast_to_booleans(p, x):
    return lax.convert_element_type(x @ p["w"], np.bool_).astype(np.float32) @ p["v"]


@trap(w="convert_element_type", v=1)
def slice_from_a_value(p, x):
    start = jnp.sum(x @ p["w"]).astype(np.int32)
    return lax.dynamic_slice(x, (start, jnp.zeros_like(start)), (1, 3)) @ p["v"]


@trap(w=0, v=1)
def slice_from_the_largest(p, x):
    start = jnp.argmax(x @ p["w"]) % 2
    return lax.dynamic_slice(x @ p["v"], (start, jnp.zeros_like(start)), (1, 3))
