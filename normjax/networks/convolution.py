"""2D convolutions that are fast for many small networks on a CPU; elsewhere they call XLA.

On a CPU, XLA's convolution of small networks in a loop is about ten times slower than necessary.
There, this module uses a few large matrix products and cheap additions: Toom-Cook tiles
(`toom_cook.py`) or one product with the patches (`patches.py`). Internally, channels are the first
axis and images the last; XLA cancels the transpositions of consecutive layers. `algorithms.py` has
the alternatives for other devices.
"""

import operator

import jax
import jax.numpy as jnp
from jax import lax

from normjax.formatting import plain
from normjax.networks.algorithms import ALGORITHMS, convolve


def conv2d(x, kernel, *, strides=(1, 1), padding="VALID", algorithm="platform"):
    """Convolve in 2D (cross-correlate, as in deep learning libraries).

    Differentiable once, only in reverse mode.

    Args:
      x: images [N, H, W, Cin], floating point.
      kernel: filters [KH, KW, Cin, Cout], of the same dtype.
      strides: strides along H and W, positive.
      padding: "VALID" (none) or "SAME" (zeros; H' = ceil(H / stride)).
      algorithm: a name in `algorithms.ALGORITHMS`; "platform" chooses by the platform of
        compilation: "cpu" on a CPU, "xla" (`jax.lax.conv_general_dilated`) elsewhere.

    Returns:
      [N, H', W', Cout] of the same dtype. In float32, the errors of the result and of the gradients
      are at most about 5e-6, relative to the norm.

    Raises:
      ValueError: invalid shapes, dtypes, strides, padding or algorithm, or an image smaller than
        the kernel.
    """
    pads = check_conv(x, kernel, strides, padding, algorithm)
    return _compiled_conv(x, kernel, tuple(strides), pads, algorithm)


def conv_general_dilated(
    lhs,
    rhs,
    window_strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count=1,
    batch_group_count=1,
    precision=None,
    preferred_element_type=None,
    out_sharding=None,
):
    """Convolve as `jax.lax.conv_general_dilated` does, but fast in small networks on a CPU.

    For the convolutions of your own network. The fast path takes 2D convolutions of images
    [N, H, W, Cin] with kernels [KH, KW, Cin, Cout] of one floating dtype, without dilation, groups,
    negative padding or other options. All others, and all on other devices, are computed by JAX.

    Examples:
      >>> import flax.linen as nn
      >>> import jax
      >>> import normjax
      >>> conv = nn.Conv(8, (3, 3), conv_general_dilated=normjax.conv_general_dilated)
      >>> images = jax.numpy.ones((2, 6, 6, 1))
      >>> conv.init_with_output(jax.random.key(0), images)[0].shape
      (2, 6, 6, 8)

    Args:
      lhs: images.
      rhs: kernels.
      window_strides: as in JAX's function, like all other arguments.
      padding: "SAME", "VALID", "SAME_LOWER" or a pair of integers for each spatial axis.
      lhs_dilation: dilation of the images.
      rhs_dilation: dilation of the kernels.
      dimension_numbers: the layouts, ("NHWC", "HWIO", "NHWC") in Flax.
      feature_group_count: number of groups of channels.
      batch_group_count: number of groups of images.
      precision: precision of the products.
      preferred_element_type: dtype of the sums.
      out_sharding: sharding of the result.

    Returns:
      The convolved images. The fast path has the errors of `conv2d`. What it takes can be
      differentiated in reverse mode only, on every device: `jax.jvp` raises TypeError.
    """
    layouts = [
        lax.conv_dimension_numbers(lhs.shape, rhs.shape, names)
        for names in (dimension_numbers, ("NHWC", "HWIO", "NHWC"))
        if lhs.ndim == rhs.ndim == 4
    ]
    is_plain = (
        len({*layouts}) == 1
        and lhs.shape[3] == rhs.shape[2]  # one group of channels
        and all(each is None or tuple(each) == (1, 1) for each in (lhs_dilation, rhs_dilation))
        and batch_group_count == 1
        and precision is preferred_element_type is out_sharding is None
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and all(isinstance(size, int) and size for size in (*lhs.shape, *rhs.shape))
        and len(window_strides) == 2
        and min(window_strides) >= 1
    )
    pads = _pads(padding, lhs.shape[1:3], rhs.shape[:2], window_strides) if is_plain else None
    if pads:
        return _compiled_conv(lhs, rhs, tuple(map(int, window_strides)), pads, "platform")
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )


def _pads(padding, image, window, strides):
    """Return the padding as ((top, bottom), (left, right)), or None if we cannot use it."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(image, window, strides, padding)
    try:
        (top, bottom), (left, right) = (map(operator.index, pair) for pair in padding)
    except (TypeError, ValueError):
        return None
    fits = image[0] + top + bottom >= window[0] and image[1] + left + right >= window[1]
    return ((top, bottom), (left, right)) if fits and min(top, bottom, left, right) >= 0 else None


_compiled_conv = jax.jit(convolve, static_argnums=(2, 3, 4))  # outside jit: compile once per shape


def check_conv(x, kernel, strides, padding, algorithm="platform"):
    """Return the padding as ((top, bottom), (left, right)).

    Raises:
      ValueError: invalid arguments.
    """
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
        raise ValueError(
            "conv2d takes x [N, H, W, Cin] and a kernel [KH, KW, Cin, Cout], "
            f"not {x.shape} and {kernel.shape}"
        )
    if x.dtype != kernel.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"conv2d takes x and kernel of one floating dtype, not {x.dtype} and {kernel.dtype}"
        )
    if padding not in ("VALID", "SAME"):
        raise ValueError(f"conv2d takes padding 'VALID' or 'SAME', not {padding!r}")
    if len(strides) != 2 or min(strides) < 1:
        raise ValueError(f"conv2d takes two strides of at least 1, not {plain(strides)}")
    if 0 in x.shape or 0 in kernel.shape:
        raise ValueError(f"conv2d takes no empty arrays: {x.shape} and {kernel.shape}")
    if padding == "VALID" and (x.shape[1] < kernel.shape[0] or x.shape[2] < kernel.shape[1]):
        raise ValueError(
            f"conv2d: an image of {x.shape[1:3]} is smaller than the kernel, {kernel.shape[:2]}; "
            "this needs padding 'SAME'"
        )
    if algorithm not in ALGORITHMS:
        raise ValueError(f"conv2d: algorithm {algorithm!r}: allowed are {', '.join(ALGORITHMS)}")
    pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return tuple((int(before), int(after)) for before, after in pads)
