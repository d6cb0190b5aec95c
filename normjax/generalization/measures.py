"""Published measures of generalization, as functions of one trained network and its training set.

Every measure is oriented alike: the larger, the larger the test error that its authors expect of
the network. No measure sees a test example. Measures that multiply over layers are given as
logarithms, which ranks networks in the same way and cannot overflow.

Batch normalization is absorbed first (`normalize.absorb_batch_norm`, with the statistics used at
test time). The measures are then those of the network that predicts: its kernels contain the
learned scales and the statistics of the training set, and each layer has a bias. Measures of the
raw weights would be arbitrary, because there the scale of a kernel has no effect at all.

`MEASURES` names them all. Those that disturb the weights are in `sharpness`, because they cost
thousands of forward passes. Several follow Jiang, Neyshabur, Mobahi, Krishnan and Bengio,
"Fantastic Generalization Measures and Where to Find Them" (ICLR 2020), "Jiang et al. 2020" here;
equations are numbered as there, and constants and the size of the training set, which are the
same for all networks of a run, are left out. Frobenius norms are of kernels, and as everywhere in
this library the first layer's bias counts as one more input of it. Spectral norms are the operator
norms of `norms.spectral_norm`: for a convolution, of the circular stride-1 convolution.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from normjax import losses
from normjax.normalize import normalize_params, param_norms
from normjax.types import ApplyFn, Array, Norm, Params

MARGIN_QUANTILE = 0.1  # as Jiang et al. 2020 take it: the 10th percentile is robust to outliers


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """What a measure may look at; batch normalization is absorbed.

    Attributes:
        params: the trained parameters, nested `kernel` and `bias` leaves (see `find_layers`).
        initial_params: those before the first step, the initial statistics absorbed likewise.
        logits: ``[N, K]`` floating point, on the training set.
        labels: ``[N]`` integers, those that it was trained to fit.
        apply_fn: the network; ReLU or another activation that leaves positive numbers as they are.
        input_shape: that of one input, such as ``(32, 32, 3)``.
    """

    params: Params
    initial_params: Params
    logits: Array | np.ndarray
    labels: Array | np.ndarray
    apply_fn: ApplyFn
    input_shape: tuple[int, ...]

    @functools.cached_property
    def frobenius_norms(self) -> np.ndarray:
        """Frobenius norm of each layer, float64 ``[layers]``."""
        return _layer_norms(self.params, "fro")

    @functools.cached_property
    def spectral_norms(self) -> np.ndarray:
        """Spectral norm of each layer, float64 ``[layers]``."""
        return _layer_norms(self.params, "spectral")

    @functools.cached_property
    def change(self) -> Params:
        """The trained parameters less the initial ones."""
        return jax.tree.map(lambda w, start: w - start, self.params, self.initial_params)

    @functools.cached_property
    def margins(self) -> np.ndarray:
        """``f_y - max_{k != y} f_k`` of each training example, float64 ``[N]``."""
        return np.asarray(losses.margins(self.logits, self.labels), np.float64)


# --- norms of the weights


def log_product_frobenius(network: TrainedNetwork) -> float:
    """``sum_k ln ||W_k||_F``: the logarithm of the paper's product of norms (eq. 2).

    Source: Neyshabur, Tomioka and Srebro, "Norm-Based Capacity Control in Neural Networks" (COLT
    2015), theorem 1 with p = q = 2; Jiang et al. 2020, eq. 37. Batch normalization: absorbed, its
    scales are in the norms; biases of later layers are not.
    """
    return float(np.sum(np.log(network.frobenius_norms)))


def log_product_spectral(network: TrainedNetwork) -> float:
    """``sum_k ln ||W_k||_2``, which bounds the network's Lipschitz constant.

    Source: Bartlett, Foster and Telgarsky, "Spectrally-normalized margin bounds for neural
    networks" (NeurIPS 2017); Jiang et al. 2020, eq. 32. Batch normalization: absorbed.
    """
    return float(np.sum(np.log(network.spectral_norms)))


def log_product_max_l1(network: TrainedNetwork) -> float:
    """``sum_k ln ||W_k||_{1,inf}``: the largest sum of magnitudes into one unit, layer by layer.

    For a convolution a unit is a filter. Source: Bartlett and Mendelson, "Rademacher and Gaussian
    Complexities" (JMLR 2002); Golowich, Rakhlin and Shamir, "Size-Independent Sample
    Complexity of Neural Networks" (COLT 2018), theorem 2. Batch normalization: absorbed.
    """
    return float(np.sum(np.log(_layer_norms(network.params, _max_l1))))


def log_l1_path_norm(network: TrainedNetwork) -> float:
    """``ln sum over paths prod |w|``, the paths from any input, or bias, to any logit.

    Source: Neyshabur, Tomioka and Srebro (COLT 2015), section 4, p = 1; Neyshabur, Bhojanapalli,
    McAllester and Srebro, "Exploring Generalization in Deep Learning" (NeurIPS 2017).
    It is the sum of the logits of the network of |w| on inputs of ones. Batch normalization:
    absorbed; the biases that it leaves start paths of their own.
    """
    log_scale, outputs = _paths_to_outputs(network, 1)
    return log_scale + math.log(outputs.sum())


def log_max_path_norm(network: TrainedNetwork) -> float:
    """``ln max over classes sum over paths prod |w|``: the L-infinity form of the L1 path norm.

    The largest logit that an input in ``[-1, 1]`` could cause if no magnitudes canceled; without
    biases in later layers it is at most ``log_product_max_l1``. Source: Neyshabur, Tomioka and
    Srebro (COLT 2015), section 4: L1 over the paths into a unit, L-infinity over units, as the
    per-unit norms mu_{1,inf} have it after the best rescaling of the units. Batch normalization: as
    in ``log_l1_path_norm``.
    """
    log_scale, outputs = _paths_to_outputs(network, 1)
    return log_scale + math.log(outputs.max())


def log_l2_path_norm(network: TrainedNetwork) -> float:
    """``1/2 ln sum over paths prod w^2``, the paths from any input, or bias, to any logit.

    Source: Neyshabur, Salakhutdinov and Srebro, "Path-SGD" (NeurIPS 2015); Jiang et al. 2020,
    eq. 44. A forward pass of w^2 on ones. Unlike norms of layers it does not change when a unit's
    inputs are multiplied and its outputs divided by a number. Batch normalization: as in
    ``log_l1_path_norm``.
    """
    log_scale, outputs = _paths_to_outputs(network, 2)
    return (log_scale + math.log(outputs.sum())) / 2


def sum_of_stable_ranks(network: TrainedNetwork) -> float:
    """``sum_k ||W_k||_F^2 / ||W_k||_2^2``, Frobenius over spectral.

    Source: Jiang et al. 2020, eq. 33. The Frobenius norm is of the kernel and the spectral norm of
    the operator: a convolution repeats its kernel at every place, so that this is its stable rank
    up to the number of places, the same for all networks. Batch normalization: absorbed; a scale
    common to a layer's units cancels.
    """
    return float(np.sum((network.frobenius_norms / network.spectral_norms) ** 2))


def log_product_stable_ranks(network: TrainedNetwork) -> float:
    """``sum_k ln(||W_k||_F^2 / ||W_k||_2^2)``.

    Source: the ratio in Neyshabur, Bhojanapalli and Srebro, "A PAC-Bayesian Approach to
    Spectrally-Normalized Margin Bounds" (ICLR 2018), theorem 1, as a product so that no layer
    outweighs the others. Batch normalization: as in ``sum_of_stable_ranks``.
    """
    return 2 * (log_product_frobenius(network) - log_product_spectral(network))


def parameter_norm(network: TrainedNetwork) -> float:
    """``sqrt(sum_k ||W_k||_F^2)``.

    Source: Jiang et al. 2020, eq. 42. Batch normalization: absorbed, its scales are in the norms;
    biases of later layers are not.
    """
    return float(np.sqrt(np.sum(network.frobenius_norms**2)))


# --- distance from the initialization


def frobenius_distance(network: TrainedNetwork) -> float:
    """``sqrt(sum_k ||W_k - W_k(0)||_F^2)``.

    Source: Nagarajan and Kolter, "Generalization in Deep Networks: The Role of Distance from
    Initialization" (2019); Jiang et al. 2020, eq. 40. Batch normalization: absorbed in both, with
    the statistics and scales of their time, so that a change of the statistics is distance too.
    """
    return float(np.sqrt(np.sum(_layer_norms(network.change, "fro", may_be_zero=True) ** 2)))


def spectral_distance(network: TrainedNetwork) -> float:
    """``sqrt(sum_k ||W_k - W_k(0)||_2^2)``.

    Source: Jiang et al. 2020, eq. 41. Batch normalization: as in ``frobenius_distance``.
    """
    return float(np.sqrt(np.sum(_layer_norms(network.change, "spectral", may_be_zero=True) ** 2)))


# --- margins


def inverse_margin(network: TrainedNetwork) -> float:
    """``1 / gamma^2``, gamma the 10th percentile of the margins ``f_y - max_{k != y} f_k``.

    Source: Jiang et al. 2020, eq. 22. Infinite where gamma is not positive: more than a tenth of
    the training set is wrong. Batch normalization: the logits are the same, absorbed or not.
    """
    gamma = _margin(network)
    return 1 / gamma**2 if gamma > 0 else math.inf


def log_frobenius_over_margin(network: TrainedNetwork) -> float:
    """``ln(prod_k ||W_k||_F / gamma)``, gamma as in ``inverse_margin``.

    Its inverse is the margin of the paper's normalized network. Source: Jiang et al. 2020, eq. 36.
    Infinite where gamma is not positive. Batch normalization: as in ``log_product_frobenius``.
    """
    return log_product_frobenius(network) - _log(_margin(network))


def log_spectral_over_margin(network: TrainedNetwork) -> float:
    """``ln(prod_k ||W_k||_2 / gamma)``, gamma as in ``inverse_margin``.

    Source: Bartlett et al. (NeurIPS 2017); Jiang et al. 2020, eq. 31. Infinite where gamma is not
    positive. Batch normalization: as in ``log_product_spectral``.
    """
    return log_product_spectral(network) - _log(_margin(network))


def log_path_norm_over_margin(network: TrainedNetwork) -> float:
    """``ln(path norm / gamma)``, the L2 path norm, gamma as in ``inverse_margin``.

    Source: Neyshabur et al. (NeurIPS 2017); Jiang et al. 2020, eq. 43. Infinite where
    gamma is not positive. Batch normalization: as in ``log_l1_path_norm``.
    """
    return log_l2_path_norm(network) - _log(_margin(network))


def log_spectral_complexity_over_margin(network: TrainedNetwork) -> float:
    """``ln(R / gamma)``, R the spectral complexity of Bartlett et al., gamma the 10th percentile.

    ``R = prod_k ||W_k||_2 * (sum_k (||W_k - W_k(0)||_{2,1} / ||W_k||_2)^(2/3))^(3/2)``, where
    ``||.||_{2,1}`` is the sum over units of the L2 norm of the weights into each; for a convolution
    the units are the filters. Source: Bartlett et al. (NeurIPS 2017), eq. 1.2 and theorem 1.1, the
    reference matrices being the initial ones. Left out is the norm of the data, which all networks
    share. Infinite where gamma is not positive. Batch normalization: absorbed in both.
    """
    distances = _layer_norms(network.change, _sum_of_l2, may_be_zero=True)
    ratios = np.sum((distances / network.spectral_norms) ** (2 / 3))
    return log_spectral_over_margin(network) + 1.5 * _log(ratios)


def negative_log_margin_mean(network: TrainedNetwork) -> float:
    """``-mean ln(m / sqrt(V))`` over the training examples with margin m > 0.

    V is the total variation of the logits (the trace of their covariance over the training set),
    which makes margins comparable between networks. Source: Jiang, Krishnan, Mobahi and Bengio,
    "Predicting the Generalization Gap in Deep Networks with Margin Distributions" (ICLR 2019):
    margins in log space, divided by the total variation of their layer, of the correctly classified
    examples only. They take hidden layers and the input; here it is the last layer, where the
    distance to the decision boundary is the margin up to a constant. Infinite where no example is
    right. Batch normalization: the logits are the same, absorbed or not.
    """
    margins = _normalized_margins(network)
    return float(-np.mean(np.log(margins))) if margins.size else math.inf


def negative_log_margin_quartile(network: TrainedNetwork) -> float:
    """``-ln`` of the lower quartile of ``m / sqrt(V)``, as in ``negative_log_margin_mean``.

    Source: Jiang et al. (ICLR 2019), who describe the distribution by its quartiles. Infinite where
    no example is right. Batch normalization: the logits are the same, absorbed or not.
    """
    margins = _normalized_margins(network)
    return float(-np.log(np.quantile(margins, 0.25))) if margins.size else math.inf


def negative_margin_area(network: TrainedNetwork) -> float:
    """Minus the area under the sorted margins of the normalized network, ``-mean(m) / prod rho_k``.

    The rho_k are Frobenius norms, and the training set has length 1. Source: Banburski, De La
    Torre, Pant, Shastri and Poggio, "Distribution of Classification Margins: Are All Data Equal?"
    (2021), who find that a larger area goes with a smaller test error. Batch normalization:
    absorbed, its scales are in the norms.
    """
    return -float(np.mean(network.margins)) * math.exp(-log_product_frobenius(network))


# --- losses


def train_loss(network: TrainedNetwork) -> float:
    """Mean cross-entropy on the training set, in nats, of the network as it is.

    The paper's figure 5 (right) shows how little it says. Batch normalization: the logits are the
    same, absorbed or not.
    """
    return _mean(losses.cross_entropy(network.logits, network.labels))


def normalized_train_loss(network: TrainedNetwork) -> float:
    """Mean cross-entropy less ln K of the network normalized by Frobenius norms, in nats.

    Source: the paper (Liao et al. 2018), figures 3 to 5; less ln K, a constant, to keep its digits.
    Batch normalization: absorbed, its scales are in the norms.
    """
    scale = math.exp(-log_product_frobenius(network))
    return _mean(losses.excess_cross_entropy(jnp.asarray(network.logits) * scale, network.labels))


MEASURES: Mapping[str, Callable[[TrainedNetwork], float]] = MappingProxyType(
    {
        measure.__name__: measure
        for measure in (
            log_product_frobenius,
            log_product_spectral,
            log_product_max_l1,
            log_l1_path_norm,
            log_max_path_norm,
            log_l2_path_norm,
            sum_of_stable_ranks,
            log_product_stable_ranks,
            parameter_norm,
            frobenius_distance,
            spectral_distance,
            inverse_margin,
            log_frobenius_over_margin,
            log_spectral_over_margin,
            log_path_norm_over_margin,
            log_spectral_complexity_over_margin,
            negative_log_margin_mean,
            negative_log_margin_quartile,
            negative_margin_area,
            train_loss,
            normalized_train_loss,
        )
    }
)
"""Measures by name: ``{name: measure(network) -> float}``, in the order of this file."""


_compiled_norms = jax.jit(param_norms, static_argnames="norm")


def _layer_norms(params: Params, norm: Norm, *, may_be_zero: bool = False) -> np.ndarray:
    """The norm of each layer, float64; raises for a layer of zeros unless there may be some.

    The order is the same for every norm, though not that of application.
    """
    norms = jax.device_get(_compiled_norms(params, norm))
    for path, value in norms.items():
        if not may_be_zero and not value > 0:
            raise ValueError(f"layer {path!r} has norm {value}: the network has no measures")
    return np.array(list(norms.values()), np.float64)


def _max_l1(leaves: Mapping[str, Array]) -> Array:
    """The largest sum over a unit's incoming weights of their magnitudes."""
    return jnp.max(sum(jnp.sum(jnp.abs(w).reshape(-1, w.shape[-1]), 0) for w in leaves.values()))


