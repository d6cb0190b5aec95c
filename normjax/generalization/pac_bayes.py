"""Measures of generalization: PAC-Bayes bounds and their flatness terms.

They follow Jiang et al. 2020 (see `measures`) with their equation numbers, and the public code of
Dziugaite et al., "In Search of Robust Measures of Generalization" (NeurIPS 2020). The sizes of the
noise are measured by `sharpness` on a sample of training images. The weights w are kernels and the
bias of the first layer, as in all norms; the noise is on all biases. Terms that all networks of a
run share have the value of the public code or are omitted, as each docstring says.
"""

import math

import numpy as np

from normjax.generalization.trained_network import TrainedNetwork

MAGNITUDE_EPSILON = 1e-3  # as in Jiang et al. 2020
DELTA = 0.05  # one minus the confidence of the bound


def pac_bayes_flatness(network: TrainedNetwork) -> float:
    """Return `-2 ln sigma`, where noise N(0, sigma^2) on all weights raises the error by 0.1.

    Source: Jiang et al. 2020, eq. 53, `1 / sigma^2`; Neyshabur et al., "Exploring Generalization in
    Deep Learning" (NeurIPS 2017). It is not invariant to rescaling of units. NaN if no sigma was
    found. Batch normalization: absorbed; the noise is on kernels and biases.
    """
    return -2 * math.log(network.sharpness.sigma)


def pac_bayes_magnitude_flatness(network: TrainedNetwork) -> float:
    """Return `-2 ln sigma'`; noise N(0, sigma'^2 w^2) on all weights w raises the error by 0.1.

    Source: Jiang et al. 2020, eq. 61, `1 / sigma'^2`, without the small constant added to w^2,
    which keeps their bound finite. Without it, the measure is invariant to all rescalings of units
    that keep the function. NaN if no sigma' was found. Batch normalization: absorbed; the noise is
    on kernels and biases.
    """
    return -2 * math.log(network.sharpness.relative_sigma)


def pac_bayes_init(network: TrainedNetwork) -> float:
    """Return `||w - w(0)||^2 / (4 sigma^2) + ln(N / sigma) + 10`, sigma of `pac_bayes_flatness`.

    Source: Jiang et al. 2020, eq. 48, with N training examples; constants of the public code. Batch
    normalization: absorbed in both.
    """
    return _bound(network, np.sum(network.changed_weights**2))


def pac_bayes_orig(network: TrainedNetwork) -> float:
    """Return `||w||^2 / (4 sigma^2) + ln(N / sigma) + 10`, sigma of `pac_bayes_flatness`.

    Source: Jiang et al. 2020, eq. 49; as in `pac_bayes_init`. Batch normalization: absorbed.
    """
    return _bound(network, np.sum(network.weights**2))


def pac_bayes_magnitude_init(network: TrainedNetwork) -> float:
    """Return `1/4 sum_i ln((e^2 + (s^2 + 1) D / p) / (e^2 + s^2 (w - w(0))_i^2)) + ln(N / s) + 10`.

    Here s is sigma' of `pac_bayes_magnitude_flatness`, `D = ||w - w(0)||^2`, p the number of
    weights and e = 0.001. Source: Jiang et al. 2020, eq. 56; constants of the public code. Batch
    normalization: absorbed in both.
    """
    return _magnitude_bound(network, np.sum(network.changed_weights**2))


def pac_bayes_magnitude_orig(network: TrainedNetwork) -> float:
    """Return the same as `pac_bayes_magnitude_init` with `D = ||w||^2`.

    The denominators keep the distance from the initial weights, as in the public code. Source:
    Jiang et al. 2020, eq. 57. Batch normalization: absorbed in both.
    """
    return _magnitude_bound(network, np.sum(network.weights**2))


def sharpness_flatness(network: TrainedNetwork) -> float:
    """Return `-2 ln alpha`: the worst change of all weights by alpha raises the error by 0.1.

    Source: Jiang et al. 2020, eq. 54, `1 / alpha^2`; Keskar et al., "On Large-Batch Training for
    Deep Learning" (ICLR 2017). The worst change is sought by gradient ascent
    (`sharpness.find_alpha`). NaN if no alpha was found. Batch normalization: absorbed.
    """
    return -2 * math.log(network.sharpness.alpha)


