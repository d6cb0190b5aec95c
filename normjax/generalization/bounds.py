"""The terms of the paper's eq. 4 for networks whose layers have Frobenius norm 1.

    |E(f) - E_S(f)| <= 2 R_N(F) + confidence term

with probability 1 - delta, for all f in the class. The term depends on which R_N is meant
(`confidence_term`). R_N has upper bounds and a Monte Carlo lower estimate (`rademacher`). The class
consists of chains of convolutions and dense layers with ReLU between them; each layer's kernel (in
the first layer, kernel and bias) has Frobenius norm at most 1, as after `normalize_params`. All
terms are in nats of cross entropy, the loss of E and E_S.

The theorems apply to matrices. A convolution is the matrix that multiplies the flattened input; it
contains the kernel once per output position. Its Frobenius norm is at most the square root of the
number of positions. Its spectral norm is at most the square root of the window size, because each
input is read at most that many times. docs/bounds.md derives the constants, and
docs/related_work.md says where the cited theorems were seen.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from normjax.generalization.rademacher import check_first_bias_only
from normjax.structure import NetworkStructure

LOSS_LIPSCHITZ = math.sqrt(2)
"""Lipschitz constant of the cross entropy in the Euclidean norm of the logits."""

MAURER = math.sqrt(2)
"""Maurer 2016, vector contraction: the factor for one sign per logit instead of one per loss."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerShape:
    """The shape of a layer, as the bounds use it.

    Attributes:
      window: number of kernel points; 1 for a dense layer.
      positions: number of output positions; 1 for a dense layer.
      width: number of output channels.
      reads: number of positions of the previous layer that one output reads; all for a dense layer.
    """

    window: int
    positions: int
    width: int
    reads: int

    @property
    def spectral_norm(self) -> float:
        """Return an upper bound on the spectral norm of the layer's matrix."""
        return math.sqrt(min(self.window, self.positions))


@dataclasses.dataclass(frozen=True)
class NetworkClass:
    """The networks of one architecture whose layers have Frobenius norm at most 1.

    Attributes:
      layers: the layers in order of application.
      num_inputs: size of one input.
      has_bias: whether the first layer has a bias.
    """

    layers: tuple[LayerShape, ...]
    num_inputs: int
    has_bias: bool

    @property
    def num_classes(self) -> int:
        """Return K."""
        return self.layers[-1].width


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputNorms:
    """Euclidean norms of N inputs.

    Attributes:
      num_examples: N.
      total: `sqrt(sum_i ||x_i||^2)`.
      patch: the same for the window that one first-layer output reads, maximized over positions.
    """

    num_examples: int
    total: float
    patch: float


def confidence_term(
    num_examples: int, delta: float, bound_on_loss: float = 1.0, *, empirical: bool = False
) -> float:
    """Return what eq. 4 adds to 2 R_N, in units of the loss.

    This is `c sqrt(ln(2/delta) / (2N))` with the expected R_N: McDiarmid's inequality for each sign
    of the gap, at delta/2. With the empirical R_N, which can be computed, it is
    `3 c sqrt(ln(4/delta) / (2N))`, both signs of the one-sided theorem 3.3 of Mohri, Rostamizadeh
    and Talwalkar 2018 ("Foundations of Machine Learning"). The paper prints
    `sqrt(ln(1/delta) / (2N))`, which does not suffice for the R_N of `rademacher`.

    Args:
      num_examples: N.
      delta: probability that the bound fails.
      bound_on_loss: c, the length of an interval that contains all losses of the class.
      empirical: whether R_N is that of the sample instead of its expectation.

    Raises:
      ValueError: N < 1, delta outside (0, 1), or a negative c.
    """
    if num_examples < 1:
        raise ValueError(f"num_examples is {num_examples}; at least 1 is needed")
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}; it must lie between 0 and 1")
    if not 0 <= bound_on_loss < math.inf:
        raise ValueError(f"bound_on_loss is {bound_on_loss}; it must not be negative")
    factor, num_events = (3, 4) if empirical else (1, 2)
    deviation = math.sqrt(math.log(num_events / delta) / (2 * num_examples))
    return factor * bound_on_loss * deviation


