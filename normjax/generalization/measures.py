"""Measures of generalization, as functions of a trained network and its training set.

All measures have the same orientation: a larger value means that the authors expect a larger test
error. No measure uses test examples. Products over layers are returned as logarithms, which give
the same ranking and cannot overflow.

Batch normalization is absorbed first (`absorbed.absorbed_layers`, with the statistics used at
test time). The measures then describe the network that predicts: its kernels contain the learned
scales and the statistics of the training set, and each layer has a bias. Measures of the raw
weights would be arbitrary, because the scale of a kernel before batch normalization has no effect.

Several follow Jiang, Neyshabur, Mobahi, Krishnan and Bengio, "Fantastic Generalization Measures and
Where to Find Them" (ICLR 2020), here "Jiang et al. 2020", with their equation numbers, and the
public code of Dziugaite et al., "In Search of Robust Measures of Generalization" (NeurIPS 2020).
Constants and the size of the training set are omitted, because all networks of a run share them.
Frobenius norms are of kernels; as everywhere in this library, the bias of the first layer counts as
an additional input. Spectral norms are `norms.spectral_norm`: for a convolution, the operator norm
of the circular stride-1 convolution.

docs/measures.md has the full table, and says how much of each source was seen, and where.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from normjax.generalization import (
    augmentations,
    heavy_tails,
    hidden_margins,
    margin_measures,
    norm_families,
    norm_measures,
    pac_bayes,
    representations,
)
from normjax.generalization.trained_network import TrainedNetwork


class Measure(NamedTuple):
    """A measure of generalization.

    Attributes:
      function: computes it; its docstring has the definition.
      source: who published it, or "" if nobody did.
      unit: "ln" and "log10" for logarithms of pure numbers, "1" for pure numbers.
    """

    function: Callable[[TrainedNetwork], float]
    source: str
    unit: str


def _fantastic(equation: int) -> str:
    return f"Jiang et al. 2020, eq. {equation}"


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        measure.function.__name__: measure
        for measure in (
            # Norms.
            Measure(norm_measures.log_product_frobenius, _fantastic(37), "ln"),
            Measure(norm_families.log_sum_frobenius, _fantastic(39), "ln"),
            Measure(norm_measures.log_product_spectral, _fantastic(32), "ln"),
            Measure(norm_families.log_sum_spectral, _fantastic(35), "ln"),
            Measure(norm_families.log_product_matrix_spectral, _fantastic(32), "ln"),
            Measure(norm_measures.log_product_max_l1, "Golowich et al. 2018", "ln"),
            Measure(norm_measures.log_l1_path_norm, "Neyshabur et al. 2015", "ln"),
            Measure(norm_measures.log_max_path_norm, "Neyshabur et al. 2015", "ln"),
            Measure(norm_measures.log_l2_path_norm, _fantastic(44), "ln"),
            Measure(norm_measures.sum_of_stable_ranks, _fantastic(33), "1"),
            Measure(norm_families.sum_of_matrix_stable_ranks, _fantastic(33), "1"),
            Measure(norm_measures.log_product_stable_ranks, "", "ln"),
            Measure(norm_measures.parameter_norm, _fantastic(42), "1"),
            Measure(norm_measures.frobenius_distance, _fantastic(40), "1"),
            Measure(norm_measures.spectral_distance, _fantastic(41), "1"),
            Measure(norm_families.matrix_spectral_distance, _fantastic(41), "1"),
            # Norms and margins.
            Measure(margin_measures.inverse_margin, _fantastic(22), "1"),
            Measure(margin_measures.log_frobenius_over_margin, _fantastic(36), "ln"),
            Measure(norm_families.log_sum_frobenius_over_margin, _fantastic(38), "ln"),
            Measure(margin_measures.log_spectral_over_margin, _fantastic(31), "ln"),
            Measure(norm_families.log_sum_spectral_over_margin, _fantastic(34), "ln"),
            Measure(norm_families.log_matrix_spectral_over_margin, _fantastic(31), "ln"),
            Measure(margin_measures.log_path_norm_over_margin, _fantastic(43), "ln"),
            Measure(norm_families.log_spectral_init, _fantastic(29), "ln"),
            Measure(norm_families.log_spectral_orig, _fantastic(30), "ln"),
            Measure(norm_families.log_matrix_spectral_init, _fantastic(29), "ln"),
            Measure(norm_families.log_matrix_spectral_orig, _fantastic(30), "ln"),
            Measure(
                margin_measures.log_spectral_complexity_over_margin, "Bartlett et al. 2017", "ln"
            ),
            Measure(margin_measures.log_inverse_min_margin, "Lyu and Li 2020", "ln"),
            Measure(margin_measures.negative_margin_area, "Banburski et al. 2021", "1"),
            Measure(margin_measures.normalized_train_loss, "Liao et al. 2018", "nats"),
            Measure(margin_measures.train_loss, "", "nats"),
            Measure(margin_measures.log_fisher_rao_norm, "Liang et al. 2019", "ln"),
            Measure(margin_measures.log_empirical_fisher_rao_norm, "Liang et al. 2019", "ln"),
            # Flatness.
            Measure(pac_bayes.pac_bayes_flatness, _fantastic(53), "ln"),
            Measure(pac_bayes.pac_bayes_magnitude_flatness, _fantastic(61), "ln"),
            Measure(pac_bayes.pac_bayes_init, _fantastic(48), "1"),
            Measure(pac_bayes.pac_bayes_orig, _fantastic(49), "1"),
            Measure(pac_bayes.pac_bayes_magnitude_init, _fantastic(56), "1"),
            Measure(pac_bayes.pac_bayes_magnitude_orig, _fantastic(57), "1"),
            Measure(pac_bayes.sharpness_flatness, _fantastic(54), "ln"),
            Measure(pac_bayes.sharpness_magnitude_flatness, _fantastic(62), "ln"),
            Measure(pac_bayes.sharpness_init, _fantastic(51), "ln"),
            Measure(pac_bayes.sharpness_orig, _fantastic(52), "ln"),
            Measure(pac_bayes.sharpness_magnitude_init, _fantastic(59), "1"),
            Measure(pac_bayes.sharpness_magnitude_orig, _fantastic(60), "1"),
            Measure(pac_bayes.gradient_sharpness, "Foret et al. 2021", "nats"),
            Measure(pac_bayes.adaptive_sharpness, "Kwon et al. 2021", "nats"),
            # Representations.
            Measure(hidden_margins.hidden_margin_mean, "Jiang et al. 2019", "ln"),
            Measure(hidden_margins.hidden_margin_quartile, "Jiang et al. 2019", "ln"),
            Measure(hidden_margins.input_margin_quartile, "Jiang et al. 2019", "ln"),
            Measure(hidden_margins.k_variance_margin, "Chuang et al. 2021", "1"),
            Measure(hidden_margins.k_variance_gradient_margin, "Chuang et al. 2021", "1"),
            Measure(hidden_margins.mixup_margin, "Natekar and Sharma 2020", "1"),
            Measure(representations.davies_bouldin, "Natekar and Sharma 2020", "1"),
            Measure(representations.mixup_loss, "Natekar and Sharma 2020", "nats"),
            Measure(representations.mixup_error, "Natekar and Sharma 2020", "1"),
            Measure(representations.davies_bouldin_mixup, "Natekar and Sharma 2020", "nats"),
            Measure(augmentations.augmentation_penalty, "Aithal et al. 2021", "1"),
            Measure(representations.class_distance_variance, "Galanti et al. 2022", "1"),
            # Spectra.
            Measure(heavy_tails.mean_alpha, "Martin et al. 2021", "1"),
            Measure(heavy_tails.alpha_hat, "Martin et al. 2021", "log10"),
            Measure(heavy_tails.log_alpha_norm, "Martin et al. 2021", "log10"),
        )
    }
)
"""Measures by name."""
