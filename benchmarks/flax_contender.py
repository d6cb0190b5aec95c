"""The same networks in plain Flax: in `jit(vmap(step))`, or as a user's own network in a sweep."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks.normjax_contenders import (
    IMAGE_SHAPE,
    compile_for,
    make_networks,
    prepare_steps,
)
from benchmarks.synthetic import NUM_CLASSES, make_data
from benchmarks.timing import Prepared
from normjax import conv_general_dilated


class PlainConvNet3(nn.Module):
    """The network convnet3 for images of at least 12 pixels, with the same parameter tree."""

    conv: Callable | None = None  # None: JAX's

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float images [N, H, W, C] to logits [N, K]."""
        how = {"padding": "VALID", "conv_general_dilated": self.conv}
        x = nn.relu(nn.Conv(24, (5, 5), **how)(x))
        x = nn.relu(nn.Conv(24, (5, 5), use_bias=False, **how)(x))
        return nn.Dense(NUM_CLASSES, use_bias=False)(x.reshape(len(x), -1))


class PlainConvNet5(nn.Module):
    """The network convnet5 with batch normalization in training mode."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float images [N, H, W, C] to logits [N, K]."""
        for features, stride in ((32, 1), (64, 2), (64, 2), (128, 2)):
            x = nn.Conv(features, (3, 3), stride, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False, momentum=0.9)(x))
        x = nn.Conv(NUM_CLASSES, x.shape[1:3], padding="VALID", use_bias=False)(x)
        return x.reshape(len(x), NUM_CLASSES)


NETS = {"convnet3": PlainConvNet3, "convnet5": PlainConvNet5}


def make_step(model: nn.Module, tx: optax.GradientTransformation) -> Callable:
    """Make `step(variables, opt_state, images, labels) -> (variables, opt_state, mean loss)`."""

    def step(variables: Any, opt_state: Any, images: jax.Array, labels: jax.Array):
        def loss_fn(params):
            x = (images.astype(jnp.float32) / 255.0 - 0.5) / 0.5
            logits, updated = model.apply(
                {**variables, "params": params}, x, mutable=["batch_stats"]
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, updated

        (loss, updated), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
        updates, opt_state = tx.update(grads, opt_state)
        params = optax.apply_updates(variables["params"], updates)
        return {**variables, **updated, "params": params}, opt_state, loss

    return step


def prepare_vmap(model: str, members: int, batch_size: int) -> Prepared:
    """Prepare one step of all members, with XLA's default settings."""
    net, tx = NETS[model](), optax.sgd(0.01, momentum=0.9)
    images, labels = jax.device_put(make_data(batch_size, IMAGE_SHAPE))
    init = jax.vmap(lambda key: net.init(key, jnp.zeros((1, *IMAGE_SHAPE))))
    variables = jax.jit(init)(jax.random.split(jax.random.key(0), members))
    opt_state = jax.vmap(tx.init)(variables["params"])
    vmapped = jax.jit(jax.vmap(make_step(net, tx), in_axes=(0, 0, None, None)))
    step, compile_s = compile_for(vmapped, variables, opt_state, images, labels)

    def call():
        nonlocal variables, opt_state
        out = jax.block_until_ready(step(variables, opt_state, images, labels))
        variables, opt_state, losses = out
        return losses

    return Prepared(call, members, compile_s)


def prepare_own(is_ours: bool, members: int, batch_size: int, num_steps: int) -> Prepared:
    """Prepare an epoch of a sweep of `PlainConvNet3`, with our convolution or JAX's."""
    net = PlainConvNet3(conv_general_dilated if is_ours else None)
    networks = make_networks(net, members, batch_size, batch_size * num_steps)
    return prepare_steps(networks, members, num_steps)[0]
