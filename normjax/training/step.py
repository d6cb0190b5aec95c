"""SGD for one network: a step, and an epoch as one compiled scan.

Everything here is written for ONE network; `ensemble.py` maps it over many.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from normjax.batch_norm import absorb_batch_norm
from normjax.data import standardize_images
from normjax.losses import classification_error, cross_entropy, excess_cross_entropy
from normjax.normalize import product_norm
from normjax.types import Array

CPU_MICROBATCH = 16  # on a CPU the activations of 16 images stay in a core's cache


class TrainState(NamedTuple):
    """What training changes: the model's variables and the optimizer's state."""

    variables: Any  # {"params": ...} and, with batch normalization, "batch_stats"
    opt_state: optax.OptState


class Batch(NamedTuple):
    """One batch; examples of weight 0 are padding and count nowhere."""

    images: Array  # uint8 [B, H, W, C]
    labels: Array  # int32 [B]
    weights: Array  # float32 [B], 0 or 1


class Metrics(NamedTuple):
    """Means over the examples seen, with the parameters as they were when each was seen."""

    loss: Array  # cross entropy, nats
    error: Array  # fraction misclassified
    normalized_excess: Array  # cross entropy of the normalized network (Frobenius) - ln K


def init_state(model: nn.Module, tx: optax.GradientTransformation, key, image_shape) -> TrainState:
    """A fresh network for images of shape (H, W, C), with its optimizer's state."""
    variables = model.init(key, jnp.zeros((1, *image_shape), jnp.float32))
    return TrainState(variables, tx.init(variables["params"]))


def reset_optimizer(tx: optax.GradientTransformation, state: TrainState) -> TrainState:
    """The same network with a fresh optimizer state: how the second phase starts."""
    return state._replace(opt_state=tx.init(state.variables["params"]))


def make_train_step(
    model: nn.Module, tx: optax.GradientTransformation, microbatch_size: int | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One step of gradient descent on the mean cross entropy of a batch.

    Args:
      model: a module of `models.py`.
      tx: the optimizer.
      microbatch_size: accumulate the gradient over pieces of that many examples, which must divide
        the batch; None takes the whole batch at once. The result is the same but for rounding. A
        model with batch normalization needs None, since its statistics are the batch's.

    Returns:
      `train_step(state, batch) -> (state, metrics)`.
    """
    has_batch_norm = getattr(model, "batch_norm", False)
    if has_batch_norm and microbatch_size is not None:
        raise ValueError("batch normalization needs the whole batch at once, not microbatches")

    def loss_sums(params, batch_stats, batch, product):
        images = standardize_images(batch.images)
        variables = {"params": params, **batch_stats}
        if has_batch_norm:
            logits, batch_stats = model.apply(
                variables, images, train=True, mask=batch.weights > 0, mutable=["batch_stats"]
            )
        else:
            logits = model.apply(variables, images)
        loss = jnp.sum(batch.weights * cross_entropy(logits, batch.labels))
        error = jnp.sum(batch.weights * classification_error(logits, batch.labels))
        excess = jnp.sum(batch.weights * excess_cross_entropy(logits / product, batch.labels))
        return loss, (Metrics(loss, error, excess), batch_stats)

    def grad_sums(params, *args):
        grads, (sums, batch_stats) = jax.grad(loss_sums, has_aux=True)(params, *args)
        return (grads, sums), batch_stats

    def accumulated_grad_sums(params, batch_stats, batch, product):
        pieces = jax.tree.map(lambda x: x.reshape(-1, microbatch_size, *x.shape[1:]), batch)

        def add(total, piece):
            sums, _ = grad_sums(params, batch_stats, piece, product)
            return jax.tree.map(jnp.add, total, sums), None

        start = (jax.tree.map(jnp.zeros_like, params), _zero_metrics())
        return jax.lax.scan(add, start, pieces)[0], batch_stats

    def train_step(state, batch):
        params = state.variables["params"]
        batch_stats = {k: v for k, v in state.variables.items() if k != "params"}
        sums_fn = grad_sums if microbatch_size is None else accumulated_grad_sums
        # Once a step and not for each microbatch; batch normalization counts as it would in a test.
        product = product_norm(absorb_batch_norm(state.variables))
        sums, batch_stats = sums_fn(params, batch_stats, batch, product)
        total = jnp.sum(batch.weights)
        grads, metrics = jax.tree.map(lambda x: x / total, sums)
        updates, opt_state = tx.update(grads, state.opt_state, params)
        params = optax.apply_updates(params, updates)
        return TrainState({"params": params, **batch_stats}, opt_state), metrics

    return train_step


def choose_microbatch_size(model: nn.Module, batch_size: int) -> int | None:
    """The microbatch that trains fastest here: `CPU_MICROBATCH` on a CPU, none elsewhere."""
    if jax.default_backend() != "cpu" or getattr(model, "batch_norm", False):
        return None
    return min(CPU_MICROBATCH, batch_size)


def make_train_epoch(
    train_step: Callable, batch_size: int, microbatch_size: int | None = None
) -> Callable[[TrainState, Array, Array, Array], tuple[TrainState, Metrics]]:
    """An epoch over every example once, in an order drawn from a key, as one scan.

    The last batch is smaller when batch_size does not divide the number of examples: it is filled
    up with examples of weight 0, so that shapes are static.

    Returns:
      `train_epoch(state, images uint8 [N, H, W, C], labels int32 [N], key) -> (state, metrics)`.
    """
    padded_size = batch_size
    if microbatch_size is not None:
        padded_size = math.ceil(batch_size / microbatch_size) * microbatch_size

    def train_epoch(state, images, labels, key):
        indices, weights = _batches(key, len(labels), batch_size, padded_size)

        def body(carry, batch_indices_and_weights):
            state, sums = carry
            index, weight = batch_indices_and_weights
            state, metrics = train_step(state, Batch(images[index], labels[index], weight))
            count = jnp.sum(weight)
            return (state, jax.tree.map(lambda s, m: s + count * m, sums, metrics)), None

        (state, sums), _ = jax.lax.scan(body, (state, _zero_metrics()), (indices, weights))
        return state, jax.tree.map(lambda s: s / len(labels), sums)

    return train_epoch


def _zero_metrics():
    return Metrics(*[jnp.zeros((), jnp.float32) for _ in Metrics._fields])


def _batches(key, num_examples, batch_size, padded_size):
    """Indices int32 and weights float32, both [num_batches, padded_size], of a shuffled epoch."""
    num_batches = math.ceil(num_examples / batch_size)
    order = jax.random.permutation(key, num_examples)
    fill = num_batches * batch_size - num_examples
    indices = jnp.pad(order, (0, fill)).reshape(num_batches, batch_size)
    weights = (jnp.arange(num_batches * batch_size) < num_examples).reshape(indices.shape)
    tail = ((0, 0), (0, padded_size - batch_size))
    return jnp.pad(indices, tail), jnp.pad(weights.astype(jnp.float32), tail)
