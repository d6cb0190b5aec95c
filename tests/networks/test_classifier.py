"""Linen and NNX networks as pure functions of their variables."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax.networks import classifier as classifiers
from normjax.networks.classifier import import_model, leaf_names, make_classifier
from normjax.networks.convolution import conv_general_dilated
from normjax.networks.models import make_model
from normjax.training.plan import suggest_convolution

SHAPE = (6, 6, 1)


class Linen(nn.Module):
    """Batch normalization and dropout; the layers' names say nothing of their order."""

    features: int = 4
    num_classes: int = 3

    @nn.compact
    def __call__(self, x, *, train=False, mask=None):
        x = nn.Conv(self.features, (3, 3), use_bias=False, name="stem")(x)
        mask = None if mask is None else mask[:, None, None, None]
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x, mask=mask)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x).reshape(len(x), -1))
        return nn.Dense(self.num_classes, name="head")(x)


class Nnx(nnx.Module):
    """The same network."""

    def __init__(self, num_classes=3, *, rngs):
        self.stem = nnx.Conv(1, 4, (3, 3), use_bias=False, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(4, momentum=0.5, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(144, num_classes, rngs=rngs)

    def __call__(self, x, *, mask=None):
        mask = None if mask is None else mask[:, None, None, None]
        x = nnx.relu(self.norms[0](self.stem(x), mask=mask))
        return self.head(self.dropout(x.reshape(len(x), -1)))


both = pytest.mark.parametrize("model", [Linen, Nnx])


def images(num=5, seed=0):
    return np.random.default_rng(seed).normal(size=(num, *SHAPE)).astype(np.float32)


@functools.cache
def made(model):
    classifier = make_classifier(model, SHAPE, 3)
    return classifier, jax.jit(classifier.init)(jax.random.key(1))


@both
def test_evaluation_is_that_of_the_module(model):
    classifier, variables = made(model)
    assert classifier.has_state and variables.keys() == {"params", "batch_stats"}
    assert classifier.structure.layers == ("params/stem", "params/head")
    if model is Linen:
        expected = jax.jit(Linen().apply)(variables, images())
    else:
        module = Nnx(rngs=nnx.Rngs(jax.random.key(1)))
        module.eval()
        expected = module(images())
    found = jax.jit(classifier.apply)(variables, images())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@both
def test_training_updates_statistics_and_draws_dropout_from_its_key(model):
    classifier, variables = made(model)
    apply = jax.jit(classifier.train_apply)
    mask, keys = np.ones(5, bool), jax.random.split(jax.random.key(0))
    logits, state = apply(variables, images(), mask, keys[0])
    again, same_state = apply(variables, images(), mask, keys[0])
    other, _ = apply(variables, images(), mask, keys[1])
    np.testing.assert_array_equal(logits, again)
    assert np.abs(logits - other).max() > 0.1
    assert state.keys() == {"batch_stats"}
    kernel = variables["params"]["stem"]["kernel"]
    outputs = jax.lax.conv_general_dilated(
        images(), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    (mean,) = [
        leaf
        for name, leaf in zip(leaf_names(state), jax.tree.leaves(state), strict=True)
        if name.endswith("mean")
    ]
    np.testing.assert_allclose(mean, 0.5 * np.mean(outputs, (0, 1, 2)), rtol=1e-5, atol=1e-7)
    jax.tree.map(np.testing.assert_array_equal, state, same_state)
    # The mask takes an image out of the statistics.
    outlier = images()
    outlier[4] = 1e3
    _, state = apply(variables, outlier, np.arange(5) < 4, keys[0])
    _, expected = apply(variables, images(), np.arange(5) < 4, keys[0])
    jax.tree.map(np.testing.assert_array_equal, state, expected)


@both
def test_a_standard_deviation_redraws_the_kernels_alone(model):
    classifier, variables = made(model)
    drawn = jax.jit(classifier.init)(jax.random.key(1), 2.0)  # traced, as in a sweep
    named = zip(
        leaf_names(variables), jax.tree.leaves(variables), jax.tree.leaves(drawn), strict=True
    )
    for name, default, leaf in named:
        if name.endswith("kernel"):
            assert np.std(leaf) == pytest.approx(2, abs=0.6) and np.std(default) < 0.5
        else:
            np.testing.assert_array_equal(leaf, default)


def test_a_field_init_std_has_a_meaning_of_its_own():
    classifier = make_classifier(make_model("linear", 3), SHAPE, 3)
    for std in (None, 0.3):
        module = make_model("linear", 3, init_std=std)
        expected = module.init(jax.random.key(4), np.zeros((1, *SHAPE), np.float32))
        found = classifier.init(jax.random.key(4), std)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_network_may_be_given_in_several_ways():
    for model in (Linen(), Linen, lambda: Linen(), functools.partial(Linen, 5)):
        assert make_classifier(model, SHAPE, 3).module is not None
    for model in (Nnx, lambda rngs: Nnx(rngs=rngs), functools.partial(Nnx, 3)):
        assert make_classifier(model, SHAPE, 3).module is None


class Deterministic(nn.Module):
    """The mode has another name and no default; there is no state."""

    @nn.compact
    def __call__(self, x, deterministic):
        x = nn.Dense(20)(x.reshape(len(x), -1))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=deterministic)(nn.relu(x)))


def test_the_mode_is_known_by_the_names_of_the_frameworks():
    classifier = make_classifier(Deterministic, SHAPE, 3)
    assert not classifier.has_state
    variables = jax.jit(classifier.init)(jax.random.key(0))
    inputs = images().reshape(5, -1)
    layers = variables["params"]
    hidden = np.maximum(inputs @ layers["Dense_0"]["kernel"], 0)
    expected = hidden @ layers["Dense_1"]["kernel"]
    found = jax.jit(classifier.apply)(variables, images())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    apply = jax.jit(classifier.train_apply)
    logits, state = apply(variables, images(), np.ones(5, bool), jax.random.key(0))
    assert state == {} and np.abs(logits - expected).max() > 0.01


class Broken(nn.Module):
    """A network that cannot be trained, in several ways."""

    kind: str

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        if self.kind == "no parameters":
            return x[:, :3]
        dtype = jnp.bfloat16 if self.kind in ("bfloat16", "low logits") else jnp.float32
        kept = jnp.bfloat16 if self.kind == "bfloat16" else jnp.float32
        logits = nn.Dense(3, dtype=dtype, param_dtype=kept)(x)
        if self.kind == "noise" and train:
            logits += jax.random.normal(self.make_rng("noise"), logits.shape)
        if self.kind == "state":
            steps = self.variable("count", "steps", lambda: jnp.zeros(()))
            if train:
                steps.value = jnp.zeros(2)
        if self.kind == "names":
            logits += self.param("Dense_0/bias", nn.initializers.zeros, (1, 3))
        if self.kind == "tanh":
            logits = nn.tanh(logits)
        return (logits, x) if self.kind == "pair" else logits


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("convnet3", "model str: a Linen module, or a function that .* is needed, not str"),
        (lambda: 3, "model <lambda>: a Linen module, .* is needed; it returned int"),
        (lambda rngs: Linen(), "is needed; with rngs it returned Linen"),
        (lambda: Nnx(rngs=nnx.Rngs(0)), "is needed; it returned Nnx"),
        (Linen(num_classes=4), r"model Linen: its logits have shape \(2, 4\) and dtype float32"),
        (Broken("pair"), "model Broken: it returns a tuple, not the logits alone"),
        (Broken("low logits"), "dtype bfloat16 for 2 images, not .*2, 3.* and float32"),
        (Broken("bfloat16"), "model Broken: its parameters must be float32"),
        (Broken("no parameters"), "model Broken: it has no parameters"),
        (Broken("names"), "model Broken: two of its variables have the name 'Dense_0/bias'"),
        (Broken("noise"), "model Broken: .*noise"),
        (Broken("state"), "model Broken: training changes the shapes or dtypes of its variables"),
        (Broken("tanh"), "not all of its layers can be normalized: .*'tanh' in Broken"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(model, message):
    with pytest.raises(ValueError, match=message) as error:
        make_classifier(model, SHAPE, 3)
    assert "\n" not in str(error.value)


def test_an_nnx_module_is_not_a_function():
    with pytest.raises(ValueError, match=r"a function that makes .* is needed, not Nnx"):
        make_classifier(Nnx(rngs=nnx.Rngs(0)), SHAPE, 3)


class Residual(nn.Module):
    """A sum of two layers' outputs, between two layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(5, name="before")(x.reshape(len(x), -1)))
        x = nn.relu(x + nn.Dense(5, name="inside")(x))
        return nn.Dense(3, name="after")(x)


def test_tied_layers_are_refused_or_kept():
    with pytest.raises(ValueError, match=r"inside/kernel .* by 'add' .*; --tied=keep normalizes"):
        make_classifier(Residual, SHAPE, 3)
    classifier = make_classifier(Residual, SHAPE, 3, tied="keep")
    assert classifier.structure.layers == ("params/before", "params/after")
    assert classifier.tied == "keep"
    with pytest.raises(ValueError, match="is held by 'tanh'"):
        make_classifier(Broken("tanh"), SHAPE, 3, tied="keep")


def test_models_are_imported_by_name():
    name = f"{__name__}:Linen"
    assert import_model(name) is Linen
    with pytest.raises(ValueError, match=f"^--model={__name__}:Lost: .* no attribute 'Lost'$"):
        import_model(f"{__name__}:Lost")
    with pytest.raises(ValueError, match=r"^--model=lost.module:net: .* cannot be imported"):
        import_model("lost.module:net")
    assert classifiers.model_name(functools.partial(Nnx, 3)) == "Nnx"


class Convolved(nn.Module):
    """A convolution and a dense layer."""

    how: dict

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), **self.how)(x))
        return nn.Dense(3)(x.reshape(len(x), -1))


class NnxConvolved(nnx.Module):
    """The same network."""

    def __init__(self, how, *, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs, **how)
        self.head = nnx.Linear(144, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        return self.head(x.reshape(len(x), -1))


@pytest.mark.parametrize("make", [Convolved, lambda how: functools.partial(NnxConvolved, how)])
def test_our_convolution_changes_neither_the_network_nor_its_structure(make, capsys):
    how, shape = {"conv_general_dilated": conv_general_dilated}, (6, 6, 2)
    theirs, ours = (make_classifier(make(each), shape, 3) for each in ({}, how))
    assert ours.structure == theirs.structure and ours.structure.is_certified
    variables = theirs.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (5, *shape))
    found = [jax.jit(each.apply)(variables, images) for each in (ours, theirs)]
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)

    slow_anyway = (
        {"feature_group_count": 2},
        {"kernel_dilation": 2, "padding": 2},
        {"precision": "highest"},
        {"padding": [(-1, 3), (1, 1)]},
    )
    others = [make_classifier(make({**how, **options}), shape, 3) for options in slow_anyway]
    for each in (ours, *others):
        suggest_convolution(each, shape)
    assert capsys.readouterr().err == ""
    suggest_convolution(theirs, shape)
    assert capsys.readouterr().err.endswith("conv_general_dilated=normjax.conv_general_dilated\n")
