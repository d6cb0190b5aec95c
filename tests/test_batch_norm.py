import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import trace_structure
from normjax.batch_norm import absorb_batch_norm
from tests.helpers.networks import (
    Convnet5,
    apply_fn,
    images,
    mlp_float64,
    mlp_params,
    random_variables,
    trained_like_convnet5,
)


def test_absorbed_network_is_the_same_function():
    variables, x, f = trained_like_convnet5()
    model = Convnet5(batch_norm=False)
    with jax.default_matmul_precision("highest"):
        absorbed_logits = apply_fn(model)(absorb_batch_norm(variables), x)
    np.testing.assert_allclose(absorbed_logits, f, rtol=0, atol=2e-6 * np.abs(f).max())
    params_without_bn = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    assert jax.tree.structure(absorb_batch_norm(variables)) == jax.tree.structure(params_without_bn)


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
    inputs = 3
    for path, features in layers.items():
        leaves = {"kernel": normal(inputs, features), "bias": normal(features)}
        put(variables["params"], path, leaves)
        inputs = features
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


@pytest.mark.parametrize(
    ("layers", "batch_norms", "reason"),
    [
        (
            ["Dense_0", "Dense_1"],
            ["BatchNorm_0"],
            r"cannot tell .* \['Dense_0', 'Dense_1'\] have 4",
        ),
        (["Dense_0"], ["BatchNorm_0", "BatchNorm_1"], r"cannot tell .* \['Dense_0'\] have 4"),
        (["stem", "head"], ["BatchNorm_0", "BatchNorm_1"], "automatic names of one kind"),
        (["Dense_0", "Dense_1"], ["bn1", "bn2"], "automatic names of one kind"),
        (["Dense_0", "Other_0"], ["BatchNorm_0", "BatchNorm_1"], "automatic names of one kind"),
        (["Dense_0", "Dense_1"], ["BatchNorm_0", "BatchNorm_2"], "numbers are not 0, 1, 2"),
        (["Dense_0", "b/Dense_0"], ["BatchNorm_0", "b/BatchNorm_0"], "not all in one module"),
    ],
)
def test_names_that_do_not_prove_the_pairs(layers, batch_norms, reason):
    variables = bn_variables(dict.fromkeys(layers, 4), dict.fromkeys(batch_norms, 4))
    with pytest.raises(ValueError, match=reason) as caught:
        absorb_batch_norm(variables)
    assert str(caught.value).endswith(
        "; pass structure=normjax.trace_structure(apply_fn, params, x) of the variables, or pairs="
    )


def test_layers_that_are_not_a_chain_do_not_prove_the_pairs():
    variables = bn_variables({"Dense_0": 4, "Dense_1": 2}, {"BatchNorm_0": 4})
    variables["params"]["Dense_1"]["kernel"] = np.ones((3, 2), np.float32)
    with pytest.raises(ValueError, match=r"not a chain; pass structure=.* or pairs="):
        absorb_batch_norm(variables)


def test_pairs_decide_where_the_names_do_not():
    variables = bn_variables({"Dense_0": 4, "Dense_1": 4}, {"BatchNorm_0": 4})
    params = absorb_batch_norm(variables, pairs={"BatchNorm_0": "Dense_1"})
    assert_absorbed(params, variables, "Dense_1", "BatchNorm_0")
    assert params["Dense_0"] == variables["params"]["Dense_0"]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"BatchNorm_9": "Dense_0"}, "pairs has 'BatchNorm_9'"),
        ({"BatchNorm_0": "Dense_9"}, "pairs has 'Dense_9'"),
        ({"BatchNorm_0": "Dense_2"}, "'BatchNorm_0' has 4 features .* 'Dense_2' with 2"),
        ({"BatchNorm_0": "Dense_0"}, "pairs lacks 'BatchNorm_1'"),
        (
            {"BatchNorm_0": "Dense_0", "BatchNorm_1": "Dense_0"},
            "maps two batch normalizations to",
        ),
    ],
)
def test_pairs_are_checked(pairs, message):
    variables = bn_variables(
        {"Dense_0": 4, "Dense_1": 4, "Dense_2": 2}, {"BatchNorm_0": 4, "BatchNorm_1": 4}
    )
    with pytest.raises(ValueError, match=message):
        absorb_batch_norm(variables, pairs=pairs)


def test_variables_that_are_not_of_batch_norm_are_refused():
    for variables in ({"batch_stats": {}}, None, []):
        with pytest.raises(ValueError, match=r"variables must be {'params': \.\.\."):
            absorb_batch_norm(variables)
    variables = bn_variables({"Dense_0": 4}, {"BatchNorm_0": 5})
    with pytest.raises(ValueError, match=r"\[\] have 5 features"):
        absorb_batch_norm(variables)
    variables = bn_variables({"Dense_0": 4}, {"BatchNorm_0": 4})
    variables["batch_stats"]["BatchNorm_0"]["count"] = np.ones(4)
    with pytest.raises(ValueError, match="'BatchNorm_0' is not a batch normalization"):
        absorb_batch_norm(variables)


def test_without_batch_statistics_the_parameters_come_back():
    params = jax.tree.map(np.asarray, mlp_params([4, 3]))
    assert absorb_batch_norm({"params": params}) is params
    assert absorb_batch_norm({"params": params, "batch_stats": {}}) is params


