"""Published measures of generalization, as functions of a trained network and its training set.

All measures have the same orientation: a larger value means that the authors expect a larger test
error. No measure uses test examples. Products over layers are returned as logarithms, which give
the same ranking and cannot overflow.

Batch normalization is absorbed first (`batch_norm.absorb_batch_norm`, with the statistics used at
test time). The measures then describe the network that predicts: its kernels contain the learned
scales and the statistics of the training set, and each layer has a bias. Measures of the raw
weights would be arbitrary, because the scale of a kernel before batch normalization has no effect.

Several follow Jiang, Neyshabur, Mobahi, Krishnan and Bengio, "Fantastic Generalization Measures and
Where to Find Them" (ICLR 2020), here "Jiang et al. 2020", with their equation numbers. Constants
and the size of the training set are omitted, because all networks of a run share them. Frobenius
norms are of kernels; as everywhere in this library, the bias of the first layer counts as an
additional input. Spectral norms are `norms.spectral_norm`: for a convolution, the operator norm of
the circular stride-1 convolution.

Measures that perturb the weights are in `sharpness`: they take thousands of forward passes.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from normjax.generalization import margin_measures, norm_measures
from normjax.generalization.trained_network import TrainedNetwork

MEASURES: Mapping[str, Callable[[TrainedNetwork], float]] = MappingProxyType(
    {
        measure.__name__: measure
        for measure in (
            norm_measures.log_product_frobenius,
            norm_measures.log_product_spectral,
            norm_measures.log_product_max_l1,
            norm_measures.log_l1_path_norm,
            norm_measures.log_max_path_norm,
            norm_measures.log_l2_path_norm,
            norm_measures.sum_of_stable_ranks,
            norm_measures.log_product_stable_ranks,
            norm_measures.parameter_norm,
            norm_measures.frobenius_distance,
            norm_measures.spectral_distance,
            margin_measures.inverse_margin,
            margin_measures.log_frobenius_over_margin,
            margin_measures.log_spectral_over_margin,
            margin_measures.log_path_norm_over_margin,
            margin_measures.log_spectral_complexity_over_margin,
            margin_measures.negative_log_margin_mean,
            margin_measures.negative_log_margin_quartile,
            margin_measures.negative_margin_area,
            margin_measures.train_loss,
            margin_measures.normalized_train_loss,
        )
    }
)
"""Measures by name, `{name: measure(network) -> float}`."""
