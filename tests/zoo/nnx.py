"""Flax NNX: the module itself as the tree of parameters, and the state that `nnx.split` returns."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from tests.zoo.network import BatchNorm, Layer, Network, random_inputs, random_leaves

NETWORKS = []


def network(shape, dtype=jnp.float32, container="Module", **expected):
    """Register a module class."""

    def add(module):
        name = module.__name__.replace("_", " ")
        make = functools.partial(make_nnx, module, shape, dtype, container)
        NETWORKS.append(Network("NNX", name, container, make, **expected))
        return module

    return add


def make_nnx(module, shape, dtype, container):
    """Return the function, the module or its state with random leaves, and inputs."""
    model = nnx.eval_shape(lambda: module(nnx.Rngs(0)))
    model.eval()
    graph, *states = nnx.split(model, nnx.RngState, ...)
    rngs, state = states
    rngs = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), rngs)
    state = random_leaves(state)
    x = random_inputs(shape, dtype)
    if container == "Module":
        return lambda model, x: model(x), nnx.merge(graph, rngs, state), x
    return lambda state, x: nnx.merge(graph, rngs, state)(x), state, x


@network((4, 12))
class MLP(nnx.Module):
    def __init__(self, rngs):
        self.output = nnx.Linear(16, 5, rngs=rngs)
        self.input = nnx.Linear(12, 16, rngs=rngs)

    def __call__(self, x):
        return self.output(nnx.relu(self.input(x)))


network((4, 12), container="State")(MLP)


@network((4, 12), container="State")
class list_of_layers(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(12, 12, rngs=rngs) for _ in range(11)])

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


@network((4, 12))
class sequential(nnx.Module):
    def __init__(self, rngs):
        self.body = nnx.Sequential(
            nnx.Linear(12, 16, rngs=rngs), nnx.leaky_relu, nnx.Linear(16, 5, rngs=rngs)
        )

    def __call__(self, x):
        return self.body(x)


@network(
    (2, 8, 8, 3),
    container="State",
    layers=(
        Layer(
            "conv/kernel",
            "conv/bias",
            BatchNorm("norm/mean", "norm/var", "norm/scale", "norm/bias"),
            joint=True,
        ),
        Layer("dense/kernel"),
    ),
)
class convolution_batch_norm_dropout(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.max_pool(x, (2, 2), (2, 2))
        return self.dense(self.dropout(x.mean(axis=(1, 2))))


network(
    (2, 8, 8, 3),
    layers=NETWORKS[-1].layers,
)(convolution_batch_norm_dropout)


@network((4, 12))
class one_layer_twice(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(12, 12, use_bias=False, rngs=rngs)
        self.again = self.inner
        self.head = nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.again(nnx.relu(self.inner(x)))))


@network((4, 12), container="State")
class scan_over_layers(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0)
        def stack(rngs):
            return nnx.Linear(12, 12, rngs=rngs)

        self.layers = stack(rngs)
        self.head = nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def forward(layer, x):
            return nnx.relu(layer(x))

        return self.head(forward(self.layers, x))


@network((4, 12), refused={"adapted/base_module/kernel": "add"})
class low_rank_adaptation(nnx.Module):
    def __init__(self, rngs):
        base = nnx.Linear(12, 16, rngs=rngs)
        self.adapted = nnx.LoRA(12, 2, 16, base_module=base, rngs=rngs)
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.adapted(x)))


@network((4, 6), jnp.int32)
class embedding(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(10, 8, rngs=rngs)
        self.dense = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        return self.dense(nnx.relu(self.embed(x)).mean(axis=1))


@network((2, 8, 8, 3), refused={"second/kernel": "add"})
class residual(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.first = nnx.Conv(8, 8, (3, 3), rngs=rngs)
        self.second = nnx.Conv(8, 8, (3, 3), rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        x = nnx.relu(x + self.second(nnx.relu(self.first(x))))
        return self.head(x.mean(axis=(1, 2)))


@network((2, 5, 8), refused={"attend/key/kernel": "exp"})
class attention(nnx.Module):
    def __init__(self, rngs):
        self.attend = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.attend(x).mean(axis=1))


@network((4, 12), container="State", refused={"first/kernel": "add"})
class layer_norm(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(12, 16, rngs=rngs)
        self.norm = nnx.LayerNorm(16, rngs=rngs)
        self.second = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.norm(self.first(x))))


@network((4, 12), refused={"first/kernel": "tanh"})
class tanh(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(12, 16, rngs=rngs)
        self.second = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.tanh(self.first(x)))
