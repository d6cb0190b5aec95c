"""R_N against every pattern of signs, closed forms, and suprema found by search."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.generalization import bounds
from normjax.generalization.rademacher import (
    RademacherEstimate,
    all_logits,
    estimate_rademacher,
    excess_loss,
    linear_bound,
    linear_rademacher,
    one_logit,
    rademacher_by_labels,
)
from tests.helpers import reference
from tests.helpers.classifiers import classifier_of

RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 4)) + 0.5
LABELS = np.array([0, 1, 2, 0, 1, 2])
ALL_SIGNS = np.array(list(itertools.product([-1.0, 1.0], repeat=6)))


def dense(params, x):
    """A chain of dense layers with ReLU between them; the first may have a bias."""
    names = sorted(params)
    for name in names:
        x = x @ params[name]["kernel"]
        if "bias" in params[name]:
            x = x + params[name]["bias"][None]
        x = x if name == names[-1] else jnp.maximum(x, 0)
    return x


def make_init(*widths, has_bias=False):
    """An init_fn for `dense`."""

    def init(key):
        params = {}
        for i, (n, m) in enumerate(itertools.pairwise(widths)):
            key, own = jax.random.split(key)
            params[f"Dense_{i}"] = {"kernel": jax.random.normal(own, (n, m))}
        if has_bias:
            params["Dense_0"]["bias"] = jax.random.normal(key, (widths[1],))
        return params

    return init


def estimate(init, outputs, x=X, **settings):
    settings = {"num_signs": 40, "num_steps": 40, **settings}
    labels = np.resize(LABELS, len(x))
    return estimate_rademacher(dense, init, x, labels, outputs, jax.random.key(1), **settings)


def assert_agrees(estimate: RademacherEstimate, suprema: np.ndarray, rtol: float):
    """Each draw is the supremum for some pattern of signs, and the mean is that over all."""
    distance = np.abs(estimate.values[:, None] / suprema - 1).min(axis=1)
    assert distance.max() < rtol
    assert abs(estimate.mean - suprema.mean()) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.1 * estimate.mean


# Linear f.


@pytest.mark.parametrize("norm", [1, 1.5, 2, 4, math.inf])
def test_linear_functions_against_all_signs(norm):
    """The dual norm's own maximizer w, for every pattern, put into the definition."""
    q = {1: math.inf, math.inf: 1}.get(norm) or norm / (norm - 1)
    suprema = []
    for signs in ALL_SIGNS:
        v = signs @ X
        if q == math.inf:
            w = np.eye(4)[np.abs(v).argmax()] * np.sign(v)
        else:
            w = np.sign(v) * np.abs(v) ** (q - 1)
        w *= 2.5 / np.linalg.norm(w, norm)
        suprema.append(np.mean(signs * (X @ w)))
    found = linear_rademacher(X, norm, 2.5, num_signs=2000)
    assert found.num_examples == 6 and found.values.shape == (2000,)
    assert_agrees(found, np.array(suprema), rtol=1e-12)
    assert found.mean <= linear_bound(X, norm, 2.5)
    # No w within the radius does better.
    others = RNG.standard_normal((200, 4))
    others *= 2.5 / np.linalg.norm(others, norm, axis=1, keepdims=True)
    values = ALL_SIGNS @ (X @ others.T) / 6
    assert (values.max(axis=1) <= np.array(suprema) + 1e-12).all()


def test_linear_bound_in_closed_form():
    x, root6 = X, math.sqrt(6)
    expected = {
        2: math.sqrt(np.mean(np.sum(x**2, axis=1))) / root6,
        4: np.sum(np.sum(x**2, axis=0) ** (2 / 3)) ** 0.75 / 6,
        1.5: math.sqrt(2) * math.sqrt(np.mean(np.sum(np.abs(x) ** 3, axis=1) ** (2 / 3))) / root6,
        1: math.sqrt(2 * math.log(8)) * math.sqrt(np.sum(x**2, axis=0).max()) / 6,
        math.inf: np.sum(np.sqrt(np.sum(x**2, axis=0))) / 6,
    }
    for norm, value in expected.items():
        np.testing.assert_allclose(linear_bound(x, norm, 3.0), 3 * value, rtol=1e-12)
    # The paper's X is the largest norm, and no smaller than the mean that stands here.
    largest = np.linalg.norm(x, axis=1).max()
    assert linear_bound(x) < largest / root6
    images = x.reshape(6, 2, 2, 1)
    assert linear_bound(images) == linear_bound(x)


