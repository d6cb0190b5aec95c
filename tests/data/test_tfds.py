"""TensorFlow Datasets as a source: tiny prepared data, and a download from this machine."""

import contextlib
import functools
import hashlib
import http.server
import io
import re
import socket
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import registered

from normjax.data import load_dataset

CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def draw_split(count, shape, num_classes, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *shape), np.uint8), rng.integers(0, num_classes, count)


def prepare(folder, name, class_names, splits, with_id=False):
    """Lets TFDS prepare a data set of the given {split: (images, labels)}."""
    shape = next(iter(splits.values()))[0].shape[1:]
    features = {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(names=class_names),
    }
    if with_id:
        features["id"] = tfds.features.Text()

    def info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def examples(split):
        for i, (image, label) in enumerate(zip(*splits[split], strict=True)):
            stream = io.BytesIO()  # an encoded image: TFDS needs TensorFlow to encode one
            Image.fromarray(image.squeeze()).save(stream, "PNG")
            stream.seek(0)
            example = {"image": stream, "label": int(label)}
            yield i, example | ({"id": f"{split}_{i:05d}"} if with_id else {})

    members = {
        "VERSION": tfds.core.Version("3.0.2"),
        "_info": info,
        "_split_generators": lambda self, _: {split: examples(split) for split in splits},
        "_generate_examples": lambda self: None,
    }
    with registered.skip_registration():
        builder_class = type(name, (tfds.core.GeneratorBasedBuilder,), members)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        builder_class(data_dir=folder, file_format="array_record").download_and_prepare()


def sorted_rows(split):
    rows = np.column_stack([split.images.reshape(len(split.labels), -1), split.labels])
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5, 1)])
def test_prepared_set_of_any_name(tmp_path, shape):
    splits = {"train": draw_split(9, shape, 3, 0), "test": draw_split(4, shape, 3, 1)}
    prepare(tmp_path / "tfds", "TinyPictures", ["ant", "bee", "cow"], splits)
    data = load_dataset("tiny_pictures")
    assert data.name == "tiny_pictures" and data.class_names == ("ant", "bee", "cow")
    assert data.image_shape == shape
    assert data.train.images.dtype == np.uint8 and data.train.labels.dtype == np.int32
    for split, (images, labels) in ((data.train, splits["train"]), (data.test, splits["test"])):
        expected = np.column_stack([images.reshape(len(labels), -1), labels])
        np.testing.assert_array_equal(sorted_rows(split), expected[np.lexsort(expected.T)])
    assert len(load_dataset("tiny_pictures", train_size=5).train.labels) == 5
    assert len(load_dataset("tiny_pictures:3.0.2", data_dir=tmp_path).train.labels) == 9


def test_prepared_cifar_is_sorted_into_the_official_order(tmp_path):
    splits = {
        "train": draw_split(20, (32, 32, 3), 10, 0),
        "test": draw_split(7, (32, 32, 3), 10, 1),
    }
    prepare(tmp_path, "Cifar10", CIFAR10_NAMES, splits, with_id=True)
    data = load_dataset("cifar10", data_dir=tmp_path)
    np.testing.assert_array_equal(data.train.images, splits["train"][0])
    np.testing.assert_array_equal(data.train.labels, splits["train"][1])
    np.testing.assert_array_equal(data.test.images, splits["test"][0])
    assert data.class_names == tuple(CIFAR10_NAMES)


def test_prepared_data_need_no_tensorflow(tmp_path):
    splits = {"train": draw_split(3, (4, 4, 3), 2, 0), "test": draw_split(2, (4, 4, 3), 2, 1)}
    prepare(tmp_path / "tfds", "TinyPictures", ["ant", "bee"], splits)
    code = (
        "import sys, normjax.data as data; "
        "print(data.load_dataset('tiny_pictures').train.images.shape, 'tensorflow' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "(3, 4, 4, 3) False"


def test_prepared_without_a_test_split(tmp_path):
    splits = {"train": draw_split(3, (4, 4, 3), 2, 0), "validation": draw_split(2, (4, 4, 3), 2, 1)}
    prepare(tmp_path, "TinyPictures", ["ant", "bee"], splits)
    with pytest.raises(ValueError, match=r"no test split: it has train, validation"):
        load_dataset("tiny_pictures", data_dir=tmp_path)


def test_prepared_images_of_absurd_size_are_not_decoded(tmp_path, monkeypatch):
    splits = {"train": draw_split(1, (1025, 2, 1), 2, 0), "test": draw_split(1, (1025, 2, 1), 2, 1)}
    prepare(tmp_path, "TinyPictures", ["ant", "bee"], splits)
    monkeypatch.setattr("normjax.data.tfds._read_split", None)
    with pytest.raises(ValueError, match=r"images of \(1025, 2, 1\): allowed is up to 1024 a side"):
        load_dataset("tiny_pictures", data_dir=tmp_path)


def test_prepared_in_a_format_that_needs_tensorflow(tmp_path):
    splits = {"train": draw_split(3, (4, 4, 3), 2, 0), "test": draw_split(2, (4, 4, 3), 2, 1)}
    prepare(tmp_path, "TinyPictures", ["ant", "bee"], splits)
    info = tmp_path / "tiny_pictures/3.0.2/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"cannot be read: .*array_record") as raised:
        load_dataset("tiny_pictures", data_dir=tmp_path)
    assert "\n" not in str(raised.value)


def test_damaged_prepared_data(tmp_path):
    splits = {"train": draw_split(3, (4, 4, 3), 2, 0), "test": draw_split(2, (4, 4, 3), 2, 1)}
    prepare(tmp_path, "TinyPictures", ["ant", "bee"], splits)
    (shard,) = tmp_path.glob("tiny_pictures/3.0.2/*train*")
    shard.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"tiny_pictures in .* cannot be read"):
        load_dataset("tiny_pictures", data_dir=tmp_path)


