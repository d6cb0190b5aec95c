"""The smallest product of norms over all rescalings of a network's hidden units.

Multiply a hidden ReLU unit's incoming weights and bias by c > 0 and divide its outgoing weights by
c: the function stays the same, but the norms of both layers change (Neyshabur, Salakhutdinov and
Srebro 2015, "Path-SGD"). The product of norms is therefore not a property of the function, but its
minimum over all rescalings (the orbit) is a property of the orbit. The same point minimizes the sum
of the p-th powers of the norms: layers can be scaled as a whole, and among norms with a given
product, equal norms have the smallest sum. Stock et al. 2019, "Equi-normalization of neural
networks", use the same sweeps.
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

from normjax.exponents import Leaf
from normjax.formatting import plain
from normjax.layers import choose_structure
from normjax.matrices import arrange, restore
from normjax.norms import entrywise_exponent
from normjax.structure import Layout, NetworkStructure
from normjax.types import Norm, Params

_TOLERANCE = 1e-12  # largest change of a log scale between two sweeps
_MAX_SWEEPS = 20_000


class _Layer(NamedTuple):
    """A layer of a chain: the numbers of its leaves, and how it acts; see `LayerMatrix`."""

    path: str
    kernel: int
    bias: int | None
    is_joint: bool
    layout: Layout
    inner: int


class _Weights(NamedTuple):
    """The statistics of one layer's weights that determine the product of norms.

    Attributes:
      owners: [inputs], the unit of the previous layer that each input comes from.
      powers: [units of the previous layer, outputs], log of the sum of `|w|^p` over the window and
        a unit's inputs, float64, -inf for zeros. A single unit before the first layer owns all
        inputs and the bias.
    """

    owners: np.ndarray
    powers: np.ndarray


def balance_params(
    params: Params,
    norm: Norm = 2,
    *,
    layers: Sequence[str] | None = None,
    structure: NetworkStructure | None = None,
    tied: str = "refuse",
) -> Params:
    """Rescale the hidden units of a ReLU network to minimize the product of norms.

    With log scales `u_j` (0 for inputs and outputs), the weights of a layer become
    `w_ij exp(u_j - u_i)`, and the function stays the same. The log of the product,

        sum_k (1/p) log sum_ij |w_kij|^p exp(p (u_j - u_i)),

    is convex in u. The minimum is unique up to one factor per layer, which is chosen to make all
    norms equal. At the minimum, each unit's share of the p-th power of its layer's norm equals the
    share of its outgoing weights in the next layer. All points of the orbit give the same result,
    and balancing is idempotent, up to rounding.

    The norms are those of `param_norms`: the first layer's bias is part of its matrix; later biases
    scale with their units but are not part of a norm. The units of a convolution are its channels.
    A structure says which unit each input of a layer comes from. Without one, flattening between a
    convolution and a dense layer has the order (height, width, channel): input i of the dense layer
    belongs to channel `i % channels`.

    A unit without weights on one side has no minimum, only a limit in which the other side
    vanishes. The limit is used if it preserves the function: a unit that no other unit reads, or
    whose output is always 0, gets zero weights. A unit of a later layer with a positive bias and no
    incoming weights is an error, because the limit would change the function.

    Examples:
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
      params: nested mapping of `kernel` and `bias` leaves of one network, a chain of layers with
        ReLU between them and batch normalization absorbed; concrete NumPy or JAX arrays (not under
        `jit` or `vmap`). The computation uses float64.
      norm: 2 or `"fro"`, or any finite p >= 1.
      layers, structure, tied: see `param_norms`. The layers of the structure must be a chain, in
        which each hidden unit may be rescaled alone.

    Returns:
      The balanced parameters: same tree, shapes, dtypes and array types.

    Raises:
      ValueError: an unsupported norm, traced or non-finite leaves, layers that do not form a chain,
        no path of weights from inputs to outputs, a unit with only a positive bias, or weights too
        large for the dtype; see also `param_norms`.
    """
    p = _exponent(norm)
    structure = choose_structure(params, layers, structure, tied)
    chain = _read_chain(structure)
    leaves, treedef = jax.tree.flatten(params)
    weights: list[_Weights] = []
    for layer in chain:
        weights.append(_read_layer(layer, leaves, p, weights))
    link_powers = [layer.powers for layer in weights]
    alive = _alive_units(chain, leaves, link_powers, structure.is_traced)
    powers = [
        weight.powers[np.ix_(*units)]
        for weight, units in zip(weights, pairwise(alive), strict=True)
    ]
    scales = pairwise(_minimize(powers, p))
    for layer, weight, (a, b), (v, u) in zip(chain, weights, pairwise(alive), scales, strict=True):
        shifts = np.full(weight.powers.shape, -np.inf)
        shifts[np.ix_(a, b)] = u - v[:, None]
        kernel = leaves[layer.kernel]
        matrix = arrange(np.asarray(kernel), layer.layout)
        shifts = np.broadcast_to(shifts[weight.owners], matrix.shape)
        shifts = restore(shifts, layer.layout, kernel.shape)
        leaves[layer.kernel] = _rescale(kernel, shifts, layer.path)
        if layer.bias is not None:
            shifts = np.full(weight.powers.shape[1], -np.inf)
            shifts[b] = u
            shifts = shifts.reshape(leaves[layer.bias].shape)
            leaves[layer.bias] = _rescale(leaves[layer.bias], shifts, layer.path)
    return jax.tree.unflatten(treedef, leaves)


def _exponent(norm: Norm) -> float:
    """Return the p of an entrywise Lp norm, or raise ValueError."""
    p = entrywise_exponent(norm)
    if p is None or math.isinf(p):
        raise ValueError(
            "balancing is defined for entrywise Lp norms, 1 <= p < infinity, or 'fro', "
            f"not {plain(norm)}"
        )
    return p


def _read_chain(structure: NetworkStructure) -> list[_Layer]:
    """Return the layers, or raise unless each one alone reads the units of the one before."""
    chain = []
    for k, layer in enumerate(structure.matrices):
        kernel, offset, layout, reads = layer.kernel, layer.offset, layer.layout, layer.reads
        if reads is None or reads.layer != (k - 1 if k else None):
            reason = "it is not certain that it alone reads the units of the layer before"
        elif layer.degree != 1 or layer.factor is not None:
            reason = "it is applied several times, or scaled after its kernel"
        elif layout is None or layout.groups > 1:
            reason = "its outputs form groups, or how its kernel acts could not be read"
        elif kernel.part is not None or not isinstance(offset, Leaf | None):
            reason = "its kernel is a part of a leaf, or its bias is not a leaf"
        else:
            bias = None if offset is None else offset.number
            chain.append(
                _Layer(layer.path, kernel.number, bias, layer.is_joint, layout, reads.inner)
            )
            continue
        raise ValueError(f"layer {layer.path!r} cannot be balanced: {reason}")
    return chain


def _read_layer(
    layer: _Layer, leaves: Sequence[Any], p: float, before: Sequence[_Weights]
) -> _Weights:
    """Return a layer's powers and the owners of its inputs."""
    kernel = arrange(_log_magnitudes(leaves[layer.kernel], layer.path), layer.layout)
    num_in, num_out = kernel.shape[-2:]
    num_before = before[-1].powers.shape[1] if before else 1
    # Inputs that belong to one unit are places of a flattened window; the norm treats them alike.
    grouped = np.moveaxis(kernel.reshape(-1, num_before, layer.inner, num_out), 2, 1)
    grouped = grouped.reshape(-1, num_before, num_out)
    if layer.bias is not None:
        bias = _log_magnitudes(leaves[layer.bias], layer.path).reshape(-1)
        if layer.is_joint:
            grouped = np.concatenate([grouped, bias[None, None]])
    owners = np.arange(num_in) // layer.inner % num_before
    return _Weights(owners, _logsumexp(p * grouped, axis=0))


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
    """Return `log sum exp x`, with a narrower type than scipy's function."""
    return np.asarray(logsumexp(x, axis=axis))


