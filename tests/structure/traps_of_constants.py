"""Traps: numbers that do not scale, and those that any factor keeps."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.structure.trap import spread, trap


@trap(w="gather", v=1)
def gather_with_a_fill_value(p, x):
    columns = (x @ p["w"]).T.at[jnp.array([0, 7, 1])]
    return columns.get(mode="fill", fill_value=1.0).T @ p["v"]


@trap(w=1, v=1)
def gather_filled_with_zeros(p, x):
    columns = (x @ p["w"]).T.at[jnp.array([0, 7, 1])]
    return columns.get(mode="fill", fill_value=0.0).T @ p["v"]


@trap(w="add")
def integers_filled_with_the_lowest(p, x):
    zeros = jnp.zeros(3, np.int32).at[jnp.array([0, 5, 1])].get(mode="fill")
    return x @ p["w"] + spread(zeros.astype(np.float32))


@trap(w="add")
def maximum_of_no_integers(p, x):
    return x @ p["w"] + lax.reduce_max(jnp.zeros(0, np.int32), (0,)).astype(np.float32)


@trap(w="add")
def window_beyond_integers(p, x):
    lowest = np.int32(np.iinfo(np.int32).min)
    zeros = jnp.zeros(2, np.int32)
    maxima = lax.reduce_window(zeros, lowest, lax.max, (1,), (1,), ((1, 0),))
    return x @ p["w"] + spread(maxima.astype(np.float32))


@trap(w="add")
def integer_divided_by_zero(p, x):
    zeros = jnp.zeros(3, np.int32)
    return x @ p["w"] + spread(lax.div(zeros, zeros).astype(np.float32))


@trap(w="add")
def complement_of_zero(p, x):
    return x @ p["w"] + spread((~jnp.zeros(3, np.int32)).astype(np.float32))


@trap(w="add")
def imaginary_part_beside_infinity(p, x):
    number = lax.complex(0 * x, 0 * x) + np.complex64(complex(np.inf, 1))
    return x @ p["w"] + lax.imag(number)


@trap(w="add")
def zero_to_the_power_zero(p, x):
    return x @ p["w"] + lax.integer_pow(0 * x, 0)


@trap(w="add")
def real_zero_to_the_power_zero(p, x):
    return x @ p["w"] + lax.pow(0 * x, 0.0)


@trap(w=0, v=1)
def power_zero(p, x):
    return lax.integer_pow(x @ p["w"], 0) * (x @ p["v"])


@trap(w="add")
def empty_product(p, x):
    hidden = x @ p["w"]
    return hidden + jnp.prod(hidden[:0], axis=0, keepdims=True)


@trap(w=1, v=1)
def zero_added(p, x):
    return (x @ p["w"] + jnp.zeros(())) @ p["v"]


@trap(w=1, v=1)
def infinity_times_sign(p, x):
    return lax.min(lax.abs(x @ p["w"]), np.inf * lax.abs(x)) @ p["v"]


@trap(w=1)
def nan_beside_values(p, x):
    return jnp.where(x > 0, np.nan, x @ p["w"])


@trap(w="sub", v=1)
def shifted(p, x):
    return (x @ p["w"] - 0.5) @ p["v"]


@trap(w="max", v=1)
def clipped(p, x):
    return jnp.clip(x @ p["w"], -1.0, 1.0) @ p["v"]


@trap(w="clamp", v=1)
def clamped(p, x):
    return lax.clamp(-1.0, x @ p["w"], 1.0) @ p["v"]


@trap(w="min", v=1)
def relu6(p, x):
    return jax.nn.relu6(x @ p["w"]) @ p["v"]


@trap(w="pad", v=1)
def padded_with_ones(p, x):
    return lax.pad(x @ p["w"], 1.0, ((0, 1, 0), (0, 0, 0))) @ p["v"]


@trap(w="concatenate", v=1)
def joined_with_ones(p, x):
    return jnp.concatenate([x @ p["w"], jnp.ones((1, 3))], axis=0) @ p["v"]


@trap(w="gt", v=1)
def compared_with_a_number(p, x):
    hidden = x @ p["w"]
    return jnp.where(hidden > 0.5, hidden, 0.0) @ p["v"]


@trap(w="select_n", v=1)
def constant_branch(p, x):
    hidden = x @ p["w"]
    return jnp.where(hidden > 0, hidden, -1.0) @ p["v"]


@trap(w="expm1", v=1)
def elu(p, x):
    return jax.nn.elu(x @ p["w"]) @ p["v"]


@trap(w="scatter", v=1)
def constant_scattered(p, x):
    return (x @ p["w"]).at[0].set(1.0) @ p["v"]


@trap(w="scatter-add", v=1)
def constant_added_beyond_the_end(p, x):
    return (x @ p["w"]).at[jnp.array([0, 9])].add(jnp.ones((2, 3)), mode="drop") @ p["v"]


@trap(w="dynamic_update_slice", v=1)
def constant_row(p, x):
    return lax.dynamic_update_slice(x @ p["w"], jnp.ones((1, 3)), (1, 0)) @ p["v"]
