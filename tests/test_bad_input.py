"""Bad input: one line on stderr before anything is trained or written."""

import dataclasses
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from normjax import sweep
from normjax.data import load_dataset
from normjax.training.record import LOCK_FILE

ARGUMENTS = ("--dataset=digits", "--train_size=100", "--test_size=45", "--batch_size=32")


@pytest.fixture
def error_of(invoke, tmp_path, monkeypatch):
    """The line that a run ends with, having trained nothing and left its folder alone."""

    def error_of(*arguments, workdir=tmp_path / "run"):
        monkeypatch.setattr(sweep, "train_groups", None)
        before = snapshot(workdir)
        with pytest.raises(SystemExit) as stop:
            invoke(*ARGUMENTS, f"--workdir={workdir}", *arguments)
        message = stop.value.code
        assert message.startswith("error: ") and "\n" not in message
        assert snapshot(workdir) == before
        return message

    return error_of


def snapshot(folder):
    """Everything in a folder but the lock of those who look into it; None where there is none."""
    if not folder.is_dir():
        return folder.read_bytes() if folder.exists() else None
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_FILE]
    return {path: path.read_bytes() for path in files}


def image_folder(root, size=(6, 6)):
    """An image folder of two classes with two images each in train and one in test."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("test", 1)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


WHOLE = ("--train_size=4", "--test_size=2", "--batch_size=2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=no such set"], "unknown dataset 'no such set': allowed are digits, cifar10"),
        (["--dataset=no_such_set"], "dataset 'no_such_set' is unknown or not prepared"),
        (["--dataset=cifar10", "--data_dir=/no/such"], "data_dir /no/such is not a folder"),
        (["--dataset=folder:/no/such/folder"], "/no/such/folder has no train/ folder"),
        (["--batch_size=101"], "--batch_size=101: must not exceed the 100 training images"),
        (["--train_size=1348"], "train_size=1348 is not possible: the train split has 1347"),
        (["--test_size=451"], "test_size=451 is not possible: the test split has 450"),
    ],
)
def test_data_that_is_not_there_or_does_not_fit(error_of, arguments, message):
    assert message in error_of(*arguments)


def test_a_folder_without_train(error_of, tmp_path):
    root = image_folder(tmp_path / "images")
    (root / "train").rename(root / "training")
    assert f"{root} has no train/ folder" in error_of(f"--dataset=folder:{root}", *WHOLE)


def test_a_corrupt_image_is_named(error_of, tmp_path):
    root = image_folder(tmp_path / "images")
    path = root / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    message = error_of(f"--dataset=folder:{root}", *WHOLE)
    assert f"{path} is a damaged image" in message or f"{path} is not a readable" in message


def test_images_of_several_sizes(error_of, tmp_path):
    root = image_folder(tmp_path / "images")
    path = root / "test" / "cat" / "0.png"
    Image.new("RGB", (7, 6)).save(path)
    message = error_of(f"--dataset=folder:{root}", *WHOLE)
    assert f"{path} is 6x7 pixels" in message and "all images must have one size" in message


def test_images_too_small_for_the_network(error_of, tmp_path):
    root = image_folder(tmp_path / "images", size=(4, 4))
    message = error_of(f"--dataset=folder:{root}", *WHOLE)
    assert "smaller than" in message and "(2, 2)" in message


@pytest.mark.filterwarnings("ignore:.*checksum.*", "ignore:.*sha256.*")
def test_a_truncated_archive(error_of, tmp_path):
    archive = tmp_path / "data" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    (tmp_path / "batch.bin").write_bytes(np.random.default_rng(0).bytes(100_000))
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "batch.bin", "cifar-10-batches-bin/data_batch_1.bin")
    archive.write_bytes(archive.read_bytes()[:50_000])
    assert str(archive) in error_of("--dataset=cifar10", f"--data_dir={archive.parent}")


def test_a_damaged_cache_of_images_is_one_line(tmp_path, monkeypatch):
    root = image_folder(tmp_path / "images")
    load_dataset(f"folder:{root}")
    (cached,) = (tmp_path / "own_cache").iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(whole[: len(whole) // 2])
    command = [sys.executable, "-m", "experiments.random_pretrain", f"--dataset=folder:{root}"]
    command += ["--batch_size=99", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    warning, error = done.stderr.splitlines()
    assert warning.startswith(f"warning: the cache file {cached} is damaged and will be rebuilt: ")
    assert error == "error: --batch_size=99: must not exceed the 4 training images"
    assert len(cached.read_bytes()) == len(whole)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"finished": 1}', '{"finished": true}'])
def test_a_damaged_run_record(error_of, tmp_path, content):
    used = tmp_path / "used"
    used.mkdir()
    (used / "run.json").write_text(content)
    assert f"{used / 'run.json'}: " in error_of("--resume", workdir=used)


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\udcff"])
def test_names_that_flags_txt_can_not_hold(error_of, name):
    assert "must be one line of Unicode text" in error_of(f"--dataset=folder:{name}")


def test_a_folder_that_is_in_use(error_of, invoke, tmp_path):
    used = tmp_path / "used"
    configs = []
    invoke(*ARGUMENTS, f"--workdir={used}", main=configs.append)
    used.mkdir()
    run = {"experiment": "random_pretrain", "finished": False}
    run["config"] = dataclasses.asdict(configs[0])
    (used / "run.json").write_text(json.dumps(run))
    (used / ".lock").touch()
    message = error_of(workdir=used)
    assert message.startswith(f"error: --workdir={used} already holds a run: give another folder")
    for change, name in (("--learning_rate=0.2", "learning_rate"), ("--norms=2", "norms")):
        message = error_of(change, "--resume", workdir=used)
        assert message == f"error: --resume: the run in {used} has a different --{name}"


def test_a_folder_of_something_else(error_of, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "results.csv").write_text("a,b\n")
    for arguments in ([], ["--resume"]):
        assert "holds other results" in error_of(*arguments, workdir=foreign)
    file = tmp_path / "file"
    file.write_text("here")
    assert "a folder is needed, not a file" in error_of(workdir=file)