def sharpness_magnitude_flatness(network: TrainedNetwork) -> float:
    """Return `-2 ln alpha'`: the worst change of all weights w by alpha' |w| raises it by 0.1.

    Source: Jiang et al. 2020, eq. 62, `1 / alpha'^2`. As in `sharpness_flatness`, and invariant to
    all rescalings of units that keep the function. Batch normalization: absorbed.
    """
    return -2 * math.log(network.sharpness.relative_alpha)


def sharpness_init(network: TrainedNetwork) -> float:
    """Return `ln(||w - w(0)||^2 / alpha^2)`, alpha of `sharpness_flatness`.

    Source: Jiang et al. 2020, eq. 51; what all networks share is omitted, and the logarithm keeps
    the order. Batch normalization: absorbed in both.
    """
    return _log(np.sum(network.changed_weights**2)) - 2 * math.log(network.sharpness.alpha)


def sharpness_orig(network: TrainedNetwork) -> float:
    """Return `ln(||w||^2 / alpha^2)`, alpha of `sharpness_flatness`.

    Source: Jiang et al. 2020, eq. 52; as in `sharpness_init`. Batch normalization: absorbed.
    """
    return _log(np.sum(network.weights**2)) - 2 * math.log(network.sharpness.alpha)


def sharpness_magnitude_init(network: TrainedNetwork) -> float:
    """Return `1/4 sum_i ln((e^2 + (a^2 + 4 ln(2 p / d)) D / p) / (e^2 + a^2 (w - w(0))_i^2))`.

    Here a is alpha' of `sharpness_magnitude_flatness`, d = 0.05, and the other symbols are those of
    `pac_bayes_magnitude_init`. Source: Jiang et al. 2020, eq. 59; terms that all networks share are
    omitted. Batch normalization: absorbed in both.
    """
    return _magnitude_ascent_bound(network, np.sum(network.changed_weights**2))


def sharpness_magnitude_orig(network: TrainedNetwork) -> float:
    """Return the same as `sharpness_magnitude_init` with `D = ||w||^2`.

    Source: Jiang et al. 2020, eq. 60. Batch normalization: absorbed in both.
    """
    return _magnitude_ascent_bound(network, np.sum(network.weights**2))


def gradient_sharpness(network: TrainedNetwork) -> float:
    """Return the rise of the mean cross entropy after a step of length 0.05 uphill, in nats.

    Source: Foret, Kleiner, Mobahi and Neyshabur, "Sharpness-Aware Minimization for Efficiently
    Improving Generalization" (ICLR 2021): the term that SAM reduces, with its single step. Batch
    normalization: absorbed.
    """
    return network.sharpness.loss_rise


def adaptive_sharpness(network: TrainedNetwork) -> float:
    """Return the same rise for a step of length 0.5 in units of the weights' magnitudes.

    Source: Kwon, Kim, Park and Choi, "ASAM: Adaptive Sharpness-Aware Minimization for
    Scale-Invariant Learning of Deep Neural Networks" (ICML 2021), with p = 2 and the step, radius
    and offset of their public code. Batch normalization: absorbed.
    """
    return network.sharpness.adaptive_loss_rise


def _bound(network: TrainedNetwork, square: float) -> float:
    sigma = network.sharpness.sigma
    return square / (4 * sigma**2) + math.log(len(network.labels) / sigma) + 10


def _magnitude_bound(network: TrainedNetwork, square: float) -> float:
    sigma = network.sharpness.relative_sigma
    divergence = _divergence(network, sigma, (sigma**2 + 1) * square)
    return divergence + math.log(len(network.labels) / sigma) + 10


def _magnitude_ascent_bound(network: TrainedNetwork, square: float) -> float:
    alpha, num_weights = network.sharpness.relative_alpha, network.weights.size
    return _divergence(network, alpha, (alpha**2 + 4 * math.log(2 * num_weights / DELTA)) * square)


def _divergence(network: TrainedNetwork, size: float, square: float) -> float:
    """Return `1/4 sum_i ln((e^2 + square / p) / (e^2 + size^2 (w - w(0))_i^2))`."""
    base = MAGNITUDE_EPSILON**2
    own = np.log(base + (size * network.changed_weights) ** 2)
    return float(np.sum(math.log(base + square / own.size) - own) / 4)


def _log(value: float) -> float:
    """Return the logarithm, or -infinity for 0."""
    return math.log(value) if value > 0 else -math.inf
