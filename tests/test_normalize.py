import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from normjax.losses import excess_cross_entropy
from normjax.normalize import (
    absorb_batch_norm,
    check_homogeneity,
    normalize_params,
    param_norms,
    product_norm,
)

NORMS = {
    "fro": {"norm": "fro"},
    "l1": {"norm": 1, "scale": 100.0},
    "max": {"norm": jnp.inf},
    "l3": {"norm": 3},
    "spectral": {"norm": "spectral"},
    "callable": {"norm": lambda leaves: jnp.sqrt(jnp.mean(leaves["kernel"] ** 2))},
}
every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


def random_like(tree, seed=0):
    """Replace every leaf, biases too, by standard normal numbers."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), tree)


def mlp_params(widths, seed=0):
    names = [f"Dense_{i}" for i in range(len(widths) - 1)]
    shapes = {
        name: {"kernel": np.zeros((n, m), np.float32), "bias": np.zeros(m, np.float32)}
        for name, n, m in zip(names, widths, widths[1:], strict=False)
    }
    return random_like(shapes, seed)


def mlp_float64(params, x):
    """Evaluate an MLP in numpy, float64."""
    for i in range(len(params)):
        layer = params[f"Dense_{i}"]
        x = x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)
        if i < len(params) - 1:
            x = np.maximum(x, 0)
    return x


class Mlp(nn.Module):
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.widths[:-1]:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


class Convnet3(nn.Module):
    """The paper's 3-layer net, smaller: two VALID convolutions, only the first layer has a bias."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), padding="VALID")(x))
        x = nn.relu(nn.Conv(6, (3, 3), padding="VALID", use_bias=False)(x))
        return nn.Dense(5, use_bias=False)(x.reshape(len(x), -1))


class Convnet5(nn.Module):
    """Five convolutions, strided, with batch normalization after the first four or without any."""

    batch_norm: bool = True

    @nn.compact
    def __call__(self, x):
        for features, stride in ((4, 1), (6, 2), (4, 1), (6, 2)):
            x = nn.Conv(features, (3, 3), stride, use_bias=not self.batch_norm)(x)
            if self.batch_norm:
                x = nn.BatchNorm(use_running_average=True)(x)
            x = nn.relu(x)
        return nn.Conv(5, x.shape[1:3], padding="VALID")(x)[:, 0, 0]


def random_variables(model, x, seed=0):
    """Random parameters and, for batch normalization, non-trivial random statistics."""
    variables = dict(random_like(jax.eval_shape(model.init, jax.random.key(0), x), seed))
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.exp(x) if path[-1].key == "var" else x, variables["batch_stats"]
        )
    return variables


@functools.cache
def apply_fn(model):
    return jax.jit(lambda params, x: model.apply({"params": params}, x))


@functools.cache
def trained_like_convnet5():
    """Variables with random statistics, inputs, and the logits in evaluation mode."""
    x = images()
    variables = random_variables(Convnet5(), x)
    with jax.default_matmul_precision("highest"):
        return variables, x, jax.jit(Convnet5().apply)(variables, x)


def images(shape=(16, 8, 8, 3)):
    return jnp.asarray(np.random.default_rng(7).standard_normal(shape), jnp.float32)


def assert_homogeneous(f, normalized, product):
    """Assert eq. 2 on logits, to float32 accuracy, and that the classes are the same."""
    f, normalized = np.asarray(f, np.float64), np.asarray(normalized, np.float64)
    assert np.abs(f).max() > 0
    np.testing.assert_allclose(float(product) * normalized, f, rtol=0, atol=1e-5 * np.abs(f).max())
    assert np.array_equal(f.argmax(-1), normalized.argmax(-1))


# Eq. 2, on networks of every kind.


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
            hidden = jax.nn.relu(x @ first["kernel"] + first["bias"])
            return excess_cross_entropy(hidden @ second["kernel"] + second["bias"], labels).mean()

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
    with pytest.raises(ValueError, match=r"'Embed_0/embedding' fits no layer"):
        fn({**params, "Embed_0": {"embedding": jnp.ones((3, 3))}})


