"""How kernels act, read off dimension numbers; batch normalization, read off the arithmetic."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import normjax
from normjax.channel_vectors import evaluate
from normjax.structure import Layout
from tests.helpers.rescaling import assert_rescales, degrees_of_leaves

relu = jax.nn.relu


def draw(*shape, seed=0):
    """Return random numbers, float32."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def first_layout(apply_fn, kernel, x):
    """Return the layout of the first layer of a certified network."""
    structure = normjax.trace_structure(apply_fn, kernel, x)
    assert structure.is_certified, structure.problems
    return structure.matrices[0].layout


IMAGES = draw(2, 6, 5, 4)
TOKENS = np.array([[1, 0], [4, 2]])


# Matrices.


@pytest.mark.parametrize(
    ("apply_fn", "shape", "layout"),
    [
        (lambda w, x: x @ w, (3, 4), Layout((), (0,), (1,))),
        (lambda w, x: x @ w.T, (4, 3), Layout((), (1,), (0,))),
        (lambda w, x: (w @ x.T).T, (4, 3), Layout((), (1,), (0,))),
        (lambda w, x: jnp.einsum("bi,hdi->bhd", x, w), (2, 4, 3), Layout((), (2,), (0, 1))),
        (lambda w, x: x @ w.reshape(3, 8), (3, 2, 4), Layout((), (0,), (1, 2))),
        (lambda w, x: x @ w.transpose(1, 0, 2).reshape(3, 8), (2, 3, 4), Layout((), (1,), (0, 2))),
        (lambda w, x: x @ w[:, 0], (3, 1, 4), Layout((), (0,), (2,))),
        (lambda w, x: x @ w.squeeze(1), (3, 1, 4), Layout((), (0,), (2,))),
        (lambda w, x: x @ w.astype(np.float16).astype(np.float32), (3, 4), Layout((), (0,), (1,))),
        (lambda w, x: jnp.vectorize(lambda r: w @ r, signature="(i)->(o)")(x), (4, 3),
         Layout((), (1,), (0,))),
        (lambda w, x: jax.vmap(lambda r: r @ w)(x), (3, 4), Layout((), (0,), (1,))),
        (lambda w, x: relu(x @ w) @ w.T, (3, 4), Layout((), (0,), (1,))),  # W and W^T
        (lambda w, x: relu(x @ w) @ w, (3, 3), Layout((), (0,), (1,))),
        (lambda w, x: x * w[None], (3,), Layout((), (), (0,), 3)),
        (lambda w, x: x @ (w * w), (3, 4), None),  # its matrix is not the leaf
        (lambda w, x: x @ jnp.concatenate([w, w], axis=1), (3, 4), None),
        (lambda w, x: x @ w + x @ w.T, (3, 3), Layout((), (0,), (1,))),
    ],
)  # fmt: skip
def test_layout_of_a_matrix(apply_fn, shape, layout):
    assert first_layout(apply_fn, draw(*shape), draw(2, 3)) == layout


def test_layout_of_a_matrix_for_each_group():
    x, kernel = draw(2, 5, 3), draw(5, 3, 4)
    layout = first_layout(lambda w, x: jnp.einsum("bgi,gio->bgo", x, w), kernel, x)
    assert layout == Layout((), (1,), (0, 2), 5)


@pytest.mark.parametrize(
    ("shape", "copies", "axes", "layout"),
    [
        ((3, 4), (2, 3, 4), (1, 2), Layout((), (0,), (1,))),  # a copy for each example
        ((1, 3, 4), (2, 3, 4), (0, 1, 2), Layout((), (1,), (2,))),
        ((1, 4), (2, 3, 4), (1, 2), None),  # one weight for all inputs
        ((3, 1), (2, 3, 4), (1, 2), None),  # one weight for all outputs
        ((4,), (2, 3, 4), (2,), None),
    ],
)
def test_layout_of_a_repeated_kernel(shape, copies, axes, layout):
    def apply_fn(kernel, x):
        return x[:, None] @ lax.broadcast_in_dim(kernel, copies, axes)

    assert first_layout(apply_fn, draw(*shape), draw(2, 3)) == layout


def test_layout_of_dense_general():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.DenseGeneral(5, axis=(-2, -1))(relu(nn.DenseGeneral((2, 4))(x)))

    params = Net().init(jax.random.key(0), draw(2, 3))["params"]
    params = jax.tree.map(lambda leaf: draw(*leaf.shape), params)
    structure = normjax.trace_structure(
        lambda p, x: Net().apply({"params": p}, x), params, draw(2, 3)
    )
    assert [matrix.layout for matrix in structure.matrices] == [
        Layout((), (0,), (1, 2)),
        Layout((), (0, 1), (2,)),
    ]


# Convolutions.


def convolution(dimensions, **settings):
    def apply_fn(kernel, x):
        return lax.conv_general_dilated(
            x, kernel, settings.pop("strides", (1, 1)), "SAME", dimension_numbers=dimensions,
            **settings,
        )  # fmt: skip

    return apply_fn


