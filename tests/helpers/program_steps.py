"""The steps of random programs: each makes a [3, 3] array of earlier ones and of leaves.

A step takes a `Pick` (see `random_programs.py`), from which it chooses its operands. It returns
floats, integers or booleans; whatever may scale is used with whatever may not.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

SIZE = 3
SHAPE = (SIZE, SIZE)
STEPS = {}
"""`{name: (step, kind)}`; kinds are "layer", "kept", "held", "integers" and "control"."""


def step(kind):
    def add(function):
        STEPS[function.__name__] = (function, kind)
        return function

    return add


def one_operand(kind, functions):
    """Add steps that apply one function to a value."""
    for name, function in functions.items():
        STEPS[name] = (lambda pick, function=function: function(pick.value()), kind)


def two_operands(kind, functions):
    """Add steps that apply one function to a value and to another value or leaf."""
    for name, function in functions.items():
        STEPS[name] = (lambda pick, f=function: f(pick.value(), pick.operand()), kind)


def spread(vector):
    """One value for each column, or one for all."""
    return jnp.broadcast_to(vector, SHAPE)


def rows(vector):
    """One value for each row."""
    return lax.broadcast_in_dim(vector, SHAPE, (0,))


# Layers.


@step("layer")
def dense(pick):
    return pick.value() @ pick.leaf()


@step("layer")
def dense_of_rows(pick):
    return lax.dot_general(pick.value(), pick.leaf(), (((1,), (1,)), ((), ())))


@step("layer")
def dense_relu(pick):
    return lax.max(pick.value() @ pick.leaf() + spread(pick.vector()), 0.0)


@step("layer")
def grouped_dense(pick):
    kernel = pick.leaf().reshape(SIZE, 1, SIZE)
    return lax.dot_general(pick.value(), kernel, (((), ()), ((1,), (0,)))).reshape(SIZE, -1)[:, :3]


@step("layer")
def convolution(pick):
    image = pick.value().reshape(1, SIZE, SIZE, 1)
    kernel = pick.leaf().reshape(SIZE, SIZE, 1, 1)
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=dimensions
    ).reshape(SHAPE)


@step("layer")
def bias(pick):
    return pick.value() + spread(pick.vector())


@step("layer")
def scale(pick):
    return pick.value() * spread(pick.vector())


@step("layer")
def scale_by_number(pick):
    return pick.value() * pick.vector()[pick.choose(SIZE)]


@step("layer")
def batch_norm(pick):
    variance = lax.square(pick.vector()) + pick.number((0.0, 1e-3))
    factor = lax.rsqrt(variance) * pick.vector()
    return (pick.value() - spread(pick.vector())) * spread(factor) + spread(pick.vector())


@step("layer")
def weight_norm(pick):
    weight = pick.leaf()
    return pick.value() @ (weight / jnp.sqrt(jnp.sum(weight * weight, axis=0, keepdims=True)))


@step("layer")
def embedding(pick):
    return pick.leaf()[pick.integers()[0]]


@step("layer")
def absolute_weights(pick):
    return pick.value() @ lax.abs(pick.leaf())


@step("layer")
def joined_weights(pick):
    return pick.value() @ lax.concatenate([pick.leaf()[:1], pick.operand()[1:]], 0)


@step("layer")
def part_of_stack(pick):
    stack = pick.stack()
    views = (stack, lax.rev(stack, (0,)), lax.rev(stack, (1,)), stack.transpose(0, 2, 1))
    return pick.value() @ pick.number(views)[pick.choose(2)]


@step("layer")
def scan_over_stack(pick):
    stack, start = pick.stack(), pick.value()
    if pick.choose(2):
        stack = lax.rev(stack, (0,))
    body = pick.body()

    def layer(hidden, weight):
        return body(hidden @ weight), hidden

    last, collected = lax.scan(layer, start, stack, reverse=bool(pick.choose(2)))
    return last if pick.choose(3) else jnp.sum(collected, axis=0)


@step("layer")
def scan_over_copies(pick):
    stack = lax.broadcast_in_dim(pick.single(), (2, *SHAPE), (0, 1, 2))
    return lax.scan(lambda hidden, weight: (hidden @ weight, None), pick.value(), stack)[0]


# What keeps the scale of its operands, or multiplies it.

one_operand(
    "kept",
    {
        "negated": lax.neg,
        "absolute": lax.abs,
        "relu": jax.nn.relu,  # custom_jvp_call
        "relu_plain": lambda v: lax.max(v, 0.0),
        "leaky_relu": lambda v: jnp.where(v > 0, v, 0.125 * v),
        "square": lax.square,
        "root": lambda v: lax.sqrt(lax.abs(v)),
        "reciprocal_root": lambda v: lax.rsqrt(lax.abs(v)),
        "cube_root": lax.cbrt,
        "copied": lambda v: lax.copy_p.bind(v),
        "constant": lax.stop_gradient,
        "barrier": lax.optimization_barrier,
        "named": lambda v: checkpoint_name(v, "value"),
        "reversed": lambda v: lax.rev(v, (1,)),
        "transposed": lambda v: v.T,
        "flat": lambda v: v.reshape(9)[:, None].reshape(SHAPE),
        "squeezed": lambda v: lax.squeeze(lax.expand_dims(v, (1,)), (1,)),
        "row_sums": lambda v: rows(jnp.sum(v, axis=1)),
        "row_maxima": lambda v: rows(jnp.max(v, axis=1)),
        "column_minima": lambda v: spread(jnp.min(v, axis=0)),
        "row_products": lambda v: rows(jnp.prod(v, axis=1)),
        "empty_product": lambda v: spread(jnp.prod(v[:0], axis=0)),
        "centered": lambda v: v - jnp.mean(v, axis=1, keepdims=True),
        "running_sums": lambda v: lax.cumsum(v, 1),
        "running_maxima": lambda v: lax.cummax(v, 0),
        "running_minima": lambda v: lax.cummin(v, 1, reverse=True),
        "sorted_rows": lambda v: lax.sort(v, dimension=1),
        "largest": lambda v: lax.top_k(v, 3)[0],
        "split_rows": lambda v: lax.concatenate(lax.split(v, (1, 2))[::-1], 0),
        "unstacked": lambda v: jnp.stack(jnp.unstack(v)[::-1]),
        "tiled": lambda v: lax.tile(v, (2, 1))[2:5],
        "padded": lambda v: lax.pad(v, jnp.zeros((), v.dtype), ((1, 0, 0), (0, 0, 1)))[:3, :3],
        "pooled_maxima": lambda v: lax.reduce_window(v, -np.inf, lax.max, (2, 2), (1, 1), "SAME"),
        "pooled_minima": lambda v: lax.reduce_window(v, np.inf, lax.min, (2, 1), (1, 1), "SAME"),
        "pooled_sums": lambda v: lax.reduce_window(v, 0.0, lax.add, (1, 2), (1, 1), "SAME"),
        "rounded_off": lambda v: lax.reduce_precision(v, 11, 20),
        "single_precision": lambda v: v.astype(jnp.float32).astype(v.dtype),
        "brain_floats": lambda v: v.astype(jnp.bfloat16).astype(v.dtype),
        "filled_maximum": lambda v: lax.max(
            jnp.where(jnp.eye(SIZE, dtype=bool), -np.inf, v), 0.5 * v
        ),
        "spectrum": lambda v: lax.real(jnp.fft.fft(v)),
        "amplitude": lambda v: lax.abs(lax.complex(v, lax.rev(v, (0,)))),
        "conjugate": lambda v: lax.imag(lax.conj(lax.complex(v, v))),
        "normalized": lambda v: v / jnp.sqrt(jnp.sum(v * v)),
        "divided_by_maximum": lambda v: v / jnp.max(lax.abs(v)),
        "gradient_of_relu": lambda v: jax.grad(lambda u: jnp.sum(jax.nn.relu(u) ** 2))(v),
        "halved": lambda v: 0.5 * v,
        "weighted": lambda v: v * np.array([[1.0, 0.0, -2.0]]),
        "vanishing": lambda v: 0.0 * v,
        "infinite": lambda v: v * np.inf,
        "ramp_on_zero": lambda v: v + jnp.zeros_like(v),
        "mapped": jax.vmap(lambda row: row / jnp.sum(lax.abs(row))),
    },
)

two_operands(
    "kept",
    {
        "sum_of_two": lax.add,
        "difference": lax.sub,
        "maximum": lax.max,
        "minimum": lax.min,
        "product": lax.mul,
        "quotient": lax.div,
        "attention": lambda a, b: a @ b.T,
        "remainder": lax.rem,
        "first_rows": lambda a, b: lax.concatenate([a[:1], b[1:]], 0),
        "stacked": lambda a, b: jnp.max(jnp.stack([a, b]), axis=0),
        "clamped": lambda a, b: lax.clamp(-lax.abs(b), a, lax.abs(b)),
        "sorted_by": lambda a, b: lax.sort((a, b), dimension=1, num_keys=1)[1],
        "with_sign": lambda a, b: lax.sign(a) * b,
        "angle": lax.atan2,
        "where_larger": lambda a, b: jnp.where(a > b, a, b),
        "padded_with": lambda a, b: lax.pad(a, b[0, 0], ((1, 0, 0), (0, 0, 0)))[:3],
        "updated": lambda a, b: lax.dynamic_update_slice(a, b[:1], (1, 0)),
        "scattered": lambda a, b: a.at[jnp.array([0, 2])].set(b[:2]),
        "scattered_sum": lambda a, b: a.at[jnp.array([0, 0])].add(b[:2]),
        "scattered_maximum": lambda a, b: a.at[jnp.array([1, 7])].max(b[:2], mode="drop"),
        "scattered_minimum": lambda a, b: a.at[jnp.array([1, 0])].min(b[:2]),
        "scattered_product": lambda a, b: a.at[jnp.array([1])].multiply(b[:1]),
        "masked": lambda a, b: a * (b > 0).astype(a.dtype),
        "barriers": lambda a, b: lax.optimization_barrier((a, b))[1],
        "gradient_of_two": lambda a, b: jax.grad(lambda u: jnp.sum(u * b + u * u * 0.5))(a),
    },
)


@step("kept")
def power(pick):
    return lax.integer_pow(pick.value(), pick.number((2, 3, -1, -2, 0)))


@step("kept")
def real_power(pick):
    return lax.pow(lax.abs(pick.value()), pick.number((2.0, 0.5, -0.5, 1.5, 0.0)))


@step("kept")
def selected(pick):
    return jnp.where(pick.flags(), pick.value(), pick.operand())


@step("kept")
def selected_or_zero(pick):
    return jnp.where(pick.flags(), pick.value(), pick.number((0.0, np.inf, 1.0)))


@step("kept")
def looked_up(pick):
    return jnp.take(pick.value(), pick.integers()[0], axis=0, mode="clip")


@step("kept")
def looked_up_or_filled(pick):
    rows = pick.value().at[pick.integers()[0] + pick.choose(2)]
    return rows.get(mode="fill", fill_value=pick.number((0.0, 1.0, np.inf)))


@step("kept")
def sliced(pick):
    start = pick.index()
    row = lax.dynamic_slice(pick.value(), (start, jnp.zeros_like(start)), (1, SIZE))
    return jnp.tile(row, (SIZE, 1))


@step("kept")
def updated_at(pick):
    start = pick.index()
    place = (start, jnp.zeros_like(start))
    return lax.dynamic_update_slice(pick.value(), pick.operand()[:1], place)


@step("kept")
def scattered_at(pick):
    return pick.value().at[pick.integers()[0]].add(pick.operand(), mode="drop")


@step("kept")
def applied_at(pick):
    function = (lax.neg, lax.tanh, lax.abs)[pick.choose(3)]
    return pick.value().at[pick.choose(SIZE)].apply(function)


# What must not scale.

one_operand(
    "held",
    {
        "tanh": lax.tanh,
        "exponential": lambda v: lax.exp(-lax.abs(v)),
        "binary_exponential": lambda v: lax.exp2(-lax.abs(v)),
        "exponential_minus_one": lambda v: lax.expm1(-lax.abs(v)),
        "logarithm": lambda v: lax.log(lax.abs(v)),
        "shifted_logarithm": lambda v: lax.log1p(lax.abs(v)),
        "sine": lax.sin,
        "cosine": lax.cos,
        "tangent": lambda v: lax.tan(0.1 * v),
        "arc_tangent": lax.atan,
        "inverse_sinh": lax.asinh,
        "error_function": lax.erf,
        "logistic": lax.logistic,
        "softplus": jax.nn.softplus,
        "softmax": lambda v: jax.nn.softmax(v, axis=1),
        "gelu": jax.nn.gelu,
        "relu6": jax.nn.relu6,
        "floor": lax.floor,
        "ceiling": lax.ceil,
        "rounded": lax.round,
        "shifted": lambda v: v + 0.25,
        "shifted_by_array": lambda v: v - np.array([[0.0, 1.0, 0.0]]),
        "at_least_one": lambda v: lax.max(v, 1.0),
        "clipped": lambda v: lax.clamp(-0.5, v, 0.5),
        "padded_with_ones": lambda v: lax.pad(v, jnp.ones((), v.dtype), ((1, 0, 0), (0, 0, 0)))[:3],
        "next_number": lambda v: lax.nextafter(v, jnp.full_like(v, np.inf)),
        "running_products": lambda v: lax.cumprod(v, 1),
        "running_logsumexp": lambda v: lax.cumlogsumexp(v, axis=1),
        "layer_norm": lambda v: v * lax.rsqrt(jnp.mean(v * v, axis=1, keepdims=True) + 1e-5),
        "where_small": lambda v: jnp.where(lax.abs(v) < 1.0, v, 0.0),
        "triangular": lambda v: jnp.tril(v) + jnp.eye(SIZE, dtype=v.dtype),
    },
)
