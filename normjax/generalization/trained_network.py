"""The input of measures of generalization: a trained network and the norms of its layers."""

import dataclasses
import functools

import jax
import numpy as np

from normjax import losses
from normjax.normalize import param_norms
from normjax.types import ApplyFn, Array, Norm, Params


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """The data that a measure may use; batch normalization is absorbed.

    Attributes:
      params: the trained parameters, nested `kernel` and `bias` leaves (see `find_layers`).
      initial_params: the parameters before the first step, with the initial statistics absorbed.
      logits: logits on the training set, floating point `[N, K]`.
      labels: the labels that the network was trained to fit, integers `[N]`.
      apply_fn: the network; its activation leaves positive numbers unchanged, like ReLU.
      input_shape: shape of one input, such as `(32, 32, 3)`.
    """

    params: Params
    initial_params: Params
    logits: Array
    labels: Array
    apply_fn: ApplyFn
    input_shape: tuple[int, ...]

    @functools.cached_property
    def frobenius_norms(self) -> np.ndarray:
        """Return the Frobenius norm of each layer, float64 `[layers]`."""
        return layer_norms(self.params, "fro")

    @functools.cached_property
    def spectral_norms(self) -> np.ndarray:
        """Return the spectral norm of each layer, float64 `[layers]`."""
        return layer_norms(self.params, "spectral")

    @functools.cached_property
    def change(self) -> Params:
        """Return the trained minus the initial parameters."""
        return jax.tree.map(lambda w, start: w - start, self.params, self.initial_params)

    @functools.cached_property
    def margins(self) -> np.ndarray:
        """Return `f_y - max_{k != y} f_k` of each training example, float64 `[N]`."""
        return np.asarray(losses.margins(self.logits, self.labels), np.float64)


_compiled_norms = jax.jit(param_norms, static_argnames="norm")


def layer_norms(params: Params, norm: Norm, *, may_be_zero: bool = False) -> np.ndarray:
    """Return the norm of each layer, float64 `[layers]`.

    The order of the layers is the same for all norms, but is not the order of application.

    Args:
      params: nested mapping of arrays.
      norm: see `normjax.norms`.
      may_be_zero: whether layers may be zero, as in a difference of parameters.

    Raises:
      ValueError: a layer has norm 0 without `may_be_zero`, or its norm is NaN.
    """
    norms = jax.device_get(_compiled_norms(params, norm))
    for path, value in norms.items():
        if not may_be_zero and not value > 0:
            raise ValueError(f"layer {path!r} has norm {value}: measures are undefined")
    return np.array(list(norms.values()), np.float64)
