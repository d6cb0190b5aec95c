"""Balanced networks: the same function, and a product of norms against scipy and closed forms."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from normjax import balance, balance_params, product_norm
from normjax.batch_norm import absorb_batch_norm
from tests.helpers.networks import (
    Convnet3,
    Convnet5,
    apply_fn,
    assert_homogeneous,
    images,
    mlp_float64,
    mlp_params,
    random_variables,
    trained_like_convnet5,
)

NORMS = (1, 2, 3)


def wide(params):
    """The parameters in float64, numpy's."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def network(name):
    """(apply_fn, params, x) of a small network with biases."""
    if name == "convnet5":
        variables, x, _ = trained_like_convnet5()
        return apply_fn(Convnet5(batch_norm=False)), absorb_batch_norm(variables), x
    if name == "convnet3":
        x = images()
        return apply_fn(Convnet3()), random_variables(Convnet3(), x)["params"], x
    x = np.random.default_rng(1).standard_normal((16, 4))
    return mlp_float64, mlp_params([4, 5, 6, 3]), x


def balance_of(name, params, norm=2):
    """The names of convnet3 do not prove the order of its layers."""
    layers = ["Conv_0", "Conv_1", "Dense_0"] if name == "convnet3" else None
    return balance_params(params, norm, layers=layers)


every_network = pytest.mark.parametrize("name", ["convnet3", "convnet5", "dense"])


def rescale_units(params, scales):
    """Each hidden unit's output times its scale, which its readers' weights are divided by."""
    rescaled, before = {}, np.ones(1)
    for name, after in zip(sorted(params), [*scales, np.ones(1)], strict=True):
        kernel = params[name]["kernel"]
        divisors = np.tile(before, kernel.shape[-2] // before.size)
        rescaled[name] = {"kernel": kernel * after / divisors[:, None]}
        if "bias" in params[name]:
            rescaled[name]["bias"] = params[name]["bias"] * after
        before = after
    return rescaled


def random_scales(params, seed=0):
    rng = np.random.default_rng(seed)
    names = sorted(params)[:-1]
    return [np.exp(rng.uniform(-3, 3, params[name]["kernel"].shape[-1])) for name in names]


def log_norms(params, p):
    """Logs of the layers' norms, by numpy alone."""
    norms = []
    for depth, name in enumerate(sorted(params)):
        parts = [params[name]["kernel"]]
        if depth == 0 and "bias" in params[name]:
            parts.append(params[name]["bias"])
        norms.append(np.linalg.norm(np.concatenate([part.ravel() for part in parts]), p))
    return np.log(norms)


def log_product(params, p):
    """Log of the product of norms."""
    return log_norms(params, p).sum()


@pytest.mark.parametrize("norm", NORMS)
@every_network
def test_the_function_stays(name, norm):
    apply, params, x = network(name)
    with jax.default_matmul_precision("highest"):
        before, after = apply(params, x), apply(balance_of(name, params, norm), x)
    assert_homogeneous(before, after, 1.0)


@pytest.mark.parametrize("norm", NORMS)
@every_network
def test_the_result_depends_on_the_orbit_only(name, norm):
    params = wide(network(name)[1])
    balanced = balance_of(name, params, norm)
    moved = rescale_units(params, random_scales(params))
    assert log_product(moved, norm) > log_product(params, norm) > log_product(balanced, norm)
    for other in (balance_of(name, moved, norm), balance_of(name, balanced, norm)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=0), other, balanced
        )
    first = sorted(params)[0]
    assert not np.allclose(balanced[first]["kernel"], params[first]["kernel"], rtol=0.1)


@pytest.mark.parametrize("norm", NORMS)
@every_network
def test_every_unit_reads_and_is_read_in_equal_shares(name, norm):
    """The gradient of a convex function of the log scales is 0: this is the minimum."""
    params = wide(network(name)[1])
    balanced = balance_of(name, params, norm)
    names = sorted(balanced)
    norms = log_norms(balanced, norm)
    np.testing.assert_allclose(norms, norms[0], rtol=0, atol=1e-12)
    for depth, (layer, following) in enumerate(itertools.pairwise(names)):
        kernel = np.abs(balanced[layer]["kernel"]) ** norm
        incoming = kernel.reshape(-1, kernel.shape[-1]).sum(axis=0)
        if depth == 0:
            incoming += np.abs(balanced[layer]["bias"]) ** norm
        kernel = np.abs(balanced[following]["kernel"]) ** norm
        of_channels = kernel.reshape(-1, incoming.size, kernel.shape[-1])
        outgoing = of_channels.sum(axis=(0, 2))
        np.testing.assert_allclose(
            incoming / incoming.sum(), outgoing / outgoing.sum(), rtol=1e-9, atol=0
        )
        assert np.ptp(incoming) > 0.1 * incoming.max()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("widths", [[4, 5, 6, 3], [2, 3, 4, 2, 3]])
