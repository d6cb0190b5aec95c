"""What a structure says: the certificate, and one sentence for each weight that is not free."""

import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import normjax

relu = jax.nn.relu


def draw(*shape, seed=0):
    """Return random numbers, float32."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


X = draw(2, 3)
PARAMS = {"w": draw(3, 3, seed=1), "v": draw(3, 3, seed=2), "b": draw(3, seed=3)}
HERE = Path(__file__)


def line_of(mark):
    """Return "file:line" of the line of this file that ends with a comment."""
    lines = HERE.read_text().splitlines()
    (number,) = (i for i, line in enumerate(lines, 1) if line.endswith(f"# {mark}"))
    return f"{HERE.name}:{number}"


def problems(apply_fn, params=PARAMS):
    return normjax.trace_structure(apply_fn, params, X).problems


# Sentences.


def saturated(params, x):
    hidden = jnp.tanh(x @ params["w"])  # tanh of the first layer
    return hidden @ params["v"]


def residual(params, x):
    hidden = relu(x @ params["w"])
    return (hidden @ params["v"] + hidden) @ params["w"]  # residual sum


def test_held_by_a_function():
    line = line_of("tanh of the first layer")
    assert problems(saturated) == (f"w is held by 'tanh' in saturated ({line})",)


def test_held_by_a_sum():
    assert problems(residual) == (f"v is held by 'add' in residual ({line_of('residual sum')})",)


def test_tied_to_another_weight():
    def apply_fn(params, x):
        return x @ params["w"] + x @ params["v"]  # sum of two

    (problem,) = problems(apply_fn)
    assert problem.startswith("v is tied to w by 'add' in ")
    assert problem.endswith(f"apply_fn ({line_of('sum of two')})")


def test_tied_to_several_weights():
    def apply_fn(params, x):
        return jnp.exp((x @ params["w"]) * (x @ params["v"]) * params["b"][None])

    (problem,) = problems(apply_fn)
    assert problem.startswith("b is tied to w, v by 'exp'")


def test_parts_of_leaves_are_named():
    def apply_fn(params, x):
        return jnp.tanh(x @ params[1]) @ params[0]

    (problem,) = problems(apply_fn, draw(2, 3, 3))
    assert problem.startswith("[1] is held by 'tanh'")


def test_modules_are_named():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.gelu(nn.Dense(3)(x))  # gelu of a module

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(Block()(x))

    params = Net().init(jax.random.key(0), X)["params"]
    (problem,) = problems(lambda p, x: Net().apply({"params": p}, x), params)
    assert problem.startswith("Block_0/Dense_0/kernel is held by ")
    assert "Net" in problem and "Block_0" in problem
    assert problem.endswith(f"({line_of('gelu of a module')})")


def test_every_weight_has_one_sentence():
    def apply_fn(params, x):
        return jnp.tanh(x @ params["w"]) + jnp.exp(x @ params["v"])

    assert [problem.split()[0] for problem in problems(apply_fn)] == ["w", "v"]


def test_biases_have_none():
    def apply_fn(params, x):
        return jnp.tanh(x + params["b"][None]) @ params["v"] + params["w"][:2]

    assert problems(apply_fn) == ()


# Lines.


def elsewhere(x):
    return jax.nn.softplus(x), jax.nn.relu6(x), jnp.linalg.norm(x), nn.gelu(x)


FUNCTIONS = {
    "softplus": lambda h: jax.nn.softplus(h),  # own line of softplus
    "relu6": lambda h: jax.nn.relu6(h),  # own line of relu6
    "gelu": lambda h: nn.gelu(h),  # own line of gelu
    "clip": lambda h: jnp.clip(h, -1, 1),  # own line of clip
    "var": lambda h: h / jnp.sqrt(jnp.var(h) + 1),  # own line of var
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_line_is_ones_own_where_the_library_was_traced_before(name):
    """JAX keeps the jaxpr of a library's function, with the lines of its first caller."""
    jax.make_jaxpr(elsewhere)(X)
    for function in FUNCTIONS.values():
        jax.make_jaxpr(lambda x, function=function: function(x))(X)  # another caller
    problem = problems(lambda p, x: FUNCTIONS[name](x @ p["w"]) @ p["v"])[0]
    assert problem.startswith("w is held by ")
    assert line_of(f"own line of {name}") in problem


