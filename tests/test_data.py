"""Data sets, subsets, digits, image folders and label corruption."""

import os
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import datasets

from normjax.data import Split, corrupt_labels, load_dataset, standardize_images
from normjax.data.dataset import take_subset


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMJAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


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
    with pytest.raises(ValueError, match="digits, cifar10, cifar100, folder:PATH"):
        load_dataset(name)


def test_import_is_light():
    code = (
        "import sys, normjax.data; "
        "print([m for m in ('sklearn', 'PIL', 'tensorflow_datasets') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# --- folders


def write_folder(root, mode="RGB", suffix="png", shape=(4, 6), counts=(3, 2)):
    """Writes 2 classes of random images; returns the pixels by split, in the expected order."""
    rng = np.random.default_rng(0)
    written = {}
    for split, count in zip(("train", "test"), counts, strict=True):
        written[split] = []
        for name in ("apple", "bear"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (*shape, 3) if mode == "RGB" else shape, np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.{suffix}")
                written[split].append(pixels.reshape(*shape, -1))
    return {split: np.stack(pixels) for split, pixels in written.items()}


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_folder_pixels_labels_and_order(tmp_path, mode, channels):
    written = write_folder(tmp_path / "data", mode)
    (tmp_path / "data/train/.hidden").mkdir()
    (tmp_path / "data/train/apple/.DS_Store").write_bytes(b"x")
    data = load_dataset(f"folder:{tmp_path / 'data'}")
    assert data.class_names == ("apple", "bear") and data.image_shape == (4, 6, channels)
    np.testing.assert_array_equal(data.train.images, written["train"])
    np.testing.assert_array_equal(data.test.images, written["test"])
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert data.train.images.dtype == np.uint8 and data.train.labels.dtype == np.int32


def test_one_color_image_makes_all_rgb(tmp_path):
    written = write_folder(tmp_path, "L")
    color = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(color).save(tmp_path / "test/bear/1.png")
    data = load_dataset(f"folder:{tmp_path}")
    assert data.image_shape == (4, 6, 3)
    np.testing.assert_array_equal(data.train.images, np.repeat(written["train"], 3, axis=3))
    np.testing.assert_array_equal(data.test.images[3], color)


def test_folder_is_decoded_once_and_cached_outside_it(tmp_path, monkeypatch):
    written = write_folder(tmp_path / "data")
    before = sorted(tmp_path.glob("data/**/*"))
    load_dataset(f"folder:{tmp_path / 'data'}")
    assert sorted(tmp_path.glob("data/**/*")) == before
    (cached,) = (tmp_path / "cache").iterdir()  # one file, and no temporary ones
    assert cached.suffix == ".npz"
    assert cached.stat().st_size > sum(pixels.nbytes for pixels in written.values())

    monkeypatch.setattr("PIL.Image.open", None)  # a second decoding would fail
    again = load_dataset(f"folder:{tmp_path / 'data'}")
    np.testing.assert_array_equal(again.train.images, written["train"])


def test_changed_file_of_the_same_size_is_decoded_again(tmp_path):
    write_folder(tmp_path / "data", suffix="bmp")
    load_dataset(f"folder:{tmp_path / 'data'}")
    path = tmp_path / "data/train/apple/0.bmp"
    before = path.stat().st_size
    pixels = np.full((4, 6, 3), 7, np.uint8)
    Image.fromarray(pixels).save(path)
    assert path.stat().st_size == before
    os.utime(path, ns=(1, 1))
    again = load_dataset(f"folder:{tmp_path / 'data'}")
    np.testing.assert_array_equal(again.train.images[0], pixels)


def test_xdg_cache_home_and_unwritable_cache(tmp_path, monkeypatch):
    written = write_folder(tmp_path / "data")
    monkeypatch.delenv("NORMJAX_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_dataset(f"folder:{tmp_path / 'data'}")
    assert len(list((tmp_path / "xdg/normjax").iterdir())) == 1
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not be cached"):
        data = load_dataset(f"folder:{tmp_path / 'data'}")
    np.testing.assert_array_equal(data.test.images, written["test"])


def damage_truncate(content):
    return content[: len(content) // 2]


def damage_flip(content):
    position = content.index(b"train_images.npy") + 300  # among the pixels
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, lambda content: b""])
def test_damaged_cache_is_rebuilt_with_a_warning(tmp_path, damage):
    written = write_folder(tmp_path / "data")
    load_dataset(f"folder:{tmp_path / 'data'}")
    (cached,) = (tmp_path / "cache").iterdir()
    cached.write_bytes(damage(cached.read_bytes()))
    with pytest.warns(UserWarning, match=r"damaged and will be rebuilt"):
        data = load_dataset(f"folder:{tmp_path / 'data'}")
    np.testing.assert_array_equal(data.train.images, written["train"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset(f"folder:{tmp_path / 'data'}")


def break_no_train(root):
    (root / "train").rename(root / "training")


def break_no_test(root):
    (root / "test").rename(root / "testing")


def break_no_classes(root):
    for name in ("apple", "bear"):
        (root / "train" / name).rename(root / f"moved-{name}")


def break_empty_class(root):
    for path in (root / "train/bear").iterdir():
        path.unlink()


def break_classes(root):
    (root / "test/bear").rename(root / "test/wolf")


def break_image(root):
    (root / "train/bear/1.png").write_bytes(b"not an image")


def break_truncated(root):
    path = root / "train/bear/1.png"
    path.write_bytes(path.read_bytes()[:-30])


def break_shape(root):
    Image.new("RGB", (9, 5)).save(root / "train/bear/1.png")


def break_huge(root):
    Image.new("RGB", (1025, 3)).save(root / "train/bear/1.png")


def break_bomb(root):
    Image.new("1", (20000, 10000)).save(root / "train/bear/1.png")  # 200 million pixels


def break_depth(root):
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(root / "train/bear/1.png")


def break_nested(root):
    (root / "train/bear/more").mkdir()


def break_format(root):
    # A PostScript file, which Pillow would hand to an interpreter.
    Image.new("RGB", (6, 4)).save(root / "train/bear/1.png", format="EPS")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_no_train, r"no train/ folder"),
        (break_no_test, r"no test/ folder"),
        (break_no_classes, r"no images: .*train has no class folders"),
        (break_empty_class, r"train/bear is empty"),
        (break_classes, r"same classes; only one of them has bear, wolf"),
        (break_image, r"train/bear/1\.png is not a readable image"),
        (break_truncated, r"train/bear/1\.png is a damaged image"),
        (break_shape, r"train/bear/1\.png is 5x9 pixels, but the first image, .*0\.png, is 4x6"),
        (break_huge, r"train/bear/1\.png is 3x1025 pixels; allowed is up to 1024"),
        (break_bomb, r"train/bear/1\.png is too large an image"),
        (break_depth, r"train/bear/1\.png has pixels of mode I;16"),
        (break_nested, r"train/bear/more is not a file"),
        (break_format, r"train/bear/1\.png is not a readable image"),
    ],
)
def test_bad_folder_is_one_clear_line(tmp_path, damage, message):
    write_folder(tmp_path / "data")
    damage(tmp_path / "data")
    with pytest.raises(ValueError, match=message) as raised:
        load_dataset(f"folder:{tmp_path / 'data'}")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.skipif(
    "NORMJAX_CIFAR10_DIR" not in os.environ,
    reason="NORMJAX_CIFAR10_DIR does not name a folder with CIFAR-10's images as files",
)
def test_real_cifar10_folder():
    data = load_dataset(f"folder:{os.environ['NORMJAX_CIFAR10_DIR']}", test_size=100)
    assert data.image_shape == (32, 32, 3) and data.class_names[:2] == ("airplane", "automobile")
    assert np.bincount(data.train.labels).tolist() == [5000] * 10
    assert len(data.test.labels) == 100
    # The channel means that are quoted for CIFAR-10's training images (0.4914, 0.4822, 0.4465).
    np.testing.assert_allclose(
        data.train.images.mean((0, 1, 2)) / 255, (0.4914, 0.4822, 0.4465), rtol=0, atol=2e-3
    )


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
        (LABELS + 1, 0.5, "redraw", r"labels run from 1 to 10, .* 0\.\.9"),
    ],
)
def test_bad_corruption_is_a_clear_error(labels, level, method, message):
    with pytest.raises(ValueError, match=message):
        corrupt_labels(labels, level, method=method, num_classes=10, rng=np.random.default_rng(0))
