"""Steps of random programs: integers and booleans, calls, loops and branches."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.helpers.program_steps import SHAPE, SIZE, rows, spread, step

# Integers and booleans.


@step("integers")
def larger(pick):
    return pick.value() > pick.operand()


@step("integers")
def positive(pick):
    return pick.value() >= 0.0


@step("integers")
def above_a_number(pick):
    return pick.value() < 0.7


@step("integers")
def equal(pick):
    return lax.eq(pick.value(), pick.operand())


@step("integers")
def finite(pick):
    return lax.is_finite(pick.value())


@step("integers")
def opposite(pick):
    return ~pick.flags()


@step("integers")
def both(pick):
    return lax.bitwise_or(pick.flags() & pick.flags(), pick.integers() > 1)


@step("integers")
def any_of_row(pick):
    flags = pick.flags()
    return spread(jnp.any(flags, axis=0)) ^ rows(jnp.all(flags, axis=1))


@step("integers")
def place_of_maximum(pick):
    return rows(lax.argmax(pick.value(), 1, np.int32))


@step("integers")
def place_of_minimum(pick):
    return spread(lax.argmin(pick.value(), 0, np.int32))


@step("integers")
def place_in_stack(pick):
    return spread(lax.argmax(pick.stack().reshape(-1), 0, np.int32) % SIZE)


@step("integers")
def order_of_rows(pick):
    return jnp.argsort(pick.value(), axis=1).astype(np.int32)


@step("integers")
def places_of_largest(pick):
    return lax.top_k(pick.value(), 3)[1]


@step("integers")
def whole_numbers(pick):
    return pick.value().astype(np.int32)


@step("integers")
def counted(pick):
    return lax.cumsum(pick.flags().astype(np.int32), 0)


@step("integers")
def calculated(pick):
    first, second = pick.integers(), pick.integers()
    functions = (
        lax.add,
        lax.sub,
        lax.mul,
        lax.max,
        lax.bitwise_xor,
        lambda a, b: lax.div(a, b * b + 1),
        lambda a, b: lax.rem(a, b * b + 1),
        lambda a, b: lax.shift_left(a & 3, b & 3),
        lambda a, b: lax.population_count(a) + lax.clz(b),
        lambda a, b: jnp.where(a > b, a, 0),
    )
    return functions[pick.choose(len(functions))](first, second)


@step("integers")
def filled_integers(pick):
    return pick.integers().at[jnp.array([0, 5, 1])].get(mode="fill", wrap_negative_indices=False)


@step("kept")
def integers_as_floats(pick):
    return pick.integers().astype(pick.value().dtype)


@step("kept")
def flags_as_floats(pick):
    return pick.flags().astype(pick.value().dtype) * pick.operand()


@step("held")
def random_numbers(pick):
    value = pick.value()
    return value + jax.random.bits(jax.random.key(pick.choose(3)), SHAPE, np.uint8).astype(
        value.dtype
    )


# Functions that are called, and control flow.


@step("control")
def called(pick):
    return jax.jit(pick.body())(pick.value())


@step("control")
def checkpointed(pick):
    return jax.checkpoint(pick.body())(pick.value())


@step("control")
def with_own_tangent(pick):
    function = jax.custom_jvp(pick.body())
    function.defjvp(lambda primals, tangents: (primals[0], tangents[0]))
    return function(pick.value())


@step("control")
def with_own_gradient(pick):
    function = jax.custom_vjp(pick.body())
    function.defvjp(lambda v: (v, None), lambda _, gradient: (gradient,))
    return function(pick.value())


@step("control")
def conditional(pick):
    flag = pick.flags()[0, pick.choose(SIZE)]
    return lax.cond(flag, pick.body(), pick.body(), pick.value())


@step("control")
def conditional_on_leaf(pick):
    flag = jnp.sum(pick.stack()) > 0
    return lax.cond(flag, lambda v: v, lambda v: lax.rev(v, (0,)), pick.value())


@step("control")
def switched(pick):
    branches = (pick.body(), lambda v: v, pick.body())
    return lax.switch(pick.index(), branches, pick.value())


@step("control")
def repeated(pick):
    body = pick.body()
    return lax.fori_loop(0, pick.choose(4), lambda _, v: body(v), pick.value())


@step("control")
def accumulated(pick):
    value, body = pick.value(), pick.body()
    start = jnp.zeros_like(value)
    return lax.fori_loop(0, 2, lambda _, total: body(total) + value, start)


@step("control")
def repeated_while(pick):
    body, limit = pick.body(), pick.index() + 1

    def step(state):
        return state[0] + 1, body(state[1])

    return lax.while_loop(lambda state: state[0] < limit, step, (0, pick.value()))[1]


@step("control")
def halved_while_large(pick):
    limit = pick.operand()

    def is_large(state):
        return (jnp.max(lax.abs(state[1])) > jnp.max(lax.abs(limit))) & (state[0] < 4)

    return lax.while_loop(is_large, lambda s: (s[0] + 1, 0.5 * s[1]), (0, pick.value()))[1]


@step("control")
def shifted_registers(pick):
    """What enters the first register reaches the last one after several passes."""
    value = pick.value()
    empty = jnp.zeros_like(value)

    def step(registers, _):
        first, second, third = registers
        return (value, first, second), third

    length = pick.number((40, 3))
    (_, _, last), collected = lax.scan(step, (empty,) * 3, None, length=length)
    return last + pick.operand() if pick.choose(2) else collected[-1]


@step("control")
def scanned(pick):
    value, body = pick.value(), pick.body()

    def step(carry, row):
        return body(carry), row * 2.0

    last, doubled = lax.scan(step, pick.operand(), value)
    return last if pick.choose(2) else doubled


@step("control")
def mapped_rows(pick):
    return lax.map(lambda row: row / jnp.max(lax.abs(row)), pick.value())