# check_homogeneity.


def test_check_reports_a_network_that_is_not_homogeneous():
    def shifted_net(params, x):
        return apply_fn(Mlp((5, 3)))(params, x) + jnp.array([5.0, 0, 0])

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


# absorb_batch_norm.


def test_absorbed_network_is_the_same_function():
    variables, x, f = trained_like_convnet5()
    model = Convnet5(batch_norm=False)
    with jax.default_matmul_precision("highest"):
        twin = apply_fn(model)(absorb_batch_norm(variables), x)
    np.testing.assert_allclose(twin, f, rtol=0, atol=2e-6 * np.abs(f).max())
    twin_params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    assert jax.tree.structure(absorb_batch_norm(variables)) == jax.tree.structure(twin_params)


def bn_variables(layers, batch_norms, seed=0):
    """Random variables of dense layers and batch norms, each given as ``{path: features}``."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def put(tree, path, leaves):
        *parents, name = path.split("/")
        for parent in parents:
            tree = tree.setdefault(parent, {})
        tree[name] = leaves

    variables = {"params": {}, "batch_stats": {}}
    for path, features in layers.items():
        put(variables["params"], path, {"kernel": normal(3, features), "bias": normal(features)})
    for path, n in batch_norms.items():
        put(variables["params"], path, {"scale": normal(n), "bias": normal(n)})
        put(variables["batch_stats"], path, {"mean": normal(n), "var": np.exp(normal(n))})
    return variables


def absorbed_float64(layer, affine, stats, epsilon=1e-5):
    """The formula, in float64."""
    wide = {k: np.asarray(v, np.float64) for k, v in {**stats, **layer}.items()}
    factor = np.asarray(affine.get("scale", 1.0), np.float64) / np.sqrt(wide["var"] + epsilon)
    bias = (wide.get("bias", 0.0) - wide["mean"]) * factor + affine.get("bias", 0.0)
    return {"kernel": wide["kernel"] * factor, "bias": bias}


def assert_absorbed(got, variables, layer, batch_norm, **kwargs):
    params = variables["params"]
    expected = absorbed_float64(
        params[layer], params.get(batch_norm, {}), variables["batch_stats"][batch_norm], **kwargs
    )
    assert got[layer].keys() == {"kernel", "bias"}
    for name, leaf in expected.items():
        np.testing.assert_allclose(got[layer][name], leaf, rtol=1e-5, atol=1e-6)


def test_absorbing_follows_the_formula_in_natural_order():
    n = 11
    variables = bn_variables(
        {**{f"Dense_{i}": 4 for i in range(n)}, "Dense_11": 2},
        {f"BatchNorm_{i}": 4 for i in range(n)},
    )
    params = absorb_batch_norm(variables, epsilon=1e-2)
    assert set(params) == {f"Dense_{i}" for i in range(12)}
    for i in range(n):
        assert_absorbed(params, variables, f"Dense_{i}", f"BatchNorm_{i}", epsilon=1e-2)
    assert params["Dense_11"]["kernel"] is variables["params"]["Dense_11"]["kernel"]


@pytest.mark.parametrize("missing", [["scale"], ["bias"], ["scale", "bias"]])
def test_scale_or_bias_may_be_absent(missing):
    variables = bn_variables({"Dense_0": 4}, {"BatchNorm_0": 4})
    del variables["params"]["Dense_0"]["bias"]
    for name in missing:
        del variables["params"]["BatchNorm_0"][name]
    if len(missing) == 2:
        del variables["params"]["BatchNorm_0"]
    assert_absorbed(absorb_batch_norm(variables), variables, "Dense_0", "BatchNorm_0")


def test_batch_norms_pair_within_their_module():
    variables = bn_variables(
        {"Dense_0": 4, "block/Dense_0": 4, "block/Dense_1": 2}, {"block/BatchNorm_0": 4}
    )
    params = absorb_batch_norm(variables)
    block = {name: collection["block"] for name, collection in variables.items()}
    assert_absorbed(params["block"], block, "Dense_0", "BatchNorm_0")
    assert params["Dense_0"] == variables["params"]["Dense_0"]


def test_pairs_decide_where_the_names_do_not():
    variables = bn_variables({"Dense_0": 4, "Dense_1": 4}, {"BatchNorm_0": 4})
    with pytest.raises(ValueError, match=r"\['BatchNorm_0'\].*\['Dense_0', 'Dense_1'\].*use pairs"):
        absorb_batch_norm(variables)
    params = absorb_batch_norm(variables, pairs={"BatchNorm_0": "Dense_1"})
    assert_absorbed(params, variables, "Dense_1", "BatchNorm_0")
    assert params["Dense_0"] == variables["params"]["Dense_0"]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"BatchNorm_9": "Dense_0"}, "pairs names 'BatchNorm_9'"),
        ({"BatchNorm_0": "Dense_9"}, "pairs names 'Dense_9'"),
        ({"BatchNorm_0": "Dense_2"}, "'BatchNorm_0' has 4 features .* 'Dense_2' with 2"),
        ({"BatchNorm_0": "Dense_0", "BatchNorm_1": "Dense_0"}, "one layer two batch norm"),
    ],
)
def test_pairs_are_checked(pairs, message):
    variables = bn_variables(
        {"Dense_0": 4, "Dense_1": 4, "Dense_2": 2}, {"BatchNorm_0": 4, "BatchNorm_1": 4}
    )
    with pytest.raises(ValueError, match=message):
        absorb_batch_norm(variables, pairs=pairs)


def test_variables_that_are_not_of_batch_norm_are_refused():
    with pytest.raises(ValueError, match="must hold 'params'"):
        absorb_batch_norm({"batch_stats": {}})
    variables = bn_variables({"Dense_0": 4}, {"BatchNorm_0": 5})
    with pytest.raises(ValueError, match=r"\[\] have 5 features"):
        absorb_batch_norm(variables)
    variables = bn_variables({"Dense_0": 4}, {"BatchNorm_0": 4})
    variables["batch_stats"]["BatchNorm_0"]["count"] = np.ones(4)
    with pytest.raises(ValueError, match="'BatchNorm_0' is no batch normalization"):
        absorb_batch_norm(variables)


def test_without_batch_statistics_the_parameters_come_back():
    params = mlp_params([4, 3])
    assert absorb_batch_norm({"params": params}) is params
    assert absorb_batch_norm({"params": params, "batch_stats": {}}) is params


def test_absorbing_maps_over_stacked_members():
    members = [bn_variables({"Dense_0": 4}, {"BatchNorm_0": 4}, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    params = jax.jit(jax.vmap(absorb_batch_norm))(stacked)
    for i, member in enumerate(members):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        assert_absorbed(one, member, "Dense_0", "BatchNorm_0")


def test_nnx_batch_norm_is_absorbed():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv1 = nnx.Conv(3, 4, (3, 3), rngs=rngs)
            self.norm1 = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)

        def __call__(self, x):
            return self.norm1(self.conv1(x))

    x = images((2, 5, 5, 3))
    net = Net(nnx.Rngs(0))
    net.norm1.mean[...], net.norm1.var[...] = jnp.arange(4.0), jnp.arange(1.0, 5.0)
    _, params, stats = nnx.split(net, nnx.Param, nnx.BatchStat)
    absorbed = absorb_batch_norm(
        {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(stats)}
    )
    with jax.default_matmul_precision("highest"):
        twin = nn.Conv(4, (3, 3)).apply({"params": absorbed["conv1"]}, x)
        np.testing.assert_allclose(twin, net(x), rtol=1e-5, atol=1e-5)
