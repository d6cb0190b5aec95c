import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normjax
from normjax.losses import (
    classification_error,
    cross_entropy,
    excess_cross_entropy,
    margins,
    monitor,
)
from tests.helpers.networks import Convnet5, mlp_params, trained_like_convnet5

pytestmark = pytest.mark.numerics

LOSSES = [cross_entropy, excess_cross_entropy]


def batch(num_classes=10, scale=1.0, num_examples=2000, seed=0):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((num_examples, num_classes))).astype(np.float32)
    return logits, rng.integers(0, num_classes, num_examples).astype(np.int32)


def exact_differences(logits, labels):
    """z_j - z_y for the same float32 logits, in extended precision."""
    wide = logits.astype(np.longdouble)
    return wide - np.take_along_axis(wide, labels[:, None], -1)


def exact_cross_entropy(logits, labels):
    """The loss without its largest term's 1, so that tiny losses are exact too."""
    d = exact_differences(logits, labels)
    largest = d.max(-1, keepdims=True)
    terms = np.exp(d - largest)
    np.put_along_axis(terms, d.argmax(-1)[:, None], 0, -1)
    return (largest[:, 0] + np.log1p(terms.sum(-1))).astype(np.float64)


def exact_excess(logits, labels):
    """The definition, log1p(mean_j expm1(z_j - z_y)), in extended precision."""
    d = exact_differences(logits, labels)
    return np.log1p(np.expm1(d).mean(-1)).astype(np.float64)


@pytest.mark.parametrize(
    ("num_classes", "scale"), [(2, 1e-9), (10, 1e-12), (10, 1e-9), (100, 1e-9), (100, 1e-3)]
)
def test_excess_of_small_logits_is_exact_per_example(num_classes, scale):
    logits, labels = batch(num_classes, scale, num_examples=5000)
    expected = exact_excess(logits, labels)
    # Some examples' classes cancel heavily: that is what the compensated sum is for.
    assert num_classes == 2 or np.abs(expected).min() < 1e-3 * np.abs(expected).mean()
    for loss_fn in (excess_cross_entropy, jax.jit(excess_cross_entropy)):
        np.testing.assert_allclose(loss_fn(logits, labels), expected, rtol=2e-6, atol=0)


