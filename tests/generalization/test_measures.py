"""Every measure against numpy float64: dense matrices, windows, loops over paths."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

import normjax
from normjax.generalization.absorbed import check_layers
from normjax.generalization.measures import MEASURES
from normjax.generalization.trained_network import TrainedNetwork
from tests.helpers import reference
from tests.helpers.networks import (
    Convnet3,
    Convnet5,
    Mlp,
    apply_fn,
    images,
    mlp_float64,
    mlp_params,
    random_like,
    random_variables,
)

SIDE, CLASSES = 8, 5


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def convnet3(seed=0, num_examples=60):
    """A small 3-layer net whose labels are its own classes, but for a few examples."""
    model, x = Convnet3(), images((num_examples, SIDE, SIDE, 3))
    params = random_variables(model, x, seed)["params"]
    logits = np.asarray(apply_fn(model)(params, x))
    labels = logits.argmax(-1).astype(np.int32)
    labels[:4] = (labels[:4] + 1) % CLASSES
    start = jax.tree.map(lambda w, other: 0.3 * w + other, params, random_like(params, seed + 1))
    return network_of(params, start, logits, labels, apply_fn(model), (SIDE, SIDE, 3))


def network_of(params, start, logits, labels, function, input_shape):
    """A network with its structure."""
    inputs = jax.ShapeDtypeStruct((2, *input_shape), np.float32)
    structure = normjax.trace_structure(function, params, inputs)
    check_layers(structure)
    return TrainedNetwork(params, start, logits, labels, function, input_shape, structure)


def dense_layers(params):
    """The layers of the net as matrices [outputs, inputs] and biases, by columns of float64."""
    matrices, biases, side = [], [], SIDE
    for name in ("Conv_0", "Conv_1"):
        kernel = params[name]["kernel"]
        shape = (side, side, kernel.shape[2])
        basis = np.eye(np.prod(shape)).reshape(-1, *shape)
        matrices.append(reference.conv(basis, kernel).reshape(len(basis), -1).T)
        side -= kernel.shape[0] - 1
        bias = params[name].get("bias", np.zeros(kernel.shape[3]))
        biases.append(np.tile(bias, side * side))
    return [*matrices, params["Dense_0"]["kernel"].T], [*biases, np.zeros(CLASSES)]


def path_sums(params, p):
    """Sum over paths of prod |w|^p, by class: the dense matrices of |w|^p multiplied out."""
    sums = np.ones(SIDE * SIDE * 3)
    for matrix, bias in zip(*dense_layers(params), strict=True):
        sums = np.abs(matrix) ** p @ sums + np.abs(bias) ** p
    return sums


def layers_of(params):
    """(kernel, joint bias or none) of each layer: the first bias belongs to its layer."""
    return [
        (params["Conv_0"]["kernel"], params["Conv_0"]["bias"]),
        (params["Conv_1"]["kernel"], None),
        (params["Dense_0"]["kernel"], None),
    ]


def incoming(kernel, bias):
    """The weights into each unit, [units, weights]."""
    rows = kernel.reshape(-1, kernel.shape[-1]).T
    return rows if bias is None else np.column_stack([rows, bias])


def spectral(kernel, bias, grid=32):
    """Largest singular value of the circular convolution, or of the matrix."""
    if kernel.ndim == 2:
        return np.linalg.norm(kernel, 2)
    transformed = np.fft.fft2(kernel, s=(grid, grid), axes=(0, 1))
    if bias is not None:
        row = np.broadcast_to(bias, (grid, grid, 1, len(bias)))
        transformed = np.concatenate([transformed, row], axis=2)
    return np.linalg.svd(transformed, compute_uv=False).max()


def margins_of(logits, labels):
    """By a loop over examples, label and all."""
    return np.array(
        [
            z[y] - max(np.delete(z, y))
            for z, y in zip(logits.astype(np.float64), labels, strict=True)
        ]
    )


def expected_measures(network):
    """All measures once more, in numpy float64."""
    params, start = float64(network.params), float64(network.initial_params)
    change = jax.tree.map(lambda w, other: w - other, params, start)
    units = [incoming(*layer) for layer in layers_of(params)]
    moved = [incoming(*layer) for layer in layers_of(change)]
    fro = np.array([np.sqrt((rows**2).sum()) for rows in units])
    spec = np.array([spectral(*layer) for layer in layers_of(params)])
    rows_moved = np.array([np.sqrt((rows**2).sum(1)).sum() for rows in moved])
    margins = margins_of(network.logits, network.labels)
    gamma = np.percentile(margins, 10)
    logits = network.logits.astype(np.float64)
    positive = margins[margins > 0]
    scaled = positive / np.sqrt(np.trace(np.cov(logits.T, bias=True)))
    complexity = spec.prod() * ((rows_moved / spec) ** (2 / 3)).sum() ** 1.5
    return {
        "log_product_frobenius": np.log(fro.prod()),
        "log_product_spectral": np.log(spec.prod()),
        "log_product_max_l1": np.log(np.prod([np.abs(rows).sum(1).max() for rows in units])),
        "log_l1_path_norm": np.log(path_sums(params, 1).sum()),
        "log_max_path_norm": np.log(path_sums(params, 1).max()),
        "log_l2_path_norm": np.log(np.sqrt(path_sums(params, 2).sum())),
        "sum_of_stable_ranks": (fro**2 / spec**2).sum(),
        "log_product_stable_ranks": np.log((fro**2 / spec**2).prod()),
        "parameter_norm": np.sqrt(sum((rows**2).sum() for rows in units)),
        "frobenius_distance": np.sqrt(sum((rows**2).sum() for rows in moved)),
        "spectral_distance": np.linalg.norm([spectral(*layer) for layer in layers_of(change)]),
        "inverse_margin": gamma**-2,
        "log_frobenius_over_margin": np.log(fro.prod() / gamma),
        "log_spectral_over_margin": np.log(spec.prod() / gamma),
        "log_path_norm_over_margin": np.log(np.sqrt(path_sums(params, 2).sum()) / gamma),
        "log_spectral_complexity_over_margin": np.log(complexity / gamma),
        "negative_log_margin_mean": -np.log(scaled).mean(),
        "negative_log_margin_quartile": -np.log(np.percentile(scaled, 25)),
        "negative_margin_area": -margins.mean() / fro.prod(),
        "train_loss": reference.cross_entropy(logits, network.labels).mean(),
        "normalized_train_loss": reference.excess(logits / fro.prod(), network.labels).mean(),
    }


@pytest.fixture(scope="module")
def network():
    return convnet3()


@pytest.fixture(scope="module")
def expected(network):
    return expected_measures(network)


def test_the_registry_is_what_is_tested(expected):
    assert list(MEASURES) == list(expected) and len(MEASURES) >= 12
    for name, measure in MEASURES.items():
        text = " ".join(measure.__doc__.split())
        assert measure.__name__ == name and "Batch normalization:" in text
        assert "Source:" in text or name == "train_loss"


@pytest.mark.parametrize("name", MEASURES)
def test_measure_against_float64(name, network, expected):
    value = MEASURES[name](network)
    assert isinstance(value, float)
    np.testing.assert_allclose(value, expected[name], rtol=2e-5, atol=0)


def test_the_example_has_right_and_wrong_examples(network):
    margins = margins_of(network.logits, network.labels)
    assert 0 < np.sum(margins < 0) < 0.1 * len(margins) and np.percentile(margins, 10) > 0
    np.testing.assert_allclose(network.margins, margins, rtol=1e-5)


def test_path_norms_by_walking_every_path():
    """An MLP with a bias in each layer: paths start at inputs and at biases."""
    params = mlp_params((3, 4, 2, 3), seed=5)
    network = network_of(params, params, None, None, apply_fn(Mlp((4, 2, 3))), (3,))
    kernels = [np.asarray(params[f"Dense_{i}"]["kernel"], np.float64) for i in range(3)]
    biases = [np.asarray(params[f"Dense_{i}"]["bias"], np.float64) for i in range(3)]
    into = np.zeros((2, 3))  # by p - 1 and class
    for first, *rest in itertools.product(*map(range, (3 + 3, 4, 2, 3))):
        # The first index says where a path starts: at an input, or at a bias of layer 0, 1 or 2.
        a, b, c = rest
        steps = [kernels[0][first, a] if first < 3 else 0, kernels[1][a, b], kernels[2][b, c]]
        if first == 3:
            steps = [biases[0][a], kernels[1][a, b], kernels[2][b, c]]
        elif first == 4 and a == 0:
            steps = [biases[1][b], kernels[2][b, c]]
        elif first == 5 and a == b == 0:
            steps = [biases[2][c]]
        into[:, c] += [np.abs(np.prod(steps)), np.prod(steps) ** 2]
    found = [MEASURES[f"log_{name}_path_norm"](network) for name in ("l1", "max", "l2")]
    paths = [into[0].sum(), into[0].max(), np.sqrt(into[1].sum())]
    np.testing.assert_allclose(found, np.log(paths), rtol=1e-6)


def test_inequalities_between_norms(expected):
    """Those of a network with a bias in its first layer only."""
    assert expected["log_max_path_norm"] < expected["log_product_max_l1"]
    assert expected["log_max_path_norm"] < expected["log_l1_path_norm"]
    assert expected["log_l2_path_norm"] < expected["log_l1_path_norm"]


def test_path_norms_of_deep_wide_scales_do_not_overflow(network):
    huge = jax.tree.map(lambda w: w * np.float32(1e15), network.params)
    scaled = dataclasses.replace(network, params=huge)
    # Three layers, of which the bias is the first's: every path is multiplied by 1e45.
    for name in ("log_l1_path_norm", "log_max_path_norm", "log_l2_path_norm"):
        difference = MEASURES[name](scaled) - MEASURES[name](network)
        np.testing.assert_allclose(difference, 45 * np.log(10), rtol=1e-5)


def test_what_rescaling_a_unit_changes():
    """The function and the L2 path norm stay; norms of layers do not."""
    params = mlp_params((6, 12, 3))
    params["Dense_1"]["bias"] = params["Dense_1"]["bias"] * 0
    scales = np.exp(np.random.default_rng(3).normal(0, 1, 12)).astype(np.float32)
    rescaled = {
        "Dense_0": {name: np.asarray(leaf) * scales for name, leaf in params["Dense_0"].items()},
        "Dense_1": {**params["Dense_1"], "kernel": params["Dense_1"]["kernel"] / scales[:, None]},
    }
    x = np.random.default_rng(0).standard_normal((30, 6))
    np.testing.assert_allclose(
        mlp_float64(rescaled, x), mlp_float64(params, x), rtol=1e-4, atol=1e-4
    )
    first, second = (
        network_of(p, p, None, None, apply_fn(Mlp((12, 3))), (6,)) for p in (params, rescaled)
    )
    for name in ("log_l1_path_norm", "log_l2_path_norm"):
        np.testing.assert_allclose(MEASURES[name](second), MEASURES[name](first), rtol=1e-5)
    name = "log_product_frobenius"
    assert MEASURES[name](second) > MEASURES[name](first) + 0.1


def test_without_a_positive_margin_the_bounds_say_nothing(network):
    labels = network.labels.copy()
    labels[:30] = (network.logits.argmax(-1)[:30] + 1) % CLASSES
    wrong = dataclasses.replace(network, labels=labels)
    infinite = {name for name, measure in MEASURES.items() if np.isposinf(measure(wrong))}
    assert infinite == {
        "inverse_margin",
        "log_frobenius_over_margin",
        "log_spectral_over_margin",
        "log_path_norm_over_margin",
        "log_spectral_complexity_over_margin",
    }
    only_wrong = dataclasses.replace(wrong, logits=wrong.logits[:30], labels=labels[:30])
    assert np.isposinf(MEASURES["negative_log_margin_mean"](only_wrong))
    assert np.isposinf(MEASURES["negative_log_margin_quartile"](only_wrong))


def test_a_network_at_its_initialization_has_no_distance(network):
    still = dataclasses.replace(network, initial_params=network.params)
    assert MEASURES["frobenius_distance"](still) == MEASURES["spectral_distance"](still) == 0
    assert MEASURES["log_spectral_complexity_over_margin"](still) == -np.inf


def test_a_layer_of_zeros_is_named(network):
    zeros = jax.tree.map(np.zeros_like, network.params["Conv_1"])
    dead = dataclasses.replace(network, params={**network.params, "Conv_1": zeros})
    with pytest.raises(ValueError, match="layer 'Conv_1' has norm 0"):
        MEASURES["log_product_frobenius"](dead)


def test_absorbed_batch_norm_takes_the_raw_scale_away():
    """Raw kernels before a batch normalization times 3, its statistics with them: same measures."""
    model, x = Convnet5(), images((40, SIDE, SIDE, 3))

    def variables_of(seed, scale):
        variables = random_variables(model, x, seed)
        names = [f"Conv_{i}" for i in range(4)]
        params = {
            **variables["params"],
            **{
                name: jax.tree.map(lambda w: scale * w, variables["params"][name]) for name in names
            },
        }
        # Variances far above the epsilon that is added to them.
        stats = {
            name: {"mean": scale * leaf["mean"], "var": scale**2 * (leaf["var"] + 10)}
            for name, leaf in variables["batch_stats"].items()
        }
        return {"params": params, "batch_stats": stats}

    def network(scale):
        variables = variables_of(0, scale)
        logits = np.asarray(jax.jit(model.apply)(variables, x))
        labels = logits.argmax(-1).astype(np.int32)
        start = variables_of(1, scale)
        return network_of(variables, start, logits, labels, model.apply, (SIDE, SIDE, 3))

    plain, scaled = network(1.0), network(3.0)
    for name, measure in MEASURES.items():
        value = measure(plain)
        np.testing.assert_allclose(measure(scaled), value, rtol=1e-3, err_msg=name)
        assert np.isfinite(value) and value != 0, name
