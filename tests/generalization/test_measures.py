"""Every measure against numpy float64: dense matrices, windows, loops over paths."""

import dataclasses
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.special import softmax

from normjax.generalization import measures
from tests.helpers.expected_measures import expected_measures, margins_of
from tests.helpers.networks import (
    Convnet5,
    Mlp,
    apply_fn,
    images,
    mlp_float64,
    mlp_params,
    random_variables,
)
from tests.helpers.trained_networks import (
    CLASSES,
    SIDE,
    network_of,
    trained_convnet3,
    trained_mlp,
)

FUNCTIONS = {name: measure.function for name, measure in measures.MEASURES.items()}
OF_REPRESENTATIONS = [
    name
    for name, function in FUNCTIONS.items()
    if function.__module__.rpartition(".")[2]
    in ("hidden_margins", "representations", "augmentations", "heavy_tails")
]
"""They have tests of their own."""


@pytest.fixture(scope="module")
def network():
    return trained_convnet3()


@pytest.fixture(scope="module")
def expected(network):
    return expected_measures(network)


def test_the_registry_is_what_is_tested(expected):
    assert sorted([*expected, *OF_REPRESENTATIONS]) == sorted(FUNCTIONS)
    published = [name for name, measure in measures.MEASURES.items() if measure.source]
    assert len(published) >= 40
    assert set(FUNCTIONS) - set(published) == {"train_loss", "log_product_stable_ranks"}
    for name, measure in measures.MEASURES.items():
        text = " ".join(measure.function.__doc__.split())
        assert measure.function.__name__ == name and "Batch normalization:" in text
        assert "Source" in text or name == "train_loss"
        assert measure.unit in ("ln", "log10", "1", "nats")


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - set(OF_REPRESENTATIONS)))
def test_measure_against_float64(name, network, expected):
    value = FUNCTIONS[name](network)
    assert isinstance(value, float)
    np.testing.assert_allclose(value, expected[name], rtol=2e-5, atol=0)


def test_the_table_in_the_docs_is_the_registry():
    text = (Path(__file__).parents[2] / "docs" / "measures.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    found = {row[1].strip(" `"): (row[3].strip(), row[4].strip()) for row in rows}
    assert found == {
        name: (measure.source or "not published", measure.unit)
        for name, measure in measures.MEASURES.items()
    }


def test_the_smallest_margin_over_the_norm_of_all_weights():
    """Of a network that fits its labels; an MLP has a bias in each layer."""
    network = trained_mlp()
    fitted = dataclasses.replace(network, labels=network.logits.argmax(-1))
    squares = sum((np.asarray(w, np.float64) ** 2).sum() for w in jax.tree.leaves(network.params))
    margin = margins_of(network.logits, fitted.labels).min()
    value = FUNCTIONS["log_inverse_min_margin"](fitted)
    assert margin > 0 and value == pytest.approx(np.log(squares**1.5 / margin), rel=1e-5)


def test_fisher_rao_norm_is_a_quadratic_form_of_the_fisher_information():
    """Without later biases: theta^T I theta, from derivatives of ln p along theta."""
    params = mlp_params((6, 12, 9, 4))
    for name in ("Dense_1", "Dense_2"):
        params[name]["bias"] = params[name]["bias"] * 0
    network = trained_mlp()
    x = network.sample.x.astype(np.float64)
    network = network_of(params, params, network.apply_fn, x)

    def log_p(t):
        scaled = jax.tree.map(lambda w: np.asarray(w, np.float64) * (1 + t), params)
        # The bias scales with its layer: the derivative along theta is that of all layers.
        return np.log(softmax(mlp_float64(scaled, x), axis=1))

    step = 1e-5
    slopes = (log_p(step) - log_p(-step)) / (2 * step)
    own = slopes[np.arange(len(x)), network.labels]
    for name, square in (
        ("log_fisher_rao_norm", (np.exp(log_p(0)) * slopes**2).sum(1).mean()),
        ("log_empirical_fisher_rao_norm", (own**2).mean()),
    ):
        assert FUNCTIONS[name](network) == pytest.approx(np.log(square) / 2, rel=1e-4)


def test_the_example_has_right_and_wrong_examples(network):
    margins = margins_of(network.logits, network.labels)
    assert 0 < np.sum(margins < 0) < 0.1 * len(margins) and np.percentile(margins, 10) > 0
    np.testing.assert_allclose(network.margins, margins, rtol=1e-5)


def test_path_norms_by_walking_every_path():
    """An MLP with a bias in each layer: paths start at inputs and at biases."""
    params = mlp_params((3, 4, 2, 3), seed=5)
    network = network_of(params, params, apply_fn(Mlp((4, 2, 3))), np.ones((5, 3)))
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
    found = [FUNCTIONS[f"log_{name}_path_norm"](network) for name in ("l1", "max", "l2")]
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
        difference = FUNCTIONS[name](scaled) - FUNCTIONS[name](network)
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
    first, second = (network_of(p, p, apply_fn(Mlp((12, 3))), x) for p in (params, rescaled))
    for name in ("log_l1_path_norm", "log_l2_path_norm"):
        np.testing.assert_allclose(FUNCTIONS[name](second), FUNCTIONS[name](first), rtol=1e-5)
    name = "log_product_frobenius"
    assert FUNCTIONS[name](second) > FUNCTIONS[name](first) + 0.1


def test_without_a_positive_margin_the_bounds_say_nothing(network):
    labels = network.labels.copy()
    labels[:30] = (network.logits.argmax(-1)[:30] + 1) % CLASSES
    wrong = dataclasses.replace(network, labels=labels)
    cheap = set(FUNCTIONS) - set(OF_REPRESENTATIONS)
    infinite = {name for name in cheap if np.isposinf(FUNCTIONS[name](wrong))}
    assert infinite == {
        *(name for name in FUNCTIONS if name.endswith("_over_margin")),
        *(name for name in FUNCTIONS if name.endswith(("spectral_init", "spectral_orig"))),
        "inverse_margin",
        "log_inverse_min_margin",
    }


def test_a_network_at_its_initialization_has_no_distance(network):
    still = dataclasses.replace(network, initial_params=network.params)
    for name in ("frobenius_distance", "spectral_distance", "matrix_spectral_distance"):
        assert FUNCTIONS[name](still) == 0
    for name in ("log_spectral_complexity_over_margin", "log_spectral_init", "sharpness_init"):
        assert FUNCTIONS[name](still) == -np.inf


def test_a_layer_of_zeros_is_named(network):
    zeros = jax.tree.map(np.zeros_like, network.params["Conv_1"])
    dead = dataclasses.replace(network, params={**network.params, "Conv_1": zeros})
    with pytest.raises(ValueError, match="layer 'Conv_1' has norm 0"):
        FUNCTIONS["log_product_frobenius"](dead)


@pytest.mark.parametrize(
    "names",
    [
        sorted(set(FUNCTIONS) - set(OF_REPRESENTATIONS)),
        pytest.param(OF_REPRESENTATIONS, marks=pytest.mark.slow),
    ],
    ids=["weights", "representations"],
)
def test_absorbed_batch_norm_takes_the_raw_scale_away(names):
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

    function = jax.jit(model.apply)
    labels = np.asarray(function(variables_of(0, 1.0), x)).argmax(-1)

    def network(scale):
        return network_of(variables_of(0, scale), variables_of(1, scale), function, x, labels)

    plain, scaled = network(1.0), network(3.0)
    for name in names:
        value = FUNCTIONS[name](plain)
        np.testing.assert_allclose(FUNCTIONS[name](scaled), value, rtol=1e-3, err_msg=name)
        assert np.isfinite(value), name
