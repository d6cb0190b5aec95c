"""Measures of generalization: margins in hidden layers.

The margin of an example in a layer is its distance to the decision boundary, to first order: its
margin `f_y - max_{k != y} f_k`, divided by the norm of the margin's gradient with respect to what
the layer reads. See `measures` for conventions. All use the sample of training images.
"""

import math

import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import trim_mean

from normjax import losses
from normjax.generalization.hidden_layers import HiddenLayers
from normjax.generalization.trained_network import TrainedNetwork

GRADIENT_EPSILON = 1e-6  # added to the squared gradient, as in the public code of Jiang et al. 2019
KV_EPSILON = 1e-6  # added to the gradient norm, as in the public code of Chuang et al. 2021
PGDL_EPSILON = 1e-7  # as in the public code of Natekar and Sharma 2020


def hidden_margin_mean(network: TrainedNetwork) -> float:
    """Return minus the mean over layers of `mean ln(d / sqrt(V))`.

    d is the margin in the layer, for correctly classified examples only, and V is the total
    variation of what the layer reads: the trace of its covariance. Source: Jiang, Krishnan, Mobahi
    and Bengio, "Predicting the Generalization Gap in Deep Networks with Margin Distributions"
    (ICLR 2019), who fit a regression to such statistics of the inputs and of three hidden layers;
    here all layers count alike. Infinite if no example is correct. Batch normalization: does not
    matter, the representations are the same.
    """
    margins = _normalized_margins(network)
    return -float(np.mean([np.mean(np.log(m)) for m in margins])) if margins else math.inf


def hidden_margin_quartile(network: TrainedNetwork) -> float:
    """Return minus the mean over layers of ln of the lower quartile of `d / sqrt(V)`.

    Source and conventions: as in `hidden_margin_mean`. Batch normalization: does not matter, the
    representations are the same.
    """
    margins = _normalized_margins(network)
    return -float(np.mean([np.log(np.quantile(m, 0.25)) for m in margins])) if margins else math.inf


def input_margin_quartile(network: TrainedNetwork) -> float:
    """Return `-ln` of the lower quartile of `d / sqrt(V)` at the inputs.

    Source and conventions: as in `hidden_margin_mean`. Batch normalization: does not matter, the
    function is the same.
    """
    margins = _normalized_margins(network)
    return -float(np.log(np.quantile(margins[0], 0.25))) if margins else math.inf


def k_variance_margin(network: TrainedNetwork) -> float:
    """Return `-median(m) / sum_c p_c W_c L_c`, with margins m of the logits.

    p_c is the frequency of class c, W_c the Wasserstein-1 distance between the representations of
    two random halves of the class (its k-variance), and L_c the largest gradient norm of the margin
    in the class, in the first hidden layer (what the second layer reads; the inputs, if there is
    one layer). Source: Chuang, Mroueh, Greenewald, Torralba and Jegelka, "Measuring Generalization
    with Optimal Transport" (NeurIPS 2021), their kV-Margin. NaN if no class has two examples. Batch
    normalization: does not matter, the representations are the same.
    """
    layer = _first_hidden(network.hidden)
    norms = network.hidden.gradient_norms[layer]
    largest = [np.max(norms[members]) for members in _classes(network)]
    margins = _margins(network.hidden, network.sample.labels)
    return -_ratio(float(np.median(margins)), _k_variance(network, largest))


def k_variance_gradient_margin(network: TrainedNetwork) -> float:
    """Return `-median(d) / sum_c p_c W_c`, with margins d in the first hidden layer.

    Source and symbols: as in `k_variance_margin`; their kV-GN-Margin. Batch normalization: does not
    matter, the representations are the same.
    """
    layer = _first_hidden(network.hidden)
    margins = _margins(network.hidden, network.sample.labels) / (
        network.hidden.gradient_norms[layer] + KV_EPSILON
    )
    return -_ratio(float(np.median(margins)), _k_variance(network, [1.0] * len(_classes(network))))


def mixup_margin(network: TrainedNetwork) -> float:
    """Return minus the mean of five quantiles of margins on means of two images of one class.

    The margins are those of the first hidden layer, divided by the root of the mean variance of its
    units, trimmed of the 5% largest and smallest. The quantiles are the quartiles and the nearest
    outliers beyond 1.5 interquartile ranges, or the extremes where there are none. Source: Natekar
    and Sharma, "Representation Based Complexity Measures for Predicting Generalization in Deep
    Learning" (2020), mixup margin. Batch normalization: does not matter, the representations are
    the same.
    """
    mixed = network.mixed_hidden
    layer = _first_hidden(mixed)
    margins = _margins(mixed, network.mixup.labels)
    distances = margins / (mixed.gradient_norms[layer].astype(np.float64) + PGDL_EPSILON)
    variances = np.var(mixed.inputs[layer], axis=0, dtype=np.float64)
    spread = math.sqrt(trim_mean(variances, 0.05)) + PGDL_EPSILON
    return -float(np.mean(_five_quantiles(distances / spread)))


def _five_quantiles(values: np.ndarray) -> list[float]:
    first, second, third = np.percentile(values, [25, 50, 75])
    reach = 1.5 * (third - first)
    low, high = values[values < first - reach], values[values > third + reach]
    return [
        low.max() if low.size else values.min(),
        first,
        second,
        third,
        high.min() if high.size else values.max(),
    ]


def _first_hidden(hidden: HiddenLayers) -> int:
    """Return the layer that reads the first hidden representation, or the inputs."""
    return min(1, len(hidden.inputs) - 1)


def _margins(hidden: HiddenLayers, labels: np.ndarray) -> np.ndarray:
    """Return the margins of the logits, float64."""
    return np.asarray(losses.margins(jnp.asarray(hidden.logits), jnp.asarray(labels)), np.float64)


def _normalized_margins(network: TrainedNetwork) -> list[np.ndarray]:
    """Return d / sqrt(V) of the correct examples for each layer; [] if none is correct."""
    margins = _margins(network.hidden, network.sample.labels)
    correct = margins > 0
    if not correct.any():
        return []
    found = []
    for inputs, norms in zip(network.hidden.inputs, network.hidden.gradient_norms, strict=True):
        distances = margins / np.sqrt(norms.astype(np.float64) ** 2 + GRADIENT_EPSILON)
        variation = np.sum(np.var(inputs, axis=0, dtype=np.float64))
        found.append(distances[correct] / math.sqrt(variation))
    return found


def _classes(network: TrainedNetwork) -> list[np.ndarray]:
    """Return the positions in the sample of each class that has two examples or more."""
    labels = network.sample.labels
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return [own for own in members if len(own) > 1]


def _k_variance(network: TrainedNetwork, weights: list[float]) -> float:
    """Return `sum_c p_c W_c weight_c` in the first hidden layer."""
    features = network.hidden.inputs[_first_hidden(network.hidden)]
    total = 0.0
    for members, weight in zip(_classes(network), weights, strict=True):
        half = len(members) // 2  # the sample is in random order
        costs = cdist(features[members[:half]], features[members[half : 2 * half]])
        # Halves of equal size: the optimal transport is an assignment.
        distance = costs[linear_sum_assignment(costs)].mean()
        total += len(members) / len(network.sample.labels) * distance * weight
    return total


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan
