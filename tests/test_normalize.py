import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from normjax.batch_norm import absorb_batch_norm
from normjax.losses import excess_cross_entropy
from normjax.normalize import check_homogeneity, normalize_params, param_norms, product_norm
from tests.helpers.networks import (
    NORMS,
    Convnet3,
    Convnet5,
    Mlp,
    apply_fn,
    assert_homogeneous,
    every_norm,
    images,
    mlp_float64,
    mlp_params,
    random_like,
    random_variables,
    trained_like_convnet5,
)

# Eq. 2, on networks of every kind.


@pytest.mark.slow
@every_norm
@settings(deadline=None, max_examples=15)
@given(
    widths=st.lists(st.sampled_from([2, 5]), min_size=2, max_size=7),
    seed=st.integers(0, 2**16),
)
def test_eq_2_for_mlps_of_any_depth_and_width_with_biases_everywhere(norm, widths, seed):
    params = mlp_params(widths, seed)
    x = np.random.default_rng(seed + 1).standard_normal((20, widths[0]))
    normalized, product = normalize_params(params, **norm), product_norm(params, **norm)
    f, f_normalized = mlp_float64(params, x), mlp_float64(normalized, x)
    tolerance = 1e-5 * max(np.abs(f).max(), 1e-3)
    np.testing.assert_allclose(float(product) * f_normalized, f, rtol=0, atol=tolerance)
    # Where two classes are closer than that, rounding may decide.
    runner_up, winner = np.sort(f, axis=-1)[:, -2:].T
    is_clear = winner - runner_up > 2 * tolerance
    assert np.array_equal(f.argmax(-1)[is_clear], f_normalized.argmax(-1)[is_clear])
    for value in param_norms(normalized, **norm).values():
        np.testing.assert_allclose(value, 1, rtol=1e-5)


@every_norm
def test_eq_2_for_the_3_layer_net(norm):
    x = images()
    params = random_variables(Convnet3(), x)["params"]
    check = check_homogeneity(apply_fn(Convnet3()), params, x, **norm)
    assert check.layers == ("Conv_0", "Conv_1", "Dense_0")
    assert check.relative_error < 1e-5 and check.same_classes


@every_norm
def test_eq_2_for_the_5_layer_net_with_absorbed_batch_norm(norm):
    variables, x, f = trained_like_convnet5()
    params = absorb_batch_norm(variables)
    with jax.default_matmul_precision("highest"):
        f_normalized = apply_fn(Convnet5(batch_norm=False))(normalize_params(params, **norm), x)
    assert_homogeneous(f, f_normalized, product_norm(params, **norm))


@every_norm
def test_eq_2_for_more_than_ten_layers(norm):
    model = Mlp((4,) * 11 + (3,))
    x = images((16, 4))
    params = random_variables(model, x)["params"]
    f = mlp_float64(params, np.asarray(x, np.float64))
    normalized = mlp_float64(normalize_params(params, **norm), np.asarray(x, np.float64))
    assert_homogeneous(f, normalized, product_norm(params, **norm))
    assert list(param_norms(params, **norm)) == [f"Dense_{i}" for i in range(12)]


def test_eq_2_fails_when_layers_are_taken_in_a_wrong_order():
    model = Mlp((4,) * 11 + (3,))
    x = images((16, 4))
    params = random_variables(model, x)["params"]
    check = check_homogeneity(apply_fn(model), params, x, layers=sorted(params))
    assert check.relative_error > 1e-2


def test_layers_gives_the_order_that_names_do_not():
    params = mlp_params([4, 5, 3])
    renamed = {"stem": params["Dense_0"], "head": params["Dense_1"]}
    norms = param_norms(renamed, layers=["stem", "head"])
    assert list(norms) == ["stem", "head"]
    expected = param_norms(params)
    assert norms["stem"] == expected["Dense_0"] and norms["head"] == expected["Dense_1"]
    assert product_norm(renamed, layers=["stem", "head"]) == product_norm(params)
    normalized = normalize_params(renamed, layers=["stem", "head"])
    expected = normalize_params(params)
    assert np.array_equal(normalized["head"]["bias"], expected["Dense_1"]["bias"])
    assert np.array_equal(normalized["stem"]["bias"], expected["Dense_0"]["bias"])


# What the functions return, against numpy in float64.


def test_norms_and_normalized_parameters_are_those_of_the_formula():
    params = mlp_params([4, 5, 6, 3])
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    kernels, biases = zip(
        *((wide[k]["kernel"], wide[k]["bias"]) for k in sorted(wide)), strict=True
    )
    rho = [np.sqrt((kernels[0] ** 2).sum() + (biases[0] ** 2).sum())]
    rho += [np.sqrt((kernel**2).sum()) for kernel in kernels[1:]]

    norms = param_norms(params)
    assert list(norms) == ["Dense_0", "Dense_1", "Dense_2"]
    np.testing.assert_allclose(list(norms.values()), rho, rtol=1e-6)
    np.testing.assert_allclose(product_norm(params), np.prod(rho), rtol=1e-6)
    normalized = normalize_params(params)
    for k in range(3):
        layer = normalized[f"Dense_{k}"]
        np.testing.assert_allclose(layer["kernel"], kernels[k] / rho[k], rtol=1e-6)
        np.testing.assert_allclose(layer["bias"], biases[k] / np.prod(rho[: k + 1]), rtol=1e-6)


