"""Random and damaged bytes to every reader: the right value, or one line that names the file."""

import csv
import functools
import gzip
import io
import json
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from experiments.paper import runs
from normjax.controls.summary import explain_all, write_summary
from normjax.data import load_dataset
from normjax.data.cifar import LAYOUTS, load_cifar
from normjax.data.pickles import load_plain_dict, to_matrix
from normjax.generalization.linear_sweep import ANGLE_COLUMNS
from normjax.networks.classifier import leaf_shapes
from normjax.report.run_page import write_report
from normjax.results.columns import read_columns, write_columns
from normjax.results.metrics import read_metrics, stopping_epochs
from normjax.results.table import COLUMNS, read_results, write_results
from normjax.training import finished_run as trained
from normjax.training import record as records
from normjax.training.config import SweepConfig, to_flagfile
from normjax.training.ensemble import Member
from normjax.training.saved import load_member
from tests.helpers.cifar_archives import (
    BINARY,
    PYTHON,
    draw_examples,
    python2_pickle,
    to_rows,
    write_files,
    write_tar,
)
from tests.helpers.classifiers import classifier_of
from tests.helpers.damage import BINARY_EDITS, TEXT_EDITS, edited, fuzz
from tests.helpers.synthetic_results import CONFIG, synthetic_table

pytestmark = pytest.mark.slow


def read_or_refuse(read, path):
    """What a reader makes of a file; None if it refuses it in one line that names it."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is not the official")
            return read()
    except (ValueError, OSError) as error:
        message = str(error)
        assert str(path) in message and "\n" not in message and len(message) < 1500
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


# --- CIFAR's archives


@functools.cache
def small_files(kind):
    layout = LAYOUTS["cifar10"][kind]
    return write_files("cifar10", layout, draw_examples("cifar10", counts=(1,) * 6))


def read_archive(folder, kind, content):
    layout = LAYOUTS["cifar10"][kind]
    path = folder / layout.archive
    path.write_bytes(content)
    return read_or_refuse(lambda: load_cifar("cifar10", layout, path), path)


def assert_right_cifar(data):
    examples = draw_examples("cifar10", counts=(1,) * 6)
    images, labels = (np.concatenate(part) for part in zip(*examples, strict=True))
    np.testing.assert_array_equal(np.concatenate([data.train.images, data.test.images]), images)
    np.testing.assert_array_equal(np.concatenate([data.train.labels, data.test.labels]), labels)


@fuzz(max_examples=80)
@given(st.binary(max_size=2000), st.booleans(), st.sampled_from([BINARY, PYTHON]))
def test_random_bytes_as_an_archive(folder, content, wrapped, kind):
    content = gzip.compress(content) if wrapped else content
    assert read_archive(folder, kind, content) is None


@fuzz(max_examples=80)
@given(BINARY_EDITS, st.sampled_from([BINARY, PYTHON]))
@example(chosen=[], kind=BINARY)
@example(chosen=[], kind=PYTHON)
def test_damaged_archive_is_refused_or_right(folder, chosen, kind):
    content = write_tar(LAYOUTS["cifar10"][kind], small_files(kind))
    data = read_archive(folder, kind, edited(content, chosen))
    assert chosen or data is not None
    if data is not None:  # gzip's checksum holds all but its own header
        assert_right_cifar(data)


@fuzz(max_examples=60)
@given(BINARY_EDITS, st.sampled_from([BINARY, PYTHON]))
def test_damaged_tar_in_a_whole_gzip(folder, chosen, kind):
    content = gzip.decompress(write_tar(LAYOUTS["cifar10"][kind], small_files(kind)))
    data = read_archive(folder, kind, gzip.compress(edited(content, chosen), compresslevel=1))
    assert data is None or (data.train.labels < 10).all()


@fuzz(max_examples=100)
@given(st.data(), st.sampled_from([BINARY, PYTHON]))
def test_damaged_files_of_an_unpacked_archive(folder, drawn, kind):
    layout, files = LAYOUTS["cifar10"][kind], dict(small_files(kind))
    file = drawn.draw(st.sampled_from(sorted(files)))
    damage = BINARY_EDITS.map(lambda chosen: edited(files[file], chosen))
    files[file] = drawn.draw(damage | st.binary(max_size=300))
    path = folder / layout.folder
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    data = read_or_refuse(lambda: load_cifar("cifar10", layout, path), path)
    if data is None:
        return
    assert len(data.class_names) == 10
    if kind == BINARY:  # nothing but the labels can be checked: the rest is as it stands there
        train = np.frombuffer(b"".join(files[name] for name in layout.train_files), np.uint8)
        train = train.reshape(-1, 3073)
        np.testing.assert_array_equal(data.train.labels, train[:, 0])
        np.testing.assert_array_equal(to_rows(data.train.images), train[:, 1:])
    for split in (data.train, data.test):
        assert split.images.dtype == np.uint8 and split.images.shape[1:] == (32, 32, 3)
        assert len(split.images) == len(split.labels) > 0
        assert ((split.labels >= 0) & (split.labels < 10)).all()


@fuzz(max_examples=300)
@given(BINARY_EDITS, st.sampled_from([None, 0, 2, 4, 5]))
def test_damaged_pickle(chosen, protocol):
    batch = {"data": np.zeros((2, 3), np.uint8), "labels": [1, 2]}
    content = python2_pickle(batch) if protocol is None else pickle.dumps(batch, protocol)
    try:
        matrix = to_matrix(load_plain_dict(edited(content, chosen)).get("data"))
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
    else:
        assert matrix.dtype == np.uint8 and matrix.ndim == 2


# --- image folders and their cache


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An image folder and its pixels, 3 + 3 training and 2 + 2 test images."""
    root = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (10, 5, 4, 3)).astype(np.uint8)
    names = [f"{s}/{c}/{i}" for s, n in (("train", 3), ("test", 2)) for c in "ab" for i in range(n)]
    for name, image in zip(names, pixels, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / f"{name}.png")
    return root, pixels


