"""Small networks of every kind, and eq. 2 for them: what several tests share."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

NORMS = {
    "fro": {"norm": "fro"},
    "l1": {"norm": 1, "scale": 100.0},
    "max": {"norm": jnp.inf},
    "l3": {"norm": 3},
    "spectral": {"norm": "spectral"},
    "callable": {"norm": lambda leaves: jnp.sqrt(jnp.mean(leaves["kernel"] ** 2))},
}
every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


def random_like(tree, seed=0):
    """Replace every leaf, biases too, by standard normal numbers."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), tree)


def mlp_params(widths, seed=0):
    names = [f"Dense_{i}" for i in range(len(widths) - 1)]
    shapes = {
        name: {"kernel": np.zeros((n, m), np.float32), "bias": np.zeros(m, np.float32)}
        for name, n, m in zip(names, widths, widths[1:], strict=False)
    }
    return random_like(shapes, seed)


def mlp_float64(params, x):
    """Evaluate an MLP in numpy, float64."""
    for i in range(len(params)):
        layer = params[f"Dense_{i}"]
        x = x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)
        if i < len(params) - 1:
            x = np.maximum(x, 0)
    return x


class Mlp(nn.Module):
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.widths[:-1]:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


class Convnet3(nn.Module):
    """The paper's 3-layer net, smaller: two VALID convolutions, only the first layer has a bias."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), padding="VALID")(x))
        x = nn.relu(nn.Conv(6, (3, 3), padding="VALID", use_bias=False)(x))
        return nn.Dense(5, use_bias=False)(x.reshape(len(x), -1))


class Convnet5(nn.Module):
    """Five convolutions, strided, with batch normalization after the first four or without any."""

    batch_norm: bool = True

    @nn.compact
    def __call__(self, x):
        for features, stride in ((4, 1), (6, 2), (4, 1), (6, 2)):
            x = nn.Conv(features, (3, 3), stride, use_bias=not self.batch_norm)(x)
            if self.batch_norm:
                x = nn.BatchNorm(use_running_average=True)(x)
            x = nn.relu(x)
        return nn.Conv(5, x.shape[1:3], padding="VALID")(x)[:, 0, 0]


def random_variables(model, x, seed=0):
    """Random parameters and, for batch normalization, non-trivial random statistics."""
    variables = dict(random_like(jax.eval_shape(model.init, jax.random.key(0), x), seed))
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.exp(x) if path[-1].key == "var" else x, variables["batch_stats"]
        )
    return variables


@functools.cache
def apply_fn(model):
    return jax.jit(lambda params, x: model.apply({"params": params}, x))


@functools.cache
def trained_like_convnet5():
    """Variables with random statistics, inputs, and the logits in evaluation mode."""
    x = images()
    variables = random_variables(Convnet5(), x)
    with jax.default_matmul_precision("highest"):
        return variables, x, jax.jit(Convnet5().apply)(variables, x)


def images(shape=(16, 8, 8, 3)):
    return jnp.asarray(np.random.default_rng(7).standard_normal(shape), jnp.float32)


def assert_homogeneous(f, normalized, product):
    """Assert eq. 2 on logits, to float32 accuracy, and that the classes are the same."""
    f, normalized = np.asarray(f, np.float64), np.asarray(normalized, np.float64)
    assert np.abs(f).max() > 0
    np.testing.assert_allclose(float(product) * normalized, f, rtol=0, atol=1e-5 * np.abs(f).max())
    assert np.array_equal(f.argmax(-1), normalized.argmax(-1))