def test_the_product_against_a_general_minimizer(widths, norm):
    params = wide(mlp_params(widths))
    splits = np.cumsum(widths[1:-1])[:-1]

    def objective(u):
        return log_product(rescale_units(params, np.split(np.exp(u), splits)), norm)

    found = minimize(objective, np.zeros(sum(widths[1:-1])), method="BFGS", tol=1e-7)
    assert found.fun < objective(np.zeros(sum(widths[1:-1]))) - 0.05
    np.testing.assert_allclose(
        log_product(balance_params(params, norm), norm), found.fun, rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("norm", NORMS)
def test_two_layers_in_closed_form(norm):
    """By Cauchy and Schwarz (sum_j a_j) (sum_j b_j) >= (sum_j sqrt(a_j b_j))^2, with equality."""
    params = wide(mlp_params([4, 7, 3]))
    first, second = params["Dense_0"], params["Dense_1"]
    incoming = (np.abs(np.vstack([first["kernel"], first["bias"]])) ** norm).sum(axis=0)
    outgoing = (np.abs(second["kernel"]) ** norm).sum(axis=1)
    expected = np.sum(np.sqrt(incoming * outgoing)) ** (2 / norm)
    np.testing.assert_allclose(
        np.exp(log_product(balance_params(params, norm), norm)), expected, rtol=1e-12
    )


def test_dtypes_and_kinds_of_arrays_stay():
    params = mlp_params([4, 5, 3])
    balanced = balance_params(params, "fro")
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(balanced), strict=True):
        assert isinstance(b, jax.Array) and (b.shape, b.dtype) == (a.shape, a.dtype)
    assert product_norm(balanced) < product_norm(params)
    reference = balance_params(wide(params))
    for dtype, rtol in ((np.float32, 2e-7), (jnp.bfloat16, 2**-8), (np.float16, 2**-10)):
        half = jax.tree.map(lambda leaf, dtype=dtype: np.asarray(leaf, dtype), params)
        result = balance_params(half)
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(reference), strict=True):
            assert isinstance(a, np.ndarray) and a.dtype == dtype
            np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=3 * rtol)


def test_layers_gives_the_order_that_names_do_not():
    params = mlp_params([4, 5, 3])
    renamed = {"stem": params["Dense_0"], "head": params["Dense_1"]}
    balanced = balance_params(renamed, layers=["stem", "head"])
    expected = balance_params(params)
    np.testing.assert_array_equal(balanced["stem"]["kernel"], expected["Dense_0"]["kernel"])
    np.testing.assert_array_equal(balanced["head"]["kernel"], expected["Dense_1"]["kernel"])


def test_one_layer_stays_as_it_is():
    params = mlp_params([4, 3])
    np.testing.assert_array_equal(
        balance_params(params)["Dense_0"]["kernel"], params["Dense_0"]["kernel"]
    )


# Units that do nothing.


def with_entries(params, *entries):
    """A float64 copy in which (layer, leaf, index) are set to a value."""
    params = jax.tree.map(np.copy, wide(params))
    for layer, leaf, index, value in entries:
        params[layer][leaf][index] = value
    return params


def test_units_that_do_nothing_get_zeros():
    params = with_entries(
        mlp_params([4, 5, 6, 3]),
        ("Dense_1", "kernel", 2, 0),  # nothing reads the first layer's unit 2,
        ("Dense_1", "kernel", (slice(None), 4), 0),  # the second layer's unit 4 reads nothing
        ("Dense_1", "bias", 4, -1),  # and is never positive
        ("Dense_2", "kernel", (slice(None), 1), 0),  # output 1 is a constant
    )
    balanced = balance_params(params)
    x = np.random.default_rng(1).standard_normal((16, 4))
    np.testing.assert_allclose(
        mlp_float64(balanced, x), mlp_float64(params, x), rtol=1e-10, atol=1e-10
    )
    assert (balanced["Dense_0"]["kernel"][:, 2] == 0).all() and balanced["Dense_0"]["bias"][2] == 0
    assert balanced["Dense_1"]["bias"][4] == 0 and (balanced["Dense_2"]["kernel"][4] == 0).all()
    assert balanced["Dense_2"]["bias"][1] == params["Dense_2"]["bias"][1]
    assert log_product(balanced, 2) < log_product(params, 2)
    # The network without those units has the same minimum.
    small = {
        "Dense_0": jax.tree.map(lambda leaf: np.delete(leaf, 2, axis=-1), params["Dense_0"]),
        "Dense_1": {
            "kernel": np.delete(np.delete(params["Dense_1"]["kernel"], 2, axis=0), 4, axis=1),
            "bias": np.delete(params["Dense_1"]["bias"], 4),
        },
        "Dense_2": {**params["Dense_2"], "kernel": np.delete(params["Dense_2"]["kernel"], 4, 0)},
    }
    np.testing.assert_allclose(
        log_product(balanced, 2), log_product(balance_params(small), 2), rtol=1e-12
    )