@pytest.fixture(scope="module")
def cached(images, tmp_path_factory):
    """The cache file of that folder, and what is in it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMJAX_CACHE_DIR", str(folder))
        load_dataset(f"folder:{images[0]}")
        (path,) = folder.iterdir()
        yield path, path.read_bytes()


@fuzz(max_examples=200)
@given(st.data())
def test_damaged_cache_gives_the_right_images(images, cached, drawn):
    (root, pixels), (path, whole) = images, cached
    damage = BINARY_EDITS.map(lambda chosen: edited(whole, chosen))
    path.write_bytes(drawn.draw(damage | st.binary(max_size=300)))
    with warnings.catch_warnings(record=True) as caught, pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("always")
        patch.setenv("NORMJAX_CACHE_DIR", str(path.parent))
        data = load_dataset(f"folder:{root}")
    np.testing.assert_array_equal(np.concatenate([data.train.images, data.test.images]), pixels)
    assert data.train.labels.tolist() == [0] * 3 + [1] * 3
    assert data.test.labels.tolist() == [0] * 2 + [1] * 2
    for warning in caught:
        message = str(warning.message)
        assert f"{path} is damaged and will be rebuilt" in message and "\n" not in message
    if caught:
        assert path.read_bytes()[-4000:] == whole[-4000:] or len(path.read_bytes()) == len(whole)
    assert list(path.parent.iterdir()) == [path]


@fuzz(max_examples=100)
@given(st.data(), st.sampled_from(["PNG", "JPEG", "BMP", "GIF", "TIFF", "PPM"]))
def test_damaged_image(images, folder, drawn, kind):
    stream = io.BytesIO()
    Image.fromarray(images[1][0]).save(stream, format=kind)
    damage = BINARY_EDITS.map(lambda chosen: edited(stream.getvalue(), chosen))
    content = drawn.draw(damage | st.binary(max_size=100))
    for class_folder in ("train/a", "train/b", "test/a", "test/b"):
        path = folder / "pictures" / class_folder / "0.img"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("normjax.data.folder._read_cache", lambda *_: None)
        patch.setattr("normjax.data.folder._write_cache", lambda *_: None)
        data = read_or_refuse(
            lambda: load_dataset(f"folder:{folder / 'pictures'}"), folder / "pictures/train/a/0.img"
        )
    assert data is None or (data.train.images.dtype == np.uint8 and max(data.image_shape) <= 1024)


# --- the files of a run


def table_bytes(folder, table):
    write_results(folder / "whole.csv", table)
    return (folder / "whole.csv").read_bytes()


@fuzz(max_examples=250)
@given(st.data())
def test_damaged_results(folder, drawn):
    table = synthetic_table(levels=(0.0, 0.5), num_seeds=2)
    whole = table_bytes(folder, table)
    path = folder / "results.csv"
    content = drawn.draw(TEXT_EDITS.map(lambda chosen: edited(whole, chosen)) | st.binary())
    path.write_bytes(content)
    read = read_or_refuse(lambda: read_results(path), path)
    if read is None:
        return
    # As the csv module and float() read it, less what can't be.
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    assert len(rows) == len(read)
    for values, texts in zip(read.to_dict("records"), rows, strict=True):
        for name, kind in COLUMNS.items():
            assert repr(kind(texts[name])) == repr(kind(values[name]))
        assert 0 <= values["level"] < np.inf and values["labels"] in ("natural", "random")
        errors = [value for name, value in values.items() if name.endswith("_error")]
        assert not any(error < 0 or error > 1 for error in errors)
    assert not read.duplicated(["member", "labels", "selection", "norm"]).any()


@fuzz(max_examples=100)
@given(st.integers(0, 10**9))
def test_cut_results_are_never_a_part_of_a_network(folder, place):
    table = synthetic_table(levels=(0.0, 0.5), num_seeds=2)
    whole = table_bytes(folder, table)
    path = folder / "results.csv"
    path.write_bytes(whole[: place % len(whole)])
    read = read_or_refuse(lambda: read_results(path), path)
    # Only a cut between two networks leaves a table that could have been written so.
    assert read is None or (len(read) % 2 == 0 and read.equals(table[: len(read)]))


def metrics_lines():
    common = {"family": "pretrain", "group": 0, "phase": "train", "running_error": 0.1}
    return [
        {"member": m, "level": m / 2, "seed": 0, "step": step, "epoch": step, **common}
        | {"running_loss": 1 / step, "running_normalized_excess": -0.1 * step, "train_loss": None}
        | {"test_loss": 1.5 + step / 10, "test_error": 0.25}
        for m in range(3)
        for step in (1, 2)
    ]


@fuzz(max_examples=250)
@given(st.data())
def test_damaged_metrics(folder, drawn):
    lines = metrics_lines()
    whole = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path = folder / "metrics.jsonl"
    path.write_bytes(drawn.draw(TEXT_EDITS.map(lambda chosen: edited(whole, chosen)) | st.binary()))
    read = read_or_refuse(lambda: read_metrics(folder), path)
    if read:
        assert len({(line["member"], line["step"]) for line in read}) == len(read)
        losses = [line.get(name) for line in read for name in ("running_loss", "test_loss")]
        assert all(loss is None or np.isfinite(loss) for loss in losses)
        stopping_epochs(read)


def run_record():
    """A run.json of two networks."""
    members = [Member(i, 0, "pretrain", level) for i, level in enumerate((0.0, 0.5))]
    return {
        "experiment": "random_pretrain",
        "finished": True,
        "wall_time_s": 1.5,
        "dataset": "digits",
        "train_images": 100,
        "num_classes": 10,
        "model": "convnet3",
        "image_shape": [8, 8, 1],
        "parameters": leaf_shapes(classifier_of("convnet3")),
        "given": [],
        "groups": [[0], [1]],
        "seed": 0,
        "members": [member._asdict() for member in members],
        "devices": ["cpu", "cpu"],
        "git_commit": None,
        "config": CONFIG,
    }


@fuzz(max_examples=250)
@given(st.data())
def test_damaged_run_record(folder, drawn):
    whole = json.dumps(run_record(), indent=2).encode()
    content = drawn.draw(TEXT_EDITS.map(lambda chosen: edited(whole, chosen)) | st.binary())
    run_dir = folder / "runs" / "convnet3"
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "run.json"
    path.write_bytes(content)
    read = read_or_refuse(lambda: trained.read_definitions(path), run_dir)
    if read is not None:
        config, members = read
        again = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(config).items()}
        assert again.items() >= json.loads(content)["config"].items()
        assert [member.index for member in members.values()] == list(members)
    read_or_refuse(
        lambda: records.is_finished(run_dir, "random_pretrain", SweepConfig(**CONFIG)), run_dir
    )
    read_or_refuse(lambda: runs.finished_runs(folder / "runs"), path)
    read_or_refuse(lambda: load_member(run_dir, 1), run_dir)


@fuzz(max_examples=150)
@given(st.data())
def test_damaged_flags(folder, drawn):
    path = folder / "flags.txt"
    whole = to_flagfile(SweepConfig(**CONFIG)).encode()
    path.write_bytes(drawn.draw(TEXT_EDITS.map(lambda chosen: edited(whole, chosen)) | st.binary()))
    read = read_or_refuse(lambda: runs.read_flags(path, "dataset"), path)
    assert read is None or {"dataset"} <= set(read)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A run's folder with a report, and its summary."""
    run_dir = tmp_path_factory.mktemp("reported")
    table = synthetic_table(levels=(0.0, 0.5), num_seeds=2)
    write_results(run_dir / "results.csv", table)
    write_summary(run_dir / "summary.json", explain_all(table))
    write_report(run_dir)
    return run_dir, (run_dir / "summary.json").read_bytes()


@fuzz(max_examples=150)
@given(st.data())
def test_damaged_summary(reported, drawn):
    run_dir, whole = reported
    path = run_dir / "summary.json"
    path.write_bytes(drawn.draw(TEXT_EDITS.map(lambda chosen: edited(whole, chosen)) | st.binary()))
    if read_or_refuse(lambda: write_report(run_dir), path) is not None:
        assert "4 networks" in (run_dir / "report.html").read_text()
    assert {p.name for p in run_dir.iterdir()} == {"results.csv", "summary.json", "report.html"}


@fuzz(max_examples=150)
@given(st.data())
def test_damaged_table_of_the_linear_network(folder, drawn):
    norms = np.array([0.1, 2.5, np.nan, 1e-9])
    columns = {"draw": np.arange(4), "step": np.arange(4), "angle_deg": norms}
    path = folder / "linear.csv"
    write_columns(path, pd.DataFrame(columns))
    whole = path.read_bytes()
    path.write_bytes(drawn.draw(TEXT_EDITS.map(lambda chosen: edited(whole, chosen)) | st.binary()))
    read = read_or_refuse(lambda: read_columns(path, ANGLE_COLUMNS), path)
    assert read is None or all(kind.kind in "if" for kind in read.dtypes)
