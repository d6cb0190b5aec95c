"""Normalization of layers, `W_k = rho_k * W~_k` with `||W~_k|| = 1` (paper, eq. 2)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from normjax import powers
from normjax.eager import with_norms
from normjax.layers import choose_structure
from normjax.rescaling import find_violation
from normjax.structure import NetworkStructure
from normjax.types import ApplyFn, Array, Norm, Params, at_least_float32


class HomogeneityCheck(NamedTuple):
    """How well a network satisfies eq. 2, `f(W; x) = (prod rho_k) * f(W~; x)`, on given inputs.

    Attributes:
      max_abs_error: largest `|f(W; x) - (prod rho_k) * f(W~; x)|` over examples and classes.
      relative_error: `max_abs_error` divided by the largest `|f(W; x)|`; with float32, rounding
        makes it about 1e-6.
      same_classes: whether both networks predict the same class for every input.
      product_norm: `prod rho_k`.
      layers: paths of the layers in order of application.
      ok: whether scaling the layers by powers of two scales the outputs exactly alike.
      reason: why not, one sentence; empty if `ok`.
    """

    max_abs_error: float
    relative_error: float
    same_classes: bool
    product_norm: float
    layers: tuple[str, ...]
    ok: bool
    reason: str


def param_norms(
    params: Params,
    norm: Norm = 2,
    *,
    scale: float = 1.0,
    layers: Sequence[str] | None = None,
    structure: NetworkStructure | None = None,
    tied: str = "refuse",
) -> dict[str, Array]:
    """Return the norm of each layer, the paper's `rho_k`.

    The first layer's kernel and bias form one matrix `[W_1, b_1]`: the bias multiplies a constant
    input. Later biases are not part of a norm, because they scale with the product of all norms up
    to their layer. Batch normalization in evaluation mode that follows a layer is part of its
    matrix, as `absorb_batch_norm` folds it in.

    Examples:
      >>> import numpy as np
      >>> import normjax
      >>> params = {"Dense_0": {"kernel": np.full((2, 2), 2, np.float32)},
      ...           "Dense_1": {"kernel": np.ones((2, 2), np.float32)}}
      >>> {path: float(norm) for path, norm in normjax.param_norms(params).items()}
      {'Dense_0': 4.0, 'Dense_1': 2.0}

    Args:
      params: the parameters of one network, any pytree that fits `structure`; without a structure,
        nested mappings of `kernel` and `bias` leaves. Use `jax.vmap` for stacked networks.
      norm: see `make_norm`.
      scale: divisor of each norm.
      layers: without a structure, the paths of all layers in order of application, if names do not
        prove the order.
      structure: the result of `trace_structure` for this network. Without it, names and shapes must
        prove the order of the layers (see `find_layers`); they cannot see activations or skips.
      tied: what to do with weights that cannot be scaled on their own, as in residual networks:
        `"refuse"` them, or `"keep"` them as they are and normalize the other layers.

    Returns:
      `{path: norm}` in order of application: float32 scalars (float64 for float64 leaves), NumPy
      scalars if all leaves are NumPy arrays; 0 for a layer of zeros.

    Raises:
      ValueError: the structure is not certified, or does not belong to this tree; outside of
        transformations, a norm is negative, infinite or NaN; see also `find_layers` and
        `make_norm`.
    """
    structure = choose_structure(params, layers, structure, tied)
    values, norms = with_norms(_keep, params, structure, norm, scale)
    _check_norms(values, structure, may_be_zero=True)
    return dict(zip(structure.layers, norms, strict=True))


def product_norm(
    params: Params,
    norm: Norm = 2,
    *,
    scale: float = 1.0,
    layers: Sequence[str] | None = None,
    structure: NetworkStructure | None = None,
    tied: str = "refuse",
) -> Array:
    """Return the product of the layers' norms, `rho_1 * ... * rho_K` (paper, eq. 2 and fig. 9).

    Each norm is raised to the power at which it multiplies the network's output: 1 unless a layer
    is applied several times. Inside `jit`, `vmap` and `grad`, a norm of 0 counts as 1, as in
    `normalize_params`, which keeps eq. 2 exact, and a product that is too large is infinite.

    Examples:
      >>> import numpy as np
      >>> import normjax
      >>> params = {"Dense_0": {"kernel": np.full((2, 2), 2, np.float32)},
      ...           "Dense_1": {"kernel": np.ones((2, 2), np.float32)}}
      >>> float(normjax.product_norm(params, norm=1, scale=4.0))
      2.0

    Args:
      params, norm, scale, layers, structure, tied: see `param_norms`.

    Returns:
      A float32 scalar (float64 for float64 leaves).

    Raises:
      ValueError: outside of transformations, a norm is 0, negative, infinite or NaN, or the product
        is too large or too small for its dtype (use `log_product_norm`); see also `param_norms`.
    """
    structure = choose_structure(params, layers, structure, tied)
    _, product, _ = norm_product(params, norm, scale, structure)
    if not isinstance(product, Tracer):
        info = jnp.finfo(product.dtype)
        if not float(info.tiny) <= product <= float(info.max):
            raise ValueError(
                f"the product of the norms is too {'large' if product > 1 else 'small'} for "
                f"{product.dtype}; log_product_norm gives its logarithm"
            )
    return product


def log_product_norm(
    params: Params,
    norm: Norm = 2,
    *,
    scale: float = 1.0,
    layers: Sequence[str] | None = None,
    structure: NetworkStructure | None = None,
    tied: str = "refuse",
) -> Array:
    """Return the natural logarithm of `product_norm`, which neither overflows nor underflows.

    Examples:
      >>> import numpy as np
      >>> import normjax
      >>> params = {f"Dense_{k}": {"kernel": np.ones((10, 10), np.float32)} for k in range(60)}
      >>> f"10^{normjax.log_product_norm(params, norm=1) / np.log(10):.1f}"
      '10^120.0'

    Args:
      params, norm, scale, layers, structure, tied: see `param_norms`.

    Returns:
      A float32 scalar (float64 for float64 leaves).

    Raises:
      ValueError: outside of transformations, a norm is 0, negative, infinite or NaN; see also
        `param_norms`.
    """
    structure = choose_structure(params, layers, structure, tied)
    return norm_product(params, norm, scale, structure)[2]


def normalize_params(
    params: Params,
    norm: Norm = 2,
    *,
    scale: float = 1.0,
    layers: Sequence[str] | None = None,
    structure: NetworkStructure | None = None,
    tied: str = "refuse",
) -> Params:
    """Divide each layer by its norm: `f(W; x) = (prod rho_k) f(W~; x)` (paper, eq. 2).

    Eq. 2 holds exactly for networks with a certified structure. Kernels and the first bias are
    divided by the norm of their layer, the bias of a later layer k by `rho_1 * ... * rho_k`; a
    structure says what else scales. Without a structure, the network must be a chain of layers
    with positively homogeneous activations (ReLU, leaky ReLU, max and average pooling, identity),
    which names cannot show.

    Inside `jit`, `vmap` and `grad`, a layer of norm 0 is unchanged, with finite gradients. Entries
    too small for their dtype become 0.

    Examples:
      >>> import jax
      >>> import numpy as np
      >>> import normjax
      >>> params = {"kernel": np.ones((2, 2), np.float32)}
      >>> normjax.normalize_params(params)["kernel"].tolist()
      [[0.5, 0.5], [0.5, 0.5]]
      >>> stacked = {"kernel": np.ones((3, 2, 2), np.float32)}  # three networks
      >>> jax.vmap(normjax.normalize_params)(stacked)["kernel"].shape
      (3, 2, 2)

    Args:
      params, norm, scale, layers, structure, tied: see `param_norms`.

    Returns:
      The normalized parameters `W~`: same tree, shapes, dtypes and array types.

    Raises:
      ValueError: outside of transformations, a norm is 0, negative, infinite or NaN, or a bias is
        too large for its dtype after normalization; see also `param_norms`.
    """
    structure = choose_structure(params, layers, structure, tied)
    norms, (divided, is_finite) = with_norms(_divide, params, structure, norm, scale)
    _check_norms(norms, structure)
    leaves, treedef = jax.tree.flatten(params)
    for number, leaf in divided.items():
        leaves[number] = leaf
    if norms is not None and not np.asarray(is_finite).all():
        number = structure.divisors[np.argmin(np.asarray(is_finite))][0].number
        path, dtype = structure.leaves[number][0], leaves[number].dtype
        raise ValueError(f"leaf {path!r}, normalized, is not finite in {dtype}")
    return jax.tree.unflatten(treedef, leaves)


def check_homogeneity(
    apply_fn: ApplyFn,
    params: Params,
    x: Array,
    *,
    norm: Norm = 2,
    scale: float = 1.0,
    layers: Sequence[str] | None = None,
    structure: NetworkStructure | None = None,
    tied: str = "refuse",
) -> HomogeneityCheck:
    """Check eq. 2 of the paper, `f(W; x) = (prod rho_k) f(W~; x)`, on the inputs `x`.

    `ok` is the answer. All layers are scaled several times by powers of two, small and large, and
    the outputs must be the predicted multiples, bit by bit: powers of two are exact in every dtype,
    so there is no tolerance.

    This check runs the network and `trace_structure` reads its computation. They see different
    things:

    - The check tests only the given parameters and inputs. It cannot see what these do not reach,
      such as a threshold that no unit crosses when scaled by 2^30, or a branch that is not taken.
      It refuses to certify where it would be blind: outputs that are not finite, outputs of zero,
      or a bias of zeros, as in an untrained network.
    - The trace covers all parameters and inputs, in exact arithmetic, and finds the layers and
      their order itself. It refuses operations that it does not know, and cannot see Python control
      flow that depends on values, nor rounding and overflow.

    Both networks run at the highest matmul precision.

    Examples:
      >>> import jax
      >>> import numpy as np
      >>> import normjax
      >>> params = {"Dense_0": {"kernel": np.ones((3, 2), np.float32)},
      ...           "Dense_1": {"kernel": np.eye(2, dtype=np.float32)}}
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["Dense_0"]["kernel"]) @ params["Dense_1"]["kernel"]
      >>> check = normjax.check_homogeneity(apply_fn, params, np.ones((1, 3), np.float32))
      >>> check.ok, check.layers, check.relative_error < 1e-6
      (True, ('Dense_0', 'Dense_1'), True)

    Args:
      apply_fn: pure function `(params, x) -> logits [batch, num_classes]`.
      params, norm, scale, layers, structure, tied: see `param_norms`.
      x: inputs `[batch, ...]`.

    Returns:
      The answer and the errors, as Python numbers.

    Raises:
      ValueError: see `product_norm`.
    """
    structure = choose_structure(params, layers, structure, tied)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, x))):
        raise ValueError(
            "check_homogeneity needs concrete arrays: it does not run under jit or vmap"
        )
    how: dict[str, Any] = {"scale": scale, "structure": structure, "tied": tied}
    product = float(product_norm(params, norm, **how))
    normalized = normalize_params(params, norm, **how)
    leaves, treedef = jax.tree.flatten(params)

    def apply(leaves: list[Any]) -> Any:
        with jax.default_matmul_precision("highest"):
            output = apply_fn(jax.tree.unflatten(treedef, leaves), x)
        if not hasattr(output, "shape"):
            raise ValueError(f"apply_fn must return one array, the logits, not {type(output)}")
        return output

    logits, normalized_logits = (
        np.asarray(apply(part)).astype(np.float64) for part in (leaves, jax.tree.leaves(normalized))
    )
    with np.errstate(invalid="ignore"):  # infinite outputs
        max_abs_error = float(np.max(np.abs(logits - product * normalized_logits)))
    largest = float(np.max(np.abs(logits)))
    same_classes = np.argmax(logits, axis=-1) == np.argmax(normalized_logits, axis=-1)
    reason = find_violation(apply, leaves, structure)
    return HomogeneityCheck(
        max_abs_error=max_abs_error,
        relative_error=max_abs_error / largest if largest else max_abs_error,
        same_classes=bool(np.all(same_classes)),
        product_norm=product,
        layers=structure.layers,
        ok=not reason,
        reason=reason,
    )


def norm_product(
    params: Params, norm: Norm, scale: float, structure: NetworkStructure
) -> tuple[powers.Product, Array, Array]:
    """Return the product of the layers' norms as a `Product`, as a number and as a logarithm.

    Raises:
      ValueError: see `log_product_norm`.
    """
    norms, product = with_norms(_multiply, params, structure, norm, scale)
    _check_norms(norms, structure)
    return product


def _keep(leaves: Sequence[Any], norms: Sequence[Array], structure: NetworkStructure) -> Any:
    """Return the norms themselves."""
    return list(norms)


def _multiply(leaves: Sequence[Any], norms: Sequence[Array], structure: NetworkStructure) -> Any:
    """Return the product of the norms as `norm_product` does."""
    degrees = tuple((k, matrix.degree) for k, matrix in enumerate(structure.matrices))
    (product,) = powers.multiply(_without_zeros(norms), [degrees])
    return product, powers.value(product), powers.log(product)


def _divide(
    leaves: Sequence[Any], norms: Sequence[Array], structure: NetworkStructure
) -> tuple[dict[int, Array], Array]:
    """Return the normalized leaves, by number, and whether each divisor's leaf is finite."""
    divisors = _without_zeros(norms)
    several = [exponents for _, exponents in structure.divisors if not _is_own_norm(exponents)]
    products = dict(zip(several, powers.multiply(divisors, several), strict=True))
    kernels = {layer.kernel for layer in structure.matrices}
    divided: dict[int, Array] = {}
    is_finite = []
    for leaf, exponents in structure.divisors:
        whole = divided.get(leaf.number, jnp.asarray(leaves[leaf.number]))
        part = at_least_float32(whole if leaf.part is None else whole[leaf.part])
        if _is_own_norm(exponents):
            part = part / divisors[exponents[0][0]].astype(part.dtype)
        else:
            part = powers.divide(part, products[exponents])
        part = part.astype(whole.dtype)
        # Kernels are as finite as their norms.
        is_finite.append(jnp.bool(True) if leaf in kernels else jnp.isfinite(part).all())
        divided[leaf.number] = part if leaf.part is None else whole.at[leaf.part].set(part)
    return divided, jnp.stack(is_finite)


def _is_own_norm(exponents: powers.Powers) -> bool:
    """Return whether a leaf scales with one layer alone, as its kernel does."""
    return len(exponents) == 1 and exponents[0][1] == 1


def _without_zeros(norms: Sequence[Array]) -> list[Array]:
    """Replace norms of 0 with 1."""
    return [jnp.where(rho == 0, 1, rho) for rho in norms]


def _check_norms(
    norms: np.ndarray | None, structure: NetworkStructure, may_be_zero: bool = False
) -> None:
    """Raise unless all norms are positive and finite; traced norms pass."""
    if norms is None:
        return
    for path, rho in zip(structure.layers, norms.tolist(), strict=True):
        if not 0 < rho < np.inf and not (rho == 0 and may_be_zero):
            raise ValueError(f"layer {path!r} has norm {rho:.6g}: it cannot be normalized")