@pytest.mark.parametrize(
    ("dimensions", "groups", "shape", "layout"),
    [
        (("NHWC", "HWIO", "NHWC"), 1, (3, 2, 4, 8), Layout((0, 1), (2,), (3,))),
        (("NCHW", "OIHW", "NCHW"), 1, (8, 4, 3, 2), Layout((2, 3), (1,), (0,))),
        (("NHWC", "OIHW", "NHWC"), 1, (8, 4, 3, 2), Layout((2, 3), (1,), (0,))),
        (("HWNC", "OHWI", "NHWC"), 1, (8, 3, 2, 4), Layout((1, 2), (3,), (0,))),
        (("NHWC", "HWIO", "NHWC"), 2, (3, 2, 2, 8), Layout((0, 1), (2,), (3,), 2)),
        (("NCHW", "OIHW", "NCHW"), 2, (8, 2, 3, 2), Layout((2, 3), (1,), (0,), 2)),
        (("NHWC", "HWIO", "NHWC"), 4, (3, 2, 1, 8), Layout((0, 1), (2,), (3,), 4)),  # depthwise
    ],
)
def test_layout_of_a_convolution(dimensions, groups, shape, layout):
    x = IMAGES.transpose([("NHWC").index(axis) for axis in dimensions[0]])
    apply_fn = convolution(dimensions, feature_group_count=groups)
    assert first_layout(apply_fn, draw(*shape), x) == layout


@pytest.mark.parametrize("is_flipped", [False, True])
def test_layout_of_a_transposed_convolution(is_flipped):
    def apply_fn(kernel, x):
        return lax.conv_transpose(x, kernel, (2, 2), "SAME", transpose_kernel=is_flipped)

    shape = (3, 3, 8, 4) if is_flipped else (3, 3, 4, 8)
    inputs, outputs = ((3,), (2,)) if is_flipped else ((2,), (3,))
    assert first_layout(apply_fn, draw(*shape), IMAGES) == Layout((0, 1), inputs, outputs)


def test_layout_of_a_kernel_before_the_data():
    def apply_fn(kernel, x):  # the "image" is the kernel
        return lax.conv_general_dilated(kernel, x, (1, 1), "SAME")

    assert first_layout(apply_fn, draw(1, 2, 8, 8), draw(3, 2, 3, 3)) is None


# Embeddings.


def embed(table, tokens):
    return nn.Embed(5, 3).apply({"params": {"embedding": table}}, tokens)


@pytest.mark.parametrize(
    ("apply_fn", "layout"),
    [
        (lambda w, x: w[x], Layout((), (0,), (1,))),
        (lambda w, x: jnp.take(w, x, axis=0), Layout((), (0,), (1,))),
        (embed, Layout((), (0,), (1,))),
        (lambda w, x: jax.nn.one_hot(x, 5) @ w, Layout((), (0,), (1,))),
        (lambda w, x: relu(w[x]) @ w.T, Layout((), (0,), (1,))),
        (lambda w, x: w.T[:, x], None),
    ],
)  # fmt: skip
def test_layout_of_an_embedding(apply_fn, layout):
    assert first_layout(apply_fn, draw(5, 3), TOKENS) == layout


# Batch normalization.

CHANNELS = ("bias", "mean", "scale", "shift", "var")
PARAMS = {name: draw(4, seed=i) for i, name in enumerate(CHANNELS)}
PARAMS |= {"var": np.exp(PARAMS["var"]), "w": draw(3, 4, seed=7), "head": draw(4, 2, seed=8)}
X = draw(5, 3)
EPSILON = 1e-3


def as_flax(h, p):
    variables = {"params": {"scale": p["scale"], "bias": p["shift"]}}
    variables["batch_stats"] = {"mean": p["mean"], "var": p["var"]}
    return nn.BatchNorm(use_running_average=True, epsilon=EPSILON).apply(variables, h)


def as_quotient(h, p):
    deviation = jnp.sqrt(p["var"] + EPSILON)
    return (h - p["mean"][None]) / deviation[None] * p["scale"][None] + p["shift"][None]


def as_one_factor(h, p):
    inverse = p["scale"] * lax.rsqrt(p["var"] + EPSILON)
    return h * inverse[None] + (p["shift"] - p["mean"] * inverse)[None]


def as_power(h, p):
    factor = (p["var"] + EPSILON) ** -0.5 * p["scale"]
    return (h - p["mean"][None]) * factor[None] + p["shift"][None]


def without_scale(h, p):
    return (h - p["mean"][None]) * lax.rsqrt(p["var"] + EPSILON)[None] + p["shift"][None]


def without_shift(h, p):
    return (h - p["mean"][None]) * lax.rsqrt(p["var"] + EPSILON)[None] * p["scale"][None]


