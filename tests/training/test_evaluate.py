"""Evaluation over a data set under many norms, against numpy float64 and a second forward pass."""

import functools

import jax
import numpy as np
import pytest

from normjax.data import load_dataset, standardize_images
from normjax.losses import cross_entropy, excess_cross_entropy, monitor
from normjax.normalize import normalize_params, product_norm
from normjax.norms import parse_norm
from normjax.training.evaluate import EvaluationSums, dataset_means, make_evaluate
from tests.helpers import reference
from tests.helpers.classifiers import classifier_of

CLASSIFIER = classifier_of("convnet3")
NORMS = ("2", "1/100", "1", "inf", "3.5", "spectral")
NUM_EXAMPLES, BATCH_SIZE = 37, 16


@functools.cache
def setting():
    """(variables, images, labels, the evaluation): 37 digits, a network no longer at init."""
    train = load_dataset("digits", train_size=NUM_EXAMPLES).train
    variables = jax.jit(CLASSIFIER.init)(jax.random.key(1))
    variables["params"]["Dense_0"]["kernel"] *= 6
    norms = [parse_norm(name) for name in NORMS]
    evaluate = jax.jit(make_evaluate(CLASSIFIER, norms, BATCH_SIZE))
    sums = evaluate(variables, *train)
    return variables, train.images, train.labels, dataset_means(sums, NUM_EXAMPLES)


def test_losses_and_errors_as_trained_are_numpys():
    variables, images, labels, evaluation = setting()
    logits = reference.convnet3_logits(variables["params"], images)
    expected = reference.cross_entropy(logits, labels).mean()
    np.testing.assert_allclose(evaluation.loss, expected, rtol=1e-6, atol=0)
    error = reference.error(logits, labels).mean()
    np.testing.assert_allclose(evaluation.error, error, rtol=1e-7, atol=0)
    assert 0 < error < 1


@pytest.mark.parametrize(
    ("name", "p", "scale"), [("2", 2, 1), ("1/100", 1, 100), ("1", 1, 1), ("inf", np.inf, 1)]
)
def test_normalized_losses_are_numpys(name, p, scale):
    variables, images, labels, evaluation = setting()
    params, k = variables["params"], NORMS.index(name)
    product = reference.product_norm(params, p, scale)
    np.testing.assert_allclose(evaluation.product_norms[k], product, rtol=1e-5, atol=0)
    logits = reference.convnet3_logits(params, images) / product
    # A mean of signed terms: the tolerance is that of the terms.
    expected = reference.excess(logits, labels)
    actual = evaluation.normalized_excess[k]
    tolerance = 1e-5 * np.abs(expected).mean()
    np.testing.assert_allclose(actual, expected.mean(), rtol=0, atol=tolerance)
    assert abs(expected.mean()) > 1000 * tolerance
    error = reference.error(logits, labels).mean()
    np.testing.assert_allclose(evaluation.normalized_error[k], error, rtol=1e-7)


@pytest.mark.parametrize("name", NORMS)
def test_one_forward_pass_is_as_good_as_that_of_the_normalized_network(name):
    variables, images, labels, evaluation = setting()
    k, named = NORMS.index(name), parse_norm(name)
    how = {"scale": named.scale, "structure": CLASSIFIER.structure}
    normalized = normalize_params(variables, named.norm, **how)
    with jax.default_matmul_precision("highest"):
        logits = CLASSIFIER.apply(normalized, standardize_images(images))
    excess = np.asarray(excess_cross_entropy(logits, labels), np.float64)
    actual = evaluation.normalized_excess[k]
    tolerance = 1e-5 * np.abs(excess).mean()
    np.testing.assert_allclose(actual, excess.mean(), rtol=0, atol=tolerance)
    loss = np.asarray(cross_entropy(logits, labels), np.float64).mean()
    np.testing.assert_allclose(np.log(10) + actual, loss, rtol=1e-6, atol=0)
    expected = product_norm(variables, named.norm, **how)
    np.testing.assert_allclose(evaluation.product_norms[k], expected, rtol=1e-6, atol=0)


def test_l1_normalized_logits_are_tiny_and_their_losses_are_still_told_apart():
    """The paper divides L1 norms by 100 because such losses drown; the excess does not."""
    *_, evaluation = setting()
    excess = evaluation.normalized_excess[NORMS.index("1")]
    assert 0 < abs(excess) < 1e-6
    assert np.float32(np.log(10)) + np.float32(excess) == pytest.approx(np.log(10), abs=3e-7)


@pytest.mark.parametrize("batch_size", [1, 37, 50])
def test_the_batch_size_does_not_matter(batch_size):
    variables, images, labels, expected = setting()
    norms = [parse_norm(name) for name in NORMS[:2]]
    sums = jax.jit(make_evaluate(CLASSIFIER, norms, batch_size))(variables, images, labels)
    assert sums.loss.shape == (-(-NUM_EXAMPLES // batch_size),)
    evaluation = dataset_means(sums, NUM_EXAMPLES)
    np.testing.assert_allclose(evaluation.loss, expected.loss, rtol=1e-6)
    np.testing.assert_array_equal(evaluation.error, expected.error)
    np.testing.assert_allclose(
        evaluation.normalized_excess, expected.normalized_excess[:2], rtol=1e-4
    )


def test_means_are_taken_in_float64():
    one, two = np.full(10_000, 0.1, np.float32), np.full((2, 10_000), 0.1, np.float32)
    means = dataset_means(EvaluationSums(one, one, np.float32([3, 4]), two, two), 20_000)
    expected = np.float64(np.float32(0.1)) / 2
    for mean in (means.loss, means.error, means.normalized_excess, means.normalized_error):
        assert mean.dtype == np.float64
        np.testing.assert_allclose(mean, np.full(mean.shape, expected), rtol=1e-12)
    np.testing.assert_array_equal(means.product_norms, [3, 4])  # no sums over examples


@pytest.mark.parametrize(("norm", "scale"), [(2, 1.0), (1, 100.0)])
def test_monitor_is_the_loss_of_the_normalized_network(norm, scale):
    """Under jit and vmap, against float64 through normalized parameters and a forward pass."""
    structure = CLASSIFIER.structure
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 8, 8, 1)).astype(np.uint8)
    labels = rng.integers(0, 10, 30).astype(np.int32)
    stacked = jax.vmap(CLASSIFIER.init)(jax.random.split(jax.random.key(0), 2))

    @jax.jit
    @jax.vmap
    def monitored(variables):
        logits = CLASSIFIER.apply(variables, standardize_images(images))
        return monitor(variables, logits, labels, norm, scale=scale, structure=structure)

    found = monitored(stacked)
    for member in range(2):
        variables = jax.tree.map(lambda x, member=member: np.asarray(x[member]), stacked)
        product = reference.product_norm(variables["params"], norm, scale)
        np.testing.assert_allclose(found.product_norm[member], product, rtol=1e-6)
        normalized = normalize_params(variables, norm, scale=scale, structure=structure)
        logits = reference.convnet3_logits(normalized["params"], images)
        excess = reference.excess(logits, labels).mean()
        np.testing.assert_allclose(found.normalized_excess[member], excess, rtol=1e-4, atol=0)
        np.testing.assert_allclose(
            found.normalized_loss[member], np.log(10) + excess, rtol=3e-7, atol=0
        )
        assert abs(excess) > 1e-7
