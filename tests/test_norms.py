import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.norms import NamedNorm, make_norm, norm_name, parse_norm, spectral_norm

PS = [1, 1.5, 2, 3, 40.0, jnp.inf]
NORMS = [1, 1.5, 2, jnp.inf, "spectral", lambda leaves: jnp.linalg.norm(leaves["kernel"])]


def layer(shape=(3, 3, 4, 5), seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        "kernel": rng.standard_normal(shape).astype(dtype),
        "bias": rng.standard_normal(shape[-1]).astype(dtype),
    }


def lp(leaves, p):
    """Lp norm in float64."""
    entries = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves.values()])
    return np.linalg.norm(entries, p)


@pytest.mark.parametrize("p", PS)
def test_entrywise_norms_agree_with_numpy(p):
    leaves = layer()
    norm_fn = make_norm(p)
    for part in (leaves, {"kernel": leaves["kernel"]}):
        for value in (norm_fn(part), jax.jit(norm_fn)(part)):
            assert value.shape == () and value.dtype == jnp.float32
            np.testing.assert_allclose(value, lp(part, p), rtol=5e-7)


def test_fro_is_2():
    assert make_norm("fro")(layer()) == make_norm()(layer()) == make_norm(2.0)(layer())


def test_1_and_infinity_are_exact():
    leaves = {"kernel": np.array([[3.0, -7.0], [0.25, 1.0]], np.float32)}
    assert make_norm(1)(leaves) == 11.25
    assert make_norm(jnp.inf)(leaves) == 7


@pytest.mark.parametrize("p", [1, 2, 3, jnp.inf])
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_entrywise_norms_neither_overflow_nor_underflow(p, size):
    leaves = {name: leaf * np.float32(size) for name, leaf in layer().items()}
    norm_fn = make_norm(p)
    np.testing.assert_allclose(norm_fn(leaves), lp(leaves, p), rtol=5e-7)
    # An Lp norm is homogeneous of degree 1, so <gradient, w> is the norm (Euler).
    gradient = jax.grad(norm_fn)(leaves)
    euler = sum(np.vdot(np.float64(gradient[k]), np.float64(leaves[k])) for k in leaves)
    np.testing.assert_allclose(euler, lp(leaves, p), rtol=2e-6)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_gradient_is_the_closed_form(p):
    leaves = layer()
    gradient = jax.grad(make_norm(p))(leaves)
    for name, leaf in leaves.items():
        w = leaf.astype(np.float64)
        expected = np.sign(w) * np.abs(w) ** (p - 1) / lp(leaves, p) ** (p - 1)
        np.testing.assert_allclose(gradient[name], expected, rtol=2e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_a_layer_of_zeros_has_norm_and_gradient_0(norm):
    zeros = jax.tree.map(jnp.zeros_like, layer())
    value, gradient = jax.value_and_grad(make_norm(norm))(zeros)
    assert value == 0
    assert all(np.all(leaf == 0) for leaf in gradient.values())


@pytest.mark.parametrize("norm", NORMS)
def test_nan_is_not_taken_for_a_layer_of_zeros(norm):
    leaves = jax.tree.map(jnp.zeros_like, layer())
    leaves["kernel"] = leaves["kernel"].at[0, 0, 0, 0].set(jnp.nan)
    assert jnp.isnan(make_norm(norm)(leaves))


@pytest.mark.parametrize("norm", [1, "spectral", NORMS[-1]])
def test_scale_divides(norm):
    np.testing.assert_allclose(
        make_norm(norm, scale=100.0)(layer()), make_norm(norm)(layer()) / 100, rtol=2e-7
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("norm", [2, 1, "spectral"])
def test_half_precision_is_computed_in_float32(norm, dtype):
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), layer())
    value = make_norm(norm)(half)
    assert value.dtype == jnp.float32
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), half)
        np.testing.assert_allclose(value, make_norm(norm)(wide), rtol=1e-6)


@pytest.mark.parametrize("norm", [2, 3, "spectral"])
def test_float64_stays(norm):
    with jax.enable_x64(True):
        leaves = layer(dtype=np.float64)
        value = make_norm(norm)(leaves)
        assert value.dtype == jnp.float64
        expected = dense_spectral_norm(leaves, 32) if norm == "spectral" else lp(leaves, norm)
        np.testing.assert_allclose(value, expected, rtol=1e-13)


