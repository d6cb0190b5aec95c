"""Margins in hidden layers, from representations by hand."""

import dataclasses
import itertools

import numpy as np
import pytest

from normjax.generalization import hidden_margins
from tests.generalization.test_hidden_layers import mlp_by_hand
from tests.helpers.networks import mlp_float64
from tests.helpers.trained_networks import trained_mlp


@pytest.fixture(scope="module")
def network():
    return trained_mlp()


@pytest.fixture(scope="module")
def by_hand(network):
    """(logits, margins, representations, gradient norms) in float64."""
    logits = mlp_float64(network.params, network.sample.x)
    labels = network.sample.labels
    margins = np.array([z[y] - np.delete(z, y).max() for z, y in zip(logits, labels, strict=True)])
    return logits, margins, *mlp_by_hand(network)


def normalized(by_hand):
    """Distances to the boundary over the root of the total variation, of correct examples."""
    _, margins, read, norms = by_hand
    right = margins > 0
    assert 0 < right.sum() < len(right)
    return [
        margins[right]
        / np.sqrt(norm[right] ** 2 + 1e-6)
        / np.sqrt(np.trace(np.cov(h.T, bias=True)))
        for h, norm in zip(read, norms, strict=True)
    ]


def test_hidden_margins(network, by_hand):
    layers = normalized(by_hand)
    mean = -np.mean([np.log(m).mean() for m in layers])
    quartiles = [-np.log(np.percentile(m, 25)) for m in layers]
    for function, expected in (
        (hidden_margins.hidden_margin_mean, mean),
        (hidden_margins.hidden_margin_quartile, np.mean(quartiles)),
        (hidden_margins.input_margin_quartile, quartiles[0]),
    ):
        assert function(network) == pytest.approx(expected, rel=1e-5)


def test_without_a_correct_example_the_margins_are_infinite(network):
    wrong = network.logits.argmin(-1).astype(np.int32)
    nothing = dataclasses.replace(network, sample=network.sample._replace(labels=wrong))
    assert hidden_margins.hidden_margin_mean(nothing) == np.inf
    assert hidden_margins.hidden_margin_quartile(nothing) == np.inf
    assert hidden_margins.input_margin_quartile(nothing) == np.inf


def transport(first, second):
    """Wasserstein-1 distance of two equal small sets, by trying every assignment."""
    return min(
        np.mean([np.linalg.norm(first[i] - second[j]) for i, j in enumerate(order)])
        for order in itertools.permutations(range(len(second)))
    )


def test_k_variance_margins_by_every_assignment():
    labels = np.arange(60) % 10  # halves of three
    network = trained_mlp((6, 12, 9, 10), num_examples=60)
    network = dataclasses.replace(network, sample=network.sample._replace(labels=labels))
    margins = np.array(
        [z[y] - np.delete(z, y).max() for z, y in zip(network.logits, labels, strict=True)]
    )
    read, norms = mlp_by_hand(network)
    transported = lipschitz = 0
    for label in range(10):
        members = np.flatnonzero(labels == label)
        distance = transport(read[1][members[:3]], read[1][members[3:]])
        transported += distance / 10
        lipschitz += distance / 10 * norms[1][members].max()
    expected = -np.median(margins) / lipschitz
    assert hidden_margins.k_variance_margin(network) == pytest.approx(expected, rel=1e-5)
    expected = -np.median(margins / (norms[1] + 1e-6)) / transported
    assert hidden_margins.k_variance_gradient_margin(network) == pytest.approx(expected, rel=1e-5)


def test_k_variance_without_pairs_has_no_value(network):
    alone = network.sample._replace(x=network.sample.x[:2], labels=np.array([0, 1]))
    lonely = dataclasses.replace(network, sample=alone)
    assert np.isnan(hidden_margins.k_variance_margin(lonely))
    assert np.isnan(hidden_margins.k_variance_gradient_margin(lonely))


def test_mixup_margin(network):
    """The representations of the mixed images, by hand once more."""
    mixed = dataclasses.replace(network, sample=network.mixup)
    logits = mlp_float64(network.params, network.mixup.x)
    margins = np.array(
        [z[y] - np.delete(z, y).max() for z, y in zip(logits, network.mixup.labels, strict=True)]
    )
    read, norms = mlp_by_hand(mixed)
    variances = np.sort(read[1].var(axis=0))  # 12 units: 5% of them is none
    scaled = margins / norms[1] / np.sqrt(variances.mean())
    low, middle, high = np.percentile(scaled, [25, 50, 75])
    outliers = scaled[(scaled < low - 1.5 * (high - low)) | (scaled > high + 1.5 * (high - low))]
    below, above = outliers[outliers < low], outliers[outliers > high]
    five = [
        max(below, default=scaled.min()),
        low,
        middle,
        high,
        min(above, default=scaled.max()),
    ]
    assert len(outliers) and hidden_margins.mixup_margin(network) == pytest.approx(
        -np.mean(five), rel=1e-4
    )
