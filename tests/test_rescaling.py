"""`check_homogeneity`: what it certifies, and what it refuses to."""

from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax
from normjax.exponents import Leaf
from normjax.matrices import flax_layout
from normjax.normalize import check_homogeneity, normalize_params, product_norm
from normjax.structure import LayerMatrix, NetworkStructure
from tests.helpers.networks import (
    Convnet5,
    Mlp,
    apply_fn,
    images,
    mlp_params,
    random_variables,
    trained_like_convnet5,
)


def mlp(activation, params, x, last=lambda x: x):
    """A network of any activation; biases are added to arrays of one rank."""
    names = sorted(params)
    for name in names:
        bias = jnp.broadcast_to(params[name]["bias"], (len(x), len(params[name]["bias"])))
        x = x.astype(bias.dtype) @ params[name]["kernel"] + bias
        x = last(x) if name == names[-1] else activation(x)
    return x


def check_of(activation, dtype=np.float32, widths=(4, 6, 5, 3), scale=0.3, **kwargs):
    params = mlp_params(list(widths))
    params = jax.tree.map(lambda leaf: (scale * leaf).astype(dtype), params)
    apply = jax.jit(lambda params, x: mlp(activation, params, x, **kwargs))
    return check_homogeneity(apply, params, images((16, 4)))


DTYPES = [np.float32, jnp.bfloat16, np.float16]
HOMOGENEOUS = {
    "relu": jax.nn.relu,
    "leaky relu": lambda x: jnp.where(x > 0, x, x * 0.3),
    "abs": jnp.abs,
    "identity": lambda x: x,
    "max pooling": lambda x: jnp.maximum(x, jnp.roll(x, 1, axis=1)),
    "average": lambda x: (x + jnp.roll(x, 1, axis=1)) / 3,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_homogeneous_networks_pass_in_every_precision(name, dtype):
    check = check_of(HOMOGENEOUS[name], dtype)
    assert check.ok and check.reason == ""
    assert check.relative_error < 4 * float(jnp.finfo(dtype).eps) * 10


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy_networks_pass(dtype):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), mlp_params([4, 6, 3]))

    def apply(params, x):
        hidden = np.maximum(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], 0)
        return hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]

    assert check_homogeneity(apply, params, np.asarray(images((16, 4)), dtype)).ok


def test_batch_normalization_and_deep_networks_pass():
    variables, x, _ = trained_like_convnet5()
    structure = normjax.trace_structure(Convnet5().apply, variables, x)
    assert check_homogeneity(jax.jit(Convnet5().apply), variables, x, structure=structure).ok
    model = Mlp((8,) * 12 + (3,))
    params = random_variables(model, images((4, 8)))["params"]
    params = jax.tree.map(lambda leaf: leaf * 0.5, params)
    assert check_homogeneity(apply_fn(model), params, images((4, 8))).ok


NOT_HOMOGENEOUS = {
    "gelu": jax.nn.gelu,
    "tanh": jnp.tanh,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "relu6, within its linear part": jax.nn.relu6,
    "clip": lambda x: jnp.clip(x, -1e4, 1e4),
    "threshold": lambda x: jnp.where(x > 1e-4, x, 0),
    "shift": lambda x: jax.nn.relu(x) + 0.5,
    "square": lambda x: x * x,
    "softmax": jax.nn.softmax,
    "norm": lambda x: x / (1e-6 + jnp.sqrt(jnp.mean(x * x, axis=1, keepdims=True))),
    "int": lambda x: x.astype(jnp.int32).astype(x.dtype),
}


@pytest.mark.parametrize("name", NOT_HOMOGENEOUS)
def test_other_networks_are_refused(name):
    check = check_of(NOT_HOMOGENEOUS[name])
    assert not check.ok
    assert check.reason.startswith("scaling the layers by powers of two (up to ")


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_half_precision_hides_no_other_network(dtype):
    assert not check_of(jax.nn.gelu, dtype).ok
    assert not check_of(jax.nn.relu6, dtype).ok


def test_relu6_is_seen_though_normalizing_hides_it():
    """Within its linear part, relu6 leaves no error of eq. 2."""
    check = check_of(jax.nn.relu6)
    assert check.relative_error < 1e-6 and not check.ok


def test_a_wrong_order_and_a_skip_are_seen():
    model, x = Mlp((4, 4, 4, 4)), images((16, 4))
    params = random_variables(model, x)["params"]
    order = ["Dense_1", "Dense_0", "Dense_2", "Dense_3"]
    check = check_homogeneity(apply_fn(model), params, x, layers=order)
    assert not check.ok and check.relative_error > 1e-2 and list(check.layers) == order
    assert check_homogeneity(apply_fn(model), params, x).ok

    def with_skip(params, x):
        return mlp(jax.nn.relu, params, x) + x

    assert not check_homogeneity(with_skip, params, x).ok


# Where it would be blind.