def test_a_norm_maps_over_stacked_layers():
    members = [layer(seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    for norm in (3, "spectral"):
        np.testing.assert_allclose(
            jax.vmap(make_norm(norm))(stacked), [make_norm(norm)(m) for m in members], rtol=1e-6
        )


def test_a_callable_gets_the_leaves():
    leaves = layer()
    norm_fn = make_norm(lambda parts: jnp.abs(parts["kernel"]).max() + parts["bias"][0] ** 2)
    expected = np.abs(leaves["kernel"]).max() + leaves["bias"][0] ** 2
    np.testing.assert_allclose(norm_fn(leaves), expected, rtol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "2", 0.5, 0, -1, math.nan, None, [2], 2j])
def test_unknown_norms_say_what_is_allowed(norm):
    with pytest.raises(ValueError, match="p >= 1, 'fro', 'spectral' or a function"):
        make_norm(norm)


@pytest.mark.parametrize("scale", [0, -1.0, math.nan, math.inf, "100", None])
def test_scale_must_be_positive(scale):
    with pytest.raises(ValueError, match="scale must be a positive finite number"):
        make_norm(2, scale)


def test_a_callable_must_return_a_scalar():
    with pytest.raises(ValueError, match=r"must return a scalar, not shape \(3, 3, 4, 5\)"):
        make_norm(lambda leaves: leaves["kernel"])(layer())


# The spectral norm, against the matrix of the operator written out entry by entry in float64.


def circular_matrix(kernel, n):
    """Matrix of the circular cross-correlation over a grid of n points a side, float64."""
    *window, inputs, outputs = kernel.shape
    grid = (n,) * len(window)
    matrix = np.zeros((*grid, outputs, *grid, inputs))
    for point in itertools.product(*map(range, grid)):
        for tap in itertools.product(*map(range, window)):
            source = tuple((i + j) % n for i, j in zip(point, tap, strict=True))
            matrix[(*point, slice(None), *source)] += kernel[tap].T
    return matrix.reshape(n ** len(window) * outputs, n ** len(window) * inputs)


def with_bias_channel(leaves):
    """Kernel in which the bias is the weights, at one tap, of one more input channel."""
    kernel = np.asarray(leaves["kernel"], np.float64)
    channel = np.zeros((*kernel.shape[:-2], 1, kernel.shape[-1]))
    channel[(0,) * (kernel.ndim - 2) + (0,)] = leaves["bias"]
    return np.concatenate([kernel, channel], axis=-2)


def dense_spectral_norm(leaves, n):
    """Largest singular value over all n x n frequencies, float64."""
    transformed = np.fft.fft2(with_bias_channel(leaves), s=(n, n), axes=(0, 1))
    return np.linalg.svd(transformed, compute_uv=False).max()


@pytest.mark.parametrize(
    ("shape", "n"),
    [
        ((3, 3, 2, 3), 5),
        ((3, 3, 3, 2), 6),
        ((2, 2, 2, 2), 4),
        ((1, 3, 2, 2), 5),
        ((4, 4, 1, 2), 4),
        ((1, 1, 3, 3), 3),
        ((3, 2, 3), 7),
        ((2, 2, 2, 2, 2), 3),
    ],
)
def test_spectral_norm_is_that_of_the_circular_operator(shape, n):
    leaves = layer(shape)
    kernel = leaves["kernel"].astype(np.float64)
    expected = np.linalg.norm(circular_matrix(kernel, n), 2)
    value = spectral_norm({"kernel": leaves["kernel"]}, input_size=n)
    assert value.shape == () and value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    expected = np.linalg.norm(circular_matrix(with_bias_channel(leaves), n), 2)
    np.testing.assert_allclose(spectral_norm(leaves, input_size=n), expected, rtol=2e-6)


def test_spectral_norm_of_a_dense_layer_is_the_matrix_norm():
    leaves = layer((7, 4))
    kernel = leaves["kernel"].astype(np.float64)
    np.testing.assert_allclose(
        make_norm("spectral")({"kernel": leaves["kernel"]}), np.linalg.norm(kernel, 2), rtol=1e-6
    )
    joint = np.vstack([kernel, leaves["bias"]])
    np.testing.assert_allclose(make_norm("spectral")(leaves), np.linalg.norm(joint, 2), rtol=1e-6)


def test_spectral_norm_is_not_that_of_the_flattened_kernel():
    # A constant 3 x 3 window sums nine equal inputs (norm 9); flattened, its norm would be 3.
    leaves = {"kernel": np.ones((3, 3, 1, 1), np.float32)}
    np.testing.assert_allclose(spectral_norm(leaves), 9, rtol=1e-6)


def test_spectral_norm_bounds_the_convolutions_of_networks():
    kernel, n = layer((3, 3, 2, 3))["kernel"], 6

    def operator_norm(pad, stride):
        size = (n + 2 * pad - 3) // stride + 1
        matrix = np.zeros((size, size, 3, n, n, 2))
        for i, j, k, m in itertools.product(range(size), range(size), range(3), range(3)):
            row, column = i * stride + k - pad, j * stride + m - pad
            if 0 <= row < n and 0 <= column < n:
                matrix[i, j, :, row, column] = kernel[k, m].T
        return np.linalg.norm(matrix.reshape(size**2 * 3, -1), 2)

    def circular(size):
        return float(spectral_norm({"kernel": kernel}, input_size=size))

    assert 0.5 * circular(n) < operator_norm(pad=0, stride=1) <= circular(n)
    assert 0.3 * circular(n) < operator_norm(pad=0, stride=2) <= circular(n)
    assert 0.5 * circular(n + 2) < operator_norm(pad=1, stride=1) <= circular(n + 2)
    # Grids that contain each other's frequencies: the bound only grows towards the plane's.
    rounding = 1 + 1e-6
    assert circular(8) / rounding <= circular(16) <= circular(64) * rounding


def test_spectral_gradient_agrees_with_finite_differences():
    with jax.enable_x64(True):
        leaves = layer((3, 3, 2, 3), dtype=np.float64)
        direction = layer((3, 3, 2, 3), seed=1, dtype=np.float64)
        norm_fn = partial(spectral_norm, input_size=5)

        def along(t):
            return norm_fn({name: leaves[name] + t * direction[name] for name in leaves})

        expected = (along(1e-6) - along(-1e-6)) / 2e-6
        np.testing.assert_allclose(jax.grad(along)(0.0), expected, rtol=1e-7)


def test_a_partial_of_the_spectral_norm_is_a_norm():
    norm_fn = make_norm(partial(spectral_norm, input_size=5))
    leaves = layer((3, 3, 2, 3))
    expected = np.linalg.norm(circular_matrix(with_bias_channel(leaves), 5), 2)
    np.testing.assert_allclose(norm_fn(leaves), expected, rtol=2e-6)


def test_the_window_must_fit_the_grid():
    with pytest.raises(ValueError, match=r"window \(3, 3\) is larger than the grid: input_size=2"):
        spectral_norm(layer(), input_size=2)


# Names.


@pytest.mark.parametrize(
    ("text", "norm", "scale"),
    [
        ("2", 2.0, 1.0),
        ("1", 1.0, 1.0),
        ("1/100", 1.0, 100.0),
        ("inf", np.inf, 1.0),
        ("spectral", "spectral", 1.0),
        ("spectral/2.5", "spectral", 2.5),
        ("3.5", 3.5, 1.0),
    ],
)
def test_norms_are_read_by_name(text, norm, scale):
    assert parse_norm(text) == NamedNorm(text, norm, scale)
    assert parse_norm(f" {text} ").name == text


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("2", ["fro", "2.0", "2/1", "fro/1.0", "2.", "02"]),
        ("1/100", ["1/100.0", "1.0/0100"]),
        ("inf", ["inf/1"]),
        ("spectral/0.5", ["spectral/.5"]),
        ("1.0000001", ["1.00000010"]),
        ("10000000000000000", ["10000000000000000.0"]),
    ],
)
def test_a_norm_has_one_name(name, others):
    assert {parse_norm(text) for text in (name, *others)} == {parse_norm(name)}
    assert parse_norm(name).name == name
    assert parse_norm("1.0000002").name == "1.0000002"  # no digits are dropped


