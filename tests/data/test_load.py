"""Data sets, subsets, digits and label corruption."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import datasets

from normjax.data import Split, corrupt_labels, load_dataset, standardize_images
from normjax.data.dataset import take_subset
from normjax.data.labels import METHODS

# --- subsets and scaling


def test_subset_is_fixed_exact_nested_and_in_order():
    split = Split(np.arange(1000, dtype=np.uint8).reshape(-1, 1, 1, 1), np.arange(1000))
    small = take_subset(split, 50, "train").labels
    large = take_subset(split, 300, "train").labels
    assert len(small) == 50 and len(large) == 300
    assert np.all(np.diff(large) > 0)
    assert set(small) <= set(large)
    # Frozen: the same numbers on every machine and with every numpy.
    assert small[:8].tolist() == [1, 14, 27, 31, 45, 55, 77, 103]
    # Spread over the whole split: the mean of a uniform subset is within 5 standard errors.
    assert abs(large.mean() - 499.5) < 5 * 288.7 / np.sqrt(300)
    assert take_subset(split, None, "train") is split
    np.testing.assert_array_equal(take_subset(split, 1000, "train").labels, split.labels)


@pytest.mark.parametrize("size", [0, -1, 1348])
def test_impossible_size_names_both_sizes(size):
    with pytest.raises(ValueError, match=rf"train_size={size} .* 1347 examples"):
        load_dataset("digits", train_size=size)


def test_standardize_images_is_the_papers_scaling():
    pixels = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1)
    expected = (pixels.astype(np.float64) / 255 - 0.5) / 0.5
    scaled = jax.jit(standardize_images)(pixels)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, expected, rtol=0, atol=2e-7)
    on_host = standardize_images(pixels)
    assert isinstance(on_host, np.ndarray) and on_host.dtype == np.float32
    np.testing.assert_allclose(on_host, expected, rtol=0, atol=2e-7)


# --- digits


def test_digits_are_scikit_learns_split_by_class():
    data = load_dataset("digits")
    assert data.name == "digits" and data.num_classes == 10 and data.image_shape == (8, 8, 1)
    assert data.class_names == tuple("0123456789")
    assert data.train.images.shape == (1347, 8, 8, 1) and data.test.images.shape == (450, 8, 8, 1)
    assert data.train.images.dtype == np.uint8 and data.train.labels.dtype == np.int32
    # Together the two splits are exactly the source's examples.
    source = datasets.load_digits()
    ours = np.concatenate([split.images.reshape(-1, 64) for split in (data.train, data.test)])
    labels = np.concatenate([data.train.labels, data.test.labels])
    rows = np.column_stack([np.rint(ours.astype(np.float64) * 16 / 255), labels])
    expected = np.column_stack([source.data, source.target])
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])
    assert ours.max() == 255
    # Stratified: each class has a quarter of its examples in the test split, to one example.
    share = np.bincount(data.test.labels) - np.bincount(labels) * 450 / 1797
    assert np.abs(share).max() < 1


def test_digits_are_the_same_every_time():
    first, second = load_dataset("digits", train_size=100), load_dataset("digits", train_size=100)
    np.testing.assert_array_equal(first.train.images, second.train.images)
    assert len(first.train.labels) == 100 and len(first.test.labels) == 450


# --- names


@pytest.mark.parametrize("name", ["nonsense", "", "../up", "a b", "digits2"])
def test_unknown_name_lists_what_is_allowed(name):
    with pytest.raises(ValueError, match="cifar100, fashion_mnist, folder:PATH"):
        load_dataset(name)


def test_import_is_light():
    code = (
        "import sys, normjax.data; "
        "print([m for m in ('sklearn', 'PIL', 'tensorflow_datasets') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# --- label corruption

LABELS = np.random.default_rng(5).integers(0, 10, 2000).astype(np.int32)


@settings(max_examples=60, deadline=None)
@given(
    level=st.floats(0, 1),
    method=st.sampled_from(["swap", "redraw"]),
    size=st.integers(0, 200),
    seed=st.integers(0, 2**32 - 1),
)
def test_exactly_the_chosen_fraction_changes(level, method, size, seed):
    labels = LABELS[:size]
    before = labels.copy()
    corrupted, chosen = corrupt_labels(
        labels, level, method=method, num_classes=10, rng=np.random.default_rng(seed)
    )
    np.testing.assert_array_equal(labels, before)
    assert corrupted.dtype == labels.dtype and not np.shares_memory(corrupted, labels)
    assert len(chosen) == round(level * size) and np.all(np.diff(chosen) > 0)
    untouched = np.setdiff1d(np.arange(size), chosen)
    np.testing.assert_array_equal(corrupted[untouched], labels[untouched])
    if method == "swap":
        np.testing.assert_array_equal(
            np.bincount(corrupted, minlength=10), np.bincount(labels, minlength=10)
        )


@pytest.mark.parametrize("method", ["swap", "redraw"])
def test_corrupted_labels_are_random(method):
    corrupted, chosen = corrupt_labels(
        LABELS, 0.75, method=method, num_classes=10, rng=np.random.default_rng(1)
    )
    # A tenth of the chosen keep their class by chance; 5 standard errors around it.
    kept = np.mean(corrupted[chosen] == LABELS[chosen])
    assert abs(kept - 0.1) < 5 * np.sqrt(0.09 / len(chosen))
    assert abs(chosen.mean() / len(LABELS) - 0.5) < 5 * 0.289 / np.sqrt(len(chosen))


def test_redraw_at_level_one_is_uniform_even_where_classes_are_not():
    labels = np.zeros(5000, np.int32)
    corrupted, _ = corrupt_labels(
        labels, 1.0, method="redraw", num_classes=5, rng=np.random.default_rng(2)
    )
    counts = np.bincount(corrupted, minlength=5)
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(5000 * 0.2 * 0.8)


def test_corruption_repeats_with_the_generators_seed():
    first, second, other = (
        corrupt_labels(LABELS, 0.5, method="swap", num_classes=10, rng=np.random.default_rng(s))[0]
        for s in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, second)
    assert np.any(first != other)


@pytest.mark.parametrize(
    ("labels", "level", "method", "message"),
    [
        (LABELS, -0.1, "swap", r"level -0\.1 .* \[0, 1\]"),
        (LABELS, 1.01, "swap", r"level 1\.01 .* \[0, 1\]"),
        (LABELS, float("nan"), "redraw", r"level nan .* \[0, 1\]"),
        (LABELS, 0.5, "shuffle", r"'shuffle' is not known: allowed are swap, redraw"),
        (LABELS.astype(np.float32), 0.5, "swap", r"vector of integers, not float32"),
        (LABELS.reshape(2, -1), 0.5, "swap", r"vector of integers, not int32 of shape \(2, 1000\)"),
        (LABELS + 1, 0.5, "redraw", r"labels range from 1 to 10, .* 0\.\.9"),
    ],
)
def test_bad_corruption_is_a_clear_error(labels, level, method, message):
    with pytest.raises(ValueError, match=message):
        corrupt_labels(labels, level, method=method, num_classes=10, rng=np.random.default_rng(0))


@pytest.mark.parametrize("method", METHODS)
def test_labels_too_narrow_for_the_classes_are_refused(method):
    """A redrawn label 200 would become -56 in int8."""
    labels, rng = np.arange(100, dtype=np.int8), np.random.default_rng(0)
    with pytest.raises(ValueError, match="labels of int8 cannot hold num_classes=201 classes"):
        corrupt_labels(labels, 0.5, method=method, num_classes=201, rng=rng)
    assert corrupt_labels(labels, 1.0, method=method, num_classes=128, rng=rng)[0].min() >= 0
