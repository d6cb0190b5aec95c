"""Measures of generalization: margins on the training set, and training losses.

See `measures` for conventions.
"""

import math

import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from normjax import losses
from normjax.generalization.norm_measures import (
    log_l2_path_norm,
    log_product_frobenius,
    log_product_spectral,
    sum_of_l2,
)
from normjax.generalization.trained_network import TrainedNetwork, layer_norms
from normjax.types import Array

MARGIN_QUANTILE = 0.1  # as in Jiang et al. 2020: the 10th percentile is robust to outliers


def inverse_margin(network: TrainedNetwork) -> float:
    """Return `1 / gamma^2`; gamma is the 10th percentile of the margins.

    A margin is `f_y - max_{k != y} f_k`.

    Source: Jiang et al. 2020, eq. 22. Infinite if gamma is not positive, i.e. if more than a tenth
    of the training set is misclassified. Batch normalization: does not matter, logits are the same.
    """
    gamma = _margin(network)
    return 1 / gamma**2 if gamma > 0 else math.inf


def log_frobenius_over_margin(network: TrainedNetwork) -> float:
    """Return `ln(prod_k ||W_k||_F / gamma)`, gamma as in `inverse_margin`.

    Its inverse is the margin of the paper's normalized network. Source: Jiang et al. 2020, eq. 36.
    Infinite if gamma is not positive. Batch normalization: as in `log_product_frobenius`.
    """
    return log_product_frobenius(network) - log_margin(network)


def log_spectral_over_margin(network: TrainedNetwork) -> float:
    """Return `ln(prod_k ||W_k||_2 / gamma)`, gamma as in `inverse_margin`.

    Source: Bartlett et al. (NeurIPS 2017); Jiang et al. 2020, eq. 31. Infinite if gamma is not
    positive. Batch normalization: as in `log_product_spectral`.
    """
    return log_product_spectral(network) - log_margin(network)


def log_path_norm_over_margin(network: TrainedNetwork) -> float:
    """Return `ln(path norm / gamma)`, the L2 path norm, gamma as in `inverse_margin`.

    Source: Neyshabur et al. (NeurIPS 2017); Jiang et al. 2020, eq. 43. Infinite if gamma is not
    positive. Batch normalization: as in `log_l1_path_norm`.
    """
    return log_l2_path_norm(network) - log_margin(network)


def log_spectral_complexity_over_margin(network: TrainedNetwork) -> float:
    """Return `ln(R / gamma)` with the spectral complexity R, gamma as in `inverse_margin`.

    `R = prod_k ||W_k||_2 * (sum_k (||W_k - W_k(0)||_{2,1} / ||W_k||_2)^(2/3))^(3/2)`, where
    `||.||_{2,1}` is the sum over units of the L2 norm of their incoming weights; the units of a
    convolution are its filters. Source: Bartlett et al. (NeurIPS 2017), eq. 1.2 and theorem 1.1,
    with the initial matrices as reference. The norm of the data is omitted, because all networks
    share it. Infinite if gamma is not positive. Batch normalization: absorbed in both.
    """
    change, structure = network.change, network.structure
    distances = layer_norms(change, structure, sum_of_l2, may_be_zero=True)
    ratios = np.sum((distances / network.spectral_norms) ** (2 / 3))
    return log_spectral_over_margin(network) + 1.5 * _log(ratios)


def negative_margin_area(network: TrainedNetwork) -> float:
    """Return minus the area under the normalized network's margins, `-mean(m) / prod rho_k`.

    The margins are sorted, the training set has length 1, and the rho_k are Frobenius norms.
    Source: Banburski, De La Torre, Pant, Shastri and Poggio, "Distribution of Classification
    Margins: Are All Data Equal?" (2021), who associate a larger area with a smaller test error.
    Batch normalization: absorbed; the norms contain its scales.
    """
    return -float(np.mean(network.margins)) * math.exp(-log_product_frobenius(network))