def _alive_units(
    chain: Sequence[_Layer],
    leaves: Sequence[Any],
    powers: Sequence[np.ndarray],
    is_traced: bool,
) -> list[np.ndarray]:
    """Return the units on a path from inputs to outputs: before the first layer, and after each."""
    linked = [np.isfinite(power) for power in powers]
    reached = [np.ones(1, bool)]  # by a path from the inputs
    for link in linked:
        reached.append(reached[-1] @ link)
    read = [np.ones(linked[-1].shape[1], bool)]  # by a path to the outputs
    for link in reversed(linked):
        read.insert(0, link @ read[0])
    if not (reached[-1] & read[-1]).any():
        raise ValueError(
            "no path of nonzero weights leads from the inputs to the outputs: the smallest product "
            "of norms is 0"
        )
    for layer, is_reached, is_read in zip(chain[:-1], reached[1:-1], read[1:-1], strict=True):
        if layer.bias is None:
            continue
        bias = np.asarray(leaves[layer.bias]).reshape(-1)
        # After ReLU, a unit whose inputs are 0 and whose bias is negative is always 0.
        is_constant = bias != 0 if is_traced else bias > 0
        constant = np.flatnonzero(~is_reached & is_read & is_constant)
        if constant.size:
            raise ValueError(
                f"unit {constant[0]} of layer {layer.path!r} has a "
                f"{'' if is_traced else 'positive '}bias but no path of weights from the inputs: "
                "no rescaling minimizes the product of norms"
            )
    units = [np.flatnonzero(a & b) for a, b in zip(reached, read, strict=True)]
    units[-1] = np.arange(reached[-1].size)  # an output without weights keeps its bias
    return units


def _minimize(powers: Sequence[np.ndarray], p: float) -> list[np.ndarray]:
    """Return the units' log scales at the minimum, before the first layer and after each layer.

    Fix all scales except those of one layer's units, and let a_j and b_j be the units' incoming and
    outgoing powers. By the Cauchy-Schwarz inequality, the product of the two norms has its minimum
    `(sum_j a_j e^(p u_j)) (sum_j b_j e^(-p u_j)) = (sum_j sqrt(a_j b_j))^2` at
    `u_j = log(b_j / a_j) / (2p)`. Sweeps over the layers converge, because the problem is convex.

    Args:
      powers: per layer, [previous units, units], log of the sums of `|w|^p`; every unit has finite
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
            new -= new.mean()  # a common factor of the layer does not change the product
            change = max(change, np.abs(new - scales[k]).max())
            scales[k] = new
        if change <= _TOLERANCE:
            break
    else:
        raise ValueError(
            f"the scales did not converge in {_MAX_SWEEPS} sweeps; they still change by {change:g}"
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
    """Return `leaf * exp(shifts)` with the dtype and array type of the leaf."""
    values = np.asarray(leaf)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        rescaled = (values.astype(np.float64) * np.exp(shifts)).astype(values.dtype)
    if not np.isfinite(rescaled.astype(np.float64)).all():
        raise ValueError(f"layer {path!r} has balanced weights too large for {values.dtype}")
    return jnp.asarray(rescaled) if isinstance(leaf, jax.Array) else rescaled
