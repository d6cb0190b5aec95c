"""The terms of eq. 4 against hand computations, explicit matrices, and what networks reach."""

import itertools
import math

import jax
import numpy as np
import pytest

from normjax.generalization import bounds
from normjax.generalization.bounds import InputNorms, LayerShape, NetworkClass
from normjax.generalization.rademacher import (
    estimate_rademacher,
    excess_loss,
    linear_bound,
    one_logit,
)
from normjax.layers import find_layers
from normjax.networks.models import make_model
from tests.helpers.classifiers import classifier_of

IMAGES = np.random.default_rng(0).uniform(-1, 1, (10, 8, 8, 2)).astype(np.float32)
"""Of 8 x 8 pixels: the 3-layer net has windows of 3 x 3, and 6 x 6, 4 x 4 and 1 positions."""


def layer(window, positions, width, reads):
    return LayerShape(window=window, positions=positions, width=width, reads=reads)


def norms_of(num_examples, total, patch=math.nan):
    return InputNorms(num_examples=num_examples, total=total, patch=patch)


CONVNET3 = NetworkClass((layer(9, 36, 24, 9), layer(9, 16, 24, 9), layer(1, 1, 3, 16)), 128, True)
DENSE = NetworkClass((layer(1, 1, 7, 1), layer(1, 1, 3, 1)), 5, False)


def structure_of(name):
    return classifier_of(name, IMAGES.shape[1:], 3).structure


# The confidence term.


def test_confidence_term_in_closed_form():
    """c sqrt(ln(2/delta) / (2N)), and 3 c sqrt(ln(4/delta) / (2N)) for the empirical R_N."""
    assert bounds.confidence_term(8, 2 * math.exp(-4)) == pytest.approx(0.5, rel=1e-12)
    assert bounds.confidence_term(8, 2 * math.exp(-4), 2.3) == pytest.approx(1.15, rel=1e-12)
    term = bounds.confidence_term(8, 4 * math.exp(-4), 2.3, empirical=True)
    assert term == pytest.approx(3.45, rel=1e-12)
    assert bounds.confidence_term(5000, 0.05) == pytest.approx(0.019206455826, rel=1e-9)
    term = bounds.confidence_term(5000, 0.05, empirical=True)
    assert term == pytest.approx(0.062799872382, rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.05), "num_examples is 0; at least 1 is needed"),
        ((10, 0), "delta is 0; it must lie between 0 and 1"),
        ((10, 1), "delta is 1; it must lie between 0 and 1"),
        ((10, math.nan), "delta is nan; it must lie between 0 and 1"),
        ((10, 0.1, -1), "bound_on_loss is -1; it must not be negative"),
    ],
)
def test_confidence_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        bounds.confidence_term(*arguments)


# The class, and the inputs.


def test_the_class_of_the_3_layer_net():
    found = bounds.network_class(structure_of("convnet3"), [36, 16, 1], 128)
    assert found == CONVNET3 and found.num_classes == 3


def test_a_chain_of_dense_layers():
    params = {
        "Dense_0": {"kernel": np.ones((5, 7), np.float32)},
        "Dense_1": {"kernel": np.ones((7, 3), np.float32)},
    }
    assert bounds.network_class(find_layers(params), [1, 1], 5) == DENSE


def test_mistakes_about_the_class():
    with pytest.raises(ValueError, match=r"positions \[36, 1\] do not fit the 3 layers"):
        bounds.network_class(structure_of("convnet3"), [36, 1], 128)
    with pytest.raises(ValueError, match=r"positions \[36, 0, 1\] do not fit"):
        bounds.network_class(structure_of("convnet3"), [36, 0, 1], 128)
    with pytest.raises(
        ValueError, match="layer 'params/Conv_1' has a bias, which its norm does not include"
    ):
        bounds.network_class(structure_of("convnet5"), [64, 16, 4, 1, 1], 128)


def test_input_norms_against_loops():
    found = bounds.input_norms(IMAGES, (3, 3))
    x = IMAGES.astype(np.float64)
    assert found.num_examples == 10
    np.testing.assert_allclose(found.total, math.sqrt((x**2).sum()), rtol=1e-6)
    patches = [
        math.sqrt((x[:, i : i + 3, j : j + 3] ** 2).sum())
        for i, j in itertools.product(range(6), range(6))
    ]
    np.testing.assert_allclose(found.patch, max(patches), rtol=1e-6)
    dense = bounds.input_norms(IMAGES)
    assert dense.patch == dense.total == found.total > found.patch