def test_scale_divides_every_norm():
    params = mlp_params([4, 5, 6, 3])
    np.testing.assert_allclose(
        product_norm(params, 1, scale=100.0), product_norm(params, 1) / 1e6, rtol=1e-6
    )
    for value in param_norms(normalize_params(params, 1, scale=100.0), 1).values():
        np.testing.assert_allclose(value, 100, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_tree_shapes_and_half_precision_are_kept(dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), mlp_params([4, 5, 3]))
    with jax.numpy_dtype_promotion("strict"):
        norms, normalized = param_norms(params), normalize_params(params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), normalized) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    second = wide["Dense_1"]["kernel"]
    assert norms["Dense_1"].dtype == jnp.float32
    np.testing.assert_allclose(norms["Dense_1"], np.sqrt((second**2).sum()), rtol=1e-6)
    np.testing.assert_allclose(
        normalized["Dense_1"]["kernel"].astype(jnp.float32),
        second / np.sqrt((second**2).sum()),
        rtol=float(jnp.finfo(dtype).eps),
    )


def test_float64_parameters_stay():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), mlp_params([4, 5, 3]))
        x = np.random.default_rng(0).standard_normal((20, 4))
        normalized, product = normalize_params(params), product_norm(params)
        assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(normalized))
        f = mlp_float64(params, x)
        np.testing.assert_allclose(product * mlp_float64(normalized, x), f, rtol=1e-12, atol=1e-12)


def test_a_product_beyond_float32_leaves_no_nan():
    params = jax.tree.map(lambda leaf: leaf * 1e6, mlp_params([3] * 12))
    normalized = normalize_params(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(normalized))
    assert np.all(normalized["Dense_10"]["bias"] == 0)


# Trees of every kind.


def test_linen_nnx_and_plain_trees_give_the_same():
    class NnxMlp(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)])

        def __call__(self, x):
            return self.layers[1](nnx.relu(self.layers[0](x)))

    graph, state = nnx.split(NnxMlp(nnx.Rngs(0)))
    params = random_like(nnx.to_pure_dict(state))
    x = images((16, 4))

    def nnx_apply(params, x):
        filled = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(filled, params)
        return nnx.merge(graph, filled)(x)

    check = check_homogeneity(nnx_apply, params, x)
    assert check.relative_error < 1e-5 and check.same_classes
    assert check.layers == ("layers/0", "layers/1")
    assert jax.tree.structure(normalize_params(params)) == jax.tree.structure(params)

    plain = {"Dense_0": params["layers"][0], "Dense_1": params["layers"][1]}
    linen = check_homogeneity(apply_fn(Mlp((5, 3))), plain, x)
    assert linen.product_norm == check.product_norm
    assert linen.relative_error < 1e-5 and linen.layers == ("Dense_0", "Dense_1")
    frozen = nn.FrozenDict(plain)
    assert jax.tree.structure(normalize_params(frozen)) == jax.tree.structure(frozen)
    assert np.array_equal(
        normalize_params(frozen)["Dense_1"]["bias"], normalize_params(params)["layers"][1]["bias"]
    )


# Under transformations.


@every_norm
def test_jit_and_vmap_over_stacked_members(norm):
    members = [mlp_params([4, 5, 3], seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    mapped = jax.jit(jax.vmap(lambda p: (normalize_params(p, **norm), product_norm(p, **norm))))
    normalized, products = mapped(stacked)
    for i, member in enumerate(members):
        np.testing.assert_allclose(products[i], product_norm(member, **norm), rtol=1e-6)
        expected = normalize_params(member, **norm)
        for got, leaf in zip(jax.tree.leaves(normalized), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(got[i], leaf, rtol=2e-6)


@pytest.mark.parametrize("norm", ["fro", "l1", "spectral", "callable"])
def test_gradient_agrees_with_finite_differences(norm):
    with jax.enable_x64(True):
        params, direction = (
            jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), mlp_params([4, 5, 3], seed))
            for seed in (0, 1)
        )
        x = np.random.default_rng(2).standard_normal((10, 4))
        labels = np.arange(10) % 3

        @jax.jit
        @jax.value_and_grad
        def loss(params):
            first, second = normalize_params(params, **NORMS[norm]).values()
            hidden = jax.nn.relu(x @ first["kernel"] + first["bias"][None])
            logits = hidden @ second["kernel"] + second["bias"][None]
            return excess_cross_entropy(logits, labels).mean()

        def along(step):
            return loss(jax.tree.map(lambda p, d: p + step * d, params, direction))[0]

        expected = (along(1e-5) - along(-1e-5)) / 2e-5
        assert abs(expected) > 1e-6
        gradient = loss(params)[1]
        slopes = jax.tree.map(np.vdot, gradient, direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(slopes)), expected, rtol=1e-6)
        # The normalized network does not change when its last layer is made larger as a whole.
        slopes = jax.tree.map(np.vdot, gradient["Dense_1"], params["Dense_1"])
        assert abs(sum(slopes.values())) < 1e-12 < np.abs(gradient["Dense_1"]["kernel"]).max()


