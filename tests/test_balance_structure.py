"""Balancing along a traced structure, which says whose units each layer reads."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import balance_params, trace_structure
from tests.helpers.networks import Convnet3, Mlp, apply_fn, images, mlp_params, random_variables


def test_a_structure_gives_the_same_as_names():
    for model, shape, layers in (
        (Mlp((5, 6, 3)), (16, 4), None),
        (Convnet3(), (4, 8, 8, 3), ["Conv_0", "Conv_1", "Dense_0"]),
    ):
        params = random_variables(model, images(shape))["params"]
        structure = trace_structure(apply_fn(model), params, images(shape))
        balanced = balance_params(params, structure=structure)
        expected = balance_params(params, layers=layers)
        jax.tree.map(np.testing.assert_array_equal, balanced, expected)


def torch_like(params, x):
    """Two convolutions and a dense layer as PyTorch lays them out; flattens channel by channel."""
    dims = ("NCHW", "OIHW", "NCHW")
    for weight, bias in params[:2]:
        x = jax.lax.conv_general_dilated(x, weight, (1, 1), "VALID", dimension_numbers=dims)
        x = jax.nn.relu(x + bias[None, :, None, None])
    weight, bias = params[2]
    return x.reshape(len(x), -1) @ weight.T + bias[None]


def test_kernels_and_flattened_windows_of_another_layout():
    rng = np.random.default_rng(0)
    shapes = [((6, 3, 3, 3), (6,)), ((4, 6, 3, 3), (4,)), ((5, 4 * 16), (5,))]
    params = [tuple(rng.standard_normal(shape) for shape in layer) for layer in shapes]
    x = rng.standard_normal((8, 3, 8, 8))
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        structure = trace_structure(torch_like, params, x)
        balanced = balance_params(params, structure=structure)
        np.testing.assert_allclose(torch_like(balanced, x), torch_like(params, x), rtol=1e-9)
    kernels = [weight.transpose(2, 3, 1, 0) for weight, _ in params[:2]]
    kernels.append(params[2][0].reshape(5, 4, 16).transpose(2, 1, 0).reshape(64, 5))
    in_flax = {
        f"layers_{k}": {"kernel": kernel, "bias": params[k][1]} for k, kernel in enumerate(kernels)
    }
    expected = balance_params(in_flax)
    for k, (weight, bias) in enumerate(balanced):
        other = expected[f"layers_{k}"]
        np.testing.assert_allclose(bias, other["bias"], rtol=1e-9)
        np.testing.assert_allclose(
            np.sort(weight.ravel()), np.sort(other["kernel"].ravel()), rtol=1e-9
        )


class Skip(nn.Module):
    """A sum of two layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(5)(x))
        return nn.Dense(3)(nn.relu(nn.Dense(5)(x))) + nn.Dense(3)(x)


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4)
        return nn.Dense(3, use_bias=False)(nn.relu(layer(nn.relu(layer(x)))))


class Grouped(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        return nn.Conv(4, (3, 3), feature_group_count=2)(x).mean((1, 2))


class Scaled(nn.Module):
    """Normalized by the mean of all units: one cannot be rescaled alone."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(4)(x))
        return nn.Dense(3)(x - x.mean(axis=1, keepdims=True))


@pytest.mark.parametrize(
    ("model", "shape"),
    [(Skip(), (4, 5)), (Shared(), (4, 4)), (Grouped(), (2, 6, 6, 3)), (Scaled(), (4, 5))],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_a_chain_of_units_is_refused(model, shape):
    x = images(shape)
    params = random_variables(model, x)["params"]
    structure = trace_structure(apply_fn(model), params, x)
    with pytest.raises(ValueError, match=r"cannot be balanced: |not certified"):
        balance_params(params, structure=structure)


def test_after_another_activation_a_constant_unit_of_either_sign_has_no_minimum():
    """After ReLU, a unit without inputs and with a negative bias is 0; after abs it is not."""
    params = jax.tree.map(np.array, mlp_params([4, 5, 6, 3]))
    params["Dense_1"]["kernel"][:, 4], params["Dense_1"]["bias"][4] = 0, -1

    def apply(params, x):
        for name in sorted(params):
            x = jnp.abs(x @ params[name]["kernel"] + params[name]["bias"][None])
        return x

    structure = trace_structure(apply, params, images((4, 4)))
    with pytest.raises(ValueError, match="unit 4 of layer 'Dense_1' has a bias but no path"):
        balance_params(params, structure=structure)
    balance_params(params)
