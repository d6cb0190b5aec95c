"""Certificates of small networks: order, degrees, parts of leaves, biases, containers, calls."""

from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import normjax
from normjax.exponents import Leaf
from tests.helpers.rescaling import assert_rescales, degrees_of_leaves


def draw(*shape, seed=0):
    """Return random numbers, float32."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


X = draw(2, 3)
W, V, STACK = draw(3, 3, seed=1), draw(3, 3, seed=2), draw(3, 3, 3, seed=3)
PARAMS = {"w": W, "v": V, "b": draw(3, seed=4), "c": draw(3, seed=5), "stack": STACK}
relu = jax.nn.relu


def certified(apply_fn, params, x=X):
    """Return the structure; it must be certified, and rescaling exact."""
    structure = normjax.trace_structure(apply_fn, params, x)
    assert structure.is_certified, structure.problems
    assert_rescales(apply_fn, params, x, structure)
    return structure


# Order of application.


@pytest.mark.parametrize(
    "names", [("stem", "head"), ("encoder", "decoder"), ("z", "a"), ("layer_10", "layer_9")]
)
def test_order_is_that_of_application(names):
    first, second = names
    params = {first: {"kernel": W}, second: {"kernel": V}}

    def apply_fn(params, x):
        return relu(x @ params[first]["kernel"]) @ params[second]["kernel"]

    assert certified(apply_fn, params).layers == names


def test_order_of_a_one_liner():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(relu(nn.Dense(4)(x)))  # the outer layer is named first

    params = Net().init(jax.random.key(0), X)
    structure = certified(Net().apply, params)
    assert structure.layers == ("params/Dense_1", "params/Dense_0")


def test_order_of_definition_does_not_matter():
    def apply_fn(params, x):
        late = params["w"] * 2  # read first, applied last
        return relu(x @ params["v"]) @ late

    assert list(degrees_of_leaves(certified(apply_fn, PARAMS))) == ["v", "w"]


# Degrees.


def weight_normalized(kernel):
    return kernel / jnp.sqrt(jnp.sum(kernel * kernel, axis=0, keepdims=True))


@pytest.mark.parametrize(
    ("apply_fn", "degrees"),
    [
        (lambda p, x: relu(x @ p["w"]) @ p["v"], {"w": 1, "v": 1}),
        (lambda p, x: relu(x @ p["w"]) @ p["w"].T, {"w": 2}),
        (lambda p, x: relu(relu(x @ p["w"]) @ p["w"]) @ p["w"] @ p["v"], {"w": 3, "v": 1}),
        (lambda p, x: jnp.sqrt(relu(x @ p["w"])) @ p["v"], {"w": Fraction(1, 2), "v": 1}),
        (lambda p, x: jnp.cbrt(x @ p["w"]) ** 2 @ p["v"], {"w": Fraction(2, 3), "v": 1}),
        (lambda p, x: (x @ p["w"]) ** 2 @ p["v"], {"w": 2, "v": 1}),
        (lambda p, x: (x @ p["w"]) ** -1 @ p["v"], {"w": -1, "v": 1}),
        (lambda p, x: x @ weight_normalized(p["w"]) @ p["v"], {"w": 0, "v": 1}),
        (lambda p, x: x @ (p["w"] * p["w"]) @ p["v"], {"w": 2, "v": 1}),
        (lambda p, x: x @ jnp.abs(p["w"]) @ p["v"].T[::-1], {"w": 1, "v": 1}),
        (lambda p, x: (x @ p["w"]) * (x @ p["v"]), {"w": 1, "v": 1}),
        (lambda p, x: (x @ p["w"]) / (x @ p["v"]), {"w": 1, "v": -1}),
        (lambda p, x: jnp.sign(x @ p["w"]), {"w": 0}),
    ],
)
def test_degrees(apply_fn, degrees):
    structure = normjax.trace_structure(apply_fn, PARAMS, X)
    assert structure.is_certified and degrees_of_leaves(structure) == degrees
    is_exact = all(Fraction(degree).denominator in (1, 2) for degree in degrees.values())
    assert_rescales(apply_fn, PARAMS, X, structure, rtol=0.0 if is_exact else 1e-6)


# Biases.


def biased(params, x):
    return (relu(x @ params["w"] + params["b"][None])) @ params["v"] + params["c"][None]


def test_first_bias_belongs_to_the_matrix():
    structure = certified(biased, PARAMS)
    first, last = structure.matrices
    assert first.is_joint and first.bias == first.offset == Leaf(0)
    assert not last.is_joint and last.bias is None and last.offset == Leaf(1)
    divisors = {structure.leaves[leaf.number][0]: powers for leaf, powers in structure.divisors}
    assert divisors == {
        "b": ((0, 1),),
        "c": ((0, 1), (1, 1)),
        "w": ((0, 1),),
        "v": ((1, 1),),
    }


def test_bias_after_a_layer_without_one_is_not_joint():
    def apply_fn(params, x):
        return relu(x @ params["w"]) @ params["v"] + params["b"][None]

    assert [matrix.is_joint for matrix in certified(apply_fn, PARAMS).matrices] == [False, False]


def test_bias_of_the_inputs_does_not_scale():
    def apply_fn(params, x):
        return relu(x + params["b"][None]) @ params["w"]

    structure = certified(apply_fn, PARAMS)
    assert [structure.leaves[leaf.number][0] for leaf, _ in structure.divisors] == ["w"]


# Parts of leaves.


def scanned(params, x, reverse=False):
    layer = lambda hidden, w: (relu(hidden @ w[0] + w[1][None]), None)  # noqa: E731
    return lax.scan(layer, x, (params["stack"], params["w"]), reverse=reverse)[0]


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_over_a_stack_has_a_layer_for_each_row(reverse):
    structure = certified(lambda p, x: scanned(p, x, reverse), PARAMS)
    order = [2, 1, 0] if reverse else [0, 1, 2]
    assert structure.layers == tuple(f"stack[{i}]" for i in order)
    assert [matrix.kernel.part for matrix in structure.matrices] == order
    assert [matrix.is_joint for matrix in structure.matrices] == [True, False, False]
    passed = {leaf.part: powers for leaf, powers in structure.divisors if leaf.number == 4}
    assert passed == {i: tuple((k, 1) for k in range(step + 1)) for step, i in enumerate(order)}


def test_long_scans_are_unrolled_where_each_step_has_its_own_weight():
    def apply_fn(params, x):
        return lax.scan(lambda hidden, w: (relu(hidden @ w), None), x, params)[0]

    structure = certified(apply_fn, 0.7 * draw(40, 3, 3))
    assert len(structure.layers) == 40 and set(structure.degrees.values()) == {1}


def test_python_loop_over_a_stack():
    def apply_fn(params, x):
        for i in range(2):
            x = relu(x @ params[i])
        return x @ params[-1]

    structure = certified(apply_fn, STACK)
    assert degrees_of_leaves(structure) == {"[0]": 1, "[1]": 1, "[2]": 1}


@pytest.mark.parametrize(
    ("apply_fn", "degree"),
    [
        (lambda p, x: scanned(p, x) @ jnp.sum(p["stack"], axis=0), 4),
        (lambda p, x: relu(x @ p["stack"][0]) @ p["stack"].reshape(9, 3)[:3], 2),
        (lambda p, x: (x @ p["stack"][1]) @ jnp.moveaxis(p["stack"], 2, 0)[0], 2),
        (lambda p, x: lax.fori_loop(0, 3, lambda i, h: h @ p["stack"][i], x), 3),
        (lambda p, x: (x @ (p["stack"] / jnp.sum(p["stack"]))[0]) @ p["stack"][1], 1),
    ],
)
def test_leaf_used_as_a_whole_and_in_parts_is_one(apply_fn, degree):
    assert degrees_of_leaves(certified(apply_fn, PARAMS)) == {"stack": degree}


# What a structure is.


def test_structures_compare_by_value():
    first, second = (normjax.trace_structure(biased, PARAMS, X) for _ in range(2))
    assert first == second and hash(first) == hash(second) and first is not second
    assert first != normjax.trace_structure(lambda p, x: x @ p["w"], PARAMS, X)


def test_structure_is_a_static_argument():
    num_traces = []

    def product(params, structure):
        num_traces.append(1)
        leaves = jax.tree.leaves(params)
        return sum(jnp.sum(leaves[matrix.kernel.number]) for matrix in structure.matrices)

    compiled = jax.jit(product, static_argnames="structure")
    for _ in range(2):
        structure = normjax.trace_structure(biased, PARAMS, X)
        np.testing.assert_allclose(compiled(PARAMS, structure=structure), W.sum() + V.sum(), 1e-5)
    assert len(num_traces) == 1


def test_shapes_are_enough():
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), PARAMS)
    concrete = normjax.trace_structure(biased, PARAMS, X)
    x = jax.ShapeDtypeStruct(X.shape, X.dtype)
    assert normjax.trace_structure(biased, shapes, x) == concrete
    assert normjax.trace_structure(biased, shapes, X) == concrete
    assert jax.jit(lambda p: len(normjax.trace_structure(biased, p, X).layers))(PARAMS) == 2


def test_leaves_that_are_not_floats_are_constants():
    params = {
        "activation": relu,
        "count": 2,
        "epsilon": 1e-3,
        "key": jax.random.key(0),
        "nothing": None,
        "order": np.array([2, 0, 1]),
        "unused": draw(4),
        "w": W,
    }

    def apply_fn(params, x):
        mask = jax.random.bernoulli(params["key"], 0.5, x.shape)
        hidden = params["activation"](x[:, params["order"]] @ params["w"]) * params["epsilon"]
        return jnp.where(mask, hidden, 0) * params["count"]

    structure = normjax.trace_structure(apply_fn, params, X)
    assert structure.is_certified and degrees_of_leaves(structure) == {"w": 1}
    assert [structure.leaves[leaf.number][0] for leaf, _ in structure.divisors] == ["w"]
    assert "unused" in [path for path, _ in structure.leaves]


@pytest.mark.parametrize("wrap", [tuple, list, lambda leaves: {"a": leaves[0], "b": leaves[1]}])
def test_containers(wrap):
    def apply_fn(params, x):
        first, second = jax.tree.leaves(params)
        return relu(x @ first) @ second

    assert [m.kernel for m in certified(apply_fn, wrap([W, V])).matrices] == [Leaf(0), Leaf(1)]


def test_several_inputs():
    def apply_fn(params, x):
        return x["image"] @ params["w"] * x["mask"]

    certified(apply_fn, PARAMS, {"image": X, "mask": X})


# Functions that are called.


@jax.custom_vjp
def doubled(hidden):
    return 2 * hidden


doubled.defvjp(lambda hidden: (2 * hidden, None), lambda _, gradient: (gradient,))


def in_while_loop(params, x):
    step = lambda state: (state[0] + 1, relu(state[1] @ weight_normalized(params["w"])))  # noqa: E731
    return lax.while_loop(lambda state: state[0] < 3, step, (0, x))[1] @ params["v"]


@pytest.mark.parametrize(
    "apply_fn",
    [
        lambda p, x: jax.jit(lambda h: relu(h @ p["w"]))(x) @ p["v"],
        lambda p, x: jax.checkpoint(lambda h: relu(h @ p["w"]))(x) @ p["v"],
        lambda p, x: doubled(x @ p["w"]) @ p["v"],
        lambda p, x: jax.vmap(lambda row: relu(row @ p["w"]) @ p["v"])(x),
        lambda p, x: lax.map(lambda row: relu(row @ p["w"]) @ p["v"], x),
        lambda p, x: (
            lax.cond(x[0, 0] > 0, lambda h: relu(h @ p["w"]), lambda h: h @ p["w"], x) @ p["v"]
        ),
        lambda p, x: (
            lax.switch(jnp.argmax(x[0]), [lambda h: h, relu, lambda h: 2 * h], x @ p["w"]) @ p["v"]
        ),
        lambda p, x: lax.fori_loop(0, 3, lambda _, h: relu(h) * 0.5, x @ p["w"]) @ p["v"],
        lambda p, x: jax.grad(lambda u: jnp.sum(relu(u @ p["w"]) @ p["v"]))(x),
        lambda p, x: jax.jvp(lambda u: relu(u @ p["w"]) @ p["v"], (x,), (x,))[1],
        lambda p, x: jax.named_call(lambda h: relu(h @ p["w"]))(x) @ p["v"],
    ],
)
def test_calls_and_control_flow(apply_fn):
    assert degrees_of_leaves(certified(apply_fn, PARAMS)) == {"w": 1, "v": 1}


def test_weights_without_scale_in_a_loop():
    assert degrees_of_leaves(certified(in_while_loop, PARAMS)) == {"w": 0, "v": 1}


# Several outputs.


def test_heads_that_share_a_trunk_are_tied_to_each_other():
    def apply_fn(params, x):
        hidden = relu(x @ params["w"])
        return hidden @ params["v"], hidden @ params["stack"][0]

    structure = normjax.trace_structure(apply_fn, PARAMS, X)
    assert not structure.is_certified
    assert degrees_of_leaves(structure) == {"w": 1}
    (problem,) = structure.problems
    assert problem == "stack[0] is tied to v by the network's outputs, which do not scale alike"
    assert_rescales(apply_fn, PARAMS, X, structure)


def test_outputs_of_equal_scale():
    def apply_fn(params, x):
        hidden = relu(x @ params["w"])
        logits = hidden @ params["v"]
        return {"logits": logits, "margin": jnp.max(logits, axis=1), "class": jnp.argmax(logits)}

    assert degrees_of_leaves(certified(apply_fn, PARAMS)) == {"w": 1, "v": 1}


def test_network_without_weights_is_not_certified():
    structure = normjax.trace_structure(lambda p, x: jnp.tanh(x) @ x.T, PARAMS, X)
    assert structure.problems == ("no weight scales the output",)
    assert not structure.is_certified and structure.layers == ()