@pytest.mark.parametrize("is_traced", [False, True])
def test_float64_of_numpy_stays(is_traced):
    variables = jax.tree.map(np.float64, bn_variables({"Dense_0": 4}, {"BatchNorm_0": 4}))
    variables["params"]["Dense_0"]["kernel"] = np.linspace(0.1, 1.2, 12).reshape(3, 4)
    variables["batch_stats"]["BatchNorm_0"]["var"] = np.arange(1.0, 5)

    def apply_fn(variables, x):
        params, stats = variables["params"], variables["batch_stats"]["BatchNorm_0"]
        x = (x @ params["Dense_0"]["kernel"] - stats["mean"]) / jnp.sqrt(stats["var"] + 1e-5)
        return x * params["BatchNorm_0"]["scale"] + params["BatchNorm_0"]["bias"]

    with jax.numpy_rank_promotion("allow"):
        structure = trace_structure(apply_fn, variables, np.ones((1, 3))) if is_traced else None
    absorbed = absorb_batch_norm(variables, structure=structure)["Dense_0"]
    factor = variables["params"]["BatchNorm_0"]["scale"] / np.sqrt(np.arange(1.0, 5) + 1e-5)
    expected = variables["params"]["Dense_0"]["kernel"] * factor
    assert isinstance(absorbed["kernel"], np.ndarray) and absorbed["bias"].dtype == np.float64
    np.testing.assert_allclose(
        absorbed["kernel"], expected, rtol=1e-12
    )  # a traced epsilon is float32


def test_absorbing_maps_over_stacked_members():
    members = [bn_variables({"Dense_0": 4}, {"BatchNorm_0": 4}, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    params = jax.jit(jax.vmap(absorb_batch_norm))(stacked)
    for i, member in enumerate(members):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        assert_absorbed(one, member, "Dense_0", "BatchNorm_0")


# With a structure.


def test_a_structure_gives_the_same_as_names():
    variables, x, f = trained_like_convnet5()
    structure = trace_structure(Convnet5().apply, variables, x)
    absorbed = absorb_batch_norm(variables, structure=structure)
    expected = absorb_batch_norm(variables)
    assert jax.tree.structure(absorbed) == jax.tree.structure(expected)
    for leaf, other in zip(jax.tree.leaves(absorbed), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-6)
    with jax.default_matmul_precision("highest"):
        logits = apply_fn(Convnet5(batch_norm=False))(absorbed, x)
    np.testing.assert_allclose(logits, f, rtol=0, atol=2e-6 * np.abs(f).max())


class Blocks(nn.Module):
    """Names and widths that mislead: the first layer is named last, all widths are equal."""

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm(epsilon=0.1, name="z")(nn.Dense(4, name="c")(x)))
        x = norm(epsilon=1e-3, use_scale=False, name="y")(nn.Dense(4, False, name="b")(x))
        return nn.Dense(4, name="a")(nn.relu(x))


def test_a_structure_knows_positions_and_epsilons():
    model, x = Blocks(), images((16, 4))
    variables = random_variables(model, x)
    structure = trace_structure(model.apply, variables, x)
    absorbed = absorb_batch_norm(variables, structure=structure)
    assert {name: set(layer) for name, layer in absorbed.items()} == {
        name: {"kernel", "bias"} for name in "abc"
    }
    assert absorbed["a"]["kernel"] is variables["params"]["a"]["kernel"]
    in_order = {f"Dense_{i}": absorbed[name] for i, name in enumerate("cba")}
    expected = np.asarray(jax.jit(model.apply)(variables, x))
    found = mlp_float64(in_order, np.asarray(x, np.float64))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(ValueError, match="automatic names of one kind"):
        absorb_batch_norm(variables)


def test_stacked_networks_are_absorbed_along_a_structure():
    x = images()
    members = [random_variables(Convnet5(), x, seed) for seed in range(2)]
    structure = trace_structure(Convnet5().apply, members[0], x)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    mapped = jax.jit(jax.vmap(lambda v: absorb_batch_norm(v, structure=structure)))(stacked)
    for i, member in enumerate(members):
        one = absorb_batch_norm(member, structure=structure)
        for leaf, other in zip(jax.tree.leaves(mapped), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(leaf[i], other, rtol=1e-6, atol=1e-6)


def test_batch_normalization_after_the_activation_is_not_absorbed():
    class After(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True)(nn.relu(nn.Dense(4)(x)))
            return nn.Dense(3)(x)

    x = images((16, 5))
    variables = random_variables(After(), x)
    structure = trace_structure(After().apply, variables, x)
    with pytest.raises(ValueError, match="'batch_stats/BatchNorm_0/mean' cannot be absorbed: it"):
        absorb_batch_norm(variables, structure=structure)


def test_a_structure_has_its_own_epsilon_and_pairs():
    variables, x, _ = trained_like_convnet5()
    structure = trace_structure(Convnet5().apply, variables, x)
    for given in ({"epsilon": 1e-5}, {"pairs": {"BatchNorm_0": "Conv_0"}}):
        with pytest.raises(ValueError, match="give structure, or epsilon and pairs"):
            absorb_batch_norm(variables, structure=structure, **given)
    with pytest.raises(ValueError, match="belongs to another tree"):
        absorb_batch_norm({"params": variables["params"]}, structure=structure)
    params = {"params": mlp_params([4, 3])}
    plain = trace_structure(
        lambda v, x: x @ v["params"]["Dense_0"]["kernel"] + v["params"]["Dense_0"]["bias"][None],
        params,
        images((2, 4)),
    )
    assert absorb_batch_norm(params, structure=plain) is params["params"]


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
        absorbed_logits = nn.Conv(4, (3, 3)).apply({"params": absorbed["conv1"]}, x)
        np.testing.assert_allclose(absorbed_logits, net(x), rtol=1e-5, atol=1e-5)