def test_mistakes_about_the_inputs():
    with pytest.raises(ValueError, match="there are no inputs"):
        bounds.input_norms(IMAGES[:0])
    with pytest.raises(ValueError, match=r"window \(9, 3\) does not fit inputs of shape \(10, 8"):
        bounds.input_norms(IMAGES, (9, 3))
    with pytest.raises(ValueError, match=r"window \(3, 3\) does not fit inputs of shape \(10, 12"):
        bounds.input_norms(IMAGES.reshape(10, -1), (3, 3))


# The theorems, by hand.


def test_bounds_of_one_logit_by_hand():
    """4 inputs of total square 36: sqrt(36) / 4 = 1.5. A bias adds 4 to the square."""
    norms = norms_of(4, 6.0, 3.0)
    assert bounds.neyshabur_bound(DENSE, norms) == pytest.approx(2 * 1.5, rel=1e-12)
    assert bounds.golowich_bound(DENSE, norms) == pytest.approx(2.6651092223 * 1.5, rel=1e-9)
    expected = (math.sqrt(4 * math.log(2)) + 1) * 3 / 4  # one position, one read
    assert bounds.convolutional_bound(DENSE, norms) == pytest.approx(expected, rel=1e-12)

    # Frobenius norms 6, 4, 1 of the matrices; sqrt(40) / 4 with the bias.
    total = 24 * math.sqrt(40) / 4
    assert bounds.neyshabur_bound(CONVNET3, norms) == pytest.approx(4 * total, rel=1e-12)
    constant = math.sqrt(2 * math.log(2) * 3) + 1
    assert bounds.golowich_bound(CONVNET3, norms) == pytest.approx(constant * total, rel=1e-12)
    # 9 * 16 reads, 36 positions, 9 + 4 in a window.
    constant = math.sqrt(2 * math.log(8 * 36)) + 1
    expected = constant * 12 * math.sqrt(13) / 4
    assert bounds.convolutional_bound(CONVNET3, norms) == pytest.approx(expected, rel=1e-12)


def test_bounds_of_the_loss_by_hand():
    norms = norms_of(4, 6.0, 3.0)
    # Spectral norms 3, 3, 1; the bias an input of the root of 36 / 9.
    largest = 9 * math.sqrt(36 + 4 * 4)
    assert bounds.largest_outputs(CONVNET3, norms) == pytest.approx(largest, rel=1e-12)
    assert bounds.largest_outputs(DENSE, norms) == pytest.approx(6, rel=1e-12)
    expected = 2 * math.sqrt(3) * math.sqrt(0.5**2 + (largest / 4) ** 2)
    found = bounds.loss_complexity(0.5, CONVNET3, norms)
    assert found == pytest.approx(expected, rel=1e-12)
    expected = math.log(3) + math.sqrt(2) * 9 * math.sqrt(128 + 4)
    assert bounds.loss_range(CONVNET3) == pytest.approx(expected, rel=1e-12)

    found = bounds.loss_bounds(CONVNET3, norms)
    assert list(found) == [
        "Bartlett et al. 2017",
        "Neyshabur et al. 2015",
        "Golowich et al. 2018",
        "after Galanti et al. 2023",
    ]
    logit = bounds.golowich_bound(CONVNET3, norms)
    expected = 2 * math.sqrt(3) * math.sqrt(logit**2 + (largest / 4) ** 2)
    assert found["Golowich et al. 2018"] == pytest.approx(expected, rel=1e-12)
    assert found["Bartlett et al. 2017"] == bounds.bartlett_bound(CONVNET3, norms)


