"""Traps: loops and branches."""

import jax.numpy as jnp
from jax import lax

from tests.structure.trap import trap


@trap(w="add")
def loop_that_starts_at_zero(p, x):
    def step(state):
        return state[0] + 1, state[1] + x @ p["w"] + x

    return lax.while_loop(lambda s: s[0] < 3, step, (0, jnp.zeros_like(x)))[1]


@trap(w=1, v=1)
def sum_that_starts_at_zero(p, x):
    return lax.fori_loop(0, 3, lambda _, s: s + x @ p["w"], jnp.zeros_like(x)) @ p["v"]


@trap(w="lt", v=1)
def loop_until_large(p, x):
    def is_small(hidden):
        return jnp.sum(lax.abs(hidden)) < 9.0

    return lax.while_loop(is_small, lambda hidden: 2 * hidden, x @ p["w"]) @ p["v"]


@trap(w=1, v=1)
def loop_until_larger_than_before(p, x):
    def is_small(hidden):
        return jnp.sum(lax.abs(hidden)) < jnp.sum(lax.abs(9 * x @ p["w"]))

    return lax.while_loop(is_small, lambda hidden: 2 * hidden, x @ p["w"]) @ p["v"]


@trap(w="while")
def loop_that_changes_the_scale(p, x):
    step = lambda state: (state[0] + 1, state[1] @ p["w"])  # noqa: E731
    return lax.while_loop(lambda state: state[0] < 3, step, (0, x))[1]


def registers(x, value, length):
    """Shift a value through three registers; the last is added to x at every step."""

    def step(state, _):
        first, second, third, total = state
        return (value, first, second, total + third), None

    empty = jnp.zeros_like(x)
    return lax.scan(step, (empty, empty, empty, x), None, length=length)[0][3]


@trap(w="add")
def carry_that_settles_late(p, x):
    return registers(x, x @ p["w"], 50)


@trap(w="add")
def carry_of_unrolled_steps(p, x):
    return registers(x, x @ p["w"], 5)


@trap(w="while")
def loop_that_settles_late(p, x):
    def step(state):
        count, first, second, _ = state
        return count + 1, x @ p["w"], first, second + x * 0

    start = (0, 0 * x, 0 * x, x)
    return lax.while_loop(lambda state: state[0] < 5, step, start)[3]


@trap(w="gt")
def branch_on_a_value(p, x):
    hidden = x @ p["w"]
    return lax.cond(jnp.sum(hidden) > 0.1, lambda h: h, lambda h: 2 * h, hidden)


@trap(w="cond")
def branches_of_two_scales(p, x):
    return lax.cond(x[0, 0] > 0, lambda: x @ p["w"], lambda: x)


@trap(w="tanh", v=1)
def nonlinear_branch(p, x):
    return lax.switch(jnp.int32(x[0, 0]), [jnp.tanh, lambda h: h], x @ p["w"]) @ p["v"]


@trap(w="tanh", v=1)
def other_platform(p, x):
    hidden = x @ p["w"]
    return lax.platform_dependent(hidden, cpu=lambda h: h, default=jnp.tanh) @ p["v"]


@trap(w=1, v=1)
def every_platform(p, x):
    hidden = x @ p["w"]
    return lax.platform_dependent(hidden, cpu=lambda h: 2 * h, default=lambda h: h + h) @ p["v"]


@trap(w=1)
def loop_of_no_steps(p, x):
    return lax.fori_loop(0, 0, lambda _, hidden: jnp.tanh(hidden), x @ p["w"])


@trap(w=1)
def scan_of_no_steps(p, x):
    return lax.scan(lambda h, _: (jnp.tanh(h), None), x @ p["w"], None, length=0)[0]
