"""Traps: weights that something else is made of first, and parts of leaves."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.structure.trap import spread, trap


@trap(w="add")
def weight_plus_a_number(p, x):
    return x @ (p["w"] + 0.01)


@trap(g="add", w=1)
def one_plus_scale(p, x):
    return (1 + spread(p["g"])) * (x @ p["w"])


@trap(w="tanh", v=1)
def absolute_weight_below_tanh(p, x):
    return jnp.tanh(x @ lax.abs(p["w"])) @ p["v"]


@trap(w="exp", v=1)
def exponential_weight(p, x):
    return x @ lax.exp(p["w"]) @ p["v"]


@trap(w=1, g="select_n", v=1)
def learned_slope(p, x):
    hidden = x @ p["w"]
    return jnp.where(hidden > 0, hidden, spread(p["g"]) * hidden) @ p["v"]


@trap(w="concatenate", v=1)
def weight_beside_ones(p, x):
    return x @ jnp.concatenate([p["w"][:2], np.ones((1, 3), np.float32)], axis=0) @ p["v"]


@trap(w="swap", v="swap")
def filled_by_a_function(p, x):
    @jax.jit
    def fill(reference, hidden):
        reference[...] = hidden

    reference = jax.new_ref(jnp.zeros((2, 3)))
    fill(reference, x @ p["w"])
    lax.fori_loop(0, 2, lambda i, _: reference.__setitem__(i, (x @ p["v"])[i]), None)
    return reference[...]


@trap(w="tanh", v=1)
def skipped_by_a_reference(p, x):
    reference = jax.new_ref(jnp.zeros((2, 3)))
    reference[...] = jnp.tanh(x @ p["w"])
    return reference[...] @ p["v"]


# Parts of leaves.


@trap(stack=2)
def whole_and_parts(p, x):
    return (x @ p["stack"][0]) @ p["stack"][1] * jnp.sign(jnp.sum(p["stack"]))


@trap(stack=2)
def part_and_sum(p, x):
    return jax.nn.relu(x @ p["stack"][0]) @ jnp.sum(p["stack"], axis=0)


@trap(**{"stack[0]": 1, "stack[1]": 1, "v": 1})
def scan_over_rows(p, x):
    layer = lambda hidden, w: (jax.nn.relu(hidden @ w), None)  # noqa: E731
    return lax.scan(layer, x, p["stack"], reverse=True)[0] @ p["v"]


@trap(**{"stack[0]": 2, "stack[1]": 1})
def scan_and_its_first_row(p, x):
    layer = lambda hidden, w: (jax.nn.relu(hidden @ w), None)  # noqa: E731
    return lax.scan(layer, x, p["stack"])[0] @ p["stack"][0]


@trap(stack=2)
def reversed_rows(p, x):
    return jax.nn.relu(x @ p["stack"][::-1][0]) @ p["stack"][0]


@trap(single=2)
def copies_of_a_row(p, x):
    copies = lax.broadcast_in_dim(p["single"], (2, 3, 3), (0, 1, 2))
    return (x @ copies[0]) @ copies[1]


@trap(single=5)
def scan_over_copies(p, x):
    copies = jnp.broadcast_to(p["single"], (5, 3, 3))
    return lax.scan(lambda hidden, w: (jax.nn.relu(hidden @ w), None), x, copies)[0]


@trap(stack=2)
def switch_on_the_whole(p, x):
    branches = [lambda h, k=k: h * k for k in np.arange(1.0, 19.0, dtype=np.float32)]
    return lax.switch(jnp.argmax(p["stack"]), branches, (x @ p["stack"][0]) @ p["stack"][1])


@trap(stack=2)
def steps_from_the_whole(p, x):
    last = jnp.argmax(p["stack"])
    steps = lax.while_loop(lambda i: i < last, lambda i: i + 1, jnp.zeros_like(last))
    return (1 + steps).astype(np.float32) * ((x @ p["stack"][0]) @ p["stack"][1])