@pytest.mark.parametrize("num_examples", [4, 10_000, 10**8])
def test_bartlett_s_bound_by_numerical_integration(num_examples):
    norms = norms_of(num_examples, 0.2 * math.sqrt(num_examples))
    input_squares = norms.total**2 + num_examples * 4
    lengths = [36 * math.sqrt(24), 16 * math.sqrt(24), math.sqrt(3)]
    powers = sum((b / s) ** (2 / 3) for b, s in zip(lengths, (3, 3, 1), strict=True))
    c = 2 * input_squares * math.log(2 * (36 * 24) ** 2) * 81 * powers**3
    largest = math.sqrt(2) * 9 * math.sqrt(input_squares)

    def bound(a):
        grid = np.geomspace(a, largest, 20_001)
        integral = np.trapezoid(np.sqrt(c) / grid, grid)
        return 4 * a / math.sqrt(num_examples) + 12 / num_examples * integral

    expected = min(bound(a) for a in np.geomspace(largest * 1e-6, largest, 3001))
    found = bounds.bartlett_bound(CONVNET3, norms)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_for_linear_functions_neyshabur_s_bound_is_the_paper_s():
    linear = NetworkClass((layer(1, 1, 3, 1),), 128, False)
    found = bounds.neyshabur_bound(linear, bounds.input_norms(IMAGES))
    np.testing.assert_allclose(found, linear_bound(IMAGES), rtol=1e-6)


# What the bounds say of matrices, on the matrices.


def matrix_of(kernel, size, stride, pad):
    """The matrix of a convolution over a square image, rows: positions and channels."""
    window, _, inputs, outputs = kernel.shape
    out = (size + 2 * pad - window) // stride + 1
    matrix = np.zeros((out, out, outputs, size, size, inputs))
    for i, j, k, m in itertools.product(range(out), range(out), range(window), range(window)):
        row, column = i * stride + k - pad, j * stride + m - pad
        if 0 <= row < size and 0 <= column < size:
            matrix[i, j, :, row, column] = kernel[k, m].T
    return matrix.reshape(out * out * outputs, -1)


@pytest.mark.parametrize(("window", "stride", "pad"), [(3, 1, 0), (3, 2, 1), (6, 1, 0), (5, 1, 0)])
def test_norms_of_convolutions_are_within_their_bounds(window, stride, pad):
    rng = np.random.default_rng(0)
    closest = 0.0
    for kernel in (np.ones((window, window, 2, 3)), rng.standard_normal((window, window, 2, 3))):
        kernel /= np.linalg.norm(kernel)
        matrix = matrix_of(kernel, 6, stride, pad)
        positions = matrix.shape[0] // 3
        shape = layer(window**2, positions, 3, 1)
        assert np.linalg.norm(matrix) <= math.sqrt(positions) * (1 + 1e-12)
        assert np.linalg.norm(matrix, axis=1).sum() <= positions * math.sqrt(3) * (1 + 1e-12)
        assert np.linalg.norm(matrix, 2) <= shape.spectral_norm * (1 + 1e-12)
        closest = max(closest, np.linalg.norm(matrix, 2) / shape.spectral_norm)
    assert closest > 0.4


# Upper bounds are above what networks of the class reach.


@pytest.fixture(scope="module")
def estimates():
    """(outputs, lower estimate) of the 3-layer net on the images."""
    model = make_model("convnet3", 3)
    settings = {"num_signs": 4, "num_steps": 25, "batch_size": 5}
    return {
        outputs: estimate_rademacher(
            lambda params, x: model.apply({"params": params}, x),
            lambda key: model.init(key, IMAGES[:1])["params"],
            IMAGES,
            np.arange(10) % 3,
            outputs,
            jax.random.key(0),
            **settings,
        ).mean
        for outputs in (one_logit, excess_loss)
    }


def test_upper_bounds_are_above_lower_estimates(estimates):
    norms = bounds.input_norms(IMAGES, (3, 3))
    of_logits = [
        bound(CONVNET3, norms)
        for bound in (bounds.neyshabur_bound, bounds.golowich_bound, bounds.convolutional_bound)
    ]
    assert 0.3 < estimates[one_logit] < min(of_logits) < 1000 * estimates[one_logit]
    assert 0.3 < estimates[excess_loss] < min(bounds.loss_bounds(CONVNET3, norms).values())
    # The steps from one logit to the losses, on what is found for both.
    lifted = bounds.loss_complexity(estimates[one_logit], CONVNET3, norms)
    assert estimates[excess_loss] < lifted < 50 * estimates[excess_loss]
