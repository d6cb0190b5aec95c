"""Power laws of spectra: by brute force, and of samples whose exponent is known."""

import dataclasses
import math

import numpy as np
import pytest

from normjax.generalization import heavy_tails
from tests.helpers.trained_networks import trained_convnet3, trained_mlp


def fit_by_loops(values):
    """Clauset's maximum likelihood and Kolmogorov-Smirnov distance, as it is written."""
    values = sorted(float(x) for x in values)
    best = (math.inf, math.nan)
    for start in range(len(values) - 1):
        tail = values[start:]
        if tail[-1] == tail[0]:
            continue
        alpha = 1 + len(tail) / sum(math.log(x / tail[0]) for x in tail)
        distance = max(
            abs((1 - (x / tail[0]) ** (1 - alpha)) - i / len(tail)) for i, x in enumerate(tail)
        )
        best = min(best, (distance, alpha))
    return best[1]


def spectra_by_hand(network):
    """Squared singular values of every position of a window."""
    found = []
    for name in network.params:
        kernel = np.asarray(network.params[name]["kernel"], np.float64)
        slices = kernel.reshape(-1, *kernel.shape[-2:])
        found.append(np.concatenate([np.linalg.eigvalsh(w @ w.T) for w in slices]))
    return [x[x > 1e-9] for x in found]


@pytest.mark.parametrize("network", [trained_convnet3, trained_mlp])
def test_measures_by_hand(network):
    network = network()
    fits = [(fit_by_loops(x), x) for x in spectra_by_hand(network) if len(x) > 2]
    assert len(fits) == 3
    alpha = np.mean([alpha for alpha, _ in fits])
    alpha_hat = np.mean([alpha * np.log10(x.max()) for alpha, x in fits])
    log_norm = np.mean([np.log10(sum(v**alpha for v in x)) for alpha, x in fits])
    assert heavy_tails.mean_alpha(network) == pytest.approx(alpha, rel=1e-6)
    assert heavy_tails.alpha_hat(network) == pytest.approx(alpha_hat, rel=1e-6)
    assert heavy_tails.log_alpha_norm(network) == pytest.approx(log_norm, rel=1e-6)


def test_the_exponent_of_a_power_law():
    """Quantiles of a Pareto distribution, above a bulk that is not."""
    tail = 2 * (1 - (np.arange(2000) + 0.5) / 2000) ** (-1 / 2.5)  # density x^-3.5 above 2
    assert heavy_tails.fit_power_law(tail) == pytest.approx(3.5, rel=0.01)
    bulk = np.linspace(0.1, 2, 1000)
    assert heavy_tails.fit_power_law(np.concatenate([bulk, tail])) == pytest.approx(3.5, rel=0.02)
    assert heavy_tails.fit_power_law(7 * tail) == pytest.approx(3.5, rel=0.01)


def test_layers_without_three_eigenvalues_do_not_count():
    network = trained_mlp((6, 2))
    assert np.isnan(heavy_tails.mean_alpha(network))
    assert np.isnan(heavy_tails.alpha_hat(network))
    kernel = network.params["Dense_0"]["kernel"]
    equal = {"Dense_0": {**network.params["Dense_0"], "kernel": np.eye(*kernel.shape)}}
    assert np.isnan(heavy_tails.log_alpha_norm(dataclasses.replace(network, params=equal)))