def network_class(
    structure: NetworkStructure, positions: Sequence[int], num_inputs: int
) -> NetworkClass:
    """Return the class of a normalized network.

    Args:
      structure: the structure of the network.
      positions: output positions of each layer, in order of application; 1 for a dense layer.
      num_inputs: size of one input.

    Raises:
      ValueError: a later layer has a bias (no norm bounds it), the layers are not a chain of dense
        layers and convolutions, or `positions` do not match.
    """
    check_first_bias_only(structure)
    found = structure.matrices
    reads = [layer.reads.layer if layer.reads else -1 for layer in found]
    if structure.is_traced and reads != [None, *range(len(found) - 1)]:
        raise ValueError("the layers are not a chain, of which the bounds are")
    if len(positions) != len(found) or min(positions) < 1:
        raise ValueError(f"positions {list(positions)} do not fit the {len(found)} layers")
    shapes = []
    for layer, count in zip(found, positions, strict=True):
        if layer.layout is None or layer.layout.groups != 1:
            raise ValueError(f"layer {layer.path!r} is neither dense nor a plain convolution")
        shape = structure.leaves[layer.kernel.number][1]
        window = [shape[axis] for axis in layer.layout.window]
        width = math.prod(shape[axis] for axis in layer.layout.outputs)
        before = shapes[-1].positions if shapes else 1
        reads = math.prod(window) if window else before
        shapes.append(
            LayerShape(window=math.prod(window), positions=count, width=width, reads=reads)
        )
    return NetworkClass(tuple(shapes), num_inputs, found[0].is_joint)


def input_norms(inputs: np.ndarray, window: Sequence[int] = ()) -> InputNorms:
    """Return the norms of the inputs and of the windows that the first convolution reads.

    Args:
      inputs: float [N, ...]; [N, H, W, C] with a window.
      window: height and width of the first layer's kernel; empty for a dense layer.

    Raises:
      ValueError: no inputs, or a window that is too large.
    """
    x = np.asarray(inputs, np.float32)
    if not x.size:
        raise ValueError("there are no inputs")
    squares = np.einsum("i...,i...->...", x, x, dtype=np.float64)
    total = math.sqrt(squares.sum())
    if not window:
        return InputNorms(num_examples=len(x), total=total, patch=total)
    if x.ndim != 4 or len(window) != 2 or np.any(np.array(window) > x.shape[1:3]):
        raise ValueError(f"a window {tuple(window)} does not fit inputs of shape {x.shape}")
    windows = np.lib.stride_tricks.sliding_window_view(squares.sum(axis=-1), tuple(window))
    patch = math.sqrt(windows.sum(axis=(-2, -1)).max())
    return InputNorms(num_examples=len(x), total=total, patch=patch)


def neyshabur_bound(networks: NetworkClass, norms: InputNorms) -> float:
    """Bound R_N of one logit: Neyshabur, Tomioka and Srebro 2015, corollary 2 with p = q = 2.

    `R_N <= 2^(d-1) prod_k M_k sqrt(sum_i ||x_i||^2) / N` for d layers whose matrices have Frobenius
    norm at most M_k: the complexity of linear functions times 2 per hidden layer. A bias in the
    first layer is an additional input that is always 1. The corollary's number is from Graf et al.
    2022.
    """
    return 2 ** (len(networks.layers) - 1) * _frobenius_term(networks, norms)


def golowich_bound(networks: NetworkClass, norms: InputNorms) -> float:
    """Bound R_N of one logit: Golowich, Rakhlin and Shamir 2018, theorem 1.

    `R_N <= (sqrt(2 ln(2) d) + 1) prod_k M_k sqrt(sum_i ||x_i||^2) / N`, in the notation of
    `neyshabur_bound`.
    """
    depth = len(networks.layers)
    return (math.sqrt(2 * math.log(2) * depth) + 1) * _frobenius_term(networks, norms)


def convolutional_bound(networks: NetworkClass, norms: InputNorms) -> float:
    """Bound R_N of one logit by kernels instead of matrices, with the argument of Golowich et al.

    `R_N <= (sqrt(2 (d ln 2 + ln P_1)) + 1) sqrt(prod_{k>1} reads_k) max_p sqrt(sum_i ||x_ip||^2)
    / N` with P_1 first-layer positions, which read the windows x_ip, and reads_k positions read by
    one output of layer k. Each step peels off a layer: the sum over the positions that are read is
    at most their number times the largest term, and the supremum is then also taken over that
    position, until only the windows of the input remain. After Galanti, Xu, Galanti and Poggio 2023
    ("Norm-based generalization bounds for compositionally sparse neural networks"); docs/bounds.md
    derives the constants.
    """
    depth, positions = len(networks.layers), networks.layers[0].positions
    constant = math.sqrt(2 * (depth * math.log(2) + math.log(positions))) + 1
    reads = math.prod(layer.reads for layer in networks.layers[1:])
    patch = math.hypot(norms.patch, math.sqrt(norms.num_examples * networks.has_bias))
    return constant * math.sqrt(reads) * patch / norms.num_examples


