"""Flax Linen: activations, normalization and sequences; most of them are no multiples."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.zoo.linen import linen

NETWORKS = []
linen = functools.partial(linen, register=NETWORKS)


# Activations that are homogeneous ...


@linen((4, 12))
def leaky_relu(self, x):
    x = nn.leaky_relu(nn.Dense(16)(x), 0.1)
    return nn.Dense(5)(x)


@linen((4, 12), refused={"PReLU_0/negative_slope": "select_n"})
def prelu(self, x):
    x = nn.PReLU()(nn.Dense(16)(x))
    return nn.Dense(5)(x)


@linen((4, 12))
def maxout(self, x):
    x = nn.Dense(24)(x).reshape(len(x), 8, 3).max(axis=-1)
    return nn.Dense(5)(x)


@linen((4, 12))
def squared_relu(self, x):
    x = jnp.square(nn.relu(nn.Dense(16)(x)))
    return nn.Dense(5)(x)


@linen((4, 12))
def crelu(self, x):
    x = nn.Dense(8)(x)
    x = jnp.concatenate([nn.relu(x), nn.relu(-x)], axis=-1)
    return nn.Dense(5)(x)


@linen((4, 12))
def sorted_activations(self, x):
    x = jnp.sort(nn.Dense(16)(x).reshape(len(x), 8, 2), axis=-1).reshape(len(x), 16)
    return nn.Dense(5)(x)


@linen((4, 12))
def gated_by_relu(self, x):
    x = nn.relu(nn.Dense(16, name="gate")(x)) * nn.Dense(16, name="value")(x)
    return nn.Dense(5)(x)


@linen((4, 12))
def inputs_standardized_inside(self, x):
    x = (x - 0.5) / 0.25
    x = nn.relu(nn.Dense(16)(x))
    return nn.Dense(5)(x)


@linen((4, 12))
def temperature(self, x):
    x = nn.relu(nn.Dense(16)(x))
    return nn.Dense(5)(x) / 0.07


# ... and what is not.


def hold_first(primitive):
    """The first of two Dense layers is held."""
    return {"Dense_0/kernel": primitive}


@linen((4, 12), refused=hold_first("tanh"))
def tanh(self, x):
    x = nn.tanh(nn.Dense(16)(x))
    return nn.Dense(5)(x)


@linen((4, 12), refused=hold_first("add"))
def gelu(self, x):
    x = nn.gelu(nn.Dense(16)(x))
    return nn.Dense(5)(x)


@linen((4, 12), refused=hold_first("logistic"))
def silu(self, x):
    x = nn.silu(nn.Dense(16)(x))
    return nn.Dense(5)(x)


@linen((4, 12), refused=hold_first("expm1"))
def elu(self, x):
    x = nn.elu(nn.Dense(16)(x))
    return nn.Dense(5)(x)


@linen((4, 12), refused=hold_first("min"))
def relu6(self, x):
    x = nn.relu6(nn.Dense(16)(x))
    return nn.Dense(5)(x)


@linen((4, 12), refused=hold_first("clamp"))
def clip(self, x):
    x = jax.lax.clamp(0.0, nn.Dense(16)(x), 1.0)
    return nn.Dense(5)(x)


@linen((4, 12), refused=hold_first("sub"))
def shift_inside(self, x):
    x = nn.relu(nn.Dense(16)(x) - 0.5)
    return nn.Dense(5)(x)


@linen((4, 12), refused={"Dense_1/kernel": "exp"})
def probabilities(self, x):
    x = nn.relu(nn.Dense(16)(x))
    return nn.softmax(nn.Dense(5)(x))


# Normalization that depends on the inputs, and of weights.


@linen((4, 12), refused=hold_first("add"))
def layer_norm(self, x):
    x = nn.relu(nn.LayerNorm()(nn.Dense(16)(x)))
    return nn.Dense(5)(x)


@linen((4, 12), refused=hold_first("add"))
def layer_norm_without_parameters(self, x):
    x = nn.relu(nn.LayerNorm(use_bias=False, use_scale=False)(nn.Dense(16)(x)))
    return nn.Dense(5)(x)


@linen((4, 12), refused=hold_first("add"))
def rms_norm(self, x):
    x = nn.relu(nn.RMSNorm()(nn.Dense(16)(x)))
    return nn.Dense(5)(x)


@linen((4, 12))
def unit_features(self, x):
    x = nn.relu(nn.Dense(16)(x))
    x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    return nn.Dense(5, use_bias=False)(x)


@linen((4, 12), refused=hold_first("add"))
def weight_norm(self, x):
    x = nn.relu(nn.WeightNorm(nn.Dense(16))(x))
    return nn.Dense(5)(x)


SPECTRAL_NORM = {
    "batch_stats/SpectralNorm_0/Dense_0/kernel/u": "add",
    "params/Dense_0/kernel": "add",
}


@linen((4, 12), container="variables", refused=SPECTRAL_NORM)
def spectral_norm(self, x):
    x = nn.relu(nn.SpectralNorm(nn.Dense(16))(x, update_stats=False))
    return nn.Dense(5)(x)


# Sequences.

ATTENTION = {"MultiHeadDotProductAttention_0/key/kernel": "exp"}
TRANSFORMER = {
    **ATTENTION,
    "MultiHeadDotProductAttention_0/out/kernel": "add",
    "Dense_0/kernel": "add",
    "Dense_1/kernel": "add",
}
GATES = {"i": "logistic", "f": "logistic", "g": "tanh", "o": "logistic"}
LSTM = {
    f"LSTMCell_0/{operand}{gate}/kernel": primitive if operand == "i" else "add"
    for gate, primitive in GATES.items()
    for operand in "ih"
}


@linen((2, 5, 8), refused=ATTENTION)
def attention(self, x):
    x = nn.MultiHeadDotProductAttention(num_heads=2)(x)
    return nn.Dense(5)(x.mean(axis=1))


@linen((2, 5, 8), refused=TRANSFORMER)
def transformer_block(self, x):
    x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
    h = nn.gelu(nn.Dense(16)(nn.LayerNorm()(x)))
    x = x + nn.Dense(8)(h)
    return nn.Dense(5)(x.mean(axis=1))


@linen((2, 5, 8), refused={"Dense_0/kernel": "add", "Dense_2/kernel": "add"})
def mlp_mixer(self, x):
    x = x + nn.Dense(5)(nn.relu(nn.Dense(7)(x.transpose(0, 2, 1)))).transpose(0, 2, 1)
    x = x + nn.Dense(8)(nn.relu(nn.Dense(16)(x)))
    return nn.Dense(5)(x.mean(axis=1))


@linen((2, 5, 8), refused=LSTM)
def lstm(self, x):
    return nn.Dense(5)(nn.RNN(nn.LSTMCell(6))(x)[:, -1])


@linen((2, 5, 8), refused={"SimpleCell_0/h/kernel": "add"})
def relu_rnn(self, x):
    return nn.Dense(5)(nn.RNN(nn.SimpleCell(6, activation_fn=nn.relu))(x)[:, -1])


@linen((4, 12), refused={"gate/kernel": "exp"})
def mixture_of_experts(self, x):
    gate = nn.softmax(nn.Dense(3, name="gate")(x))
    experts = nn.relu(nn.DenseGeneral((3, 16), name="experts")(x))
    return nn.Dense(5)(jnp.einsum("be,bef->bf", gate, experts))