@every_norm
def test_a_layer_of_zeros_is_left_as_it_is_inside_jit(norm):
    @jax.jit
    def normalize_and_differentiate(params):
        def loss(params):
            normalized = normalize_params(params, **norm)
            return sum(leaf.sum() for leaf in jax.tree.leaves(normalized)), normalized

        gradient, normalized = jax.grad(loss, has_aux=True)(params)
        return normalized, product_norm(params, **norm), gradient

    x = np.random.default_rng(2).standard_normal((10, 4))
    for name in ("Dense_0", "Dense_1", "Dense_2"):
        params = mlp_params([4, 5, 5, 3])
        params[name]["kernel"] *= 0
        if name == "Dense_0":
            # The first layer's norm is that of kernel and bias together.
            params[name]["bias"] *= 0
        normalized, product, gradient = normalize_and_differentiate(params)
        np.testing.assert_allclose(
            float(product) * mlp_float64(normalized, x), mlp_float64(params, x), rtol=1e-5
        )
        assert np.all(normalized[name]["kernel"] == 0)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
        assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


@every_norm
def test_a_layer_of_zeros_is_an_error_outside_jit(norm):
    params = mlp_params([4, 5, 5, 3])
    params["Dense_1"]["kernel"] *= 0
    assert param_norms(params, **norm)["Dense_1"] == 0
    for fn in (normalize_params, product_norm):
        with pytest.raises(ValueError, match=r"layer 'Dense_1' has norm 0"):
            fn(params, **norm)


def test_a_negative_norm_is_an_error():
    with pytest.raises(ValueError, match=r"layer 'Dense_0' has norm -1"):
        normalize_params(mlp_params([4, 3]), lambda leaves: jnp.float32(-1))


def test_nan_stays_in_its_layer_and_in_its_member():
    broken = mlp_params([4, 5, 3])
    broken["Dense_1"]["kernel"] = broken["Dense_1"]["kernel"].at[0, 0].set(jnp.nan)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), broken, mlp_params([4, 5, 3]))
    products = jax.vmap(product_norm)(stacked)
    assert math.isnan(products[0]) and math.isfinite(products[1])
    assert math.isnan(product_norm(broken))


@pytest.mark.parametrize("fn", [normalize_params, param_norms, product_norm])
def test_bad_arguments_are_refused(fn):
    params = mlp_params([4, 3])
    with pytest.raises(ValueError, match="norm must be"):
        fn(params, "l2")
    with pytest.raises(ValueError, match="scale must be"):
        fn(params, scale=0)
    with pytest.raises(ValueError, match="layers must name each"):
        fn(params, layers=["Dense_7"])
    with pytest.raises(ValueError, match=r"'Embed_0/embedding' is not part of a layer"):
        fn({**params, "Embed_0": {"embedding": jnp.ones((3, 3))}})


# check_homogeneity.


def test_check_reports_a_network_that_is_not_homogeneous():
    def shifted_net(params, x):
        return apply_fn(Mlp((5, 3)))(params, x) + jnp.array([[5.0, 0, 0]])

    params, x = mlp_params([4, 5, 3]), images((16, 4))
    check = check_homogeneity(shifted_net, params, x)
    f, normalized = shifted_net(params, x), shifted_net(normalize_params(params), x)
    error = np.abs(f - check.product_norm * normalized).max()
    np.testing.assert_allclose(check.max_abs_error, error, rtol=1e-5)
    np.testing.assert_allclose(check.relative_error, error / np.abs(f).max(), rtol=1e-5)
    assert check.relative_error > 0.1 and not check.same_classes


def test_check_gives_python_numbers_and_the_product():
    params = mlp_params([4, 5, 3])
    check = check_homogeneity(apply_fn(Mlp((5, 3))), params, images((16, 4)), norm=1, scale=10.0)
    assert check.product_norm == float(product_norm(params, 1, scale=10.0))
    assert [type(value) for value in check] == [float, float, bool, float, tuple]


def test_check_of_a_network_that_is_zero():
    params = jax.tree.map(jnp.ones_like, mlp_params([4, 5, 3]))
    check = check_homogeneity(lambda params, x: 0 * x, params, images((16, 4)))
    assert check.max_abs_error == check.relative_error == 0
