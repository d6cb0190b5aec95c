"""The input of measures of generalization: a trained network and the norms of its layers."""

import dataclasses
import functools

import jax
import numpy as np

from normjax import losses
from normjax.generalization.absorbed import Layers, absorbed_layers, with_layers
from normjax.generalization.hidden_layers import HiddenLayers, hidden_layers, logits_in_batches
from normjax.generalization.sample import Sample, mix_within_classes
from normjax.generalization.sharpness import Sharpness
from normjax.matrices import layer_matrix
from normjax.normalize import param_norms
from normjax.structure import NetworkStructure
from normjax.training.evaluate import choose_evaluation_batch_size
from normjax.types import ApplyFn, Array, Norm, Params


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """The data that a measure may use.

    Attributes:
      params: the trained parameters, with the statistics of batch normalization if it has any.
      initial_params: the parameters before the first step.
      logits: logits on the training set, floating point `[N, K]`.
      labels: the labels that the network was trained to fit, integers `[N]`.
      apply_fn: the network; its activation leaves positive numbers unchanged, like ReLU.
      input_shape: shape of one input, such as `(32, 32, 3)`.
      structure: the structure of `apply_fn`, which has passed `check_layers`.
      sample: the training images of the measures that need representations.
      sharpness: what noise and ascent do to the network.
    """

    params: Params
    initial_params: Params
    logits: Array
    labels: Array
    apply_fn: ApplyFn
    input_shape: tuple[int, ...]
    structure: NetworkStructure
    sample: Sample
    sharpness: Sharpness

    @functools.cached_property
    def frobenius_norms(self) -> np.ndarray:
        """Return the Frobenius norm of each layer, float64 `[layers]`."""
        return layer_norms(self.params, self.structure, "fro")

    @functools.cached_property
    def spectral_norms(self) -> np.ndarray:
        """Return the spectral norm of each layer, float64 `[layers]`."""
        return layer_norms(self.params, self.structure, "spectral")

    @functools.cached_property
    def layers(self) -> Layers:
        """Return the trained layers, with batch normalization absorbed."""
        return absorbed_layers(self.params, self.structure)

    @functools.cached_property
    def change(self) -> Params:
        """Return parameters whose layers are the trained minus the initial ones."""
        start = absorbed_layers(self.initial_params, self.structure)
        change = jax.tree.map(lambda w, start: w - start, self.layers, start)
        return with_layers(self.params, self.structure, change)

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """Return the weights of all layer matrices: kernels, and biases that belong to them."""
        return _weights(self.params, self.structure)

    @functools.cached_property
    def changed_weights(self) -> np.ndarray:
        """Return `weights` minus the initial ones."""
        return _weights(self.change, self.structure)

    @functools.cached_property
    def hidden(self) -> HiddenLayers:
        """Return the representations of the sample."""
        return self._hidden(self.sample)

    @functools.cached_property
    def mixup(self) -> Sample:
        """Return means of pairs of images of the sample that share a label."""
        return mix_within_classes(self.sample)

    @functools.cached_property
    def mixed_hidden(self) -> HiddenLayers:
        """Return the representations of `mixup`."""
        return self._hidden(self.mixup)

    def logits_of(self, x: np.ndarray) -> np.ndarray:
        """Return the logits `[n, K]` of n inputs."""
        size = choose_evaluation_batch_size()
        return logits_in_batches(self.apply_fn, self.params, x, size)

    def _hidden(self, sample: Sample) -> HiddenLayers:
        size, own = choose_evaluation_batch_size(), (self.apply_fn, self.structure, self.params)
        return hidden_layers(*own, sample.x, sample.labels, batch_size=size)

    @functools.cached_property
    def margins(self) -> np.ndarray:
        """Return `f_y - max_{k != y} f_k` of each training example, float64 `[N]`."""
        return np.asarray(losses.margins(self.logits, self.labels), np.float64)


def layer_norms(
    params: Params, structure: NetworkStructure, norm: Norm, *, may_be_zero: bool = False
) -> np.ndarray:
    """Return the norm of each layer in order of application, float64 `[layers]`.

    Args:
      params: the parameters.
      structure: the structure of the network.
      norm: see `normjax.norms`.
      may_be_zero: whether layers may be zero, as in a difference of parameters.

    Raises:
      ValueError: a layer has norm 0 without `may_be_zero`, or its norm is NaN.
    """
    norms = jax.device_get(param_norms(params, norm, structure=structure))
    for path, value in norms.items():
        if not may_be_zero and not value > 0:
            raise ValueError(f"layer {path!r} has norm {value}: measures are undefined")
    return np.array(list(norms.values()), np.float64)


def _weights(params: Params, structure: NetworkStructure) -> np.ndarray:
    """Return the entries of all layer matrices in one vector, float64."""
    leaves = jax.tree.leaves(params)
    matrices = [layer_matrix(leaves, matrix) for matrix in structure.matrices]
    entries = [np.ravel(leaf) for matrix in matrices for leaf in matrix.values()]
    return np.concatenate(entries).astype(np.float64)
