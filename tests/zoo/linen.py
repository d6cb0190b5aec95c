"""Flax Linen: dense networks, with the modules' names, containers and transformations."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import freeze

from tests.zoo.network import BatchNorm, Layer, Network, random_inputs, random_leaves

NETWORKS = []


def linen(
    shape, dtype=jnp.float32, container="params", training=False, register=NETWORKS, **expected
):
    """Register a module class, or a function as the compact `__call__` of one."""

    def add(module):
        if not isinstance(module, type):
            members = {"__call__": nn.compact(module), "__module__": module.__module__}
            module = type(module.__name__, (nn.Module,), members)
        name = module.__name__.replace("_", " ")
        make = functools.partial(make_linen, module, shape, dtype, container, training)
        register.append(Network("Linen", name, container, make, **expected))
        return module

    return add


def make_linen(module, shape, dtype, container, training):
    """Return the function, random leaves in their container, and inputs."""
    model, x = module(), random_inputs(shape, dtype)
    variables = random_leaves(jax.eval_shape(model.init, jax.random.key(0), x))
    if container == "params":
        return lambda params, x: model.apply({"params": params}, x), variables["params"], x
    if container == "FrozenDict":
        return model.apply, freeze(variables), x
    if training:
        return lambda tree, x: model.apply(tree, x, mutable=["batch_stats"])[0], variables, x
    return model.apply, variables, x


def layer(name, batch_norm=None, use_bias=True, joint=False):
    """The paths of a layer, and of the batch normalization that follows it."""
    bias = f"params/{name}/bias" if use_bias else None
    return Layer(f"params/{name}/kernel", bias, batch_norm, joint=joint)


def batch_norm(name, epsilon=1e-5, scale=True, bias=True):
    """The paths of a batch normalization."""
    return BatchNorm(
        f"batch_stats/{name}/mean",
        f"batch_stats/{name}/var",
        f"params/{name}/scale" if scale else None,
        f"params/{name}/bias" if bias else None,
        epsilon,
    )


# Names that say nothing, or the wrong thing, about the order.


@linen((4, 12))
def one_layer(self, x):
    return nn.Dense(5)(x)


@linen((4, 12))
class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (16, 8):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(5)(x)


@linen((4, 12), container="FrozenDict")
def MLP_in_a_FrozenDict(self, x):
    x = nn.relu(nn.Dense(16)(x))
    return nn.Dense(5)(x)


@linen((4, 12), container="variables")
def MLP_of_variables(self, x):
    x = nn.relu(nn.Dense(16)(x))
    return nn.Dense(5)(x)


@linen((4, 12))
def stem_and_head(self, x):
    x = nn.relu(nn.Dense(16, name="stem")(x))
    return nn.Dense(5, name="head")(x)


@linen((4, 12))
def input_hidden_output(self, x):
    x = nn.relu(nn.Dense(16, name="input")(x))
    x = nn.relu(nn.Dense(16, name="hidden")(x))
    return nn.Dense(5, name="output")(x)


class Half(nn.Module):
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
            x = nn.leaky_relu(nn.Dense(width)(x))
        return x


@linen((4, 12))
class encoder_and_decoder(nn.Module):
    def setup(self):
        self.decoder = Half((8, 12))
        self.encoder = Half((8, 4))

    def __call__(self, x):
        return self.decoder(self.encoder(x))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(16)(x))


@linen((4, 12))
def block_between_layers(self, x):
    x = nn.relu(nn.Dense(16)(x))
    x = Block()(x)
    return nn.Dense(16)(x)


@linen((4, 12))
def one_liner(self, x):
    return nn.Dense(10)(nn.relu(nn.Dense(64)(x)))


@linen((4, 12))
class setup_list(nn.Module):
    def setup(self):
        self.layers = [nn.Dense(16) for _ in range(11)]

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = nn.relu(layer(x))
        return self.layers[-1](x)


@linen((4, 12))
def sequential(self, x):
    return nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(8), nn.relu, nn.Dense(5)])(x)


@linen((4, 12))
def own_matrices(self, x):
    first = self.param("theta", nn.initializers.normal(), (12, 16))
    second = self.param("alpha", nn.initializers.normal(), (16, 5))
    return jnp.einsum("bh,hk->bk", nn.relu(x @ first), second)


# Layers other than Dense, and transformations.


@linen((4, 3, 5))
def dense_general(self, x):
    x = nn.relu(nn.DenseGeneral((4, 6), axis=(-2, -1))(x))
    return nn.DenseGeneral(5, axis=(-2, -1))(x)


@linen((4, 3, 5))
def einsum(self, x):
    x = nn.relu(nn.Einsum((5, 3, 8), "bic,cio->bo")(x))
    return nn.Dense(5)(x)


@linen((4, 6), jnp.int32)
def embed(self, x):
    x = nn.relu(nn.Dense(16)(nn.Embed(10, 8)(x)))
    return nn.Dense(5)(x.mean(axis=1))


@linen((4, 6), jnp.int32)
class tied_embedding(nn.Module):
    def setup(self):
        self.embed, self.dense = nn.Embed(10, 8), nn.Dense(8)

    def __call__(self, x):
        return self.embed.attend(nn.relu(self.dense(self.embed(x))))


@linen((4, 12))
class one_layer_twice(nn.Module):
    def setup(self):
        self.dense, self.head = nn.Dense(12, use_bias=False), nn.Dense(5)

    def __call__(self, x):
        return self.head(nn.relu(self.dense(nn.relu(self.dense(x)))))


class ScannedLayer(nn.Module):
    use_bias: bool = True

    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(12, use_bias=self.use_bias)(x)), None


def scan(layer, **settings):
    return nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, **settings)


@linen((4, 12))
def scan_over_layers(self, x):
    x, _ = scan(ScannedLayer, length=3)()(x, None)
    return nn.Dense(5)(x)


@linen((4, 12))
def scan_without_bias(self, x):
    x, _ = scan(ScannedLayer, length=3)(use_bias=False)(x, None)
    return nn.Dense(5)(x)


@linen((4, 12))
def remat(self, x):
    x = nn.relu(nn.remat(nn.Dense)(16)(x))
    x = nn.remat(Block)()(x)
    return nn.Dense(5)(x)


@linen((4, 12))
def jitted_module(self, x):
    x = nn.jit(Block)()(x)
    return nn.Dense(5)(x)


@linen((4, 12))
def vmapped_ensemble(self, x):
    heads = nn.vmap(
        nn.Dense,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=None,
        axis_size=3,
    )
    x = nn.relu(nn.Dense(16)(x))
    return heads(5)(x).mean(axis=0)


@linen((4, 12))
def dropout(self, x):
    x = nn.relu(nn.Dense(16)(x))
    x = nn.Dropout(0.5, deterministic=True)(x)
    return nn.Dense(5)(x)


@linen((4, 12))
def computed_in_bfloat16(self, x):
    x = nn.relu(nn.Dense(16, dtype=jnp.bfloat16)(x))
    x = nn.relu(nn.Dense(16, dtype=jnp.bfloat16)(x))
    return nn.Dense(5, dtype=jnp.bfloat16)(x).astype(jnp.float32)


@linen((4, 12))
def stored_in_bfloat16(self, x):
    layer = functools.partial(nn.Dense, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    x = nn.relu(layer(16)(x))
    return layer(5)(x)


@linen((4, 12))
class actor_of_actor_critic(nn.Module):
    def setup(self):
        self.critic, self.actor, self.trunk = nn.Dense(1), nn.Dense(5), nn.Dense(16)

    def __call__(self, x):
        x = nn.relu(self.trunk(x))
        return (self.actor(x), self.critic(x))[0]


@linen((4, 12), refused={"critic/kernel": "the network's outputs"})
class actor_and_critic(nn.Module):
    def setup(self):
        self.actor, self.critic, self.trunk = nn.Dense(5), nn.Dense(1), nn.Dense(16)

    def __call__(self, x):
        x = nn.relu(self.trunk(x))
        return self.actor(x), self.critic(x)


# Batch normalization of a dense network.


@linen(
    (4, 12),
    container="variables",
    layers=(
        layer("Dense_0", batch_norm("BatchNorm_0"), joint=True),
        layer("Dense_1", batch_norm("BatchNorm_1")),
        layer("Dense_2"),
    ),
)
def mlp_with_batch_norm(self, x):
    for width in (16, 8):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Dense(width)(x)))
    return nn.Dense(5)(x)
