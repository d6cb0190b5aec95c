"""Measures of generalization: power laws in the spectra of the weights.

The eigenvalues of a layer are the squared singular values of its matrix, or of all positions of a
convolution's window together, as in WeightWatcher. Biases are left out, as are layers with fewer
than three distinct eigenvalues. See `measures` for conventions.
"""

import math

import numpy as np

from normjax.generalization.trained_network import TrainedNetwork


def mean_alpha(network: TrainedNetwork) -> float:
    """Return the mean over layers of the exponent alpha of a power law.

    The density of the eigenvalues x above x_min is fitted by x^-alpha, by maximum likelihood; x_min
    minimizes the Kolmogorov-Smirnov distance (Clauset, Shalizi and Newman, 2009). Source: Martin,
    Peng and Mahoney, "Predicting trends in the quality of state-of-the-art neural networks without
    access to training or testing data" (Nature Communications 2021), and their WeightWatcher. Batch
    normalization: absorbed.
    """
    return _mean([fit_power_law(values) for values in _spectra(network)])


def alpha_hat(network: TrainedNetwork) -> float:
    """Return the mean over layers of `alpha log10(largest eigenvalue)`, the weighted alpha.

    Source: Martin, Peng and Mahoney (2021). Batch normalization: absorbed.
    """
    return _mean([fit_power_law(x) * math.log10(x.max()) for x in _spectra(network)])


def log_alpha_norm(network: TrainedNetwork) -> float:
    """Return the mean over layers of `log10 sum x^alpha`, a Schatten norm of order 2 alpha.

    Source: Martin, Peng and Mahoney (2021). Batch normalization: absorbed.
    """
    found = []
    for values in _spectra(network):
        alpha, largest = fit_power_law(values), values.max()
        power_sum = np.sum((values / largest) ** alpha)
        found.append(alpha * math.log10(largest) + math.log10(power_sum))
    return _mean(found)


def fit_power_law(values: np.ndarray) -> float:
    """Return the exponent of a power law in the tail of positive numbers.

    Args:
      values: n > 2 positive numbers, not all equal.
    """
    ordered = np.sort(values)
    logs = np.log(ordered)
    best, exponent = math.inf, math.nan
    for start in range(len(ordered) - 1):
        tail = logs[start:] - logs[start]
        if tail[-1] == 0:
            continue  # all equal
        alpha = 1 + len(tail) / tail.sum()
        model = 1 - np.exp((1 - alpha) * tail)
        distance = np.max(np.abs(model - np.arange(len(tail)) / len(tail)))
        if distance < best:
            best, exponent = distance, alpha
    return float(exponent)


def _spectra(network: TrainedNetwork) -> list[np.ndarray]:
    """Return the positive eigenvalues of each layer that has at least three distinct ones."""
    found = []
    for layer in network.layers:
        kernel = np.asarray(layer["kernel"], np.float64)
        slices = kernel.reshape(-1, *kernel.shape[-2:])
        values = np.linalg.svd(slices, compute_uv=False).ravel() ** 2
        values = values[values > 0]
        if len(np.unique(values)) > 2:
            found.append(values)
    return found


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan
