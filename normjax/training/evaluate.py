"""Losses and errors of one network over a whole data set, under many norms from one forward pass.

A network that obeys eq. 2 needs no second forward pass to be normalised: f(W~; x) is f(W; x)
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
from normjax.types import ApplyFn, Array, Norm, Params


class NamedNorm(NamedTuple):
    """A norm as it is asked for on a command line and named in results.csv."""

    name: str
    norm: Any  # what `make_norm` takes
    scale: float = 1.0


class Evaluation(NamedTuple):
    """Sums over each batch of the data set, float32; `dataset_means` turns them into means."""

    loss: Array  # [num_batches]
    error: Array  # [num_batches]
    product_norms: Array  # [num_norms]
    normalized_excess: Array  # [num_norms, num_batches]
    normalized_error: Array  # [num_norms, num_batches]


def parse_norm(text: str) -> NamedNorm:
    """Reads a norm's name: "2", "fro", "1", "inf", "spectral", "3.5", or "1/100" (L1, scale 100).

    Raises:
      ValueError: a norm that is not one of these, p < 1, or a scale that is not positive.
    """
    name = text.strip()
    order, slash, divisor = name.partition("/")
    allowed = "allowed: spectral, fro, inf, any p >= 1, each with an optional /SCALE (1/100)"
    try:
        scale = float(divisor) if slash else 1.0
        norm = order if order in ("spectral", "fro") else float(order)
    except ValueError:
        raise ValueError(f"unknown norm {text!r}; {allowed}") from None
    if not 0 < scale < math.inf:
        raise ValueError(f"norm {text!r} has a scale that is not a positive number; {allowed}")
    if not isinstance(norm, str) and not norm >= 1:
        raise ValueError(f"norm {text!r} has p < 1, which is no norm; {allowed}")
    return NamedNorm(name, norm, scale)


def make_evaluate(
    apply_fn: ApplyFn, norms: Sequence[NamedNorm], batch_size: int
) -> Callable[[Any, Array, Array], Evaluation]:
    """Evaluation of one network on uint8 images and labels, at the highest matmul precision.

    Args:
      apply_fn: `apply_fn(params, images float [N, H, W, C]) -> logits`; it must obey eq. 2 (batch
        normalisation absorbed).
      norms: the norms to normalise by; there may be none.
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


class Monitored(NamedTuple):
    """What the paper recommends to watch during training, means over a batch."""

    normalized_loss: Array  # cross entropy of the normalised network, nats
    normalized_excess: Array  # the same less ln K, with all its digits
    product_norm: Array


def monitor(
    params: Params,
    logits: Array,
    labels: Array,
    norm: Norm = 2,
    *,
    scale: float = 1.0,
    layers: Sequence[str] | None = None,
) -> Monitored:
    """The normalised training loss of a batch, from logits that a training step has anyway.

    The paper's closing recommendation is to monitor it. It costs a pass over the parameters and
    none over the data, works under `jit`, `vmap` and `shard_map`, and has no side effects. The
    average over an epoch's batches is the loss of the epoch.

    Args:
      params: the parameters that gave the logits; those of a network with batch normalisation
        through `absorb_batch_norm`.
      logits: float [..., K], of a network that obeys eq. 2.
      labels: int [...].
      norm, scale, layers: see `normalize_params`.

    Returns:
      Scalars, float32 (float64 for float64 logits).

    Raises:
      ValueError: see `product_norm` and `excess_cross_entropy`.
    """
    product = product_norm(params, norm, scale=scale, layers=layers)
    excess = jnp.mean(excess_cross_entropy(jnp.asarray(logits) / product, labels))
    return Monitored(excess + math.log(jnp.shape(logits)[-1]), excess, product)


def dataset_means(sums: Array, num_examples: int) -> np.ndarray:
    """Means over the data set in float64, from sums per batch on the last axis."""
    return np.asarray(sums, np.float64).sum(axis=-1) / num_examples


def choose_evaluation_batch_size() -> int:
    """Examples per forward pass: what a core's cache holds on a CPU, more on an accelerator."""
    return 16 if jax.default_backend() == "cpu" else 500
