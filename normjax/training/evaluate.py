"""Losses and errors of one network over a whole data set, under many norms from one forward pass.

A network that obeys eq. 2 needs no second forward pass to be normalized: f(W~; x) is f(W; x)
divided by the product of norms, whatever the norm.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from normjax.data import standardize_images
from normjax.losses import classification_error, cross_entropy, excess_cross_entropy
from normjax.normalize import product_norm
from normjax.norms import NamedNorm
from normjax.types import ApplyFn, Array


class Evaluation(NamedTuple):
    """Sums over each batch of the data set, float32; `dataset_means` turns them into means."""

    loss: Array  # [num_batches]
    error: Array  # [num_batches]
    product_norms: Array  # [num_norms]
    normalized_excess: Array  # [num_norms, num_batches]
    normalized_error: Array  # [num_norms, num_batches]


def make_evaluate(
    apply_fn: ApplyFn, norms: Sequence[NamedNorm], batch_size: int
) -> Callable[[Any, Array, Array], Evaluation]:
    """Evaluation of one network on uint8 images and labels, at the highest matmul precision.

    Args:
      apply_fn: `apply_fn(params, images float [N, H, W, C]) -> logits`; it must obey eq. 2 (batch
        normalization absorbed).
      norms: the norms to normalize by; there may be none.
      batch_size: examples at a time.

    Returns:
      `evaluate(params, images uint8 [N, H, W, C], labels int32 [N]) -> Evaluation`.
    """

    def evaluate(params, images, labels):
        num_examples = len(labels)
        num_batches = math.ceil(num_examples / batch_size)
        indices = jnp.arange(num_batches * batch_size).reshape(num_batches, batch_size)
        products = jnp.array([product_norm(params, n.norm, scale=n.scale) for n in norms])

        def batch_sums(index):
            counts = index < num_examples
            index = jnp.minimum(index, num_examples - 1)
            y = labels[index]
            logits = apply_fn(params, standardize_images(images[index]))
            normalized = logits / products[:, None, None]

            def total(per_example):
                return jnp.sum(jnp.where(counts, per_example, 0.0), axis=-1)

            ys = jnp.broadcast_to(y, normalized.shape[:-1])
            return (
                total(cross_entropy(logits, y)),
                total(classification_error(logits, y)),
                total(excess_cross_entropy(normalized, ys)),
                total(classification_error(normalized, ys)),
            )

        with jax.default_matmul_precision("highest"):
            loss, error, excess, normalized_error = jax.lax.map(batch_sums, indices)
        return Evaluation(loss, error, products, excess.T, normalized_error.T)

    return evaluate


def dataset_means(sums: Array, num_examples: int) -> np.ndarray:
    """Means over the data set in float64, from sums per batch on the last axis."""
    return np.asarray(sums, np.float64).sum(axis=-1) / num_examples


def choose_evaluation_batch_size() -> int:
    """Examples per forward pass: what a core's cache holds on a CPU, more on an accelerator."""
    return 16 if jax.default_backend() == "cpu" else 500
