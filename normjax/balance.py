"""The least product of norms over all rescalings of a network's hidden units.

Multiply a hidden ReLU unit's incoming weights and bias by c > 0 and divide its outgoing weights by
c: the function stays the same, the norms of both layers change (Neyshabur, Salakhutdinov and Srebro
2015, "Path-SGD"). So the product of norms is no property of the function, but its least value over
all rescalings (the orbit) is a property of the orbit. The same point has the least sum of the
norms' p-th powers, because layers can be scaled as a whole, and of norms with a given product,
equal ones have the least sum. Stock et al. 2019, "Equi-normalization of neural networks", descend
to it by the same sweeps.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from scipy.special import logsumexp

from normjax.layers import Layer, find_layers
from normjax.norms import entrywise_exponent
from normjax.types import Norm, Params

_TOLERANCE = 1e-12  # of a log scale, between two sweeps
_MAX_SWEEPS = 20_000


class _Weights(NamedTuple):
    """The statistics of one layer's weights that determine the product of norms.

    Attributes:
      owners: [inputs], the unit of the layer before that each input comes from.
      powers: [units of the layer before, outputs], log of the sum of `|w|^p` over the window and
        a unit's inputs, float64, -inf for zeros. One unit before the first layer holds all inputs
        and the bias.
    """

    owners: np.ndarray
    powers: np.ndarray


def balance_params(
    params: Params, norm: Norm = 2, *, layers: Sequence[str] | None = None
) -> Params:
    """Rescale the hidden units of a ReLU network to the least product of its layers' norms.

    With log scales `u_j` (0 for inputs and outputs) a layer's weights become
    `w_ij exp(u_j - u_i)`, and the function stays the same. The log of the product,

        sum_k (1/p) log sum_ij |w_kij|^p exp(p (u_j - u_i)),

    is convex in u. Its minimum is unique up to one factor per layer, which makes all layers' norms
    equal. At the minimum every unit has the same share in the p-th power of its layer's norm as its
    outgoing weights have in that of the next layer. Every point of the orbit gives the same result,
    and balancing it again changes nothing, to float accuracy.

    The norms are those of `param_norms`: the first layer's bias belongs to its matrix; later biases
    are scaled with their units but belong to no norm. A convolution's unit is a channel. Between a
    convolution and a dense layer, flattening is in the order (height, width, channel): input i of
    the dense layer belongs to channel `i % channels`.

    A unit without weights on one side has no minimum, only the limit in which the other side
    vanishes. The limit is taken where the function allows it: a unit that nothing reads, or whose
    output is always 0, gets zeros everywhere. A unit of a later layer that reads nothing but has a
    positive bias is an error, because the limit would change the function.

    Example:
      >>> import numpy as np
      >>> import normjax
      >>> params = {"Dense_0": {"kernel": np.array([[8.0, 1.0]], np.float32)},
      ...           "Dense_1": {"kernel": np.array([[1.0], [8.0]], np.float32)}}
      >>> round(float(normjax.product_norm(params)), 4)
      65.0
      >>> balanced = normjax.balance_params(params)
      >>> round(float(normjax.product_norm(balanced)), 4)
      16.0

    Args:
      params: nested mapping of `kernel` and `bias` leaves of one network whose layers form a
        chain with ReLU between them, batch normalization absorbed; concrete numpy or JAX arrays
        (not under `jit` or `vmap`). The computation is float64.
      norm: 2 or `"fro"`, or any finite p >= 1.
      layers: paths in order of application, where their natural order differs from it.

    Returns:
      The balanced parameters: same tree, shapes, dtypes and kinds of array.

    Raises:
      ValueError: another norm, traced or non-finite leaves, layers that form no chain, no path of
        weights from inputs to outputs, a unit with a positive bias only, or weights too large for
        the dtype; see also `find_layers`.
    """
    p = _exponent(norm)
    found = find_layers(params, layers)
    leaves, treedef = jax.tree.flatten(params)
    weights: list[_Weights] = []
    for layer in found:
        weights.append(_read_layer(layer, leaves, p, weights))
    alive = _alive_units(found, leaves, [layer.powers for layer in weights])
    powers = [
        weight.powers[np.ix_(*units)]
        for weight, units in zip(weights, pairwise(alive), strict=True)
    ]
    scales = pairwise(_minimize(powers, p))
    for layer, weight, (a, b), (v, u) in zip(found, weights, pairwise(alive), scales, strict=True):
        shifts = np.full(weight.powers.shape, -np.inf)
        shifts[np.ix_(a, b)] = u - v[:, None]
        leaves[layer.kernel] = _rescale(leaves[layer.kernel], shifts[weight.owners], layer.path)
        if layer.bias is not None:
            shifts = np.full(weight.powers.shape[1], -np.inf)
            shifts[b] = u
            leaves[layer.bias] = _rescale(leaves[layer.bias], shifts, layer.path)
    return jax.tree.unflatten(treedef, leaves)


def _exponent(norm: Norm) -> float:
    """Return the p of an entrywise Lp norm, or raise."""
    p = entrywise_exponent(norm)
    if p is None or math.isinf(p):
        raise ValueError(
            "networks are balanced for entrywise Lp norms, 1 <= p < infinity, or 'fro', "
            f"not {norm!r}"
        )
    return p


def _read_layer(
    layer: Layer, leaves: Sequence[Any], p: float, before: Sequence[_Weights]
) -> _Weights:
    """Return a layer's powers and the owners of its inputs."""
    kernel = _log_magnitudes(leaves[layer.kernel], layer.path)
    num_in, num_out = kernel.shape[-2:]
    num_before = before[-1].powers.shape[1] if before else 1
    if num_in % num_before:
        raise ValueError(
            f"layer {layer.path!r} takes {num_in} inputs, which the {num_before} outputs of the "
            "layer before cannot be: the layers form no chain; give layers if the order is wrong"
        )
    # Flattened inputs i, i + C, i + 2C, ... are one channel: to the norm they are more window.
    grouped = kernel.reshape(-1, num_before, num_out)
    if layer.bias is not None:
        bias = _log_magnitudes(leaves[layer.bias], layer.path)
        if not before:
            grouped = np.concatenate([grouped, bias[None, None]])
    return _Weights(np.arange(num_in) % num_before, _logsumexp(p * grouped, axis=0))


