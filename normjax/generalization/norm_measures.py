"""Measures of generalization: norms of the weights, and distances from the initialization.

See `measures` for conventions.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from normjax.generalization.absorbed import with_layers
from normjax.generalization.trained_network import TrainedNetwork, layer_norms
from normjax.normalize import normalize_params
from normjax.types import Array


def log_product_frobenius(network: TrainedNetwork) -> float:
    """Return `sum_k ln ||W_k||_F`: the logarithm of the paper's product of norms (eq. 2).

    Source: Neyshabur, Tomioka and Srebro, "Norm-Based Capacity Control in Neural Networks" (COLT
    2015), corollary 2 with p = q = 2; Jiang et al. 2020, eq. 37. Batch normalization: absorbed; the
    norms contain its scales, not the biases of later layers.
    """
    return float(np.sum(np.log(network.frobenius_norms)))


def log_product_spectral(network: TrainedNetwork) -> float:
    """Return `sum_k ln ||W_k||_2`, the logarithm of a bound on the Lipschitz constant.

    Source: Bartlett, Foster and Telgarsky, "Spectrally-normalized margin bounds for neural
    networks" (NeurIPS 2017); Jiang et al. 2020, eq. 32. Batch normalization: absorbed.
    """
    return float(np.sum(np.log(network.spectral_norms)))


def log_product_max_l1(network: TrainedNetwork) -> float:
    """Return `sum_k ln ||W_k||_{1,inf}`, with the largest L1 norm of a unit's incoming weights.

    The units of a convolution are its filters. Source: Bartlett and Mendelson, "Rademacher and
    Gaussian Complexities" (JMLR 2002); Golowich, Rakhlin and Shamir, "Size-Independent Sample
    Complexity of Neural Networks" (COLT 2018), theorem 2. Batch normalization: absorbed.
    """
    return float(np.sum(np.log(layer_norms(network.params, network.structure, _max_l1))))


def log_l1_path_norm(network: TrainedNetwork) -> float:
    """Return `ln sum over paths prod |w|`, over paths from any input or bias to any logit.

    Source: Neyshabur, Tomioka and Srebro (COLT 2015), section 4, p = 1; Neyshabur, Bhojanapalli,
    McAllester and Srebro, "Exploring Generalization in Deep Learning" (NeurIPS 2017).
    It is the sum of the logits of the network with weights |w| on inputs of ones. Batch
    normalization: absorbed; the resulting biases start additional paths.
    """
    log_scale, outputs = _paths_to_outputs(network, 1)
    return log_scale + math.log(outputs.sum())


def log_max_path_norm(network: TrainedNetwork) -> float:
    """Return `ln max over classes sum over paths prod |w|`, the L-infinity form of the L1 norm.

    It bounds the logits on inputs in `[-1, 1]`. Without biases in later layers it is at most
    `log_product_max_l1`. Source: Neyshabur, Tomioka and Srebro (COLT 2015), section 4: L1 over the
    paths into a unit and L-infinity over units, i.e. the per-unit norm mu_{1,inf} after optimal
    rescaling of the units. Batch normalization: as in `log_l1_path_norm`.
    """
    log_scale, outputs = _paths_to_outputs(network, 1)
    return log_scale + math.log(outputs.max())


def log_l2_path_norm(network: TrainedNetwork) -> float:
    """Return `1/2 ln sum over paths prod w^2`, over paths from any input or bias to any logit.

    Source: Neyshabur, Salakhutdinov and Srebro, "Path-SGD" (NeurIPS 2015); Jiang et al. 2020,
    eq. 44. It takes one forward pass with weights w^2 on ones. Unlike layer norms, it is invariant
    to rescaling of units. Batch normalization: as in `log_l1_path_norm`.
    """
    log_scale, outputs = _paths_to_outputs(network, 2)
    return (log_scale + math.log(outputs.sum())) / 2


def sum_of_stable_ranks(network: TrainedNetwork) -> float:
    """Return `sum_k ||W_k||_F^2 / ||W_k||_2^2`, Frobenius over spectral.

    Source: Jiang et al. 2020, eq. 33. The Frobenius norm is of the kernel, the spectral norm of the
    operator. A convolution repeats its kernel at every position, so the ratio is the stable rank up
    to the number of positions, which all networks share. Batch normalization: absorbed; a common
    scale of a layer's units cancels.
    """
    return float(np.sum((network.frobenius_norms / network.spectral_norms) ** 2))


def log_product_stable_ranks(network: TrainedNetwork) -> float:
    """Return `sum_k ln(||W_k||_F^2 / ||W_k||_2^2)`.

    Source: the ratio in Neyshabur, Bhojanapalli and Srebro, "A PAC-Bayesian Approach to
    Spectrally-Normalized Margin Bounds" (ICLR 2018), theorem 1; here as a product, which weights
    all layers equally. Batch normalization: as in `sum_of_stable_ranks`.
    """
    return 2 * (log_product_frobenius(network) - log_product_spectral(network))


def parameter_norm(network: TrainedNetwork) -> float:
    """Return `sqrt(sum_k ||W_k||_F^2)`.

    Source: Jiang et al. 2020, eq. 42. Batch normalization: absorbed; the norms contain its scales,
    not the biases of later layers.
    """
    return float(np.sqrt(np.sum(network.frobenius_norms**2)))


def frobenius_distance(network: TrainedNetwork) -> float:
    """Return `sqrt(sum_k ||W_k - W_k(0)||_F^2)`.

    Source: Nagarajan and Kolter, "Generalization in Deep Networks: The Role of Distance from
    Initialization" (2019); Jiang et al. 2020, eq. 40. Batch normalization: absorbed in both, each
    with its own statistics and scales; a change of the statistics adds to the distance.
    """
    return float(np.sqrt(np.sum(_change_norms(network, "fro") ** 2)))


def spectral_distance(network: TrainedNetwork) -> float:
    """Return `sqrt(sum_k ||W_k - W_k(0)||_2^2)`.

    Source: Jiang et al. 2020, eq. 41. Batch normalization: as in `frobenius_distance`.
    """
    return float(np.sqrt(np.sum(_change_norms(network, "spectral") ** 2)))


def _change_norms(network: TrainedNetwork, norm: str) -> np.ndarray:
    return layer_norms(network.change, network.structure, norm, may_be_zero=True)


def sum_of_l2(leaves: Mapping[str, Array]) -> Array:
    """Return the sum over units of the L2 norm of their incoming weights."""
    squares = sum(jnp.sum(w.reshape(-1, w.shape[-1]) ** 2, 0) for w in leaves.values())
    return jnp.sum(jnp.sqrt(squares))


def _max_l1(leaves: Mapping[str, Array]) -> Array:
    """Return the largest L1 norm of a unit's incoming weights."""
    return jnp.max(sum(jnp.sum(jnp.abs(w).reshape(-1, w.shape[-1]), 0) for w in leaves.values()))


def _paths_to_outputs(network: TrainedNetwork, p: int) -> tuple[float, np.ndarray]:
    """Return `(s, v)` such that `exp(s) v` is the sum over paths of prod `|w|^p`, for each class.

    The network with weights `|w|^p` obeys eq. 2. Normalizing it avoids overflow.
    """
    layers = jax.tree.map(lambda w: jnp.abs(w) ** p, network.layers)
    powers = with_layers(network.params, network.structure, layers)
    normalized = normalize_params(powers, _max_l1, structure=network.structure)
    with jax.default_matmul_precision("highest"):
        outputs = network.apply_fn(normalized, jnp.ones((1, *network.input_shape)))[0]
    norms = layer_norms(powers, network.structure, _max_l1)
    return float(np.sum(np.log(norms))), np.asarray(outputs, np.float64)