def test_zeros_and_nan_are_not_certified():
    params, x = mlp_params([4, 5, 3]), images((16, 4))
    apply = apply_fn(Mlp((5, 3)))
    for broken, reason in (
        (lambda params, x: 0 * apply(params, x), "all outputs are 0"),
        (lambda params, x: apply(params, x) / 0, "outputs are not finite"),
        (lambda params, x: apply(params, x).at[0, 0].set(jnp.nan), "outputs are not finite"),
    ):
        check = check_homogeneity(broken, params, x)
        assert not check.ok and reason in check.reason
    check = check_homogeneity(lambda params, x: 0 * apply(params, x), params, x)
    assert check.max_abs_error == check.relative_error == 0


@pytest.mark.parametrize("name", ["Dense_0", "Dense_1"])
def test_a_bias_of_zeros_is_not_certified(name):
    params = mlp_params([4, 5, 3])
    params[name]["bias"] *= 0
    check = check_homogeneity(apply_fn(Mlp((5, 3))), params, images((16, 4)))
    assert not check.ok
    assert check.reason.startswith(f"'{name}/bias' is all zeros, which hides how it scales")


def test_a_layer_that_can_not_be_scaled_is_not_certified():
    """A weight at each end of the range leaves no power of two."""
    kernel = np.float16([[65504, 6e-5], [1, 1]])
    check = check_homogeneity(
        lambda params, x: (x @ params["kernel"].astype(np.float32)) / 1e5,
        {"kernel": kernel},
        np.ones((2, 2), np.float32),
    )
    assert not check.ok
    assert check.reason == "layer '.' cannot be scaled by a power of two in the range of float16"


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_powers_of_two_stay_within_the_range(size):
    """What would overflow at large powers is compared at smaller ones."""
    params = mlp_params([4, 6, 3])
    params["Dense_1"] = jax.tree.map(lambda leaf: leaf * size, params["Dense_1"])
    apply = apply_fn(Mlp((6, 3)))
    assert check_homogeneity(apply, params, images((16, 4))).ok

    def with_gelu(params, x):
        return mlp(jax.nn.gelu, params, x)

    assert not check_homogeneity(with_gelu, params, images((16, 4))).ok


# Degrees, and what is reported.


def test_degrees_and_fractions():
    """`sqrt(relu(x w))`: the output has degree 1/2, so that exponents must be even."""
    params = [jnp.abs(mlp_params([4, 3])["Dense_0"]["kernel"])]
    layer = LayerMatrix("0", Leaf(0), flax_layout(2))
    x = jnp.abs(images((16, 4)))

    def structure(degree):
        matrix = LayerMatrix("0", Leaf(0), layer.layout, degree=degree)
        return NetworkStructure((("0", (4, 3)),), (matrix,), ((Leaf(0), ((0, 1),)),))

    half, one = structure(Fraction(1, 2)), structure(1)
    apply = jax.jit(lambda params, x: jnp.sqrt(jax.nn.relu(x @ params[0])))
    assert check_homogeneity(apply, params, x, structure=half).ok
    assert not check_homogeneity(apply, params, x, structure=one).ok


def test_check_reports_a_network_that_is_not_homogeneous():
    def shifted_net(params, x):
        return apply_fn(Mlp((5, 3)))(params, x) + jnp.array([[5.0, 0, 0]])

    params, x = mlp_params([4, 5, 3]), images((16, 4))
    check = check_homogeneity(shifted_net, params, x)
    f, normalized = shifted_net(params, x), shifted_net(normalize_params(params), x)
    error = np.abs(f - check.product_norm * normalized).max()
    np.testing.assert_allclose(check.max_abs_error, error, rtol=1e-5)
    np.testing.assert_allclose(check.relative_error, error / np.abs(f).max(), rtol=1e-5)
    assert check.relative_error > 0.1 and not check.same_classes and not check.ok


def test_check_needs_values_and_one_output():
    params, x = mlp_params([4, 5, 3]), images((16, 4))
    net = apply_fn(Mlp((5, 3)))
    with pytest.raises(ValueError, match="does not run under jit or vmap"):
        jax.jit(lambda params: check_homogeneity(net, params, x).ok)(params)
    with pytest.raises(ValueError, match="must return one array, the logits, not <class 'tuple'>"):
        check_homogeneity(lambda params, x: (net(params, x), None), params, x)


def test_check_gives_python_numbers_and_the_product():
    params = mlp_params([4, 5, 3])
    check = check_homogeneity(apply_fn(Mlp((5, 3))), params, images((16, 4)), norm=1, scale=10.0)
    assert check.product_norm == float(product_norm(params, 1, scale=10.0))
    assert [type(value) for value in check] == [float, float, bool, float, tuple, bool, str]


def test_an_embedding_and_tied_layers():
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, x):
            embed = nn.Embed(7, 5)
            return embed.attend(nn.relu(embed(x)).mean(axis=1))

    x = np.arange(12).reshape(4, 3) % 7
    params = random_variables(Tied(), x)["params"]
    structure = normjax.trace_structure(apply_fn(Tied()), params, x)
    assert structure.degrees == {"Embed_0": 2}
    assert check_homogeneity(apply_fn(Tied()), params, x, structure=structure).ok
