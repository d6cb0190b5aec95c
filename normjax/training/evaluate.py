"""Evaluate one network over a whole data set, under many norms in one forward pass.

A network that obeys eq. 2 needs no second forward pass to be normalized: f(W~; x) is f(W; x)
divided by the product of norms, for any norm.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from normjax.data import standardize_images
from normjax.losses import classification_error, cross_entropy, excess_cross_entropy
from normjax.networks.classifier import Classifier, Variables
from normjax.normalize import product_norm
from normjax.norms import NamedNorm
from normjax.types import Array


class EvaluationSums(NamedTuple):
    """Sums over each batch of a data set, float32; the last axis indexes batches.

    Attributes:
      loss: [num_batches] cross entropy, nats.
      error: [num_batches] number of misclassified examples.
      product_norms: [num_norms], not a sum.
      normalized_excess: [num_norms, num_batches] normalized cross entropy minus ln K, nats.
      normalized_error: [num_norms, num_batches] the error of the normalized network.
    """

    loss: Array
    error: Array
    product_norms: Array
    normalized_excess: Array
    normalized_error: Array


@dataclass(frozen=True)
class Evaluation:
    """Means over a data set, float64; see `EvaluationSums`.

    Attributes:
      loss: cross entropy, nats.
      error: fraction misclassified.
      product_norms: [num_norms].
      normalized_excess: [num_norms] nats.
      normalized_error: [num_norms].
    """

    loss: float
    error: float
    product_norms: np.ndarray
    normalized_excess: np.ndarray
    normalized_error: np.ndarray


def make_evaluate(
    classifier: Classifier, norms: Sequence[NamedNorm], batch_size: int
) -> Callable[[Variables, Array, Array], EvaluationSums]:
    """Make a function that evaluates one network at the highest matmul precision.

    Args:
      classifier: the network.
      norms: the norms to normalize by; may be empty.
      batch_size: examples per forward pass.

    Returns:
      `evaluate(variables, images uint8 [N, H, W, C], labels int32 [N]) -> EvaluationSums`.
    """

    def evaluate(variables, images, labels):
        num_examples = len(labels)
        num_batches = math.ceil(num_examples / batch_size)
        indices = jnp.arange(num_batches * batch_size).reshape(num_batches, batch_size)
        how = {"structure": classifier.structure, "tied": classifier.tied}
        products = [product_norm(variables, n.norm, scale=n.scale, **how) for n in norms]
        products = jnp.array(products, jnp.float32)

        def batch_sums(index):
            counts = index < num_examples
            index = jnp.minimum(index, num_examples - 1)
            y = labels[index]
            logits = classifier.apply(variables, standardize_images(images[index]))
            normalized = logits[None] / products[:, None, None]

            def total(per_example):
                counted = jnp.broadcast_to(counts, per_example.shape)
                return jnp.sum(jnp.where(counted, per_example, 0.0), axis=-1)

            ys = jnp.broadcast_to(y, normalized.shape[:-1])
            return (
                total(cross_entropy(logits, y)),
                total(classification_error(logits, y)),
                total(excess_cross_entropy(normalized, ys)),
                total(classification_error(normalized, ys)),
            )

        with jax.default_matmul_precision("highest"):
            loss, error, excess, normalized_error = jax.lax.map(batch_sums, indices)
        return EvaluationSums(loss, error, products, excess.T, normalized_error.T)

    return evaluate


def dataset_means(sums: EvaluationSums, num_examples: int) -> Evaluation:
    """Return the means over `num_examples` examples, with batches summed in float64."""

    def mean(batches):
        return np.asarray(batches, np.float64).sum(axis=-1) / num_examples

    return Evaluation(
        loss=mean(sums.loss),
        error=mean(sums.error),
        product_norms=np.asarray(sums.product_norms, np.float64),
        normalized_excess=mean(sums.normalized_excess),
        normalized_error=mean(sums.normalized_error),
    )


def choose_evaluation_batch_size() -> int:
    """Return the batch size of a forward pass: what fits a core's cache, or an accelerator."""
    return 16 if jax.default_backend() == "cpu" else 500