def _log_magnitudes(leaf: Any, path: str) -> np.ndarray:
    """Return `log |leaf|` in float64."""
    if isinstance(leaf, Tracer):
        raise ValueError("balance_params needs concrete arrays: it does not run under jit or vmap")
    values = np.asarray(leaf).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"layer {path!r} has weights that are not finite")
    with np.errstate(divide="ignore"):
        return np.log(np.abs(values))


def _logsumexp(x: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Return `log sum exp x`; scipy's declares another type, for its `return_sign`."""
    return np.asarray(logsumexp(x, axis=axis))


def _alive_units(
    found: Sequence[Layer], leaves: Sequence[Any], powers: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Return the units on a path from inputs to outputs: before all layers, and after each."""
    linked = [np.isfinite(power) for power in powers]
    reached = [np.ones(1, bool)]  # by a path from the inputs
    for link in linked:
        reached.append(reached[-1] @ link)
    read = [np.ones(linked[-1].shape[1], bool)]  # by a path to the outputs
    for link in reversed(linked):
        read.insert(0, link @ read[0])
    if not (reached[-1] & read[-1]).any():
        raise ValueError(
            "no path of nonzero weights leads from the inputs to the outputs: the least product of "
            "norms is 0"
        )
    for layer, is_reached, is_read in zip(found, reached[1:], read[1:], strict=True):
        if layer.bias is None or layer is found[-1]:
            continue
        constant = np.flatnonzero(~is_reached & is_read & (np.asarray(leaves[layer.bias]) > 0))
        if constant.size:
            raise ValueError(
                f"unit {constant[0]} of layer {layer.path!r} has a positive bias but no weights "
                "that lead to it from the inputs: no rescaling has the least product of norms"
            )
    units = [np.flatnonzero(a & b) for a, b in zip(reached, read, strict=True)]
    units[-1] = np.arange(reached[-1].size)  # an output without weights keeps its bias
    return units


def _minimize(powers: Sequence[np.ndarray], p: float) -> list[np.ndarray]:
    """Return the units' log scales at the minimum, before all layers and after each of them.

    Fix all scales but those of one layer's units, and let a_j and b_j be the units' incoming and
    outgoing powers. By Cauchy and Schwarz the norms of the two layers have the least product,
    `(sum_j a_j e^(p u_j)) (sum_j b_j e^(-p u_j)) = (sum_j sqrt(a_j b_j))^2`, at
    `u_j = log(b_j / a_j) / (2p)`. Sweeps of this over the layers converge, because the problem is
    convex.

    Args:
      powers: per layer, [units before, units], log of the sums of `|w|^p`; every unit has finite
        entries on both sides.
    """
    scales = [np.zeros(power.shape[0]) for power in powers] + [np.zeros(powers[-1].shape[1])]
    change = math.inf
    for _ in range(_MAX_SWEEPS):
        change = 0.0
        for k in range(1, len(powers)):
            incoming = _logsumexp(powers[k - 1] - p * scales[k - 1][:, None], axis=0)
            outgoing = _logsumexp(powers[k] + p * scales[k + 1], axis=1)
            new = (outgoing - incoming) / (2 * p)
            new -= new.mean()  # a factor common to the layer leaves the product unchanged
            change = max(change, np.abs(new - scales[k]).max())
            scales[k] = new
        if change <= _TOLERANCE:
            break
    else:
        raise ValueError(
            f"the scales did not settle within {_MAX_SWEEPS} sweeps; they still move by {change:g}"
        )
    log_norms = np.array(
        [
            _logsumexp(power + p * (u - v[:, None])) / p
            for power, (v, u) in zip(powers, pairwise(scales), strict=True)
        ]
    )
    factors = np.cumsum(log_norms.mean() - log_norms)  # the last is 0
    hidden = [u + factor for u, factor in zip(scales[1:-1], factors[:-1], strict=True)]
    return [scales[0], *hidden, scales[-1]]


def _rescale(leaf: Any, shifts: np.ndarray, path: str) -> Any:
    """Return `leaf * exp(shifts)`, in the leaf's own dtype and kind of array."""
    values = np.asarray(leaf)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        rescaled = (values.astype(np.float64) * np.exp(shifts)).astype(values.dtype)
    if not np.isfinite(rescaled.astype(np.float64)).all():
        raise ValueError(f"layer {path!r} has balanced weights too large for {values.dtype}")
    return jnp.asarray(rescaled) if isinstance(leaf, jax.Array) else rescaled
