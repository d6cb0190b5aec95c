"""Projected gradient descent to a target margin, and what is measured of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax.data import load_dataset
from normjax.generalization import fixed_margin
from normjax.normalize import param_norms
from normjax.training.step import Batch
from tests.helpers import reference
from tests.helpers.classifiers import classifier_of

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", ["linear", "convnet3"])
def test_layers_have_norm_one_at_the_start_and_after_each_step(name):
    classifier, tx = classifier_of(name), optax.adam(0.01)
    state = fixed_margin.init_state(classifier, tx, KEY, jnp.float32(0.1))
    step = jax.jit(fixed_margin.make_step(classifier, tx))
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1)).astype(np.uint8)
    batch = Batch(images, np.arange(6, dtype=np.int32), np.ones(6, np.float32))
    for _ in range(3):
        norms = param_norms(state.variables, structure=classifier.structure)
        np.testing.assert_allclose(list(norms.values()), 1, rtol=1e-6)
        state, _ = step(state, batch, KEY)


def test_a_step_of_the_linear_network_is_the_closed_form():
    """Gradient X^T (X W / alpha - Y) / (alpha B), then projection, in float64."""
    shape, classes, rate, alpha = (3, 2, 1), 4, 0.02, 0.3
    classifier, tx = classifier_of("linear", shape, classes), optax.sgd(0.02)
    state = fixed_margin.init_state(classifier, tx, KEY, jnp.float32(alpha))
    step = jax.jit(fixed_margin.make_step(classifier, tx))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, *shape)).astype(np.uint8)
    labels = rng.integers(0, classes, 7).astype(np.int32)
    weights = (np.arange(7) < 5).astype(np.float32)  # the last two are padding
    kernel = np.asarray(state.variables["params"]["Dense_0"]["kernel"], np.float64)
    assert np.linalg.norm(kernel) == pytest.approx(1, rel=1e-6)
    state, metrics = step(state, Batch(images, labels, weights), KEY)
    x = reference.standardize(images[:5]).reshape(5, -1)
    residual = x @ kernel / alpha - np.eye(classes)[labels[:5]]
    moved = kernel - rate * x.T @ residual / alpha / 5
    expected = moved / np.linalg.norm(moved)
    np.testing.assert_allclose(
        state.variables["params"]["Dense_0"]["kernel"], expected, rtol=0, atol=1e-6
    )
    assert np.abs(expected - kernel).max() > 0.01
    assert metrics.loss == pytest.approx(0.5 * np.mean(np.sum(residual**2, axis=1)), rel=1e-5)


def test_margins_are_the_right_class_minus_the_best_other():
    logits = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0], [1.0, 1.0, 0.0]])
    found = fixed_margin.margins_of(logits, np.array([0, 2, 1]))
    np.testing.assert_array_equal(found, [1.0, -4.0, 0.0])


def test_networks_and_their_labels():
    members = fixed_margin.make_members((0.1, 0.2), 2)
    assert [(m.index, m.level, m.seed) for m in members[:4]] == [
        (0, 0.1, 0),
        (1, 0.1, 1),
        (2, 0.2, 0),
        (3, 0.2, 1),
    ]
    dataset = load_dataset("digits", train_size=100, test_size=10)
    true = [fixed_margin.labels_of(dataset, member, 0) for member in members[:4]]
    assert all(np.array_equal(labels, dataset.train.labels) for labels in true)
    random = [fixed_margin.labels_of(dataset, member, 0) for member in members[4:]]
    for i, labels in enumerate(random):
        assert np.mean(labels == dataset.train.labels) < 0.3
        assert all(np.mean(labels == other) < 0.4 for other in random[:i])


@pytest.fixture(scope="module")
def trained():
    """True labels reach margin 0.05 of the linear network on 20 digits; 50 is out of reach."""
    dataset = load_dataset("digits", train_size=20, test_size=50)
    classifier = classifier_of("linear")
    members = fixed_margin.make_members((0.05, 50.0), 1)
    tx = optax.adam(optax.cosine_decay_schedule(0.01, 600))
    how = {"epochs": 300, "batch_size": 10, "seed": 0}
    variables = fixed_margin.train(classifier, tx, dataset, members, **how)
    return dataset, classifier, members, variables


def test_what_is_measured(trained):
    dataset, classifier, members, variables = trained
    table = fixed_margin.measure(classifier, dataset, members, variables, 0)
    assert list(table.columns) == list(fixed_margin.COLUMNS)
    assert table["labels"].tolist() == ["true", "true", "random", "random"]
    assert table["reached"].tolist() == [1, 0, 1, 0]
    np.testing.assert_allclose(table["product_norm"], 1, rtol=1e-5)
    row = table.iloc[2]
    kernel = np.asarray(variables["params"]["Dense_0"]["kernel"][2], np.float64)
    for split, labels in (
        ("train", fixed_margin.labels_of(dataset, members[2], 0)),
        ("test", dataset.test.labels),
    ):
        images = getattr(dataset, split).images
        logits = reference.standardize(images).reshape(len(images), -1) @ kernel
        margins = [
            own[label] - max(np.delete(own, label))
            for own, label in zip(logits, labels, strict=True)
        ]
        assert row[f"{split}_margin"] == pytest.approx(np.mean(margins), rel=1e-4, abs=1e-6)
        assert row[f"{split}_error"] == np.mean(np.array(margins) <= 0)
        if split == "train":
            # Margins of 0.05 are float32 sums, off by a few spacings; their std is 300 spacings.
            rounding = 8 * float(np.spacing(np.float32(0.05)))
            assert row["train_margin_std"] == pytest.approx(np.std(margins), abs=rounding)
            assert row["train_margin_min"] == pytest.approx(np.min(margins), rel=1e-4)
    assert abs(row["train_margin"] - 0.05) < 0.005 and row["train_error"] == 0


def test_the_summary_has_what_was_reached_only(trained):
    table = fixed_margin.measure(*trained[1::-1], *trained[2:], 0)
    found = fixed_margin.summarize(table, seed=0)
    assert found["not_reached"] == [1, 3]
    assert found["correlations"] == {"true": None, "random": None}
    assert all("3" in reason for reason in found["reasons"].values())
    margins = np.repeat([0.1, 0.2, 0.3, 0.4], 2)
    many = table.loc[[0] * 8].assign(
        target_margin=margins, train_margin=margins, test_error=1 - margins, member=range(8)
    )
    assert fixed_margin.summarize(many, seed=0)["correlations"]["true"]["kendall"] == -1


def test_batch_normalization_is_refused():
    classifier = classifier_of("convnet5", (16, 16, 3), batch_norm=True)
    with pytest.raises(ValueError, match="batch normalization"):
        how = {"epochs": 1, "batch_size": 1, "seed": 0}
        fixed_margin.train(classifier, optax.sgd(1.0), load_dataset("digits"), [], **how)