def train_loss(network: TrainedNetwork) -> float:
    """Return the mean cross entropy on the training set, in nats, without normalization.

    The paper's figure 5 (right) shows that it predicts little. Batch normalization: does not
    matter, logits are the same.
    """
    return _mean(losses.cross_entropy(network.logits, network.labels))


def normalized_train_loss(network: TrainedNetwork) -> float:
    """Return the mean excess of the network normalized by Frobenius norms, in nats.

    Source: the paper (Liao et al. 2018), figures 3 to 5. Subtracting the constant ln K preserves
    precision. Batch normalization: absorbed; the norms contain its scales.
    """
    scale = math.exp(-log_product_frobenius(network))
    return _mean(losses.excess_cross_entropy(jnp.asarray(network.logits) * scale, network.labels))


def log_inverse_min_margin(network: TrainedNetwork) -> float:
    """Return `d ln ||theta|| - ln(smallest margin)`, with d layers and all their weights theta.

    Source: Lyu and Li, "Gradient Descent Maximizes the Margin of Homogeneous Neural Networks" (ICLR
    2020), whose normalized margin is the smallest margin divided by `||theta||^d`. Their networks
    have no biases in later layers; here such biases count as weights. Infinite if an example is
    misclassified. Batch normalization: absorbed.
    """
    squares = [
        float(np.sum(np.asarray(leaf, np.float64) ** 2))
        for layer in network.layers
        for leaf in layer.values()
    ]
    smallest = float(network.margins.min())
    return len(network.layers) / 2 * math.log(sum(squares)) - _log(smallest)


def log_fisher_rao_norm(network: TrainedNetwork) -> float:
    """Return the logarithm of the Fisher-Rao norm, with labels drawn from the network's softmax.

    With d layers, logits f and probabilities p, the squared norm is
    `d^2 mean_i sum_y p_y (<p, f> - f_y)^2`. Source: Liang, Poggio, Rakhlin and Stokes, "Fisher-Rao
    Metric, Geometry, and Complexity of Neural Networks" (AISTATS 2019), eq. 5.2. It
    is `theta^T I(theta) theta` where all layers are scaled together; a bias of a later layer scales
    with the layers before it, which keeps their formula exact. Batch normalization: absorbed; it
    does not matter, logits are the same.
    """
    logits = np.asarray(network.logits, np.float64)
    p = softmax(logits, axis=1)
    deviations = np.sum(p * logits, axis=1, keepdims=True) - logits
    return _log_root(network, np.sum(p * deviations**2, axis=1))


def log_empirical_fisher_rao_norm(network: TrainedNetwork) -> float:
    """Return the logarithm of the Fisher-Rao norm with the training labels: y is y_i, p_y is 1.

    Source and symbols: as in `log_fisher_rao_norm`; their empirical version, eq. 5.3. Batch
    normalization: as there.
    """
    logits = np.asarray(network.logits, np.float64)
    own = np.take_along_axis(logits, np.asarray(network.labels)[:, None], axis=1)[:, 0]
    return _log_root(network, (np.sum(softmax(logits, axis=1) * logits, axis=1) - own) ** 2)


def log_margin(network: TrainedNetwork) -> float:
    """Return the logarithm of gamma, the 10th percentile of the margins; -inf if not positive."""
    return _log(_margin(network))


def _margin(network: TrainedNetwork) -> float:
    """Return gamma, the 10th percentile of the margins."""
    return float(np.quantile(network.margins, MARGIN_QUANTILE))


def _log_root(network: TrainedNetwork, squares: np.ndarray) -> float:
    return math.log(len(network.layers)) + _log(float(np.mean(squares))) / 2


def _log(value: float) -> float:
    """Return the logarithm, or -infinity for a value that is not positive."""
    return math.log(value) if value > 0 else -math.inf


def _mean(per_example: Array) -> float:
    """Return the mean in float64."""
    return float(np.mean(np.asarray(per_example, np.float64)))