@pytest.mark.parametrize(
    "wrap",
    [
        jax.jit,
        jax.checkpoint,
        jax.vmap,
        lambda f: lambda h: lax.scan(lambda c, _: (f(c), None), h, None, length=2)[0],
        lambda f: lambda h: lax.cond(True, f, f, h),
        lambda f: lambda h: lax.while_loop(lambda c: jnp.array(False), f, h),
    ],
)
def test_line_within_calls(wrap):
    def inner(hidden):
        return jnp.sin(hidden)  # sine within a call

    problem = problems(lambda p, x: wrap(inner)(x @ p["w"]) @ p["v"])[0]
    assert problem.startswith("w is held by 'sin' in ")
    assert problem.endswith(f"({line_of('sine within a call')})")


def test_line_of_a_primitive_of_another_function():
    def helper(hidden):
        return hidden - 0.5  # shift in a helper

    problem = problems(lambda p, x: helper(x @ p["w"]) @ p["v"])[0]
    assert problem.startswith("w is held by 'sub' in ")
    assert problem.endswith(f"helper ({line_of('shift in a helper')})")


# The certificate.


def test_certificate():
    def apply_fn(params, x):
        return relu(relu(x @ params["w"] + params["b"][None]) @ params["v"]) @ params["v"]

    assert str(normjax.trace_structure(apply_fn, PARAMS, X)).splitlines() == [
        "Certified: f(W; x) = rho_1 rho_2^(2) f(W~; x)",
        "  rho_1  w  3 -> 3  with bias",
        "  rho_2  v  3 -> 3",
    ]


def test_refusal():
    text = str(normjax.trace_structure(saturated, PARAMS, X))
    assert text.splitlines() == [
        "Not certified:",
        f"  w is held by 'tanh' in saturated ({line_of('tanh of the first layer')})",
        'With tied="keep", only these layers are normalized:',
        "f(W; x) = rho_1 f(W~; x)",
        "  rho_1  v  3 -> 3",
        "Not divided: b, w",
    ]


def test_refusal_without_any_layer():
    text = str(normjax.trace_structure(lambda p, x: jnp.exp(x @ p["w"]), PARAMS, X))
    assert text.splitlines()[0] == "Not certified:" and "rho" not in text


def test_certificate_of_convolutions():
    def apply_fn(params, x):
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(
            x, params["conv"], (1, 1), "SAME", dimension_numbers=dimensions, feature_group_count=2
        )
        x = relu(x * params["scale"][None, None, None])
        return jnp.sum(x * x, axis=(1, 2)) @ jnp.abs(params["head"])

    params = {"conv": draw(5, 3, 2, 8), "scale": draw(8), "head": draw(8, 2)}
    structure = normjax.trace_structure(apply_fn, params, draw(1, 6, 6, 4))
    assert str(structure).splitlines() == [
        "Certified: f(W; x) = rho_1^(2) rho_2 f(W~; x)",
        "  rho_1  conv  5 x 3 window, 2 -> 8, 2 groups  with factor of each output",
        "  rho_2  head  8 x 2, layout unknown",
        "Not divided: conv",
    ]


@pytest.mark.parametrize(
    "read", [lambda w: w if w[0, 0] > 0 else -w, np.abs, lambda w: w * int(w[0, 0])]
)
def test_python_that_reads_values_is_refused(read):
    with pytest.raises(ValueError, match="its Python code depends on values of params or x"):
        normjax.trace_structure(lambda params, x: x @ read(params), draw(2, 2), draw(1, 2))


def test_tracing_does_not_need_flax():
    program = (
        "import sys, numpy as np, normjax; "
        "normjax.trace_structure(lambda p, x: x @ p, np.ones((2, 2)), np.ones((1, 2))); "
        "sys.exit('flax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
