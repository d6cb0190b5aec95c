"""Haiku: dicts of modules from `hk.transform`, and pairs of parameters and state."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp

from tests.zoo.network import BatchNorm, Layer, Network, random_inputs, random_leaves

NETWORKS = []


def network(shape, dtype=jnp.float32, container="params", **expected):
    """Register a function of Haiku modules."""

    def add(forward):
        name = forward.__name__.replace("_", " ")
        make = functools.partial(make_haiku, forward, shape, dtype, container)
        NETWORKS.append(Network("Haiku", name, container, make, **expected))
        return forward

    return add


def make_haiku(forward, shape, dtype, container):
    """Return the function, random leaves, and inputs."""
    x = random_inputs(shape, dtype)
    if container == "params":
        model = hk.without_apply_rng(hk.transform(forward))
        params = jax.eval_shape(model.init, jax.random.key(0), x)
        return model.apply, random_leaves(params), x
    model = hk.without_apply_rng(hk.transform_with_state(forward))
    init = functools.partial(model.init, is_training=True)
    both = random_leaves(jax.eval_shape(init, jax.random.key(0), x))
    return lambda both, x: model.apply(*both, x, is_training=False)[0], both, x


def batch_norm(name):
    """The paths of a batch normalization; debiased averages are what evaluation reads."""
    return BatchNorm(
        f"1/{name}/~/mean_ema/average",
        f"1/{name}/~/var_ema/average",
        f"0/{name}/scale",
        f"0/{name}/offset",
    )


@network((4, 12))
def MLP(x):
    return hk.nets.MLP([16, 8, 5])(x)


@network((4, 12))
def encoder_and_decoder(x):
    x = jax.nn.relu(hk.Linear(8, name="encoder")(x))
    return hk.Linear(12, name="decoder")(x)


@network((2, 8, 8, 3))
def convolutions(x):
    x = jax.nn.relu(hk.Conv2D(8, 3, stride=2)(x))
    x = hk.MaxPool((2, 2, 1), (2, 2, 1), "SAME")(x)
    x = jax.nn.relu(hk.DepthwiseConv2D(1, 3)(x))
    return hk.Linear(5)(hk.Flatten()(x))


@network((2, 8, 8, 3))
def channels_first(x):
    x = x.transpose(0, 3, 1, 2)
    x = jax.nn.relu(hk.Conv2D(8, 3, data_format="NCHW")(x))
    x = jax.nn.relu(hk.Conv2DTranspose(4, 3, stride=2, data_format="NCHW")(x))
    return hk.Linear(5)(x.mean(axis=(2, 3)))


@network(
    (2, 8, 8, 3),
    container="(params, state)",
    layers=(
        Layer("0/conv2_d/w", None, batch_norm("batch_norm"), joint=True),
        Layer("0/conv2_d_1/w", None, batch_norm("batch_norm_1")),
        Layer("0/linear/w"),
    ),
)
def batch_norms(x, is_training):
    for stride in (1, 2):
        x = hk.Conv2D(8, 3, stride=stride, with_bias=False)(x)
        x = hk.BatchNorm(True, True, 0.9)(x, is_training)
        x = jax.nn.relu(x)
    return hk.Linear(5)(x.mean(axis=(1, 2)))


RESNET = {
    f"0/res_net/~/block_group_{group}/~/block_{block}/~/batchnorm_1/scale": "add"
    for group in range(4)
    for block in range(2)
}


@network(
    (2, 32, 32, 3),
    container="(params, state)",
    refused=RESNET,
    layers=(
        Layer(
            "0/res_net/~/initial_conv/w",
            None,
            batch_norm("res_net/~/initial_batchnorm"),
            joint=True,
        ),
        Layer("0/res_net/~/logits/w"),
    ),
)
def ResNet18(x, is_training):
    model = hk.nets.ResNet(
        (2, 2, 2, 2),
        num_classes=5,
        bottleneck=False,
        channels_per_group=(4, 4, 8, 8),
        use_projection=(False, True, True, True),
        initial_conv_config={"output_channels": 4},
    )
    return model(x, is_training)


@network((4, 12))
def one_layer_twice(x):
    layer = hk.Linear(12, with_bias=False)
    return hk.Linear(5)(jax.nn.relu(layer(jax.nn.relu(layer(x)))))


@network((4, 12))
def layer_stack(x):
    stack = hk.layer_stack(3)
    return hk.Linear(5)(stack(lambda x: jax.nn.relu(hk.Linear(12)(x)))(x))


@network((4, 6), jnp.int32)
def embedding(x):
    return hk.Linear(5)(hk.Embed(10, 8)(x).mean(axis=1))


@network((2, 5, 8), refused={"multi_head_attention/key/w": "exp"})
def attention(x):
    attend = hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling())
    return hk.Linear(5)(attend(x, x, x).mean(axis=1))


@network((4, 12), refused={"linear/w": "add"})
def layer_norm(x):
    x = hk.LayerNorm(-1, True, True)(hk.Linear(16)(x))
    return hk.Linear(5)(jax.nn.relu(x))


@network((4, 5, 12), refused={"gru/w_i": "logistic", "gru/w_h": "add"})
def gru(x):
    core = hk.GRU(6)
    x, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))
    return hk.Linear(5)(x[-1])
