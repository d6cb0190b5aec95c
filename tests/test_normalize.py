import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import normjax
from normjax.batch_norm import absorb_batch_norm
from normjax.losses import excess_cross_entropy
from normjax.normalize import (
    check_homogeneity,
    log_product_norm,
    normalize_params,
    param_norms,
    product_norm,
)
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
@settings(deadline=None, max_examples=8)
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
    layers = ("Conv_0", "Conv_1", "Dense_0")
    check = check_homogeneity(apply_fn(Convnet3()), params, x, layers=layers, **norm)
    assert check.ok and check.layers == layers
    assert check.relative_error < 1e-5 and check.same_classes


@pytest.mark.parametrize("norm", ["fro", "spectral"])
def test_eq_2_for_the_5_layer_net_with_batch_norm_as_it_is(norm):
    """The product is that of the twin without batch normalization."""
    variables, x, f = trained_like_convnet5()
    apply = jax.jit(Convnet5().apply)
    structure = normjax.trace_structure(Convnet5().apply, variables, x)
    with jax.default_matmul_precision("highest"):
        normalized = apply(normalize_params(variables, norm, structure=structure), x)
    norms = param_norms(variables, norm, structure=structure)
    assert list(norms) == [f"params/Conv_{i}" for i in range(5)]
    absorbed = absorb_batch_norm(variables, structure=structure)
    expected = np.array(list(param_norms(absorbed, norm).values()))
    np.testing.assert_allclose(list(norms.values()), expected, rtol=1e-6)
    product = product_norm(variables, norm, structure=structure)
    np.testing.assert_allclose(product, expected.prod(), rtol=1e-6)
    assert_homogeneous(f, normalized, product)


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


def test_a_residual_network_keeps_its_tied_layers():
    class Residual(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(5)(x))
            x = x + nn.Dense(5)(nn.relu(nn.Dense(5)(x)))
            return nn.Dense(3)(nn.relu(x))

    x = images((16, 4))
    model = Residual()
    params = random_variables(model, x)["params"]
    structure = normjax.trace_structure(apply_fn(model), params, x)
    for fn in (normalize_params, param_norms, product_norm, log_product_norm):
        with pytest.raises(ValueError, match=r"not certified: Dense_\d/kernel is tied to"):
            fn(params, structure=structure)
    how = {"structure": structure, "tied": "keep"}
    assert list(param_norms(params, **how)) == ["Dense_0", "Dense_3"]
    normalized = normalize_params(params, **how)
    for name in ("Dense_1", "Dense_2"):
        assert normalized[name]["kernel"] is params[name]["kernel"]
        assert not np.array_equal(normalized[name]["bias"], params[name]["bias"])
    check = check_homogeneity(apply_fn(model), params, x, **how)
    assert check.ok and check.relative_error < 1e-6 and check.layers == ("Dense_0", "Dense_3")


def test_a_layer_that_is_applied_twice_counts_twice():
    class Shared(nn.Module):
        @nn.compact
        def __call__(self, x):
            shared = nn.Dense(4, use_bias=False)
            return nn.Dense(3)(nn.relu(shared(nn.relu(shared(x)))))

    x = images((16, 4))
    params = random_variables(Shared(), x)["params"]
    structure = normjax.trace_structure(apply_fn(Shared()), params, x)
    assert structure.degrees == {"Dense_0": 2, "Dense_1": 1}
    first, second = param_norms(params, structure=structure).values()
    product = product_norm(params, structure=structure)
    np.testing.assert_allclose(product, first**2 * second, rtol=1e-6)
    check = check_homogeneity(apply_fn(Shared()), params, x, structure=structure)
    assert check.ok and check.relative_error < 1e-6


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
    np.testing.assert_allclose(log_product_norm(params), np.log(np.prod(rho)), rtol=1e-6)
    # The product is the plain one, bit for bit.
    assert product_norm(params) == norms["Dense_0"] * norms["Dense_1"] * norms["Dense_2"]
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


def as_numpy(params, dtype):
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), params)


@pytest.mark.parametrize("norm", ["fro", "spectral", "callable"])
@pytest.mark.parametrize("enable_x64", [False, True])
def test_float64_of_numpy_stays(enable_x64, norm):
    norm = NORMS[norm]
    with jax.enable_x64(enable_x64):
        params = as_numpy(mlp_params([4, 5, 3]), np.float64)
        x = np.random.default_rng(0).standard_normal((20, 4))
        normalized, product = normalize_params(params, **norm), product_norm(params, **norm)
        norms = param_norms(params, **norm)
        log_product = log_product_norm(params, **norm)
        assert {type(x) for x in (product, log_product, *norms.values())} == {np.float64}
        for leaf in jax.tree.leaves(normalized):
            assert isinstance(leaf, np.ndarray) and leaf.dtype == np.float64
        f = mlp_float64(params, x)
        np.testing.assert_allclose(product * mlp_float64(normalized, x), f, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(np.exp(log_product), product, rtol=1e-12)


def test_each_leaf_keeps_its_kind_of_array():
    params = mlp_params([4, 5, 3])
    mixed = {**params, "Dense_1": as_numpy(params["Dense_1"], np.float64)}
    normalized = normalize_params(mixed)
    for name, kind in (("Dense_0", jax.Array), ("Dense_1", np.ndarray)):
        for leaf, before in zip(normalized[name].values(), mixed[name].values(), strict=True):
            assert isinstance(leaf, kind) and leaf.dtype == before.dtype
    plain = normalize_params(as_numpy(params, np.float32))
    expected = normalize_params(params)
    for leaf, other in zip(jax.tree.leaves(plain), jax.tree.leaves(expected), strict=True):
        assert isinstance(leaf, np.ndarray) and np.array_equal(leaf, other)
    assert type(product_norm(as_numpy(params, np.float32))) is np.float32
    # Constants of a function that is being transformed are like other arrays there.
    inside = jax.jit(lambda: normalize_params(as_numpy(params, np.float64)))()
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(inside))


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
