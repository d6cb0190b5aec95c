"""Measures of generalization: families of norms that differ in the sum, the reference, the matrix.

These are the measures of Jiang et al. 2020 (see `measures`, for conventions too) that the public
code of Dziugaite et al. 2020 computes besides those of `norm_measures` and `margin_measures`. Where
all networks have the same depth, a "sum" ranks them as its product does; both are here because both
are published.

The spectral norm is that of the convolution's operator, or, where the name has "matrix", that of
the kernel as a matrix `[window * inputs, outputs]` (Yoshida and Miyato, 2017).
"""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from normjax.generalization.margin_measures import log_margin
from normjax.generalization.norm_measures import log_product_frobenius, log_product_spectral
from normjax.generalization.trained_network import TrainedNetwork, layer_norms
from normjax.types import Array


def log_sum_spectral(network: TrainedNetwork) -> float:
    """Return `ln(d) + 2/d sum_k ln ||W_k||_2`, with d layers.

    Source: Jiang et al. 2020, eq. 35. Batch normalization: absorbed.
    """
    return _log_sum(network, log_product_spectral(network))


def log_sum_spectral_over_margin(network: TrainedNetwork) -> float:
    """Return `ln(d) + 2/d (sum_k ln ||W_k||_2 - ln gamma)`, gamma as in `inverse_margin`.

    Source: Jiang et al. 2020, eq. 34. Batch normalization: absorbed.
    """
    return _log_sum(network, log_product_spectral(network) - log_margin(network))


def log_sum_frobenius(network: TrainedNetwork) -> float:
    """Return `ln(d) + 2/d sum_k ln ||W_k||_F`.

    Source: Jiang et al. 2020, eq. 39. Batch normalization: absorbed.
    """
    return _log_sum(network, log_product_frobenius(network))


def log_sum_frobenius_over_margin(network: TrainedNetwork) -> float:
    """Return `ln(d) + 2/d (sum_k ln ||W_k||_F - ln gamma)`, gamma as in `inverse_margin`.

    Source: Jiang et al. 2020, eq. 38. Batch normalization: absorbed.
    """
    return _log_sum(network, log_product_frobenius(network) - log_margin(network))


def log_spectral_init(network: TrainedNetwork) -> float:
    """Return `ln(prod_k ||W_k||_2^2 / gamma^2 * sum_k ||W_k - W_k(0)||_F^2 / ||W_k||_2^2)`.

    Source: Jiang et al. 2020, eq. 29; Neyshabur, Bhojanapalli and Srebro, "A PAC-Bayesian Approach
    to Spectrally-Normalized Margin Bounds" (ICLR 2018). Gamma as in `inverse_margin`. Batch
    normalization: absorbed in both.
    """
    return _spectral_main(network, network.spectral_norms, _change(network, "fro"))


def log_spectral_orig(network: TrainedNetwork) -> float:
    """Return `ln(prod_k ||W_k||_2^2 / gamma^2 * sum_k ||W_k||_F^2 / ||W_k||_2^2)`.

    Source: Jiang et al. 2020, eq. 30; as in `log_spectral_init`. Batch normalization: absorbed.
    """
    return _spectral_main(network, network.spectral_norms, network.frobenius_norms)


def log_product_matrix_spectral(network: TrainedNetwork) -> float:
    """Return `sum_k ln ||W_k||_2` of the kernels as matrices.

    Source: Jiang et al. 2020, eq. 32; public code of Dziugaite et al. 2020. Batch normalization:
    absorbed.
    """
    return float(np.sum(np.log(_matrix_norms(network))))


def log_matrix_spectral_over_margin(network: TrainedNetwork) -> float:
    """Return `ln(prod_k ||W_k||_2 / gamma)` of the kernels as matrices.

    Source: Jiang et al. 2020, eq. 31; public code of Dziugaite et al. 2020. Batch normalization:
    absorbed.
    """
    return log_product_matrix_spectral(network) - log_margin(network)


def sum_of_matrix_stable_ranks(network: TrainedNetwork) -> float:
    """Return `sum_k ||W_k||_F^2 / ||W_k||_2^2` of the kernels as matrices, their stable ranks.

    Source: Jiang et al. 2020, eq. 33; public code of Dziugaite et al. 2020. Batch normalization:
    absorbed.
    """
    return float(np.sum((network.frobenius_norms / _matrix_norms(network)) ** 2))


def matrix_spectral_distance(network: TrainedNetwork) -> float:
    """Return `sqrt(sum_k ||W_k - W_k(0)||_2^2)` of the kernels as matrices.

    Source: Jiang et al. 2020, eq. 41; public code of Dziugaite et al. 2020. Batch normalization:
    absorbed in both.
    """
    norms = layer_norms(network.change, network.structure, _matrix_norm, may_be_zero=True)
    return float(np.sqrt(np.sum(norms**2)))


def log_matrix_spectral_init(network: TrainedNetwork) -> float:
    """Return `log_spectral_init` of the kernels as matrices.

    Source: Jiang et al. 2020, eq. 29; public code of Dziugaite et al. 2020. Batch normalization:
    absorbed in both.
    """
    return _spectral_main(network, _matrix_norms(network), _change(network, "fro"))


def log_matrix_spectral_orig(network: TrainedNetwork) -> float:
    """Return `log_spectral_orig` of the kernels as matrices.

    Source: Jiang et al. 2020, eq. 30; public code of Dziugaite et al. 2020. Batch normalization:
    absorbed.
    """
    return _spectral_main(network, _matrix_norms(network), network.frobenius_norms)


def _log_sum(network: TrainedNetwork, log_product: float) -> float:
    depth = len(network.frobenius_norms)
    return math.log(depth) + 2 / depth * log_product


def _spectral_main(network: TrainedNetwork, spectral: np.ndarray, others: np.ndarray) -> float:
    ratios = np.sum((others / spectral) ** 2)
    if ratios == 0:
        return -math.inf
    return 2 * (float(np.sum(np.log(spectral))) - log_margin(network)) + math.log(ratios)


def _change(network: TrainedNetwork, norm: str) -> np.ndarray:
    return layer_norms(network.change, network.structure, norm, may_be_zero=True)


def _matrix_norms(network: TrainedNetwork) -> np.ndarray:
    return layer_norms(network.params, network.structure, _matrix_norm)


def _matrix_norm(leaves: Mapping[str, Array]) -> Array:
    """Return the largest singular value of `[window * inputs (+ bias), outputs]`."""
    return jnp.linalg.norm(
        jnp.concatenate([leaf.reshape(-1, leaf.shape[-1]) for leaf in leaves.values()]), 2
    )
