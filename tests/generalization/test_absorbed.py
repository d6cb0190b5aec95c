"""Batch normalization absorbed, and networks that are given other layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax.generalization.absorbed import absorbed_layers, check_layers, with_layers
from normjax.networks.classifier import make_classifier
from tests.helpers.networks import Convnet5, apply_fn, images, random_like, random_variables

SHAPE = (8, 8, 3)


def close(ours, theirs, tolerance=2e-5):
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale), ours, theirs
    )


def test_absorbed_layers_are_those_of_the_network_without_batch_normalization():
    variables, x = random_variables(Convnet5(), images()), images()
    structure = make_classifier(Convnet5(), SHAPE, 5).structure
    layers = absorbed_layers(variables, structure)
    twin = {f"Conv_{i}": layer for i, layer in enumerate(layers)}
    apply = jax.jit(Convnet5().apply)
    close(apply_fn(Convnet5(batch_norm=False))(twin, x), apply(variables, x))

    # The same network with other layers, even where a scale was 0.
    scale = variables["params"]["BatchNorm_1"]["scale"]
    variables["params"]["BatchNorm_1"]["scale"] = scale.at[2].set(0)
    others = random_like(layers, seed=5)
    changed = with_layers(variables, structure, others)
    close(absorbed_layers(changed, structure), others)
    twin = {f"Conv_{i}": layer for i, layer in enumerate(others)}
    close(apply(changed, x), apply_fn(Convnet5(batch_norm=False))(twin, x))


class Upward(nnx.Module):
    """A transposed convolution, whose kernel is stored in another layout, and a dense layer."""

    def __init__(self, *, rngs):
        self.up = nnx.ConvTranspose(3, 4, (2, 2), transpose_kernel=True, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(256, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.up(x))).reshape(len(x), -1))


def test_kernels_keep_the_axes_of_their_leaves():
    classifier = make_classifier(Upward, SHAPE, 5)
    check_layers(classifier.structure)
    variables = classifier.init(jax.random.key(0))
    layers = absorbed_layers(variables, classifier.structure)
    same = with_layers(variables, classifier.structure, layers)
    apply = jax.jit(classifier.apply)
    close(apply(same, images()), apply(variables, images()))
    others = random_like(layers)
    changed = with_layers(variables, classifier.structure, others)
    close(absorbed_layers(changed, classifier.structure), others)
    assert jax.tree.map(jnp.shape, changed) == jax.tree.map(jnp.shape, variables)


class Odd(nn.Module):
    """Dense layers with something that is neither kernel nor bias."""

    kind: str

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5)(x.reshape(len(x), -1))
        if self.kind == "no bias":
            x = nn.BatchNorm(use_running_average=True, use_bias=False)(x)
        x = nn.relu(x)
        if self.kind == "added":
            x = nn.relu(x + self.param("extra", nn.initializers.ones, (1, 5)))
        dense = nn.Dense(5, use_bias=False)
        x = dense(nn.relu(dense(x)) if self.kind == "twice" else x)
        return x + nn.Dense(5)(x) if self.kind == "sum" else x


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no bias", "need a bias in the normalization after 'params/Dense_0'"),
        ("added", "'params/extra' is in 0 of them"),
        ("twice", "applied once, unlike 'params/Dense_1'"),
        ("sum", "whose layers can be normalized: params/"),
    ],
)
def test_networks_that_are_more_than_layers_are_refused(kind, message):
    structure = make_classifier(Odd(kind), SHAPE, 5, tied="keep").structure
    with pytest.raises(ValueError, match=message):
        check_layers(structure)


def test_layers_of_kernels_and_biases_are_not_refused():
    check_layers(make_classifier(Odd("plain"), SHAPE, 5).structure)