def test_excess_is_exact_where_the_compiler_sees_the_product_that_made_the_logits():
    logits, labels = batch(100, 1e-9, num_examples=5000)
    temperature = np.float32(0.37)
    fused = jax.jit(lambda z, t, y: excess_cross_entropy(z * t, y))
    expected = exact_excess(logits * temperature, labels)
    np.testing.assert_allclose(fused(logits, temperature, labels), expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("scale", [0.01, 0.1, 0.3, 1.0, 3.0, 30.0])
def test_excess_of_larger_logits(num_classes, scale):
    logits, labels = batch(num_classes, scale)
    expected = exact_cross_entropy(logits, labels) - np.log(num_classes)
    actual = excess_cross_entropy(logits, labels)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_huge_logits_do_not_overflow(loss_fn):
    logits, labels = batch(10, 1e3)
    expected = exact_cross_entropy(logits, labels)
    if loss_fn is excess_cross_entropy:
        expected = expected - np.log(10)
    np.testing.assert_allclose(loss_fn(logits, labels), expected, rtol=5e-6, atol=1e-25)


@pytest.mark.parametrize("scale", [1e-9, 0.1, 1.0, 10.0])
def test_cross_entropy_is_exact_relative_to_itself(scale):
    logits, labels = batch(10, scale)
    expected = exact_cross_entropy(logits, labels)
    for loss_fn in (cross_entropy, jax.jit(cross_entropy)):
        np.testing.assert_allclose(loss_fn(logits, labels), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("lead", [5.0, 20.0, 40.0, 80.0])
def test_tiny_cross_entropies_are_exact_relative_to_themselves(lead):
    logits, labels = batch(10, 1.0)
    logits[np.arange(len(labels)), labels] += np.float32(lead)
    expected = exact_cross_entropy(logits, labels)
    assert expected.max() < 10 * np.exp(8 - lead)
    np.testing.assert_allclose(cross_entropy(logits, labels), expected, rtol=1e-5, atol=0)


def test_equal_logits_give_ln_k_and_no_excess():
    logits, labels = np.full((3, 7), 2.5, np.float32), np.array([0, 3, 6])
    np.testing.assert_allclose(cross_entropy(logits, labels), np.log(7), rtol=1e-7)
    assert np.all(excess_cross_entropy(logits, labels) == 0)


@pytest.mark.parametrize("loss_fn", LOSSES)
@pytest.mark.parametrize("scale", [1e-9, 1.0, 100.0])
def test_gradient_is_softmax_minus_onehot(loss_fn, scale):
    logits, labels = batch(10, scale, num_examples=50)
    wide = logits.astype(np.float64)
    softmax = np.exp(wide - wide.max(-1, keepdims=True))
    softmax /= softmax.sum(-1, keepdims=True)
    expected = softmax - np.eye(10)[labels]
    total = jax.grad(lambda z: loss_fn(z, labels).sum())
    for gradient in (
        total(logits),
        jax.jit(total)(logits),
        jax.vmap(jax.grad(loss_fn))(logits, labels),
    ):
        assert gradient.dtype == jnp.float32
        np.testing.assert_allclose(gradient, expected, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_gradient_of_a_tiny_loss_does_not_cancel(loss_fn):
    gradient = jax.grad(loss_fn)(jnp.array([30.0, 0.0, 0.0]), 0)
    tail = np.exp(-30.0) / (1 + 2 * np.exp(-30.0))
    np.testing.assert_allclose(gradient, [-2 * tail, tail, tail], rtol=5e-6, atol=0)


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_second_derivative_is_the_covariance_of_the_softmax(loss_fn):
    logits = jnp.array([0.3, -1.0, 2.0, 0.5])
    softmax = np.exp(np.float64(logits)) / np.exp(np.float64(logits)).sum()
    expected = np.diag(softmax) - np.outer(softmax, softmax)
    np.testing.assert_allclose(jax.hessian(loss_fn)(logits, 1), expected, rtol=5e-6, atol=1e-8)


def test_float64_logits_give_float64():
    with jax.enable_x64(True):
        logits, labels = batch(10, 1e-6)
        wide = logits.astype(np.float64)
        excess = excess_cross_entropy(wide, labels)
        assert excess.dtype == cross_entropy(wide, labels).dtype == jnp.float64
        np.testing.assert_allclose(excess, exact_excess(logits, labels), rtol=1e-11, atol=0)
        scaled, _ = batch(10, 0.4)
        excess = excess_cross_entropy(scaled.astype(np.float64), labels)
        np.testing.assert_allclose(excess, exact_excess(scaled, labels), rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("loss_fn", LOSSES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(loss_fn, dtype):
    logits, labels = batch(10, 1.0, num_examples=20)
    half = jnp.asarray(logits, dtype)
    values = loss_fn(half, labels)
    assert values.dtype == jnp.float32
    assert np.array_equal(values, loss_fn(half.astype(jnp.float32), labels))
    gradient = jax.grad(lambda z: loss_fn(z, labels).sum())(half)
    assert gradient.dtype == dtype and np.abs(gradient.astype(jnp.float32)).max() > 0.1


def test_cross_entropy_agrees_with_optax():
    logits, labels = batch(10, 2.0)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    np.testing.assert_allclose(cross_entropy(logits, labels), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fn", [*LOSSES, margins, classification_error])
def test_any_leading_shape_and_vmap_agree(fn):
    logits, labels = batch(5, 1.0, num_examples=24)
    expected = fn(logits, labels)
    assert expected.shape == (24,) and expected.dtype == jnp.float32
    assert len(set(np.asarray(expected).tolist())) > 1
    shaped = fn(logits.reshape(2, 3, 4, 5), labels.reshape(2, 3, 4).astype(np.uint8))
    np.testing.assert_allclose(shaped.reshape(-1), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(jax.vmap(fn)(logits, labels), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(fn(logits[0], labels[0]), expected[0], rtol=1e-6, atol=1e-7)


def test_classification_error_counts_ties_by_the_first_and_nan_as_wrong():
    logits = jnp.array([[1.0, 3, 2], [1, 3, 2], [3, 3, 0], [3, 3, 0], [jnp.nan, 0, 1]])
    errors = classification_error(logits, jnp.array([1, 2, 0, 1, 0]))
    assert errors.tolist() == [0, 1, 0, 1, 1]


def test_margins_are_of_the_label_against_the_best_other():
    logits = jnp.array([[1.0, 3, 2], [1, 3, 2], [-1, -4, -9]])
    assert margins(logits, jnp.array([1, 2, 0])).tolist() == [1, -1, 3]


@pytest.mark.parametrize("label", [-1, -100, 3, 255])
@pytest.mark.parametrize("fn", [*LOSSES, margins])
def test_labels_out_of_range_give_nan_and_not_another_class(fn, label):
    values = fn(jnp.array([[1.0, 2, 3], [3, 2, 1]]), jnp.array([label, 1]))
    assert jnp.isnan(values[0]) and jnp.isfinite(values[1])


@pytest.mark.parametrize(
    ("dtype", "outside"),
    [
        (np.int8, (-1, -56, -128)),
        (np.uint8, (200, 201, 255)),
        (np.int16, (200, -200, -(2**15))),
        (np.uint16, (200, 2**15, 2**16 - 1)),
        (np.int32, (200, -200, 2**31 - 1)),
        (np.uint32, (200, 2**32 - 1, 2**32 - 200)),
        (np.int64, (-(2**32), 2**32 + 5, 2**63 - 1)),
        (np.uint64, (200, 2**32, 2**64 - 1)),
    ],
)
@pytest.mark.parametrize("x64", [False, True])
def test_labels_of_no_integer_type_wrap_around(dtype, outside, x64):
    """With 200 classes, which int8 cannot count."""
    logits, inside = batch(200, 1.0, num_examples=4)[0], 100
    with jax.enable_x64(x64):
        labels = np.array([*outside, inside], dtype)
        for given in [labels, *([jnp.asarray(labels)] if x64 or labels.itemsize < 8 else [])]:
            for fn in (*LOSSES, margins):
                values = np.asarray(fn(logits, given))
                assert np.isnan(values[:-1]).all(), fn
                assert values[-1] == fn(logits[-1], np.int32(inside))
            errors = classification_error(logits, given)
            assert (errors[:-1] == 1).all()
            assert errors[-1] == classification_error(logits[-1], np.int32(inside))


@pytest.mark.parametrize("fn", [*LOSSES, margins, classification_error])
@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.ones((4, 3)), np.ones(4), "labels must be integers, not float64"),
        (np.ones((4, 3)), np.ones(4, bool), "labels must be integers, not bool"),
        (np.ones((4, 3), int), np.ones(4, int), "logits must be floating point, not int32"),
        (np.ones((4, 3)), np.ones(3, int), r"labels of shape \(3,\) do not match"),
        (np.ones((4, 3)), np.ones((4, 1), int), r"labels of shape \(4, 1\) do not match"),
        (np.ones((4, 3)), np.ones((), int), r"labels of shape \(\) do not match"),
        (np.ones((4, 1)), np.ones(4, int), r"K >= 2 classes, not \(4, 1\)"),
        (np.ones(()), np.ones((), int), r"K >= 2 classes, not \(\)"),
    ],
)
def test_bad_arguments_are_named(fn, logits, labels, message):
    with pytest.raises(ValueError, match=message):
        fn(logits.astype(np.float32) if logits.dtype == float else logits, labels)


# monitor.


def deep_params(num_layers=16, width=256):
    """Layers of L1 norm about 3,000: the product is 10^55."""
    rng = np.random.default_rng(0)
    kernels = rng.standard_normal((num_layers, width, width)).astype(np.float32) / 16
    return {f"Dense_{k}": {"kernel": jnp.asarray(kernel)} for k, kernel in enumerate(kernels)}


@pytest.mark.parametrize("norm", [{}, {"norm": 1, "scale": 100.0}])
def test_monitor_is_the_loss_of_the_normalized_network(norm):
    params = mlp_params([4, 6, 3])
    logits, labels = batch(3, num_examples=20)
    product = normjax.product_norm(params, **norm)
    excess = excess_cross_entropy(logits / product, labels).mean()
    for fn in (monitor, jax.jit(monitor, static_argnames=("norm", "scale"))):
        seen = fn(params, logits, labels, **norm)
        assert [value.dtype for value in seen] == [jnp.float32] * 4
        np.testing.assert_allclose(seen.normalized_excess, excess, rtol=1e-5)
        np.testing.assert_allclose(seen.normalized_loss, excess + np.log(3), rtol=1e-6)
        np.testing.assert_allclose(seen.product_norm, product, rtol=1e-6)
        np.testing.assert_allclose(seen.log_product_norm, np.log(product), rtol=1e-6)


def test_monitor_takes_batch_normalization_as_it_is():
    variables, x, logits = trained_like_convnet5()
    structure = normjax.trace_structure(Convnet5().apply, variables, x)
    labels = np.arange(len(x)) % 5
    seen = monitor(variables, logits, labels, structure=structure)
    params = normjax.absorb_batch_norm(variables, structure=structure)
    np.testing.assert_allclose(seen, monitor(params, logits, labels), rtol=1e-6)


def test_lost_logits_are_not_taken_for_chance():
    """Divided by 10^55, float32 logits are 0: the loss would be ln K."""
    params, (logits, labels) = deep_params(), batch(10, num_examples=20)
    inside = jax.jit(monitor, static_argnums=3)(params, logits, labels, 1)
    assert np.isnan(inside.normalized_loss) and np.isnan(inside.normalized_excess)
    expected = float(normjax.log_product_norm(params, 1))
    assert inside.product_norm == np.inf and inside.log_product_norm == expected
    with pytest.raises(
        ValueError, match=r"divided by .* exp\(129\.\d+\), are too small for float32"
    ):
        monitor(params, logits, labels, 1)
    small = jax.tree.map(lambda leaf: leaf * 1e-6, params)
    assert np.isnan(jax.jit(monitor, static_argnums=3)(small, logits, labels, 1).normalized_loss)
    with pytest.raises(ValueError, match="are too large for float32"):
        monitor(small, logits, labels, 1)


def test_small_but_representable_logits_keep_their_precision():
    params, (logits, labels) = deep_params(8), batch(10, num_examples=50)
    seen = monitor(params, logits, labels, 1)
    product = np.exp(np.float64(normjax.log_product_norm(jax.tree.map(np.float64, params), 1)))
    assert product > 1e26
    expected = exact_differences(logits, labels).mean() / product  # to first order
    np.testing.assert_allclose(seen.normalized_excess, float(expected), rtol=1e-5)


def test_logits_of_zero_are_chance():
    params = mlp_params([4, 3])
    seen = monitor(params, np.zeros((5, 3), np.float32), np.zeros(5, int))
    assert seen.normalized_excess == 0


def test_monitor_differentiates_and_maps():
    networks = [mlp_params([4, 6, 3], seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)
    logits, labels = batch(3, num_examples=20)

    def loss(params, logits):
        return monitor(params, logits, labels).normalized_excess

    gradient_fn = jax.value_and_grad(loss, (0, 1))
    values, slopes = jax.jit(jax.vmap(gradient_fn, (0, None)))(stacked, logits)
    plain = jax.jit(jax.grad(lambda z: excess_cross_entropy(z, labels).mean()))
    for i, params in enumerate(networks):
        np.testing.assert_allclose(values[i], loss(params, logits), rtol=1e-5)
        product = normjax.product_norm(params)
        np.testing.assert_allclose(slopes[1][i], plain(logits / product) / product, rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