def test_a_dead_channel_of_a_convolution():
    x = images()
    params = wide(random_variables(Convnet3(), x)["params"])
    params["Conv_1"]["kernel"][..., 3] = 0
    balanced = balance_of("convnet3", params)
    assert (balanced["Dense_0"]["kernel"][3::6] == 0).all()
    assert (balanced["Dense_0"]["kernel"][2::6] != 0).all()
    with jax.default_matmul_precision("highest"):
        f, balanced_f = (apply_fn(Convnet3())(p, x) for p in (params, balanced))
    assert_homogeneous(f, balanced_f, 1.0)


def test_a_unit_that_is_only_a_constant_has_no_minimum():
    params = with_entries(
        mlp_params([4, 5, 6, 3]),
        ("Dense_1", "kernel", (slice(None), 4), 0),
        ("Dense_1", "bias", 4, 1),
    )
    with pytest.raises(ValueError, match="unit 4 of layer 'Dense_1' has a positive bias but no"):
        balance_params(params)


# What can not be balanced.


@pytest.mark.parametrize("norm", [math.inf, "spectral", 0.5, math.nan, None, np.linalg.norm])
def test_other_norms_say_what_is_allowed(norm):
    with pytest.raises(ValueError, match="1 <= p < infinity, or 'fro', not"):
        balance_params(mlp_params([4, 5, 3]), norm)


def test_transformations_are_refused():
    with pytest.raises(ValueError, match="does not run under jit or vmap"):
        jax.jit(balance_params)(mlp_params([4, 5, 3]))


def test_weights_must_be_finite():
    params = with_entries(mlp_params([4, 5, 3]), ("Dense_1", "bias", 0, np.nan))
    with pytest.raises(ValueError, match="layer 'Dense_1' has weights that are not finite"):
        balance_params(params)


def test_layers_must_form_a_chain():
    params = {**mlp_params([4, 6]), "Dense_1": mlp_params([3, 2])["Dense_0"]}
    with pytest.raises(ValueError, match="'Dense_1' takes 3 inputs, which does not match the 6"):
        balance_params(params)


def test_a_network_without_a_path_has_product_0():
    params = with_entries(mlp_params([4, 5, 3]), ("Dense_1", "kernel", slice(None), 0))
    with pytest.raises(ValueError, match="no path of nonzero weights leads from the inputs"):
        balance_params(params)


def test_scales_that_the_dtype_can_not_hold():
    params = {
        "Dense_0": {"kernel": np.full((2, 2), 3e4, np.float16)},
        "Dense_1": {"kernel": np.full((2, 2), 3e4, np.float16), "bias": np.float16([1, 1])},
        "Dense_2": {"kernel": np.full((2, 2), 6e-8, np.float16)},
    }
    balanced = balance_params(params)  # the norms are in balance, the bias is small
    assert np.isfinite(balanced["Dense_1"]["bias"]).all()
    params["Dense_1"]["bias"] = np.float16([6e4, 6e4])
    params["Dense_1"]["kernel"] = np.full((2, 2), 6e-8, np.float16)
    params["Dense_0"]["kernel"] = np.full((2, 2), 6e-8, np.float16)
    params["Dense_2"]["kernel"] = np.full((2, 2), 6e4, np.float16)
    with pytest.raises(ValueError, match="'Dense_1' has balanced weights too large for float16"):
        balance_params(params)


def test_sweeps_that_do_not_settle_are_an_error(monkeypatch):
    monkeypatch.setattr(balance, "_MAX_SWEEPS", 2)
    with pytest.raises(ValueError, match="did not converge in 2 sweeps; they still change by 0"):
        balance_params(mlp_params([4, 5, 6, 3]))
