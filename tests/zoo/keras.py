"""Keras on JAX: the lists of trainable and other arrays that `stateless_call` takes."""

import functools
import os
import tempfile
from unittest import mock

import jax.numpy as jnp
import numpy as np

from tests.zoo.network import BatchNorm, Layer, Network, random_inputs, random_leaves

# Keras reads its backend when it is first imported, and writes its settings into a folder.
with (
    tempfile.TemporaryDirectory() as folder,
    mock.patch.dict(os.environ, KERAS_BACKEND="jax", KERAS_HOME=folder),
):
    import keras
    from keras import layers

NETWORKS = []


def network(shape, dtype=np.float32, **expected):
    """Register a function of a symbolic input that returns the output, or a subclass of Model."""

    def add(build):
        name = build.__name__.replace("_", " ")
        make = functools.partial(make_keras, build, shape, dtype)
        NETWORKS.append(Network("Keras", name, "two lists", make, **expected))
        return build

    return add


def make_keras(build, shape, dtype):
    """Return the function, random leaves, and inputs."""
    x = random_inputs(shape, dtype)

    def ones(key, shape, dtype, *limits, **more_limits):
        return jnp.ones(shape, dtype)

    # Compiling the random initial values, which are replaced below, would take most of the time.
    with mock.patch("jax.random.uniform", ones), mock.patch("jax.random.normal", ones):
        if isinstance(build, type):
            model = build()
            model(x)
        else:
            inputs = keras.Input(shape[1:], dtype=x.dtype.name)
            model = keras.Model(inputs, build(inputs))
    values = random_leaves({v.path: v.value for v in model.variables})
    trainable = [values[v.path] for v in model.trainable_variables]
    rest = [values[v.path] for v in model.non_trainable_variables]

    def apply_fn(variables, x):
        return model.stateless_call(*variables, x, training=False)[0]

    return apply_fn, (trainable, rest), x


@network((4, 12))
def MLP(x):
    x = layers.Dense(16, activation="relu")(x)
    return layers.Dense(5)(x)


@network((4, 12))
class subclassed_model(keras.Model):
    def __init__(self):
        super().__init__()
        self.last = layers.Dense(5)
        self.first = layers.Dense(16, activation="leaky_relu")

    def call(self, x, training=False):
        return self.last(self.first(x))


@network((2, 8, 8, 3))
def convolutions_and_pools(x):
    x = layers.Conv2D(8, 3, activation="relu", padding="same")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(8, 3, activation="relu", padding="same")(x)
    x = layers.AveragePooling2D(2)(x)
    x = layers.Dropout(0.5)(layers.Flatten()(x))
    return layers.Dense(5)(x)


@network((2, 8, 8, 3))
def separable_and_transposed(x):
    x = layers.SeparableConv2D(8, 3, activation="relu")(x)
    x = layers.DepthwiseConv2D(3, activation="relu")(x)
    x = layers.Conv2DTranspose(4, 3, strides=2, activation="relu")(x)
    return layers.Dense(5)(layers.GlobalAveragePooling2D()(x))


@network(
    (2, 8, 8, 3),
    layers=(
        Layer("0/0", None, BatchNorm("1/0", "1/1", "0/1", "0/2", 1e-3), joint=True),
        Layer("0/3", "0/4", BatchNorm("1/2", "1/3", "0/5", "0/6", 1e-3)),
        Layer("0/7"),
    ),
)
def batch_norms(x):
    x = layers.Conv2D(8, 3, use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(8, 3)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return layers.Dense(5)(layers.GlobalMaxPooling2D()(x))


@network(
    (4, 12),
    layers=(
        Layer("0/0", "0/1", joint=True),
        Layer("0/2", None, BatchNorm("1/0", "1/1", epsilon=1e-3)),
        Layer("0/4"),
    ),
)
def batch_norm_after_relu(x):
    x = layers.BatchNormalization()(layers.Dense(16, activation="relu")(x))
    return layers.Dense(5)(x)


@network((2, 8, 8, 3), refused={"0/4": "add"})
def residual(x):
    x = layers.Conv2D(8, 3, activation="relu", padding="same")(x)
    y = layers.Conv2D(8, 3, activation="relu", padding="same")(x)
    y = layers.Conv2D(8, 3, padding="same")(y)
    x = layers.ReLU()(layers.Add()([x, y]))
    return layers.Dense(5)(layers.GlobalAveragePooling2D()(x))


@network((4, 12), refused={"0/2": "concatenate"})
def concatenated_branches(x):
    left = layers.Dense(8, activation="relu")(x)
    right = layers.Dense(8, activation="relu")(x)
    return layers.Dense(5)(layers.Concatenate()([left, right]))


@network((4, 6), np.int32)
def embedding(x):
    x = layers.GlobalAveragePooling1D()(layers.Embedding(10, 8)(x))
    return layers.Dense(5)(x)


@network((4, 12), refused={"0/2": "add"})
def prelu(x):
    return layers.Dense(5)(layers.PReLU()(layers.Dense(16)(x)))


@network((4, 12), refused={"0/0": "erfc"})
def gelu(x):
    return layers.Dense(5)(layers.Dense(16, activation="gelu")(x))


@network((4, 12), refused={"0/0": "add"})
def layer_norm(x):
    x = layers.ReLU()(layers.LayerNormalization()(layers.Dense(16)(x)))
    return layers.Dense(5)(x)


@network((2, 5, 8), refused={"0/2": "exp"})
def attention(x):
    x = layers.MultiHeadAttention(2, 4)(x, x)
    return layers.Dense(5)(layers.GlobalAveragePooling1D()(x))


@network((2, 5, 8), refused={"0/0": "logistic", "0/1": "add"})
def lstm(x):
    return layers.Dense(5)(layers.LSTM(6)(x))