def test_names_in_words():
    assert norm_name(parse_norm("fro").name) == "Frobenius norm"
    assert norm_name("1/100") == "L1 norm / 100"
    assert norm_name("inf") == "L∞ norm"
    assert norm_name("my_norm") == "my_norm"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("l2", "unknown norm 'l2'"),
        ("", "unknown norm ''"),
        ("2/x", "unknown norm '2/x'"),
        ("2/", "unknown norm '2/'"),
        ("0.5", "norm '0.5' has p < 1"),
        ("-inf", "unknown norm '-inf'"),
        ("nan", "unknown norm 'nan'"),
        ("2_0", "unknown norm '2_0'"),
        ("1e400", "unknown norm '1e400'"),
        ("9" * 400, "unknown norm '999"),
        ("1/0", "norm '1/0' has a scale that is not a positive number"),
        ("1/-100", "unknown norm '1/-100'"),
        ("1/nan", "unknown norm '1/nan'"),
        ("1/inf", "norm '1/inf' has a scale"),
    ],
)
def test_bad_norms_say_what_is_allowed(text, message):
    with pytest.raises(ValueError) as caught:
        parse_norm(text)
    assert str(caught.value).startswith(message)
    assert "allowed: spectral, fro, inf, any p >= 1" in str(caught.value)
    assert "\n" not in str(caught.value)