def without_epsilon(h, p):
    return (h - p["mean"][None]) / jnp.sqrt(p["var"])[None] * p["scale"][None] + p["shift"][None]


def with_bias_before(h, p):
    return as_quotient(h + p["bias"][None], p)


def exact(name, h, p):
    """The same in float64."""
    epsilon = 0.0 if name == "without_epsilon" else EPSILON
    h = h + p["bias"] if name == "with_bias_before" else h
    h = (h - p["mean"]) / np.sqrt(p["var"] + epsilon)
    h = h * p["scale"] if name != "without_scale" else h
    return h + p["shift"] if name != "without_shift" else h


NORMALIZATIONS = [
    as_flax, as_quotient, as_one_factor, as_power, without_scale, without_shift, without_epsilon,
    with_bias_before,
]  # fmt: skip
each_normalization = pytest.mark.parametrize(
    "normalize", NORMALIZATIONS, ids=lambda function: function.__name__
)


@each_normalization
def test_factor_and_offset_of_a_normalized_layer(normalize):
    def apply_fn(params, x):
        return relu(normalize(x @ params["w"], params)) @ params["head"]

    structure = normjax.trace_structure(apply_fn, PARAMS, X)
    assert structure.is_certified, structure.problems
    assert degrees_of_leaves(structure) == {"w": 1, "head": 1}
    layer, leaves = structure.matrices[0], jax.tree.leaves(PARAMS)
    params = {name: leaf.astype(np.float64) for name, leaf in PARAMS.items()}
    factor, offset = (np.asarray(evaluate(v, leaves)) for v in (layer.factor, layer.offset))
    before = X.astype(np.float64) @ params["w"]
    expected = exact(normalize.__name__, before, params)
    np.testing.assert_allclose(before * factor + offset, expected, rtol=1e-5, atol=1e-5)
    assert layer.is_joint
    assert_rescales(apply_fn, PARAMS, X, structure)
    divided = {structure.leaves[leaf.number][0] for leaf, _ in structure.divisors}
    assert not divided & {"mean", "var"} or normalize in (without_scale, without_epsilon)


@each_normalization
def test_normalization_after_relu_is_a_layer_of_its_own(normalize):
    def apply_fn(params, x):
        return normalize(relu(x @ params["w"]), params) @ params["head"]

    structure = normjax.trace_structure(apply_fn, PARAMS, X)
    assert structure.is_certified, structure.problems
    assert structure.matrices[0].factor is None
    scale = {} if normalize is without_scale else {"scale": 1}
    assert degrees_of_leaves(structure) == {"w": 1, **scale, "head": 1}
    if scale:
        assert structure.matrices[1].layout == Layout((), (), (0,), 4)
    assert_rescales(apply_fn, PARAMS, X, structure)


def test_normalized_convolution():
    params = PARAMS | {"w": draw(4, 3, 3, 2, seed=9)}  # OIHW

    def apply_fn(params, x):
        h = convolution(("NCHW", "OIHW", "NCHW"))(params["w"], x)
        h = as_one_factor(h.transpose(0, 2, 3, 1).reshape(-1, 4), params)
        return relu(h) @ params["head"]

    structure = normjax.trace_structure(apply_fn, params, draw(2, 3, 5, 5))
    assert structure.is_certified
    layer, leaves = structure.matrices[0], jax.tree.leaves(params)
    assert layer.layout == Layout((2, 3), (1,), (0,))
    expected = params["scale"] / np.sqrt(params["var"] + EPSILON)
    np.testing.assert_allclose(evaluate(layer.factor, leaves), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "read",
    [
        lambda h, p: as_quotient(h, p) + h,  # the kernel's outputs are used twice
        lambda h, p: jnp.concatenate([as_quotient(h, p), h], axis=0),
        lambda h, p: as_quotient(relu(h) + h, p),
    ],
)
def test_no_factor_where_the_outputs_have_another_use(read):
    structure = normjax.trace_structure(
        lambda p, x: relu(read(x @ p["w"], p)) @ p["head"], PARAMS, X
    )
    kernel = next(m for m in structure.matrices if structure.leaves[m.kernel.number][0] == "w")
    assert kernel.factor is None and kernel.offset is None


def test_scale_of_the_batch_is_no_factor():
    def apply_fn(params, x):
        return relu((x @ params["w"]) * params["scale"][:, None]) @ params["head"]

    structure = normjax.trace_structure(apply_fn, PARAMS, draw(4, 3))
    assert structure.matrices[0].factor is None
    assert degrees_of_leaves(structure) == {"w": 1, "scale": 1, "head": 1}


def test_factor_used_elsewhere_is_no_factor():
    def apply_fn(params, x):
        h = relu((x @ params["w"]) * params["scale"][None])
        return (h * params["scale"][None]) @ params["head"]

    structure = normjax.trace_structure(apply_fn, PARAMS, X)
    assert structure.matrices[0].factor is None
    assert degrees_of_leaves(structure) == {"w": 1, "scale": 2, "head": 1}
