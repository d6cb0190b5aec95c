"""The networks: parameters, initializers, forward passes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from normjax.batch_norm import absorb_batch_norm
from normjax.data import standardize_images
from normjax.networks.models import MODEL_NAMES, make_model
from tests.helpers import reference

LEVEL = 1e-4  # of the Kolmogorov-Smirnov tests; the keys are fixed, so they pass or fail for ever


@functools.cache
def init(model, image_shape):
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *image_shape)))


def leaf_shapes(model, image_shape):
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(entry.key for entry in path): leaf.shape for path, leaf in leaves}


@functools.cache
def pooled_weights(name, init_std=None):
    """{leaf: all its weights over 20 networks for 8x8x2 images, flat float64}."""
    model = make_model(name, init_std=init_std)
    keys = jax.random.split(jax.random.key(7), 20)
    draw = lambda key: model.init(key, jnp.zeros((1, 8, 8, 2)))["params"]  # noqa: E731
    params = jax.jit(lambda keys: jax.lax.map(draw, keys))(keys)
    return {
        "/".join(entry.key for entry in path): np.asarray(leaf, np.float64).ravel()
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, images):
    with jax.default_matmul_precision("highest"):
        return model.apply(variables, standardize_images(images))


def random_images(num, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, *shape)).astype(np.uint8)


def test_convnet3_has_the_papers_154464_parameters():
    shapes = leaf_shapes(make_model("convnet3"), (32, 32, 3))
    assert shapes == {
        "Conv_0/bias": (24,),
        "Conv_0/kernel": (5, 5, 3, 24),
        "Conv_1/kernel": (5, 5, 24, 24),
        "Dense_0/kernel": (24 * 24 * 24, 10),
    }
    counts = {name: math.prod(shape) for name, shape in shapes.items()}
    assert list(counts.values()) == [24, 1_800, 14_400, 138_240]
    assert sum(counts.values()) == 154_464


@pytest.mark.parametrize(("side", "kernel", "left"), [(8, 3, 4), (11, 3, 7), (12, 5, 4)])
def test_convnet3_takes_smaller_kernels_on_small_images(side, kernel, left):
    assert leaf_shapes(make_model("convnet3", 7), (side, side, 1)) == {
        "Conv_0/bias": (24,),
        "Conv_0/kernel": (kernel, kernel, 1, 24),
        "Conv_1/kernel": (kernel, kernel, 24, 24),
        "Dense_0/kernel": (left * left * 24, 7),
    }


def test_convnet5_has_five_convolutions_and_biases_where_batch_norm_is_not():
    kernels = {
        "Conv_0/kernel": (3, 3, 3, 32),
        "Conv_1/kernel": (3, 3, 32, 64),
        "Conv_2/kernel": (3, 3, 64, 64),
        "Conv_3/kernel": (3, 3, 64, 128),
        "Conv_4/kernel": (4, 4, 128, 100),
    }
    widths = (32, 64, 64, 128)
    biases = {f"Conv_{i}/bias": (n,) for i, n in enumerate(widths)}
    affine = {f"BatchNorm_{i}/{k}": (n,) for i, n in enumerate(widths) for k in ("scale", "bias")}
    assert leaf_shapes(make_model("convnet5", 100), (32, 32, 3)) == kernels | biases
    with_batch_norm = make_model("convnet5", 100, batch_norm=True)
    assert leaf_shapes(with_batch_norm, (32, 32, 3)) == kernels | affine


def test_linear_is_one_dense_layer_without_bias():
    assert leaf_shapes(make_model("linear", 3), (4, 5, 2)) == {"Dense_0/kernel": (40, 3)}


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown model 'resnet'; allowed: convnet3, convnet5"):
        make_model("resnet")


@pytest.mark.parametrize("name", ["convnet3", "linear"])
def test_only_convnet5_has_batch_norm(name):
    with pytest.raises(ValueError, match=f"'{name}' has no batch normalization; only convnet5"):
        make_model(name, batch_norm=True)


@pytest.mark.parametrize(
    ("name", "fan_ins"),
    [
        (
            "convnet3",
            {
                "Conv_0/kernel": 3 * 3 * 2,
                "Conv_0/bias": 3 * 3 * 2,
                "Conv_1/kernel": 3 * 3 * 24,
                "Dense_0/kernel": 4 * 4 * 24,
            },
        ),
        (
            "convnet5",
            {
                "Conv_0/kernel": 3 * 3 * 2,
                "Conv_0/bias": 3 * 3 * 2,
                "Conv_1/kernel": 3 * 3 * 32,
                "Conv_1/bias": 3 * 3 * 32,
                "Conv_2/kernel": 3 * 3 * 64,
                "Conv_2/bias": 3 * 3 * 64,
                "Conv_3/kernel": 3 * 3 * 64,
                "Conv_3/bias": 3 * 3 * 64,
                "Conv_4/kernel": 128,
            },
        ),
        ("linear", {"Dense_0/kernel": 8 * 8 * 2}),
    ],
)
def test_default_init_is_pytorchs_uniform(name, fan_ins):
    weights = pooled_weights(name)
    assert weights.keys() == fan_ins.keys()
    for leaf, fan_in in fan_ins.items():
        bound = fan_in**-0.5
        sample = weights[leaf][:50_000]
        assert sample.min() < -0.97 * bound and 0.97 * bound < sample.max()
        assert np.abs(sample).max() <= bound * (1 + 1e-6)
        uniform = stats.uniform(-bound, 2 * bound)
        assert stats.kstest(sample, uniform.cdf).pvalue > LEVEL, leaf


def test_default_init_matches_pytorchs_own_layers():
    torch = pytest.importorskip("torch", reason="an optional extra: bounds are tested without it")
    torch.manual_seed(0)
    ours = pooled_weights("convnet3")
    makers = {
        "Conv_0/": lambda: torch.nn.Conv2d(2, 24, 3),
        "Conv_1/": lambda: torch.nn.Conv2d(24, 24, 3, bias=False),
        "Dense_0/": lambda: torch.nn.Linear(384, 10, bias=False),
    }
    compared = 0
    for prefix, make_layer in makers.items():
        layers = [make_layer() for _ in range(20)]
        for theirs, name in (("weight", "kernel"), ("bias", "bias")):
            if getattr(layers[0], theirs) is None:
                continue
            sample = np.concatenate(
                [getattr(layer, theirs).detach().numpy().ravel() for layer in layers]
            )[:40_000]
            own = ours[prefix + name][:40_000]
            # A mean's standard error is std/sqrt(n), that of a uniform's std about 0.45 of it.
            standard_error = own.std() * math.sqrt(2 / len(own))
            assert abs(own.mean() - sample.mean()) < 4 * standard_error
            assert abs(own.std() - sample.std()) < 4 * 0.45 * standard_error
            assert abs(own).max() == pytest.approx(abs(sample).max(), rel=0.03)
            assert stats.ks_2samp(own, sample).pvalue > LEVEL, (prefix, name)
            compared += 1
    assert compared == 4


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_init_std_is_that_of_every_weight(name):
    std = 0.07
    weights = pooled_weights(name, std)
    assert any(leaf.endswith("bias") for leaf in weights) == (name != "linear")
    for leaf, values in weights.items():
        sample = values[:50_000]
        assert stats.kstest(sample, stats.norm(0, std).cdf).pvalue > LEVEL, leaf
        assert sample.std() == pytest.approx(std, rel=4 / math.sqrt(2 * len(sample)))


def test_layers_and_networks_are_drawn_independently():
    weights = pooled_weights("convnet5")
    networks = [leaf.reshape(20, -1)[i, :30] for leaf in weights.values() for i in (0, 1)]
    correlations = np.corrcoef(networks) - np.eye(len(networks))
    assert np.abs(correlations).max() < 0.8  # of 30: 0.18 by chance, 1 where a draw is used twice


def test_init_std_may_be_traced_and_vmapped():
    stds = jnp.array([0.01, 0.5, 2.0])
    keys = jax.random.split(jax.random.key(3), 3)
    images = jnp.zeros((1, 8, 8, 1))
    make = lambda std, key: make_model("convnet3", init_std=std).init(key, images)  # noqa: E731
    stacked = jax.jit(jax.vmap(make))(stds, keys)
    alone = jax.jit(lambda key: make(0.5, key))(keys[1])
    jax.tree.map(
        lambda many, one: np.testing.assert_allclose(many[1], one, rtol=1e-6, atol=0),
        stacked,
        alone,
    )
    drawn = np.std(stacked["params"]["Dense_0"]["kernel"], axis=(1, 2))
    np.testing.assert_allclose(drawn, stds, rtol=0.05)


@pytest.mark.parametrize(
    ("name", "shape", "logits_fn"),
    [
        ("convnet3", (8, 8, 1), reference.convnet3_logits),
        ("convnet3", (13, 12, 3), reference.convnet3_logits),
        ("convnet5", (13, 10, 3), reference.convnet5_logits),
        ("linear", (5, 7, 3), reference.linear_logits),
    ],
)
def test_forward_pass_is_that_of_numpy_float64(name, shape, logits_fn):
    model = make_model(name, 6)
    variables = init(model, shape)
    images = random_images(3, shape)
    logits = apply(model, variables, images)
    expected = logits_fn(variables["params"], images)
    assert logits.shape == (3, 6) and logits.dtype == jnp.float32
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def trained_looking_batch_norm(variables, seed=0):
    """Statistics, scales and shifts away from their initial 0 and 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name, module = path[-1].key, path[-2].key
        if not module.startswith("BatchNorm"):
            return leaf
        positive = name in ("var", "scale")
        values = rng.uniform(0.3, 3, leaf.shape) if positive else rng.normal(0, 0.5, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, variables)


def test_absorbed_convnet5_is_the_network_in_evaluation_mode():
    model = make_model("convnet5", batch_norm=True)
    variables = trained_looking_batch_norm(init(model, (12, 12, 3)))
    images = random_images(5, (12, 12, 3))
    model_without_bn, params = make_model("convnet5"), absorb_batch_norm(variables)
    expected = apply(model, variables, images)
    logits = apply(model_without_bn, {"params": params}, images)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * scale)
    # A network that forgets its statistics is another one.
    fresh = init(model, (12, 12, 3))["batch_stats"]
    forgetful = apply(model, {**variables, "batch_stats": fresh}, images)
    assert np.abs(forgetful - expected).max() > 0.1 * scale
