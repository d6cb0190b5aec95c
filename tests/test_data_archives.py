"""The official CIFAR files and the restricted unpickler, on tiny archives written here."""

import contextlib
import functools
import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normjax.data import load_dataset
from normjax.data.cifar import CLASS_NAMES, LAYOUTS, load_cifar
from normjax.data.pickles import load_plain_dict, to_matrix

BINARY, PYTHON = 0, 1  # the places in LAYOUTS[name]


# --- writing small archives in the official layout


def draw_examples(name, counts=(3, 2, 4, 3, 3, 5)):
    """Images [N, 32, 32, 3] and fine labels for each file of an archive, test file last."""
    rng = np.random.default_rng(0)
    counts = counts if name == "cifar10" else counts[-2:]
    return [
        (
            rng.integers(0, 256, (count, 32, 32, 3), np.uint8),
            rng.integers(0, len(CLASS_NAMES[name]), count),
        )
        for count in counts
    ]


def to_rows(images):
    """Each image as its planes of red, green and blue: uint8 [N, 3072]."""
    return np.stack([np.concatenate([i[..., c].ravel() for c in range(3)]) for i in images])


def python2_pickle(value):
    """Pickles as Python 2's cPickle with numpy 1 did at protocol 2, all strings being bytes."""

    def write(item):
        if isinstance(item, str):
            item = item.encode("latin1")
        if isinstance(item, bytes):
            return b"T" + struct.pack("<i", len(item)) + item
        if isinstance(item, bool):
            return b"\x89" if not item else b"\x88"
        if item is None:
            return b"N"
        if isinstance(item, int | np.integer):
            return b"J" + struct.pack("<i", item)
        if isinstance(item, tuple):
            return b"(" + b"".join(map(write, item)) + b"t"
        if isinstance(item, list):
            return b"](" + b"".join(map(write, item)) + b"e"
        if isinstance(item, dict):
            return b"}(" + b"".join(write(k) + write(v) for k, v in item.items()) + b"u"
        reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
        dtype = b"cnumpy\ndtype\n" + write(("u1", 0, 1)) + b"R"
        dtype += write((3, "|", None, None, None, -1, -1, 0)) + b"b"
        state = b"(" + write(1) + write(item.shape) + dtype + write(False) + write(item.tobytes())
        return reconstruct + write((0,)) + write("b") + b"tR" + state + b"tb"

    return b"\x80\x02" + write(value) + b"."


def python3_pickle(protocol, value):
    return pickle.dumps(value, protocol=protocol)


