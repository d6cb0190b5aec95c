"""Hidden units are rescaled one by one only where that keeps the network's function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import normjax

relu = jax.nn.relu
SHAPES = {
    "w": (4, 6), "b": (6,), "u": (6, 6), "d": (6,), "v": (6, 3), "c": (3,),
    "conv": (3, 3, 2, 4), "flat": (100, 3), "head": (4, 3),
}  # fmt: skip


def draw(*shape):
    """Return random numbers, float64."""
    return np.random.default_rng(shape).standard_normal(shape)


def dense(p, x):
    return x["vectors"] @ p["w"] + p["b"][None]


def conv(p, x):
    dimensions = ("NHWC", "HWIO", "NHWC")
    hidden = lax.conv_general_dilated(
        x["images"], p["conv"], (1, 1), "SAME", dimension_numbers=dimensions
    )
    return relu(hidden)


def pooled(hidden, channels):
    window = (1, 2, 2, channels)
    return lax.reduce_window(hidden, -np.inf, lax.max, window, (1, 2, 2, 1), "SAME")


def deep(p, x):
    hidden = relu(relu(dense(p, x)) @ p["u"] + p["d"][None])
    return hidden @ p["v"] + p["c"][None]


def leaky(p, x):
    hidden = dense(p, x)
    return jnp.where(hidden > 0, hidden, 0.1 * hidden) @ p["v"]


def residual(p, x):
    hidden = relu(dense(p, x))
    return (hidden + relu(hidden @ p["u"])) @ p["v"]


def centered(axis):
    def apply_fn(p, x):
        hidden = dense(p, x)
        return (hidden - jnp.mean(hidden, axis=axis, keepdims=True)) @ p["v"]

    return apply_fn


def normalized(p, x):
    hidden = relu(dense(p, x))
    return hidden / jnp.sum(hidden, axis=1, keepdims=True) @ p["v"]


def times(factor):
    """A network times a number that depends on its first kernel, but not on its scale."""
    return lambda p, x: relu(x["vectors"] @ p["w"]) @ p["v"] * factor(p["w"])


BALANCED = [
    lambda p, x: relu(dense(p, x)) @ p["v"],
    deep,
    leaky,
    centered(axis=0),
    lambda p, x: jnp.minimum(relu(dense(p, x)), jnp.inf) @ p["v"],
    lambda p, x: conv(p, x).reshape(2, -1) @ p["flat"],
    lambda p, x: conv(p, x).transpose(0, 3, 1, 2).reshape(2, -1) @ p["flat"],
    lambda p, x: conv(p, x).transpose(0, 1, 3, 2).reshape(2, -1) @ p["flat"],
    lambda p, x: jnp.mean(conv(p, x), axis=(1, 2)) @ p["head"],
    lambda p, x: jnp.mean(pooled(conv(p, x), 1), axis=(1, 2)) @ p["head"],
]
REFUSED = [
    residual,
    centered(axis=1),
    normalized,
    lambda p, x: jnp.sort(relu(dense(p, x)), axis=1) @ p["v"],
    lambda p, x: relu(dense(p, x))[:, ::-1] @ p["v"],
    lambda p, x: relu(dense(p, x)).reshape(5, 2, 3).transpose(0, 2, 1).reshape(5, 6) @ p["v"],
    lambda p, x: jnp.max(relu(dense(p, x)).reshape(5, 3, 2), axis=2) @ p["v"][:3],
    lambda p, x: relu(dense(p, x))[:, :3] @ p["v"][:3],
    lambda p, x: relu(x["vectors"] @ p["w"] + p["b"][None, ::-1]) @ p["v"],
    lambda p, x: relu(x["vectors"] @ p["w"][:, ::-1]) @ p["v"],
    lambda p, x: (
        relu(x["vectors"] @ p["w"].reshape(4, 2, 3).transpose(0, 2, 1).reshape(4, 6)) @ p["v"]
    ),
    lambda p, x: relu(relu(dense(p, x)) @ p["u"]) @ p["u"] @ p["v"],
    lambda p, x: jnp.where(x["vectors"] @ p["w"] > 0, relu(x["vectors"] @ p["u"][:4]), 0) @ p["v"],
    lambda p, x: jnp.mean(pooled(conv(p, x), 2), axis=(1, 2)) @ p["head"],
    times(lambda w: jnp.sign(jnp.sum(w[:, :3]))),
    times(lambda w: jnp.argmax(jnp.abs(w)).astype(w.dtype)),
    times(lambda w: jnp.sum(jnp.abs(w)) / jnp.max(jnp.abs(w))),
]


@pytest.fixture
def network():
    """Parameters and inputs, float64."""
    with jax.enable_x64(True):
        yield (
            {name: draw(*shape) for name, shape in SHAPES.items()},
            {"vectors": draw(5, 4), "images": draw(2, 5, 5, 2)},
        )


@pytest.mark.parametrize("apply_fn", BALANCED)
def test_balancing_keeps_the_function(apply_fn, network):
    params, x = network
    structure = normjax.trace_structure(apply_fn, params, x)
    balanced = normjax.balance_params(params, structure=structure)
    assert any(np.any(params[name] != balanced[name]) for name in params)
    np.testing.assert_allclose(apply_fn(balanced, x), apply_fn(params, x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("apply_fn", REFUSED)
def test_balancing_is_refused(apply_fn, network):
    params, x = network
    structure = normjax.trace_structure(apply_fn, params, x)
    with pytest.raises(ValueError, match=r"cannot be balanced|not certified"):
        normjax.balance_params(params, structure=structure)
