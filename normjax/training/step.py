"""SGD for one network: a step, and an epoch as one scan. `ensemble.py` maps them over members."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normjax.data import standardize_images
from normjax.losses import classification_error, cross_entropy, excess_cross_entropy
from normjax.networks.classifier import Classifier, Variables
from normjax.normalize import product_norm
from normjax.training.augment import augment_images
from normjax.types import Array

CPU_MICROBATCH = 16  # the activations of 16 images fit in the cache of a CPU core


class TrainState(NamedTuple):
    """The training state of one network.

    Attributes:
      variables: the variables of a `Classifier`.
      opt_state: the state of the optimizer.
      stopped_at: int32 scalar, the epoch of the second phase after which the network is no longer
        trained, or 0; None for networks that are never stopped.
    """

    variables: Variables
    opt_state: optax.OptState
    stopped_at: Array | None = None


class Batch(NamedTuple):
    """One batch.

    Attributes:
      images: uint8 [B, H, W, C].
      labels: int32 [B].
      weights: float32 [B], 1, or 0 for padding.
    """

    images: Array
    labels: Array
    weights: Array


class MetricSums(NamedTuple):
    """Sums over examples, each evaluated at the step that visits it; scalars.

    Attributes:
      loss: cross entropy, nats.
      error: number of misclassified examples.
      normalized_excess: cross entropy of the normalized network (Frobenius) minus ln K, nats.
      log_product_norm: ln of the product of norms (Frobenius).
    """

    loss: Array
    error: Array
    normalized_excess: Array
    log_product_norm: Array


class Metrics(NamedTuple):
    """The means that correspond to `MetricSums`; `error` is a fraction."""

    loss: Array
    error: Array
    normalized_excess: Array
    log_product_norm: Array


def init_state(
    classifier: Classifier,
    tx: optax.GradientTransformation,
    key: Array,
    init_std: Any = None,
    *,
    may_stop: bool = False,
) -> TrainState:
    """Initialize a network, by default or with a standard deviation, and its optimizer."""
    variables = classifier.init(key, init_std)
    stopped_at = jnp.int32(0) if may_stop else None
    return TrainState(variables, tx.init(variables["params"]), stopped_at)


def reset_optimizer(tx: optax.GradientTransformation, state: TrainState) -> TrainState:
    """Return the same network with a fresh optimizer state, for the second phase."""
    return state._replace(opt_state=tx.init(state.variables["params"]))


def make_train_step(
    classifier: Classifier,
    tx: optax.GradientTransformation,
    microbatch_size: int | None = None,
    weight_decay: float = 0.0,
    matmul_precision: str = "default",
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """Make a step of gradient descent on the mean cross entropy of a batch.

    Args:
      classifier: the network.
      tx: the optimizer.
      microbatch_size: accumulate the gradient over microbatches of this size, which must divide
        the batch size; None uses the whole batch at once. The results differ only by rounding.
        Batch normalization needs None, because its statistics are taken over the whole batch.
      weight_decay: each parameter times this is added to its gradient, before momentum.
      matmul_precision: "default", "high" or "highest", for convolutions and matrix products that
        don't set their own; see `jax.lax.Precision`. It has no effect on a CPU.
      axis_name: the mesh axis whose devices each hold a part of the batch; sums over the batch are
        combined.

    Returns:
      `train_step(state, batch, key) -> (state, metrics)`; the key is for dropout.

    Raises:
      ValueError: `microbatch_size` is given for a network with batch normalization.
    """
    if classifier.has_state and microbatch_size is not None:
        raise ValueError("batch normalization needs the whole batch at once, not microbatches")

    def loss_sums(params, others, batch, product, key):
        images = standardize_images(batch.images)
        variables = {"params": params, **others}
        logits, others = classifier.train_apply(variables, images, batch.weights > 0, key)
        loss = jnp.sum(batch.weights * cross_entropy(logits, batch.labels))
        error = jnp.sum(batch.weights * classification_error(logits, batch.labels))
        excess = jnp.sum(batch.weights * excess_cross_entropy(logits / product, batch.labels))
        log_product = jnp.sum(batch.weights) * jnp.log(product)
        return loss, (MetricSums(loss, error, excess, log_product), others)

    def grad_sums(params, *args):
        grads, (sums, others) = jax.grad(loss_sums, has_aux=True)(params, *args)
        return (grads, sums), others

    def accumulated_grad_sums(params, others, batch, product, key):
        pieces = jax.tree.map(lambda x: x.reshape(-1, microbatch_size, *x.shape[1:]), batch)
        keys = jax.random.split(key, len(pieces.labels))

        def add(total, piece_and_key):
            piece, key = piece_and_key
            sums, _ = grad_sums(params, others, piece, product, key)
            return jax.tree.map(jnp.add, total, sums), None

        start = (jax.tree.map(jnp.zeros_like, params), _zero_sums())
        return jax.lax.scan(add, start, (pieces, keys))[0], others

    def train_step(state, batch, key):
        params = state.variables["params"]
        others = {name: tree for name, tree in state.variables.items() if name != "params"}
        sums_fn = grad_sums if microbatch_size is None else accumulated_grad_sums
        sums_fn = jax.default_matmul_precision(matmul_precision)(sums_fn)
        # Once per step, not per microbatch; with batch normalization as at test time.
        product = product_norm(
            state.variables, structure=classifier.structure, tied=classifier.tied
        )
        of_batch, others = sums_fn(params, others, batch, product, key)
        of_batch = (*of_batch, jnp.sum(batch.weights))
        if axis_name is not None:
            of_batch = jax.lax.psum(of_batch, axis_name)
        grad_sum, sums, total = of_batch
        grads = jax.tree.map(lambda x: x / total, grad_sum)
        if weight_decay:
            grads = jax.tree.map(lambda x, w: x + weight_decay * w, grads, params)
        metrics = _means(sums, total)
        updates, opt_state = tx.update(grads, state.opt_state, params)
        params = optax.apply_updates(params, updates)
        return state._replace(variables={"params": params, **others}, opt_state=opt_state), metrics

    return train_step


def choose_microbatch_size(classifier: Classifier, batch_size: int) -> int | None:
    """Return the fastest microbatch size of a device: `CPU_MICROBATCH` on a CPU, else None."""
    if jax.default_backend() != "cpu" or classifier.has_state:
        return None
    return min(CPU_MICROBATCH, batch_size)


def make_train_epoch(
    train_step: Callable,
    batch_size: int,
    microbatch_size: int | None = None,
    *,
    augment: bool = False,
    axis_name: str | None = None,
) -> Callable[[TrainState, Array, Array, Array], tuple[TrainState, Metrics]]:
    """Make the function that trains one epoch, a scan over all examples in random order.

    If `batch_size` does not divide the number of examples, the last batch is filled with the first
    examples of the epoch at weight 0, to keep shapes static. Statistics of a network without `mask`
    include them.

    Args:
      train_step: `train_step(state, batch, key) -> (state, metrics)`.
      batch_size: examples per step.
      microbatch_size: the parts of batches are padded to a multiple of this size.
      augment: whether `augment_images` alters each batch; the metrics are then of the altered one.
      axis_name: the mesh axis whose devices each take a part of every batch.

    Returns:
      `train_epoch(state, images uint8 [N, H, W, C], labels int32 [N], key) -> (state, metrics)`.
    """

    def train_epoch(state, images, labels, key):
        num_parts = 1 if axis_name is None else jax.lax.axis_size(axis_name)
        unit = num_parts * (microbatch_size or 1)
        padded_size = math.ceil(batch_size / unit) * unit
        indices, weights = _batches(key, len(labels), batch_size, padded_size)

        def body(carry, batch_of_epoch):
            state, sums = carry
            number, index, weight = batch_of_epoch
            step_key = jax.random.fold_in(key, number)
            chosen = images[index]
            if augment:
                chosen = augment_images(chosen, step_key)
            batch = Batch(chosen, labels[index], weight)
            if axis_name is not None:
                batch = _own_part(batch, axis_name)
            state, metrics = train_step(state, batch, step_key)
            count = jnp.sum(weight)
            return (state, _add(sums, metrics, count)), None

        batches = (jnp.arange(len(indices)), indices, weights)
        (state, sums), _ = jax.lax.scan(body, (state, _zero_sums()), batches)
        return state, _means(sums, len(labels))

    return train_epoch


def unless_stopped(train_epoch: Callable, axis_name: str | None = None) -> Callable:
    """Make a `train_epoch` that leaves stopped networks as they are; their metrics are NaN.

    Either all devices along `axis_name` train a network, or none does.
    """

    def train_or_skip(state, *args):
        if axis_name is not None:
            state = state._replace(stopped_at=jax.lax.pmax(state.stopped_at, axis_name))
        unknown = Metrics(*[jnp.float32(jnp.nan)] * len(Metrics._fields))
        return jax.lax.cond(
            state.stopped_at > 0, lambda: (state, unknown), lambda: train_epoch(state, *args)
        )

    return train_or_skip


def _zero_sums() -> MetricSums:
    """Return sums over no examples."""
    return MetricSums(*[jnp.zeros((), jnp.float32)] * len(MetricSums._fields))


def _means(sums: MetricSums, count: Array | int) -> Metrics:
    """Return the means over `count` examples."""
    return Metrics(*(total / count for total in sums))


def _add(sums: MetricSums, metrics: Metrics, count: Array) -> MetricSums:
    """Add the means over `count` more examples."""
    return MetricSums(*(total + count * mean for total, mean in zip(sums, metrics, strict=True)))


def _own_part(batch: Batch, axis_name: str) -> Batch:
    """Return this device's part of a batch."""
    count, own = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:])[own], batch)


def _batches(key, num_examples, batch_size, padded_size):
    """Return shuffled int32 indices and float32 weights, both [num_batches, padded_size]."""
    num_batches = math.ceil(num_examples / batch_size)
    order = jax.random.permutation(key, num_examples)
    fill = num_batches * batch_size - num_examples
    indices = jnp.pad(order, (0, fill), mode="wrap").reshape(num_batches, batch_size)
    weights = (jnp.arange(num_batches * batch_size) < num_examples).reshape(indices.shape)
    tail = ((0, 0), (0, padded_size - batch_size))
    return jnp.pad(indices, tail), jnp.pad(weights.astype(jnp.float32), tail)