def write_files(name, layout, examples, dumps=python2_pickle):
    """The files of an archive as {name: content}."""
    files = {"readme.html": b"<html></html>"}
    names = (*layout.train_files, *layout.test_files)
    for file, (images, labels) in zip(names, examples, strict=True):
        rows = to_rows(images)
        if layout.is_binary:
            columns = [labels] if name == "cifar10" else [labels // 5, labels]
            files[file] = np.column_stack([*columns, rows]).astype(np.uint8).tobytes()
        else:
            key = "labels" if name == "cifar10" else "fine_labels"
            batch = {"data": rows, key: labels.tolist(), "batch_label": file}
            if name == "cifar100":
                batch["coarse_labels"] = (labels // 5).tolist()
            files[file] = dumps(batch)
    class_names = [f"class_{i}" for i in range(len(CLASS_NAMES[name]))]
    if layout.is_binary:
        files[layout.meta_file] = ("\n".join(class_names) + "\n").encode()
    else:
        key = "label_names" if name == "cifar10" else "fine_label_names"
        files[layout.meta_file] = dumps({key: class_names})
    return files


def write_tar(layout, files):
    """A .tar.gz of the files, in the official folder, as bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for file, content in files.items():
            member = tarfile.TarInfo(f"{layout.folder}/{file}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def assert_read_as_written(data, name, examples):
    images, labels = (np.concatenate(part) for part in zip(*examples[:-1], strict=True))
    np.testing.assert_array_equal(data.train.images, images)
    np.testing.assert_array_equal(data.train.labels, labels)
    np.testing.assert_array_equal(data.test.images, examples[-1][0])
    np.testing.assert_array_equal(data.test.labels, examples[-1][1])
    for split in (data.train, data.test):
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        assert split.images.flags.c_contiguous
    assert data.name == name and data.num_classes == len(CLASS_NAMES[name])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("kind", [BINARY, PYTHON])
def test_archive_in_official_order(tmp_path, name, kind):
    layout, examples = LAYOUTS[name][kind], draw_examples(name)
    content = write_tar(layout, write_files(name, layout, examples))
    (tmp_path / layout.archive).write_bytes(content)
    with pytest.warns(UserWarning, match="is not the official") as caught:
        data = load_dataset(name, data_dir=tmp_path)
    assert len(caught) == 1
    assert hashlib.sha256(content).hexdigest() in str(caught[0].message)
    assert layout.sha256 in str(caught[0].message)
    assert_read_as_written(data, name, examples)
    assert data.class_names[:2] == ("class_0", "class_1")
    assert [path.name for path in tmp_path.iterdir()] == [layout.archive]  # nothing extracted


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("kind", [BINARY, PYTHON])
def test_unpacked_folder_without_meta_file(tmp_path, name, kind):
    layout, examples = LAYOUTS[name][kind], draw_examples(name)
    (tmp_path / layout.folder).mkdir()
    for file, content in write_files(name, layout, examples).items():
        if file != layout.meta_file:
            (tmp_path / layout.folder / file).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_dataset(name, data_dir=tmp_path)
    assert_read_as_written(data, name, examples)
    assert data.class_names == CLASS_NAMES[name]


def test_official_class_names():
    assert len(set(CLASS_NAMES["cifar10"])) == 10 and len(set(CLASS_NAMES["cifar100"])) == 100
    assert list(CLASS_NAMES["cifar100"]) == sorted(CLASS_NAMES["cifar100"])


def test_official_checksum_gives_no_warning(tmp_path, monkeypatch):
    layout, examples = LAYOUTS["cifar10"][BINARY], draw_examples("cifar10")
    content = write_tar(layout, write_files("cifar10", layout, examples))
    (tmp_path / layout.archive).write_bytes(content)
    layout = layout._replace(sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(LAYOUTS, "cifar10", (layout,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_dataset("cifar10", data_dir=tmp_path)
    assert_read_as_written(data, "cifar10", examples)


# --- damaged archives


def truncate(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize("kind", [BINARY, PYTHON])
@pytest.mark.parametrize(
    "damage",
    [truncate, lambda content: b"", lambda content: b"no archive", lambda _: gzip.compress(b"x")],
)
def test_damaged_archive_names_the_file(tmp_path, kind, damage):
    layout = LAYOUTS["cifar10"][kind]
    content = write_tar(layout, write_files("cifar10", layout, draw_examples("cifar10")))
    (tmp_path / layout.archive).write_bytes(damage(content))
    with pytest.raises(ValueError, match=rf"{layout.archive} is truncated or damaged") as raised:
        load_dataset("cifar10", data_dir=tmp_path)
    assert "\n" not in str(raised.value)


def test_archive_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr("normjax.data.cifar.MAX_BYTES", 10_000)
    layout = LAYOUTS["cifar10"][BINARY]
    files = write_files("cifar10", layout, draw_examples("cifar10"))
    (tmp_path / layout.archive).write_bytes(write_tar(layout, files))
    with pytest.raises(ValueError, match=r"unpacks to more than 10000 bytes"):
        load_dataset("cifar10", data_dir=tmp_path)
    (tmp_path / layout.archive).unlink()
    (tmp_path / layout.folder).mkdir()
    for file, content in files.items():
        (tmp_path / layout.folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=r"data_batch_3\.bin is larger than 10000 bytes"):
        load_dataset("cifar10", data_dir=tmp_path)


@pytest.mark.filterwarnings("ignore:.*is not the official")
@pytest.mark.parametrize(
    ("name", "kind", "file", "content", "message"),
    [
        ("cifar10", BINARY, "data_batch_2.bin", None, r"it lacks data_batch_2\.bin"),
        ("cifar10", BINARY, "data_batch_2.bin", bytes(3072), r"data_batch_2\.bin .* 3073-byte"),
        ("cifar10", BINARY, "test_batch.bin", b"", r"test_batch\.bin .* 3073-byte"),
        ("cifar10", BINARY, "test_batch.bin", b"\x0a" * 3073, r"label 10 is outside 0\.\.9"),
        ("cifar10", BINARY, "batches.meta.txt", b"cat\ndog\n", r"names 2 classes, not 10"),
        ("cifar100", BINARY, "train.bin", bytes(3073), r"train\.bin .* 3074-byte"),
        ("cifar100", BINARY, "train.bin", b"\x64" * 3074, r"label 100 is outside 0\.\.99"),
        ("cifar100", PYTHON, "train", b"junk", r"train is damaged: not a readable pickle"),
        ("cifar100", PYTHON, "train", python2_pickle([1]), r"holds a list, not a dict"),
        ("cifar100", PYTHON, "train", python2_pickle({"labels": [1]}), r"no list of labels"),
        ("cifar100", PYTHON, "meta", python2_pickle({}), r"no list fine_label_names"),
        (
            "cifar10",
            PYTHON,
            "data_batch_1",
            python2_pickle({"labels": [1, 10]}),
            r"not all integers in 0\.\.9",
        ),
        (
            "cifar10",
            PYTHON,
            "data_batch_1",
            python2_pickle({"labels": [1], "data": np.zeros((2, 3072), np.uint8)}),
            r"shape \(2, 3072\) do not fit 1 labels",
        ),
        (
            "cifar10",
            PYTHON,
            "data_batch_1",
            pickle.dumps({"labels": [1], "data": np.zeros((1, 3072), np.int64)}),
            r"not uint8",
        ),
    ],
)
def test_bad_member_is_named(tmp_path, name, kind, file, content, message):
    layout = LAYOUTS[name][kind]
    files = write_files(name, layout, draw_examples(name))
    files.pop(file)
    if content is not None:
        files[file] = content
    (tmp_path / layout.archive).write_bytes(write_tar(layout, files))
    with pytest.raises(ValueError, match=message) as raised:
        load_dataset(name, data_dir=tmp_path)
    assert layout.archive in str(raised.value) and "\n" not in str(raised.value)


def test_links_and_escaping_names_are_not_followed(tmp_path):
    layout = LAYOUTS["cifar100"][BINARY]
    (tmp_path / "data").mkdir()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        link = tarfile.TarInfo("cifar-100-binary/train.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        outside = tarfile.TarInfo("../../test.bin")
        outside.size = 3074
        tar.addfile(outside, io.BytesIO(bytes(3074)))
    (tmp_path / "data" / layout.archive).write_bytes(stream.getvalue())
    with (
        pytest.warns(UserWarning, match="is not the official"),
        pytest.raises(ValueError, match=r"it lacks train\.bin"),
    ):
        load_dataset("cifar100", data_dir=tmp_path / "data")
    assert [path.name for path in tmp_path.rglob("*.bin")] == []


# --- the restricted unpickler


def test_python2_pickle_is_what_python2_wrote():
    """Holds this file's own writer against Python's unrestricted reader."""
    rows = np.arange(12, dtype=np.uint8).reshape(3, 4)
    loaded = pickle.loads(python2_pickle({"data": rows, "labels": [1, 2]}), encoding="latin1")
    np.testing.assert_array_equal(loaded["data"], rows)
    assert loaded["labels"] == [1, 2] and loaded["data"].dtype == np.uint8


@pytest.mark.parametrize(
    "dumps",
    [
        python2_pickle,
        lambda value: python2_pickle(value).replace(b"numpy.core.", b"numpy._core."),
        *(functools.partial(python3_pickle, protocol) for protocol in (2, 3, 4, 5)),
    ],
)
@pytest.mark.parametrize("keys", [str, str.encode])
def test_pickles_of_every_age(dumps, keys):
    rows = np.random.default_rng(1).integers(0, 256, (5, 7), np.uint8)
    loaded = load_plain_dict(dumps({keys("data"): rows, keys("labels"): [3, 1]}))
    assert loaded["labels"] == [3, 1]
    np.testing.assert_array_equal(to_matrix(loaded["data"]), rows)


@pytest.mark.parametrize("protocol", [2, 5])
def test_pickled_matrix_in_fortran_order(protocol):
    rows = np.asfortranarray(np.random.default_rng(1).integers(0, 256, (5, 7), np.uint8))
    loaded = load_plain_dict(pickle.dumps({"data": rows}, protocol=protocol))
    np.testing.assert_array_equal(to_matrix(loaded["data"]), rows)


class Malicious:
    """Pickles as a call that would leave a file behind."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickle_that_calls_anything_is_refused(tmp_path, protocol):
    target = tmp_path / "written"
    content = pickle.dumps({"data": Malicious(open, str(target), "w")}, protocol=protocol)
    with pytest.raises(ValueError, match=r"io\.open is not allowed"):
        load_plain_dict(content)
    assert not target.exists()
    pickle.loads(content)["data"].close()  # the call is real: without the restriction it is made
    assert target.exists()


def test_pickle_with_a_huge_memo_index_is_refused_at_once():
    with pytest.raises(ValueError, match="memo index is out of range"):
        load_plain_dict(b"}r\xff\xff\xff\x7f.")


# --- untrusted input: only a ValueError may come out


def read_or_refuse(folder, layout, content):
    path = folder / layout.archive
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            load_cifar("cifar10", layout, path)
        except ValueError as error:
            assert layout.archive in str(error) and len(str(error)) < 2000
            return False
    return True


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=80, deadline=None)
@given(content=st.binary(max_size=2000), wrapped=st.booleans(), kind=st.sampled_from([0, 1]))
def test_random_bytes_as_an_archive(fuzz_folder, content, wrapped, kind):
    content = gzip.compress(content) if wrapped else content
    assert not read_or_refuse(fuzz_folder, LAYOUTS["cifar10"][kind], content)


@functools.cache
def small_files(kind):
    layout = LAYOUTS["cifar10"][kind]
    return write_files("cifar10", layout, draw_examples("cifar10", counts=(1,) * 6))


@settings(max_examples=80, deadline=None)
@given(data=st.data(), kind=st.sampled_from([0, 1]))
def test_random_bytes_as_a_member(fuzz_folder, data, kind):
    layout, files = LAYOUTS["cifar10"][kind], dict(small_files(kind))
    file = data.draw(st.sampled_from(sorted(files)))
    files[file] = data.draw(st.binary(max_size=300))
    read_or_refuse(fuzz_folder, layout, write_tar(layout, files))


@settings(max_examples=80, deadline=None)
@given(
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=5),
    kind=st.sampled_from([0, 1]),
)
def test_changed_bytes_in_a_tar(fuzz_folder, changes, kind):
    layout = LAYOUTS["cifar10"][kind]
    content = bytearray(gzip.decompress(write_tar(layout, small_files(kind))))
    for place, value in changes:
        content[round(place * (len(content) - 1))] = value
    read_or_refuse(fuzz_folder, layout, gzip.compress(bytes(content), compresslevel=1))


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=5),
    protocol=st.sampled_from([None, 2, 4, 5]),
)
def test_changed_bytes_in_a_pickle(changes, protocol):
    batch = {"data": np.zeros((2, 3), np.uint8), "labels": [1, 2]}
    content = python2_pickle(batch) if protocol is None else pickle.dumps(batch, protocol)
    content = bytearray(content)
    for place, value in changes:
        content[round(place * (len(content) - 1))] = value
    with contextlib.suppress(ValueError):
        to_matrix(load_plain_dict(bytes(content)).get("data"))
