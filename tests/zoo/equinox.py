"""Equinox: the module itself as the tree of parameters, functions among its leaves."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp

from tests.zoo.network import BatchNorm, Layer, Network, random_inputs, random_leaves

NETWORKS = []


def network(shape, dtype=jnp.float32, container="Module", **expected):
    """Register a function of a key that returns a model, which takes one example."""

    def add(build):
        name = build.__name__.replace("_", " ")
        make = functools.partial(make_equinox, build, shape, dtype)
        NETWORKS.append(Network("Equinox", name, container, make, **expected))
        return build

    return add


def make_equinox(build, shape, dtype):
    """Return the function on a batch, the model with random leaves, and inputs."""
    model = eqx.filter_eval_shape(build, jax.random.key(0))
    return lambda model, x: jax.vmap(model)(x), random_leaves(model), random_inputs(shape, dtype)


class Model(eqx.Module):
    """A model of two layers, `function` between them."""

    last: eqx.Module
    first: eqx.Module
    between: eqx.Module | None

    def __init__(self, key, between=None):
        first, last = jax.random.split(key)
        self.last = eqx.nn.Linear(16, 5, key=last)
        self.first = eqx.nn.Linear(12, 16, key=first)
        self.between = between

    def __call__(self, x):
        x = self.first(x)
        return self.last(jax.nn.relu(x if self.between is None else self.between(x)))


@network((4, 12))
def MLP(key):
    return eqx.nn.MLP(12, 5, 16, depth=3, key=key)


@network((4, 12))
def own_module(key):
    return Model(key)


@network((4, 12))
def sequential(key):
    first, last = jax.random.split(key)
    return eqx.nn.Sequential(
        [
            eqx.nn.Linear(12, 16, key=first),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Dropout(0.5, inference=True),
            eqx.nn.Linear(16, 5, key=last),
        ]
    )


@network((2, 3, 8, 8))
def convolutions(key):
    keys = jax.random.split(key, 4)
    return eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Conv2d(8, 8, 3, groups=2, key=keys[1]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.ConvTranspose2d(8, 4, 3, stride=2, key=keys[2]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.AvgPool2d(2, 2),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(16, 5, key=keys[3]),
        ]
    )


class BatchNormNet(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    linear: eqx.nn.Linear

    def __init__(self, key):
        conv, linear = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(3, 8, 3, key=conv)
        self.norm = eqx.nn.BatchNorm(8, "batch", mode="ema", inference=True)
        self.linear = eqx.nn.Linear(8, 5, key=linear)

    def __call__(self, x, state):
        x, state = self.norm(self.conv(x), state)
        return self.linear(jax.nn.relu(x).mean(axis=(1, 2))), state


def make_batch_norm():
    """Return the function, the model and the state of its batch normalization, and inputs."""
    model, state = eqx.filter_eval_shape(eqx.nn.make_with_state(BatchNormNet), jax.random.key(0))
    model, state = random_leaves((model, state))
    index = model.norm.ema_state_index
    mean, var = state.get(index)
    state = state.set(index, (mean, jnp.exp(var)))

    def apply_fn(both, x):
        model, state = both
        return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)[
            0
        ]

    return apply_fn, (model, state), random_inputs((2, 3, 8, 8))


NETWORKS.append(
    Network(
        "Equinox",
        "batch norm",
        "(Module, State)",
        make_batch_norm,
        layers=(
            Layer(
                "0/conv/weight",
                "0/conv/bias",
                BatchNorm("1/1/0", "1/1/1", "0/norm/weight", "0/norm/bias"),
                outputs=0,
                joint=True,
            ),
            Layer("0/linear/weight", outputs=0),
        ),
    )
)


@network((4, 12), refused={"between/negative_slope": "select_n"})
def prelu(key):
    return Model(key, eqx.nn.PReLU())


@network((4, 12), refused={"first/weight": "add"})
def layer_norm(key):
    return Model(key, eqx.nn.LayerNorm(16))


@network((4, 12), refused={"first/weight": "add"})
def gelu(key):
    return Model(key, eqx.nn.Lambda(jax.nn.gelu))


@network((4, 12), refused={"layers/1/weight": "logistic"})
def sigmoid_of_an_MLP(key):
    return eqx.nn.MLP(12, 5, 16, depth=1, final_activation=jax.nn.sigmoid, key=key)


@network((4, 6), jnp.int32)
def embedding(key):
    embed, linear = jax.random.split(key)
    return eqx.nn.Sequential(
        [
            eqx.nn.Lambda(eqx.filter_vmap(eqx.nn.Embedding(10, 8, key=embed))),
            eqx.nn.Lambda(lambda x: x.mean(axis=0)),
            eqx.nn.Linear(8, 5, key=linear),
        ]
    )


class Stacked(eqx.Module):
    """Layers of equal shapes as one module with a leading axis, applied by a scan."""

    layers: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, key):
        layers, last = jax.random.split(key)
        build = eqx.filter_vmap(lambda key: eqx.nn.Linear(12, 12, key=key))
        self.layers = build(jax.random.split(layers, 3))
        self.last = eqx.nn.Linear(12, 5, key=last)

    def __call__(self, x):
        arrays, static = eqx.partition(self.layers, eqx.is_array)

        def step(x, arrays):
            return jax.nn.relu(eqx.combine(arrays, static)(x)), None

        return self.last(jax.lax.scan(step, x, arrays)[0])


network((4, 12))(Stacked)


class Tied(eqx.Module):
    shared: eqx.nn.Shared
    hidden: eqx.nn.Linear

    def __init__(self, key):
        embed, hidden, last = jax.random.split(key, 3)
        pair = eqx.nn.Embedding(10, 8, key=embed), eqx.nn.Linear(8, 10, use_bias=False, key=last)
        self.shared = eqx.nn.Shared(pair, lambda p: p[1].weight, lambda p: p[0].weight)
        self.hidden = eqx.nn.Linear(8, 8, key=hidden)

    def __call__(self, token):
        embed, last = self.shared()
        return last(jax.nn.relu(self.hidden(embed(token))))


network((4,), jnp.int32)(Tied)


class Attention(eqx.Module):
    attend: eqx.nn.MultiheadAttention
    last: eqx.nn.Linear

    def __init__(self, key):
        attend, last = jax.random.split(key)
        self.attend = eqx.nn.MultiheadAttention(2, 8, key=attend)
        self.last = eqx.nn.Linear(8, 5, key=last)

    def __call__(self, x):
        return self.last(self.attend(x, x, x).mean(axis=0))


network((2, 5, 8), refused={"attend/key_proj/weight": "exp"})(Attention)


class GRU(eqx.Module):
    cell: eqx.nn.GRUCell
    last: eqx.nn.Linear

    def __init__(self, key):
        cell, last = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(8, 6, key=cell)
        self.last = eqx.nn.Linear(6, 5, key=last)

    def __call__(self, x):
        state, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), jnp.zeros(6), x)
        return self.last(state)


network(
    (2, 5, 8),
    refused={"cell/weight_ih": "logistic", "cell/weight_hh": "add", "cell/bias_n": "add"},
)(GRU)
