"""Fashion-MNIST from IDX files."""

import gzip
import hashlib
import struct

import numpy as np
import pytest

from normjax.data import fashion_mnist, load_dataset

NAMES = [f"{a}-{b}-ubyte" for a in ("train", "t10k") for b in ("images-idx3", "labels-idx1")]


def idx(array):
    """The bytes of an IDX file of unsigned bytes."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shapes = ((6, 5, 4), (6,), (3, 5, 4), (3,))
    return [rng.integers(0, 256 if len(shape) > 1 else 10, shape) for shape in shapes]


@pytest.fixture
def folder(tmp_path, arrays):
    """One file compressed and three not."""
    for name, array in zip(NAMES[:-1], arrays[:-1], strict=True):
        (tmp_path / name).write_bytes(idx(array))
    (tmp_path / f"{NAMES[-1]}.gz").write_bytes(gzip.compress(idx(arrays[-1])))
    return tmp_path


def test_values(folder, arrays):
    with pytest.warns(UserWarning, match="is not Fashion-MNIST's official") as seen:
        dataset = load_dataset("fashion_mnist", data_dir=folder)
    assert [name for name in NAMES if any(name in str(w.message) for w in seen)] == NAMES
    for split, (images, labels) in zip(dataset[:2], (arrays[:2], arrays[2:]), strict=True):
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        np.testing.assert_array_equal(split.images[..., 0], images)
        np.testing.assert_array_equal(split.labels, labels)
    assert dataset.num_classes == 10 and dataset.image_shape == (5, 4, 1)
    assert dataset.class_names[9] == "Ankle boot"


def test_official_files_are_read_without_a_warning(folder, monkeypatch):
    for name in NAMES:
        path = next(folder.glob(f"{name}*"))
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix else content
        monkeypatch.setitem(fashion_mnist.SHA256, name, hashlib.sha256(content).hexdigest())
    assert len(load_dataset("fashion_mnist", data_dir=folder, train_size=2).train.labels) == 2


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (NAMES[0], lambda old: old[:-1], "its header does not match its content"),
        (NAMES[0], lambda old: old + b"x", "its header does not match its content"),
        (NAMES[0], lambda old: b"\x00\x00\x0d\x03" + old[4:], "its header does not match"),
        (NAMES[0], lambda old: b"", "its header does not match"),
        (NAMES[0], lambda old: old[:4] + b"\xff" * 12, "its header does not match"),
        (NAMES[1], lambda old: idx(np.arange(5)), "5 labels for 6 images"),
        (NAMES[1], lambda old: idx(np.arange(5, 11)), "label 10 of 10 classes"),
        (
            NAMES[2],
            lambda old: idx(np.zeros((3, 4, 4))),
            "another size than that of training images",
        ),
        (f"{NAMES[3]}.gz", lambda old: old[:-9], "truncated or damaged"),
        (f"{NAMES[3]}.gz", lambda old: b"no gzip", "truncated or damaged"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*official")
def test_damaged_files_are_named(folder, name, change, message):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as raised:
        load_dataset("fashion_mnist", data_dir=folder)
    assert str(folder) in str(raised.value)


def test_missing_files_are_named(folder):
    (folder / NAMES[2]).unlink()
    with pytest.raises(ValueError, match=rf"is incomplete: it lacks {NAMES[2]}$"):
        load_dataset("fashion_mnist", data_dir=folder)