def _sum_of_l2(leaves: Mapping[str, Array]) -> Array:
    """The sum over units of the L2 norm of their incoming weights."""
    squares = sum(jnp.sum(w.reshape(-1, w.shape[-1]) ** 2, 0) for w in leaves.values())
    return jnp.sum(jnp.sqrt(squares))


def _paths_to_outputs(network: TrainedNetwork, p: int) -> tuple[float, np.ndarray]:
    """``(s, v)`` where ``exp(s) v`` are the sums over paths of prod ``|w|^p``, for each class.

    The network of ``|w|^p`` obeys eq. 2, so that it is run with the sums into units at most 1.
    """
    powers = jax.tree.map(lambda w: jnp.abs(w) ** p, network.params)
    normalized = normalize_params(powers, _max_l1)
    with jax.default_matmul_precision("highest"):
        outputs = network.apply_fn(normalized, jnp.ones((1, *network.input_shape)))[0]
    return float(np.sum(np.log(_layer_norms(powers, _max_l1)))), np.asarray(outputs, np.float64)


def _margin(network: TrainedNetwork) -> float:
    """Gamma: the 10th percentile of the margins."""
    return float(np.quantile(network.margins, MARGIN_QUANTILE))


def _normalized_margins(network: TrainedNetwork) -> np.ndarray:
    """The positive margins divided by the root of the logits' total variation."""
    positive = network.margins[network.margins > 0]
    variation = np.sum(np.var(np.asarray(network.logits, np.float64), axis=0))
    return positive / math.sqrt(variation) if positive.size else positive


def _log(value: float) -> float:
    """The logarithm, minus infinity for what is not positive."""
    return math.log(value) if value > 0 else -math.inf


def _mean(per_example: Array) -> float:
    """The mean in float64."""
    return float(np.mean(np.asarray(per_example, np.float64)))