@pytest.mark.parametrize("norm", [1.5, 2, 4, math.inf])
def test_linear_bound_holds_with_many_examples_and_is_not_loose(norm):
    x = np.random.default_rng(2).standard_normal((400, 30))
    ratio = linear_rademacher(x, norm).mean / linear_bound(x, norm)
    assert 0.5 < ratio <= 1
    # R_N falls with the root of N.
    smaller = linear_rademacher(x[:100], norm).mean
    np.testing.assert_allclose(smaller / linear_rademacher(x, norm).mean, 2, rtol=0.1)


# The climb.


def test_the_climb_is_exact_for_linear_functions():
    found = estimate(make_init(4, 3), one_logit)
    assert_agrees(found, np.linalg.norm(ALL_SIGNS @ X, axis=1) / 6, rtol=1e-5)
    assert found.mean == pytest.approx(np.mean(found.values), rel=1e-12)
    error = np.std(found.values, ddof=1) / math.sqrt(40)
    assert found.standard_error == pytest.approx(error, rel=1e-12)
    assert found.by_step.shape == (41,) and (np.diff(found.by_step) >= 0).all()
    assert found.by_step[-1] == pytest.approx(found.mean, rel=1e-12)
    assert found.by_step[0] < 0.5 * found.mean < 0.99 * found.mean < found.by_step[5]


def test_a_first_bias_is_an_input_of_1():
    with_ones = np.column_stack([X, np.ones(6)])
    found = estimate(make_init(4, 3, has_bias=True), one_logit)
    assert_agrees(found, np.linalg.norm(ALL_SIGNS @ with_ones, axis=1) / 6, rtol=1e-5)


def test_vectors_have_a_sign_for_each_class():
    patterns = np.array(list(itertools.product([-1.0, 1.0], repeat=6))).reshape(-1, 2, 3)
    suprema = np.linalg.norm(np.swapaxes(patterns, 1, 2) @ X[:2], axis=(1, 2)) / 2
    assert_agrees(estimate(make_init(4, 3), all_logits, X[:2]), suprema, rtol=1e-5)


def relu_suprema(x):
    """sup over unit u of |sum_i s_i relu(u . x_i)| / n in the plane, for all signs, by search.

    It is that of w . relu(V x) with Frobenius norms 1: one unit is as good as several, because
    sum_j |w_j| ||v_j|| <= 1.
    """
    angles = np.linspace(0, 2 * np.pi, 20_001)
    outputs = np.maximum(x @ np.stack([np.cos(angles), np.sin(angles)]), 0)
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=len(x))))
    return np.abs(signs @ outputs).max(axis=1) / len(x)


def test_the_climb_of_a_relu_network_is_a_lower_estimate():
    """Below the supremum, and with a few restarts by less than 0.5%: local maxima are close."""
    x = np.random.default_rng(3).standard_normal((6, 2))
    suprema = relu_suprema(x)
    init = make_init(2, 8, 1)
    many = estimate(init, one_logit, x, num_steps=60, num_restarts=6)
    assert many.values.max() < suprema.max() * (1 + 1e-6)
    assert_agrees(many, suprema, rtol=5e-3)
    # The same draws, whatever their number and the batches, with the first start alone.
    few = estimate(init, one_logit, x, num_signs=39, num_steps=60, batch_size=4)
    assert (many.values[:39] >= few.values - 1e-6).all()
    assert 0.9 * many.mean < few.mean < 0.999 * many.mean


@pytest.fixture(scope="module")
def loss_estimate():
    """R_N of the losses of linear networks on one example."""
    return estimate(make_init(4, 3), excess_loss, X[:1], num_steps=80)


