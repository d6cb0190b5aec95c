"""Classes in hidden layers, and mixed images, by loops in float64."""

import dataclasses

import numpy as np
import pytest

from normjax.generalization import representations
from tests.generalization.test_hidden_layers import mlp_by_hand
from tests.helpers import reference
from tests.helpers.networks import mlp_float64
from tests.helpers.trained_networks import trained_mlp


@pytest.fixture(scope="module")
def network():
    return trained_mlp()


def classes_of(features, labels):
    return [features[labels == label] for label in sorted(set(labels.tolist()))]


def davies_bouldin_by_loops(features, labels):
    classes = classes_of(features, labels)
    means = [own.mean(0) for own in classes]
    spread = [
        np.mean([np.linalg.norm(x - mean) for x in own])
        for own, mean in zip(classes, means, strict=True)
    ]
    worst = [
        max(
            (spread[i] + spread[j]) / np.linalg.norm(means[i] - means[j])
            for j in range(len(classes))
            if j != i
        )
        for i in range(len(classes))
    ]
    return np.mean(worst)


def test_davies_bouldin_and_its_product_with_mixup(network):
    read, _ = mlp_by_hand(network)
    index = davies_bouldin_by_loops(read[1], network.sample.labels)
    assert representations.davies_bouldin(network) == pytest.approx(index, rel=1e-5)
    logits = mlp_float64(network.params, network.mixup.x)
    labels = network.mixup.labels
    loss = reference.cross_entropy(logits, labels).mean()
    assert representations.mixup_loss(network) == pytest.approx(loss, rel=1e-5)
    error = np.mean(logits.argmax(1) != labels)
    assert 0 < representations.mixup_error(network) == pytest.approx(error, abs=1e-12)
    product = representations.davies_bouldin_mixup(network)
    assert product == pytest.approx(index * loss, rel=1e-5)


def test_one_layer_reads_the_inputs():
    network = trained_mlp((6, 4))
    index = davies_bouldin_by_loops(network.sample.x.astype(np.float64), network.sample.labels)
    assert representations.davies_bouldin(network) == pytest.approx(index, rel=1e-5)


def test_class_distance_variance(network):
    read, _ = mlp_by_hand(network)
    classes = classes_of(read[-1], network.sample.labels)
    ratios = []
    for i, first in enumerate(classes):
        for second in classes[:i]:
            within = first.var(0).sum() + second.var(0).sum()
            between = np.sum((first.mean(0) - second.mean(0)) ** 2)
            ratios.append(within / (2 * between))
    found = representations.class_distance_variance(network)
    assert found == pytest.approx(np.mean(ratios), rel=1e-5)
    lone = network.sample._replace(labels=np.zeros_like(network.sample.labels))
    lone_network = dataclasses.replace(network, sample=lone)
    assert np.isnan(representations.class_distance_variance(lone_network))