def loss_complexity(logit_bound: float, networks: NetworkClass, norms: InputNorms) -> float:
    """Bound R_N of the cross entropies, given a bound R on R_N of one logit.

    The cross entropy is sqrt(2)-Lipschitz in the logits. By Maurer's vector contraction (2016), its
    R_N is at most `sqrt(2) sqrt(2)` times the R_N of vectors of K logits with one sign per logit.
    The latter is at most `sqrt(K) sqrt(R^2 + V^2)`: with rows w_k of the last layer and Z_k the
    supremum over one row of unit length, `sum_k ||w_k|| Z_k <= sqrt(sum_k Z_k^2)`, and the variance
    of Z_k is at most `V^2 = sum_i max |f(x_i)|^2 / N^2` (Efron and Stein).
    """
    deviation = largest_outputs(networks, norms) / norms.num_examples
    vectors = math.sqrt(networks.num_classes) * math.hypot(logit_bound, deviation)
    return LOSS_LIPSCHITZ * MAURER * vectors


def bartlett_bound(networks: NetworkClass, norms: InputNorms) -> float:
    """Bound R_N of the cross entropies: Bartlett, Foster and Telgarsky 2017, theorem 3.3.

    `R_N <= inf_a 4 a / sqrt(N) + (12 / N) integral_a^D sqrt(C) / e de`, where
    `C = 2 ||X||_F^2 ln(2 W^2) prod_k s_k^2 (sum_k (b_k / s_k)^(2/3))^3` bounds e^2 times the
    logarithm of the covering number. The matrices have spectral norm s_k, sum b_k of row lengths,
    and largest side W. The factor 2 is the squared Lipschitz constant of the loss. D is the largest
    root of the sum of squared excess losses. The infimum is at `a = 3 sqrt(C / N)` or D.
    """
    sides = [networks.num_inputs + networks.has_bias]
    ratios = []
    for layer in networks.layers:
        sides.append(layer.positions * layer.width)
        rows = layer.positions * math.sqrt(layer.width)
        ratios.append((rows / layer.spectral_norm) ** (2 / 3))
    largest = LOSS_LIPSCHITZ * largest_outputs(networks, norms)
    root_c = largest * math.sqrt(math.log(2 * max(sides) ** 2) * sum(ratios) ** 3)
    num = norms.num_examples
    a = min(3 * root_c / math.sqrt(num), largest)
    return 4 * a / math.sqrt(num) + 12 / num * root_c * math.log(largest / a)


def loss_bounds(networks: NetworkClass, norms: InputNorms) -> dict[str, float]:
    """Return bounds on R_N of the cross entropies in nats, {authors of the theorem: bound}.

    For linear f (a single layer), `neyshabur_bound` is the paper's `X W / sqrt(N)`.
    """
    of_logits = {
        "Neyshabur et al. 2015": neyshabur_bound,
        "Golowich et al. 2018": golowich_bound,
        "after Galanti et al. 2023": convolutional_bound,
    }
    found = {"Bartlett et al. 2017": bartlett_bound(networks, norms)}
    for name, bound in of_logits.items():
        found[name] = loss_complexity(bound(networks, norms), networks, norms)
    return found


def largest_outputs(networks: NetworkClass, norms: InputNorms) -> float:
    """Return an upper bound on `sqrt(sum_i ||f(x_i)||^2)` over the class, by spectral norms.

    A bias b in the first layer is an input a with weight b / a. With
    `a^2 = max(1, positions / window)`, the bound on the spectral norm is the same as without bias.
    """
    first = networks.layers[0]
    constant = networks.has_bias * max(1.0, first.positions / first.window)
    lipschitz = math.prod(layer.spectral_norm for layer in networks.layers)
    return lipschitz * math.hypot(norms.total, math.sqrt(norms.num_examples * constant))


def loss_range(networks: NetworkClass) -> float:
    """Return the length in nats of an interval that contains all losses of the class.

    Losses lie between 0 and ln K + sqrt(2) max ||f(x)||, for inputs with values in [-1, 1].
    """
    total = math.sqrt(networks.num_inputs)
    any_input = InputNorms(num_examples=1, total=total, patch=total)
    largest = largest_outputs(networks, any_input)
    return math.log(networks.num_classes) + LOSS_LIPSCHITZ * largest


def _frobenius_term(networks: NetworkClass, norms: InputNorms) -> float:
    """Return `prod_k M_k sqrt(sum_i ||x_i||^2) / N`, with a first-layer bias as an input of 1."""
    product = math.sqrt(math.prod(layer.positions for layer in networks.layers))
    total = math.hypot(norms.total, math.sqrt(norms.num_examples * networks.has_bias))
    return product * total / norms.num_examples
