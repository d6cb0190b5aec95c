"""What surrounds a command: devices, home folder, the user's Matplotlib; never a traceback."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import explain, flags
from normjax import sweep
from normjax.data import Dataset, Split, load_dataset
from normjax.data.cifar import LAYOUTS
from normjax.results.table import write_results
from normjax.training import plan, saved
from normjax.training.config import SweepConfig
from tests.helpers import commands
from tests.helpers.cifar_archives import BINARY, draw_examples, write_files
from tests.helpers.synthetic_results import synthetic_table

ROOT = Path(__file__).parents[1]


def write_images(root, *class_names):
    for split in ("train", "test"):
        for name in class_names:
            (root / split / name).mkdir(parents=True)
            Image.fromarray(np.full((6, 6), len(name), np.uint8)).save(
                root / split / name / "0.png"
            )
    return root


def run(module, *arguments, **environment):
    """A command as a user's shell starts it."""
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


# --- data of one class, folders that stay as they were


def test_data_of_one_class_are_refused_from_every_source(invoke, tmp_path):
    root = write_images(tmp_path / "images", "wolf")
    said = commands.error_of(
        invoke, f"--dataset=folder:{root}", "--batch_size=1", f"--workdir={tmp_path / 'run'}"
    )
    assert said == f"error: dataset 'folder:{root}': at least 2 classes are needed, not wolf"
    assert not (tmp_path / "run").exists()
    split = Split(np.zeros((3, 6, 6, 1), np.uint8), np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="dataset 'mine': at least 2 classes are needed, not none"):
        plan.as_dataset(Dataset(split, split, (), "mine"))


@pytest.mark.parametrize("was_there", [False, True])
def test_an_error_before_the_start_leaves_no_locked_folder(
    invoke, tmp_path, monkeypatch, was_there
):
    def fail(*_):
        raise OSError("no program fits")

    if was_there:
        (tmp_path / "run").mkdir()
    monkeypatch.setattr(sweep, "plan_groups", fail)
    arguments = ("--train_size=60", "--model=linear", "--batch_size=32")
    workdir = f"--workdir={tmp_path / 'run'}"
    assert commands.error_of(invoke, *arguments, workdir) == "error: no program fits"
    assert not list(tmp_path.rglob("*")) or list(tmp_path.rglob("*")) == [tmp_path / "run"]
    assert (tmp_path / "run").exists() == was_there


# --- devices


def test_a_platform_that_is_not_there_is_one_line(tmp_path):
    done = run("default_init", f"--workdir={tmp_path / 'run'}", JAX_PLATFORMS="rocm")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: JAX_PLATFORMS=rocm: ")
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_a_network_that_cannot_be_made_without_devices_says_so(monkeypatch):
    def fail(*_):
        raise AssertionError  # what JAX says of a platform that it knows and does not find

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setattr(saved, "choose_classifier", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,tpu")
    run = {"model": "linear", "given": [], "config": {"workdir": "w"}, "parameters": {}}
    run |= {"image_shape": [8, 8, 1], "num_classes": 10}
    reason = "cannot be made: JAX_PLATFORMS=cuda,tpu: JAX finds no such device"
    with pytest.raises(ValueError, match=reason):
        saved.classifier_of(Path("run.json"), run, None)
    assert commands.error_of(flags.call, fail, None) == f"error: {reason.partition(': ')[2]}"


def test_other_errors_of_their_kind_are_bugs():
    def fail(_):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        flags.call(fail, None)


# --- the user's Matplotlib


@pytest.mark.slow
def test_figures_are_the_same_whatever_the_users_settings_are(tmp_path):
    write_results(tmp_path / "results.csv", synthetic_table(norms=("2",)))
    (tmp_path / "matplotlibrc").write_text(
        "text.usetex: True\nfigure.hooks: no_such_module:hook\nfont.size: 30\n"
        "savefig.bbox: tight\naxes.grid: False\n"
    )
    source = f"--from={tmp_path / 'results.csv'}"
    explain.main(commands.parse(explain.Config, source, f"--workdir={tmp_path / 'ours'}"))
    hostile = {"MPLBACKEND": "no_such_backend", "MATPLOTLIBRC": str(tmp_path)}
    done = run("explain", source, f"--workdir={tmp_path / 'theirs'}", **hostile)
    assert done.returncode == 0, done.stderr
    for name in ("explain.png", "explain.pdf"):
        ours = (tmp_path / "ours" / "figures" / name).read_bytes()
        assert (tmp_path / "theirs" / "figures" / name).read_bytes() == ours


# --- no home folder


@pytest.fixture
def homeless(tmp_path, monkeypatch):
    """A container's user: no HOME, and a number that the system does not know."""

    def getpwuid(number):
        raise KeyError(f"uid not found: {number}")

    for name in ("HOME", "NORMJAX_CACHE_DIR", "XDG_CACHE_HOME", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    monkeypatch.chdir(tmp_path)


def test_without_a_home_data_are_read_and_not_cached(homeless, tmp_path):
    root = write_images(tmp_path / "images", "fox", "wolf")
    with pytest.warns(UserWarning, match="no home folder; NORMJAX_CACHE_DIR names another"):
        assert load_dataset(f"folder:{root}").num_classes == 2
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.filterwarnings("ignore:.*is not the official")
def test_without_a_home_archives_are_read_where_they_are_said_to_be(homeless, tmp_path):
    layout = LAYOUTS["cifar10"][BINARY]
    (tmp_path / layout.folder).mkdir()
    for name, content in write_files("cifar10", layout, draw_examples("cifar10")).items():
        (tmp_path / layout.folder / name).write_bytes(content)
    assert load_dataset("cifar10", data_dir=tmp_path).num_classes == 10
    for name in ("cifar100", "mnist"):
        with pytest.raises(ValueError, match="without a home folder, TFDS_DATA_DIR says"):
            load_dataset(name)


def test_without_a_home_a_tilde_is_refused(homeless):
    for flag in ("--workdir=~", "--workdir=~/run", "--dataset=folder:~/images", "--data_dir=~/d"):
        said = commands.error_of(commands.parse, SweepConfig, "--workdir=run", flag)
        assert said == f"error: {flag}: there is no home folder to expand ~"