def test_losses_are_climbed_by_their_own_gradient(loss_estimate):
    """Of one example the logits can be any vector of the length of x: the sphere is searched."""
    lowest, highest = excess_extremes()
    expected = np.array([highest, -lowest])
    assert np.abs(loss_estimate.values[:, None] / expected - 1).min(axis=1).max() < 1e-4
    assert len(set(np.round(loss_estimate.values, 3))) == 2


def excess_extremes():
    """Of the loss - ln K of the label 0, over logits of the length of the first input."""
    polar, around = np.meshgrid(np.linspace(0, np.pi, 801), np.linspace(0, 2 * np.pi, 1601))
    parts = [np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)]
    logits = np.linalg.norm(X[0]) * np.stack(parts, axis=-1).reshape(-1, 3)
    excess = reference.excess(logits, np.zeros(len(logits), int))
    return excess.min(), excess.max()


def test_the_climb_of_the_3_layer_net_settles():
    classifier = classifier_of("convnet3", num_classes=3)
    images = RNG.uniform(-1, 1, (5, 8, 8, 1)).astype(np.float32)
    found = estimate_rademacher(
        classifier.apply,
        classifier.init,
        images,
        LABELS[:5],
        one_logit,
        jax.random.key(0),
        num_signs=4,
        num_steps=40,
        batch_size=2,
    )
    assert found.by_step[0] < 0.1 * found.mean
    assert 0.9 * found.mean < found.by_step[15] < found.by_step[30] < 1.001 * found.mean
    # Values are what networks of norm 1 can reach: within the bound of all outputs.
    shape = bounds.network_class(classifier.structure, [36, 16, 1], 64)
    norms = bounds.input_norms(images, (3, 3))
    assert found.values.max() < bounds.largest_outputs(shape, norms) / math.sqrt(5)


# Random labels.


def test_random_labels_are_below_what_signs_reach(loss_estimate):
    """E sup (ln K - L) <= 2 R_N, both sides by enumeration for a linear class of one example."""
    found = rademacher_by_labels([-0.02, -0.03, -0.04], 100)
    assert found.mean == pytest.approx(0.015, rel=1e-12) and found.num_examples == 100
    assert found.standard_error == pytest.approx(0.005 / math.sqrt(3), rel=1e-12)
    assert math.isnan(rademacher_by_labels([-0.02], 100).standard_error)
    lowest, highest = excess_extremes()
    by_labels = rademacher_by_labels([lowest], 1).mean
    expected = (highest - lowest) / 2
    assert abs(loss_estimate.mean - expected) < 4 * loss_estimate.standard_error
    assert by_labels < loss_estimate.mean


# Mistakes.


@pytest.mark.parametrize(
    "setting", [{"num_signs": 0}, {"num_steps": 0}, {"num_restarts": -1}, {"batch_size": 0}]
)
def test_numbers_below_1(setting):
    (name, value), *_ = setting.items()
    with pytest.raises(ValueError, match=f"{name} is {value}; at least 1 is needed"):
        estimate(make_init(4, 3), one_logit, **setting)


def test_later_biases_have_no_finite_complexity():
    def init(key):
        return {**make_init(4, 3)(key), "Dense_1": make_init(3, 2, has_bias=True)(key)["Dense_0"]}

    with pytest.raises(ValueError, match="layer 'Dense_1' has a bias, which its norm does not"):
        estimate(init, one_logit)


def test_labels_that_do_not_fit():
    with pytest.raises(ValueError, match="5 labels do not fit 6 inputs"):
        estimate_rademacher(dense, make_init(4, 3), X, LABELS[:5], one_logit, jax.random.key(0))


@pytest.mark.parametrize("function", [linear_rademacher, linear_bound])
def test_linear_mistakes(function):
    with pytest.raises(ValueError, match=r"norm is 0.5; p >= 1 is needed"):
        function(X, 0.5)
    with pytest.raises(ValueError, match=r"radius is -1; it must not be negative"):
        function(X, 2, -1)
    with pytest.raises(ValueError, match="num_signs is 0; at least 1 is needed"):
        linear_rademacher(X, num_signs=0)
    with pytest.raises(ValueError, match="no networks trained on random labels"):
        rademacher_by_labels([], 10)
