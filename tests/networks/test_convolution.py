"""`conv2d` against the sum over the kernel's taps, in numpy float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

from normjax.networks.algorithms import ALGORITHMS
from normjax.networks.convolution import conv2d, conv_general_dilated

# The norm of the error over the norm of the result. The transforms of Toom-Cook lose a little more
# than a sum of products in float32 does.
RELATIVE_ERROR = {"toom_cook": 5e-6, "patches": 1e-6}

# kernel, strides, padding, image, channels in and out, images, algorithm
CASES = [
    ((5, 5), (1, 1), "VALID", (28, 28), 24, 24, 4, "toom_cook"),  # the paper's second layer
    ((5, 5), (1, 1), "VALID", (32, 32), 3, 24, 2, "patches"),  # and its first
    ((3, 3), (1, 1), "SAME", (11, 14), 9, 8, 12, "toom_cook"),  # last tiles reach over the edge
    ((4, 5), (1, 1), "SAME", (13, 9), 8, 10, 8, "toom_cook"),
    ((2, 7), (1, 1), "VALID", (17, 18), 8, 8, 8, "toom_cook"),  # tiles overlap more than once
    ((5, 3), (1, 1), "VALID", (5, 3), 8, 8, 70, "patches"),  # the image is as large as the kernel
    ((3, 3), (2, 2), "SAME", (9, 8), 4, 5, 3, "patches"),
    ((5, 4), (2, 1), "VALID", (12, 7), 2, 3, 2, "patches"),
    ((1, 1), (1, 1), "VALID", (4, 3), 8, 8, 16, "patches"),
    ((3, 2), (3, 2), "SAME", (2, 3), 1, 2, 1, "patches"),  # smaller than the kernel
]


def random_arrays(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def relative_error(actual, expected):
    assert actual.shape == expected.shape
    return np.linalg.norm(np.float64(actual) - expected) / np.linalg.norm(expected)


def values_and_gradients_float64(x, kernel, dy_seed, strides, padding):
    """Output, its cotangent dy, and the gradients of sum(dy * y), summed over the kernel's taps.

    "SAME" puts the odd zero at the end, as TensorFlow and XLA do.
    """
    x, kernel = np.float64(x), np.float64(kernel)
    pads = [(0, 0)] * 4
    if padding == "SAME":
        for axis, stride in enumerate(strides):
            size, window = x.shape[axis + 1], kernel.shape[axis]
            total = max((-(-size // stride) - 1) * stride + window - size, 0)
            pads[axis + 1] = (total // 2, total - total // 2)
    padded = np.pad(x, pads)
    h, w = ((padded.shape[k + 1] - kernel.shape[k]) // strides[k] + 1 for k in range(2))

    def taps():
        for i, j in np.ndindex(kernel.shape[:2]):
            rows = slice(i, i + strides[0] * (h - 1) + 1, strides[0])
            cols = slice(j, j + strides[1] * (w - 1) + 1, strides[1])
            yield (i, j), (slice(None), rows, cols)

    y = sum(padded[seen] @ kernel[tap] for tap, seen in taps())
    (dy,) = random_arrays(dy_seed, y.shape)
    dpadded, dkernel = np.zeros_like(padded), np.zeros_like(kernel)
    for tap, seen in taps():
        dpadded[seen] += np.float64(dy) @ kernel[tap].T
        dkernel[tap] = np.einsum("nhwi,nhwo->io", padded[seen], np.float64(dy))
    inside = tuple(slice(low, low + size) for (low, _), size in zip(pads, x.shape, strict=True))
    return y, dy, dpadded[inside], dkernel


@pytest.mark.parametrize(
    ("kernel_size", "strides", "padding", "image", "cin", "cout", "images", "algorithm"), CASES
)
def test_values_and_gradients(kernel_size, strides, padding, image, cin, cout, images, algorithm):
    x, kernel = random_arrays(0, (images, *image, cin), (*kernel_size, cin, cout))
    expected_y, dy, *expected_gradients = values_and_gradients_float64(
        x, kernel, 1, strides, padding
    )
    conv = functools.partial(conv2d, strides=strides, padding=padding)

    @jax.jit
    def values_and_gradients(x, kernel, dy):
        y, vjp = jax.vjp(conv, x, kernel)
        return y, *vjp(dy)

    bound = RELATIVE_ERROR[algorithm]
    actual = values_and_gradients(x, kernel, dy)
    for result, expected in zip(actual, (expected_y, *expected_gradients), strict=True):
        assert result.dtype == jnp.float32
        assert relative_error(result, expected) < bound
    is_toom_cook = "conv_by_toom_cook" in str(jax.make_jaxpr(conv)(x, kernel))
    assert is_toom_cook == (algorithm == "toom_cook")


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "platform"])
@pytest.mark.parametrize("case", [CASES[i] for i in (2, 6, 7, 9)], ids=str)
def test_every_algorithm_side_by_side(algorithm, case):
    """Two networks under `vmap`, with images of their own and with shared ones."""
    kernel_size, strides, padding, image, cin, cout, images, _ = case
    x, kernel = random_arrays(8, (2, images, *image, cin), (2, *kernel_size, cin, cout))
    how = {"strides": strides, "padding": padding}
    own = [values_and_gradients_float64(x[i], kernel[i], 9, *how.values()) for i in range(2)]
    shared = values_and_gradients_float64(x[0], kernel[1], 9, *how.values())
    dy = np.stack([result[1] for result in own]).astype(np.float32)

    def values_and_gradients(x, kernel, dy):
        y, vjp = jax.vjp(functools.partial(conv2d, algorithm=algorithm, **how), x, kernel)
        return y, *vjp(dy)

    @jax.jit
    def both(x, kernel, dy):
        one, many = values_and_gradients, (0, 0, 0)
        return jax.vmap(one, many)(x, kernel, dy), jax.vmap(one, (None, 0, 0))(x[0], kernel, dy)

    actual_own, actual_shared = both(x, kernel, dy)
    for k, actual in enumerate(actual_own):
        for i in range(2):
            expected = (own[i][0], *own[i][2:])[k]
            assert relative_error(actual[i], expected) < 5e-6
    for actual, expected in zip(actual_shared, (shared[0], *shared[2:]), strict=True):
        assert relative_error(actual[1], expected) < 5e-6


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    kernel_size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.sampled_from(["VALID", "SAME"]),
    extra=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    channels=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    images=st.sampled_from([1, 16]),
)
def test_values_of_any_shape(kernel_size, strides, padding, extra, channels, images):
    image = tuple(np.add(kernel_size, extra))
    x, kernel = random_arrays(2, (images, *image, channels[0]), (*kernel_size, *channels))
    expected, *_ = values_and_gradients_float64(x, kernel, 3, strides, padding)
    actual = conv2d(x, kernel, strides=strides, padding=padding)
    assert relative_error(actual, expected) < 5e-6


def sum_of_squares(kernel, x):
    return jnp.sum(conv2d(x, kernel) ** 2)


@pytest.mark.parametrize("cin", [3, 8], ids=["patches", "toom_cook"])
def test_vmap_and_scan(cin):
    """Members with shared and with own images, and microbatches, are what each gives alone."""
    x, kernel = random_arrays(3, (2, 16, 12, 12, cin), (2, 5, 5, cin, 8))
    grads = jax.jit(jax.grad(sum_of_squares, argnums=(0, 1)))
    alone = [grads(kernel[i], x[j]) for i, j in ((0, 0), (1, 1), (1, 0))]

    own = jax.jit(jax.vmap(grads))(kernel, x)
    shared = jax.jit(jax.vmap(grads, in_axes=(0, None)))(kernel, x[0])
    _, scanned = jax.lax.scan(lambda carry, each: (carry, grads(*each)), None, (kernel, x))

    for leaf in range(2):
        # Sums of squares in other orders: float32, relative to the largest entry.
        close = functools.partial(
            np.testing.assert_allclose, rtol=0, atol=1e-5 * np.abs(alone[0][leaf]).max()
        )
        close(own[leaf][0], alone[0][leaf])
        close(own[leaf][1], alone[1][leaf])
        close(shared[leaf][0], alone[0][leaf])
        close(shared[leaf][1], alone[2][leaf])
        close(scanned[leaf][0], alone[0][leaf])
        close(scanned[leaf][1], alone[1][leaf])


@pytest.mark.parametrize("cin", [3, 8], ids=["patches", "toom_cook"])
def test_float64(cin):
    """Nothing on the way is rounded to float32."""
    x, kernel = random_arrays(4, (16, 12, 12, cin), (5, 5, cin, 8))
    expected_y, dy, *expected_gradients = values_and_gradients_float64(
        x, kernel, 5, (1, 1), "VALID"
    )
    with jax.enable_x64(True):
        y, vjp = jax.vjp(conv2d, *(jnp.asarray(a, jnp.float64) for a in (x, kernel)))
        actual = y, *vjp(jnp.asarray(dy, jnp.float64))
        for result, expected in zip(actual, (expected_y, *expected_gradients), strict=True):
            assert relative_error(result, expected) < 2e-14


def test_bfloat16_has_the_error_of_its_own_rounding():
    x, kernel = random_arrays(6, (16, 12, 12, 8), (5, 5, 8, 8))
    expected, *_ = values_and_gradients_float64(x, kernel, 7, (1, 1), "VALID")
    y = conv2d(jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert relative_error(np.float32(y), expected) < 2**-7


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_to_an_ordinary_convolution_elsewhere(platform):
    x, kernel = (jax.ShapeDtypeStruct(s, "float32") for s in ((16, 12, 12, 8), (5, 5, 8, 8)))
    gradients = jax.jit(jax.grad(sum_of_squares, argnums=(0, 1)))
    module = export.export(gradients, platforms=[platform])(kernel, x).mlir_module()
    assert module.count("stablehlo.convolution") == 3
    assert "dot_general" not in module


IMAGES_LAST = ("CHWN", "IHWO", "CHWN")


@pytest.mark.parametrize(
    ("is_fast", "options"),
    [
        (True, {"padding": "SAME"}),
        (True, {"padding": "VALID", "window_strides": (2, 1)}),
        (True, {"padding": "SAME_LOWER", "lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}),
        (True, {"padding": [(0, 3), (2, 1)]}),
        (False, {"padding": [(-1, 3), (2, 1)]}),
        (False, {"padding": "SAME", "rhs_dilation": (2, 1)}),
        (False, {"padding": [(0, 0), (1, 1)], "lhs_dilation": (1, 2)}),
        (True, {"padding": "same", "window_strides": np.array([1, 2])}),
        (False, {"padding": "SAME", "precision": "highest"}),
        (False, {"padding": "SAME", "precision": ["highest", "highest"]}),
        (False, {"padding": "SAME", "preferred_element_type": jnp.float32}),
        (False, {"padding": "SAME", "dimension_numbers": IMAGES_LAST}),
        (False, {"padding": "SAME", "dimension_numbers": None}),
        (False, {"padding": "SAME", "feature_group_count": 3}),
        (False, {"padding": "VALID", "batch_group_count": 2}),
    ],
    ids=str,
)
def test_conv_general_dilated_is_that_of_jax(is_fast, options):
    options = {
        "window_strides": (1, 1),
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
        **options,
    }
    shapes = {None: ((2, 3, 8, 7), (4, 3, 3, 2)), IMAGES_LAST: ((3, 8, 7, 2), (3, 3, 2, 4))}
    shape, window = shapes.get(options["dimension_numbers"], ((2, 8, 7, 3), (3, 2, 3, 6)))
    if "feature_group_count" in options:
        window = (3, 2, 1, 6)
    check_against_jax(is_fast, options, *random_arrays(5, shape, window))


def check_against_jax(is_fast, options, x, kernel):
    """The value and the gradients, and whether the convolution is ours."""

    def sum_of_squares(conv):
        return lambda x, kernel: jnp.sum(conv(x, kernel, **options) ** 2)

    for wrap in (lambda f: f, jax.jit):
        ours, theirs = (
            wrap(jax.value_and_grad(sum_of_squares(conv), (0, 1)))(x, kernel)
            for conv in (conv_general_dilated, jax.lax.conv_general_dilated)
        )
        for value, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert relative_error(value, np.float64(expected)) < RELATIVE_ERROR["toom_cook"]
    program = str(jax.make_jaxpr(lambda *args: conv_general_dilated(*args, **options))(x, kernel))
    assert ("custom_vjp" in program) == is_fast


def test_conv_general_dilated_by_toom_cook_and_in_one_dimension():
    options = {"window_strides": (1, 1), "padding": "SAME"}
    options["dimension_numbers"] = ("NHWC", "HWIO", "NHWC")
    check_against_jax(True, options, *random_arrays(8, (16, 12, 12, 8), (3, 3, 8, 8)))
    options = {
        "window_strides": (1,),
        "padding": "SAME",
        "dimension_numbers": ("NWC", "WIO", "NWC"),
    }
    check_against_jax(False, options, *random_arrays(6, (2, 9, 3), (4, 3, 5)))


@pytest.mark.parametrize(
    ("x", "kernel"),
    [
        (np.ones((2, 6, 6, 3), np.int32), np.ones((3, 3, 3, 2), np.int32)),
        (np.ones((0, 6, 6, 3), np.float32), np.ones((3, 3, 3, 2), np.float32)),
        (np.ones((1, 2, 2, 3), np.float32), np.ones((5, 5, 3, 2), np.float32)),
    ],
    ids=["integers", "empty", "small image"],
)
def test_what_conv2d_refuses_is_left_to_jax(x, kernel):
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    ours, theirs = (
        conv(x, kernel, (1, 1), "VALID", **options)
        for conv in (conv_general_dilated, jax.lax.conv_general_dilated)
    )
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": [(1.5, 1), (1, 1)]},
        {"padding": [(1, 1)]},
        {"rhs_dilation": ()},
        {"precisoin": None},
        {"rhs": jnp.ones((3, 3, 3, 4), jnp.bfloat16)},
    ],
    ids=str,
)
def test_what_jax_refuses_is_refused(options):
    options = {
        "lhs": jnp.ones((1, 6, 6, 3)),
        "rhs": jnp.ones((3, 3, 3, 4)),
        "window_strides": (1, 1),
        "padding": "SAME",
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
        **options,
    }
    for conv in (jax.lax.conv_general_dilated, conv_general_dilated):
        with pytest.raises((TypeError, ValueError)):
            conv(**options)


def test_forward_mode_is_refused_and_a_symbolic_batch_is_exported():
    x, kernel = random_arrays(9, (2, 6, 6, 8), (3, 3, 8, 8))
    conv = functools.partial(
        conv_general_dilated,
        rhs=kernel,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(conv, (x,), (x,))
    batch = jax.ShapeDtypeStruct(export.symbolic_shape("b, 6, 6, 8"), "float32")
    exported = export.export(jax.jit(conv))(batch)
    np.testing.assert_allclose(exported.call(x), conv(x), rtol=1e-5, atol=1e-5)


def test_bad_shapes_are_those_of_jax():
    x, kernel = random_arrays(7, (1, 6, 6, 2), (3, 3, 3, 4))
    with pytest.raises(ValueError, match="feature dimension"):
        conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


X = jnp.zeros((2, 6, 6, 3))
KERNEL = jnp.zeros((5, 5, 3, 4))


@pytest.mark.parametrize(
    ("x", "kernel", "options", "message"),
    [
        (X[0], KERNEL, {}, r"takes x \[N, H, W, Cin\].*\(6, 6, 3\)"),
        (X[..., :2], KERNEL, {}, r"not \(2, 6, 6, 2\) and \(5, 5, 3, 4\)"),
        (X[:, :4], KERNEL, {}, r"image of \(4, 6\) is smaller than the kernel, \(5, 5\)"),
        (X[:0], KERNEL, {}, "no empty arrays"),
        (X, KERNEL[..., :0], {}, "no empty arrays"),
        (X.astype(jnp.int32), KERNEL.astype(jnp.int32), {}, "floating dtype, not int32 and int32"),
        (X, KERNEL.astype(jnp.bfloat16), {}, "one floating dtype, not float32 and bfloat16"),
        (X, KERNEL, {"padding": "FULL"}, "'VALID' or 'SAME', not 'FULL'"),
        (X, KERNEL, {"strides": (0, 1)}, r"at least 1, not \(0, 1\)"),
        (X, KERNEL, {"strides": (1,)}, r"two strides"),
        (X, KERNEL, {"algorithm": "fft"}, r"'fft': allowed are platform, cpu, xla, xla_loop, "),
    ],
)
def test_bad_input(x, kernel, options, message):
    with pytest.raises(ValueError, match=message):
        conv2d(x, kernel, **options)