def test_name_that_is_not_prepared_lists_the_places(tmp_path):
    with pytest.raises(ValueError) as raised:
        load_dataset("mnist", data_dir=tmp_path)
    message = str(raised.value)
    assert "\n" not in message and f"prepared TFDS data in {tmp_path}" in message
    assert str(tmp_path / "tfds") in message and "allowed are digits, cifar10" in message


def test_folder_of_that_name_without_prepared_data(tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "nonsense").mkdir()
    for name in ("mnist", "nonsense"):
        with pytest.raises(ValueError, match="unknown or not prepared"):
            load_dataset(name, data_dir=tmp_path)


def test_data_dir_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"data_dir .*absent is not a folder"):
        load_dataset("cifar10", data_dir=tmp_path / "absent")


# --- the download


def write_cifar10_archive():
    """A binary CIFAR-10 archive of one image a file, image i being all i."""
    stream = io.BytesIO()
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for i, name in enumerate(names):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = 3073
            tar.addfile(member, io.BytesIO(bytes([i]) * 3073))
    return stream.getvalue()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves the archive from this machine; yields (url, content)."""
    content = write_cifar10_archive()
    (tmp_path / "served").mkdir()
    (tmp_path / "served/cifar-10-binary.tar.gz").write_bytes(content)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{running.server_port}/"
        monkeypatch.setattr("normjax.data.load.CIFAR_URL", root)
        yield root + "cifar-10-binary.tar.gz", content
        running.shutdown()


def register(monkeypatch, url, content, sha256=None):
    """Tells TFDS the checksum that it is to expect."""
    info = tfds.download.checksums.UrlInfo(
        size=len(content),
        checksum=sha256 or hashlib.sha256(content).hexdigest(),
        filename="cifar-10-binary.tar.gz",
    )
    monkeypatch.setattr(tfds.download.checksums, "get_all_url_infos", lambda: {url: info})


@pytest.mark.filterwarnings("ignore:.*is not the official")
def test_download_lands_in_the_tfds_folder_and_is_used_again(server, tmp_path, monkeypatch):
    register(monkeypatch, *server)
    data = load_dataset("cifar10")
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4] and data.test.labels.tolist() == [5]
    np.testing.assert_array_equal(data.train.images[:, 0, 0, 0], np.arange(5))
    (archive,) = (tmp_path / "tfds/downloads").rglob("*.tar.gz")
    assert archive.read_bytes() == server[1]

    monkeypatch.setattr(socket, "create_connection", None)  # no network any more
    again = load_dataset("cifar10")
    np.testing.assert_array_equal(again.train.images, data.train.images)


def test_download_with_a_wrong_checksum(server, tmp_path, monkeypatch):
    register(monkeypatch, *server, sha256="0" * 64)
    with pytest.raises(ValueError, match=r"the download failed: .*wrong checksum") as raised:
        load_dataset("cifar10")
    assert "\n" not in str(raised.value)


def test_missing_on_the_server(server, tmp_path, monkeypatch):
    register(monkeypatch, *server)
    (tmp_path / "served/cifar-10-binary.tar.gz").unlink()
    with pytest.raises(ValueError, match=r"the download failed: .*404"):
        load_dataset("cifar10")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_no_network_lists_every_place_at_once(name, tmp_path, monkeypatch):
    def refuse(address, timeout):
        assert address == ("www.cs.toronto.edu", 443) and timeout <= 5
        raise OSError("unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    (tmp_path / "own").mkdir()
    with pytest.raises(ValueError) as raised:
        load_dataset(name, data_dir=tmp_path / "own")
    message = str(raised.value)
    dashed = name.replace("cifar", "cifar-")
    for place in (
        f"{dashed}-binary.tar.gz",
        f"{dashed}-python.tar.gz",
        str(tmp_path / "own"),
        str(tmp_path / "tfds"),
        f"https://www.cs.toronto.edu/~kriz/{dashed}-binary.tar.gz",
        "no network: www.cs.toronto.edu cannot be reached (unreachable)",
    ):
        assert place in message
    assert "\n" not in message


def test_network_that_never_answers_is_given_up(monkeypatch):
    released = threading.Event()

    def hang(address, timeout):
        released.wait()
        raise OSError("released")

    monkeypatch.setattr(socket, "create_connection", hang)
    monkeypatch.setattr("normjax.data.tfds.NETWORK_TIMEOUT", 0.1)
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"no answer in 0\.1 s"):
        load_dataset("cifar10")
    assert time.monotonic() - started < 5
    released.set()


def test_proxy_is_what_must_be_reachable(monkeypatch):
    asked = []

    def refuse(address, timeout):
        asked.append(address)
        raise OSError("unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    with pytest.raises(ValueError, match=r"no network: proxy\.example"):
        load_dataset("cifar10")
    assert asked == [("proxy.example", 3128)]


@pytest.mark.parametrize("name", ["[v1]", "a**b", "back\\slash?"])
def test_prepared_data_are_found_whatever_their_folder_is_called(tmp_path, name):
    splits = {"train": draw_split(5, (6, 6, 1), 2, 0), "test": draw_split(3, (6, 6, 1), 2, 1)}
    prepare(tmp_path / "plain", "oddly_placed", ["x", "y"], splits, with_id=True)
    (tmp_path / "plain").rename(tmp_path / name)
    data = load_dataset("oddly_placed", data_dir=tmp_path / name)
    np.testing.assert_array_equal(data.train.images, splits["train"][0])
    (tmp_path / name / "oddly_placed" / "3.0.2" / "features.json").unlink()
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / name))):
        load_dataset("oddly_placed", data_dir=tmp_path / name)
