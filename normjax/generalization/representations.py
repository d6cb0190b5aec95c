"""Measures of generalization: how classes lie in hidden layers, and predictions on mixed images.

See `measures` for conventions. All use the sample of training images.
"""

import itertools
import math

import jax.numpy as jnp
import numpy as np

from normjax import losses
from normjax.generalization.trained_network import TrainedNetwork
from normjax.types import Array


def davies_bouldin(network: TrainedNetwork) -> float:
    """Return the Davies-Bouldin index of the classes in the first hidden layer.

    It is the mean over classes of the largest `(s_i + s_j) / d_ij`, where s is the mean distance of
    a class to its mean, and d the distance between two means. The first hidden layer is what the
    second layer reads; the inputs, if there is one layer. Source: Natekar and Sharma,
    "Representation Based Complexity Measures for Predicting Generalization in Deep Learning"
    (2020). Their public code augments and pools first, and takes the mean over the other classes.
    Batch normalization: does not matter, the representations are the same.
    """
    from sklearn.metrics import davies_bouldin_score  # this import takes a second

    inputs = network.hidden.inputs
    return float(davies_bouldin_score(inputs[min(1, len(inputs) - 1)], network.sample.labels))


def mixup_loss(network: TrainedNetwork) -> float:
    """Return the mean cross entropy, in nats, on means of two training images of one class.

    Source: Natekar and Sharma (2020), label-wise mixup; their public code averages over all pairs
    of a batch; here each image has one random partner. Batch normalization: does not matter, the
    function is the same.
    """
    logits, labels = jnp.asarray(network.mixed_hidden.logits), jnp.asarray(network.mixup.labels)
    return _mean(losses.cross_entropy(logits, labels))


def mixup_error(network: TrainedNetwork) -> float:
    """Return the fraction of the mean images of `mixup_loss` that are misclassified.

    Source: Natekar and Sharma (2020), label-wise mixup. Batch normalization: does not matter, the
    function is the same.
    """
    logits, labels = jnp.asarray(network.mixed_hidden.logits), jnp.asarray(network.mixup.labels)
    return _mean(losses.classification_error(logits, labels))


def davies_bouldin_mixup(network: TrainedNetwork) -> float:
    """Return `davies_bouldin * mixup_loss`.

    Source: Natekar and Sharma (2020): the winner of the competition "Predicting Generalization in
    Deep Learning" (NeurIPS 2020). Batch normalization: does not matter, the representations are the
    same.
    """
    return davies_bouldin(network) * mixup_loss(network)


def class_distance_variance(network: TrainedNetwork) -> float:
    """Return the class-distance normalized variance of what the last layer reads.

    It is the mean over pairs of classes of `(v_i + v_j) / (2 d_ij^2)`, where v is the mean squared
    distance of a class to its mean. Source: Galanti, György and Hutter, "On the Role of Neural
    Collapse in Transfer Learning" (ICLR 2022). Batch normalization: does not matter, the
    representations are the same.
    """
    features = network.hidden.inputs[-1].astype(np.float64)
    labels = network.sample.labels
    classes = [features[labels == label] for label in np.unique(labels)]
    means = [own.mean(axis=0) for own in classes]
    variances = [
        np.sum((own - mean) ** 2, axis=1).mean() for own, mean in zip(classes, means, strict=True)
    ]
    ratios = [
        (variances[i] + variances[j]) / (2 * np.sum((means[i] - means[j]) ** 2))
        for i, j in itertools.combinations(range(len(classes)), 2)
    ]
    return float(np.mean(ratios)) if ratios else math.nan


def _mean(per_example: Array) -> float:
    """Return the mean in float64."""
    return float(np.mean(np.asarray(per_example, np.float64)))
