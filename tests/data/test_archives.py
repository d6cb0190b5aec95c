"""The official CIFAR files and the restricted unpickler, on tiny archives written here."""

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

from normjax.data import load_dataset
from normjax.data.cifar import CLASS_NAMES, LAYOUTS
from normjax.data.pickles import load_plain_dict, to_matrix
from tests.helpers.cifar_archives import (
    BINARY,
    PYTHON,
    draw_examples,
    python2_pickle,
    python3_pickle,
    write_files,
    write_tar,
)


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


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("kind", [BINARY, PYTHON])
@pytest.mark.parametrize("called", ["as unpacked", "[renamed] it"])
def test_the_unpacked_folder_itself_is_a_data_dir(tmp_path, monkeypatch, name, kind, called):
    layout, examples = LAYOUTS[name][kind], draw_examples(name)
    folder = tmp_path / (layout.folder if called == "as unpacked" else called)
    folder.mkdir()
    for file, content in write_files(name, layout, examples).items():
        (folder / file).write_bytes(content)
    monkeypatch.chdir(folder)
    for data_dir in (folder, "."):
        assert_read_as_written(load_dataset(name, data_dir=data_dir), name, examples)
    (folder / layout.train_files[-1]).unlink()
    with pytest.raises(ValueError, match=f"it lacks {layout.train_files[-1]}"):
        load_dataset(name, data_dir=folder)


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
            pickle.dumps({"labels": [1, True]}),
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


def tar_of(*members):
    """A .tar.gz of (TarInfo, content), as it is: nothing is checked or put right."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def entry(name, content=b"", **changes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in changes.items():
        setattr(member, field, value)
    return member, content


@pytest.mark.filterwarnings("ignore:.*is not the official")
@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
    ],
)
@pytest.mark.parametrize("name", ["{layout}/train.bin", "../../train.bin", "{root}/out/train.bin"])
def test_only_regular_files_are_read_and_nothing_is_written(tmp_path, kind, name):
    layout = LAYOUTS["cifar100"][BINARY]
    (tmp_path / "data").mkdir()
    (tmp_path / "secret").write_bytes(bytes(3074))
    name = name.format(layout=layout.folder, root=tmp_path)
    special = entry(name, type=kind, linkname=str(tmp_path / "secret"))
    files = [entry("../../test.bin", bytes(3074)), entry(f"{tmp_path}/evil", b"x")]
    (tmp_path / "data" / layout.archive).write_bytes(tar_of(special, *files))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"it lacks train\.bin"):
        load_dataset("cifar100", data_dir=tmp_path / "data")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_stands_twice_is_refused(tmp_path):
    layout = LAYOUTS["cifar100"][BINARY]
    files = [entry(f"{folder}/train.bin", bytes(3074)) for folder in (layout.folder, "other")]
    (tmp_path / layout.archive).write_bytes(tar_of(*files))
    with pytest.raises(ValueError, match=r"holds train\.bin twice"):
        load_dataset("cifar100", data_dir=tmp_path)


def pax_size(size):
    """An extra header that gives the next member another size, as bytes of a tar."""
    record = f" size={size}\n"
    record = f"{len(record) + 2}{record}".encode()
    header, _ = entry("x", record, type=tarfile.XHDTYPE)
    return header.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")


def long_name():
    header, _ = entry("x", bytes(512), type=tarfile.GNUTYPE_LONGNAME)
    return header.tobuf(tarfile.GNU_FORMAT) + bytes(512)


@pytest.mark.parametrize(
    ("before", "message"),
    [
        *((pax_size(size), r"claims -?\d+ bytes|negative|too large") for size in (-1, -512, -2048)),
        (pax_size(-(10**20)), "damaged"),
        (pax_size(10**24), "claims 10{24} bytes"),
        (long_name() * 5000, "recursion"),
    ],
)
def test_sizes_that_lie_and_endless_headers(tmp_path, before, message):
    layout = LAYOUTS["cifar100"][BINARY]
    header, content = entry("train.bin", bytes(3074))
    tar = before + header.tobuf(tarfile.USTAR_FORMAT) + content.ljust(3584, b"\0")
    (tmp_path / layout.archive).write_bytes(gzip.compress(tar))
    with pytest.raises(ValueError, match=message) as raised:
        load_dataset("cifar100", data_dir=tmp_path)
    assert layout.archive in str(raised.value) and "\n" not in str(raised.value)


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


@pytest.mark.parametrize("put", [b"r\xff\xff\xff\x7f", b"p2000000000\n"])
def test_pickle_with_a_huge_memo_index_is_refused_at_once(put):
    with pytest.raises(ValueError, match="memo index is out of range"):
        load_plain_dict(b"}" + put + b".")


def test_error_of_a_pickle_is_one_short_line():
    for module in ("o\ns", "x" * 10_000):
        content = b"\x80\x04" + b"".join(
            b"X" + struct.pack("<I", len(name)) + name.encode() for name in (module, "f")
        )
        with pytest.raises(ValueError, match=r"is not allowed|not a readable") as raised:
            load_plain_dict(content + b"\x93.")
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 600
