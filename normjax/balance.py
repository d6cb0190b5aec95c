"""The least product of norms among networks that are equal by rescaling of their neurons.

A hidden ReLU neuron's incoming weights and bias can be multiplied by any c > 0 and its outgoing
weights be divided by it: the function stays, the norms of both layers change (Neyshabur,
Salakhutdinov and Srebro 2015, "Path-SGD"). The product of norms therefore is no property of the
function; its least value over all such rescalings is one of the orbit. The same point has the least
sum of the norms' p-th powers, which Stock et al. 2019, "Equi-normalization of neural networks",
descend to by such sweeps as here: a layer may be scaled as a whole, and of norms with equal product
equal ones have the least sum.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from normjax.layers import Layer, find_layers
from normjax.types import Norm, Params

_TOLERANCE = 1e-12  # of a log scale, between two sweeps
_MAX_SWEEPS = 20_000


class _Weights(NamedTuple):
    """What of one layer's weights the product of norms depends on.

    Attributes:
      owners: [inputs] which unit of the layer before each input comes from.
      powers: [units of the layer before, outputs] log of the sum of `|w|^p` over the window and
        a unit's inputs, float64, -inf for zeros. The first layer has one unit before it, with
        all inputs and the bias.
    """

    owners: np.ndarray
    powers: np.ndarray


def balance_params(
    params: Params, norm: Norm = 2, *, layers: Sequence[str] | None = None
) -> Params:
    """Rescale the hidden units of a ReLU network to the least product of its layers' norms.

    With log scales `u_j` (0 for inputs and outputs) a layer's weights become
    `w_ij exp(u_j - u_i)`, and the function stays. The log of the product,

        `sum_k (1/p) log sum_ij |w_kij|^p exp(p (u_j - u_i))`,

    is convex in u, and its minimum unique up to one factor per layer, which is chosen so that all
    layers have equal norms. At the minimum every unit has the same share in the p-th power of its
    layer's norm as its outgoing weights have in that of the next layer. The result is the same from
    whatever point of the orbit, and balancing it again changes nothing, to float accuracy.

    The norms are those of `param_norms`: the first layer's bias belongs to its matrix; biases of
    later layers are scaled with their units but are no part of a norm. A convolution's unit is a
    channel. Between a convolution and a dense layer, flattening is in the order (height, width,
    channel), so that input i of the dense layer belongs to channel `i % channels`.

    Units with no weights on one side have no minimum, only the limit in which the other side
    vanishes. It is taken where the function allows it: a unit that nothing reads, or whose output
    is always 0, gets zeros everywhere. Where a unit of a later layer reads nothing but has a
    positive bias, the limit would change the function, and that is an error.

    Args:
      params: nested mapping of `kernel` and `bias` leaves of one network whose layers form a
        chain with ReLU between them, batch normalization absorbed; concrete arrays (not under
        `jit` or `vmap`), numpy's or JAX's. The computation is float64.
      norm: 2 or `"fro"`, 1, or any finite p >= 1.
      layers: paths in order of application, where the natural order of the paths is not it.

    Returns:
      The balanced parameters: same tree, shapes, dtypes and kinds of array.

    Raises:
      ValueError: another norm, traced or non-finite leaves, layers that form no chain, no path of
        weights from inputs to outputs, a unit with a positive bias only, or scales that the
        dtype can not hold; see also `find_layers`.
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
    p = 2 if isinstance(norm, str) and norm == "fro" else norm
    if isinstance(p, Real) and 1 <= p < math.inf:
        return float(p)
    raise ValueError(
        f"networks are balanced for entrywise Lp norms, 1 <= p < infinity, or 'fro', not {norm!r}"
    )


def _read_layer(
    layer: Layer, leaves: Sequence[Any], p: float, before: Sequence[_Weights]
) -> _Weights:
    """Return a layer's powers, and which units of the layer before its inputs come from."""
    kernel = _log_magnitudes(leaves[layer.kernel], layer.path)
    num_in, num_out = kernel.shape[-2:]
    num_before = before[-1].powers.shape[1] if before else 1
    if num_in % num_before:
        raise ValueError(
            f"layer {layer.path!r} takes {num_in} inputs, which the {num_before} outputs of the "
            "layer before can not be: the layers form no chain; give layers if the order is wrong"
        )
    # Flattened inputs i, i + C, i + 2C, ... are one channel: to the norm they are more window.
    grouped = kernel.reshape(-1, num_before, num_out)
    if layer.bias is not None:
        bias = _log_magnitudes(leaves[layer.bias], layer.path)
        if not before:
            grouped = np.concatenate([grouped, bias[None, None]])
    return _Weights(np.arange(num_in) % num_before, logsumexp(p * grouped, axis=0))


def _log_magnitudes(leaf: Any, path: str) -> np.ndarray:
    """Return `log |leaf|` in float64."""
    if isinstance(leaf, jax.core.Tracer):
        raise ValueError("balance_params needs concrete arrays: it does not run under jit or vmap")
    values = np.asarray(leaf).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"layer {path!r} has weights that are not finite")
    with np.errstate(divide="ignore"):
        return np.log(np.abs(values))


def _alive_units(
    found: Sequence[Layer], leaves: Sequence[Any], powers: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Return the units that lie on a path from inputs to outputs: before all layers, after each."""
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

    Args:
      powers: per layer, [units before, units], log of the sums of `|w|^p`; every unit has
        finite entries on both sides.

    With all other scales fixed, incoming powers a_j and outgoing ones b_j of a layer's units, the
    two layers' norms have by Cauchy and Schwarz the least product
    `(sum_j a_j e^(p u_j)) (sum_j b_j e^(-p u_j)) = (sum_j sqrt(a_j b_j))^2` at
    `u_j = log(b_j / a_j) / (2p)`. Sweeps of this over the layers converge: the whole is convex.
    """
    scales = [np.zeros(power.shape[0]) for power in powers] + [np.zeros(powers[-1].shape[1])]
    for _ in range(_MAX_SWEEPS):
        change = 0.0
        for k in range(1, len(powers)):
            incoming = logsumexp(powers[k - 1] - p * scales[k - 1][:, None], axis=0)
            outgoing = logsumexp(powers[k] + p * scales[k + 1], axis=1)
            new = (outgoing - incoming) / (2 * p)
            new -= new.mean()  # a factor common to the layer is none of the product's
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
            logsumexp(power + p * (u - v[:, None])) / p
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
