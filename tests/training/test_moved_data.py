"""Data are the run's if their digest is, wherever they are; others are refused everywhere."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from experiments import bounds, explain, leaderboard
from normjax.controls import run_logits
from normjax.generalization import eq4
from normjax.generalization import leaderboard as library
from normjax.results import metrics
from normjax.training.config import SweepConfig
from normjax.training.finished_run import OtherDataError, load_run
from normjax.training.record import absolute_paths
from tests.helpers.commands import error_of, parse

RUN = ["--train_size=40", "--model=linear", "--corruption_levels=0,1", "--num_seeds=2"]
RUN += ["--pretrain_epochs=1", "--epochs=2", "--batch_size=16", "--norms=2", "--checkpoint_every=1"]
COMMANDS = {"explain": explain, "leaderboard": leaderboard, "bounds": bounds}


def write_images(root, seed=0):
    """Three classes of 6 x 6 gray images, 15 and 5 of each."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", 15), ("test", 5)):
        for name in ("ash", "birch", "elm"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (6, 6), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def finished(invoke, tmp_path_factory):
    """A finished run in a folder with its images, which it knows by a relative path."""
    folder = tmp_path_factory.mktemp("first")
    write_images(folder / "data" / "trees")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        invoke("--dataset=folder:data/trees", *RUN, "--workdir=run")
    return folder


@pytest.fixture
def moved(finished, tmp_path):
    """The run with its images at another place; the old one is gone, and so is the folder."""
    shutil.copytree(finished / "run", tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    text = path.read_text().replace(str(finished / "data"), str(tmp_path / "data"))
    path.write_text(text)
    shutil.copytree(finished / "data" / "trees", tmp_path / "wood")
    return tmp_path


def replace_an_image(root):
    """One pixel of one image is another; number of files and classes stay."""
    path = root / "test" / "elm" / "3.png"
    pixels = np.array(Image.open(path))
    pixels[2, 3] ^= 1
    Image.fromarray(pixels).save(path)


def test_a_relative_path_is_stored_absolute_beside_what_was_typed(finished, tmp_path, monkeypatch):
    run = json.loads((finished / "run" / "run.json").read_text())
    assert run["config"]["dataset"] == run["dataset"] == "folder:data/trees"
    assert run["absolute"] == {"dataset": f"folder:{finished / 'data' / 'trees'}"}
    assert "--dataset=folder:data/trees\n" in (finished / "run" / "flags.txt").read_text()
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "data" / "trees", seed=1)  # what the relative path means here
    assert load_run(finished / "run").dataset.class_names == ("ash", "birch", "elm")


def test_absolute_paths_are_those_of_relative_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def found(**settings):
        return absolute_paths(SweepConfig("run", **settings))

    assert found() == found(dataset="cifar10") == {}
    assert found(dataset="folder:/a", data_dir="/b") == {}
    assert found(dataset="cifar10", data_dir="b/../c") == {"data_dir": str(tmp_path / "c")}
    assert found(dataset="folder:.") == {"dataset": f"folder:{tmp_path}"}


@pytest.fixture
def reached(monkeypatch):
    """What the analyses do with the data is tested elsewhere: they stop once they have them."""

    def stop(*_):
        raise ValueError("reached")

    def stop_with_reason(_, line, logits, no_logits_because):
        raise ValueError(no_logits_because)

    monkeypatch.setattr(library, "check_same_kind", stop)
    monkeypatch.setattr(eq4, "frobenius_gaps", stop)
    monkeypatch.setattr(run_logits, "choose_rows", stop)
    monkeypatch.setattr(explain, "write", stop_with_reason)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_analysis_takes_the_runs_data_and_no_others(name, moved, reached):
    command = COMMANDS[name]

    def analyze(*arguments):
        arguments = (f"--from={moved / 'run'}", f"--workdir={moved / 'out'}", *arguments)
        return error_of(command.main, parse(command.Config, *arguments))

    assert analyze(f"--dataset=folder:{moved / 'wood'}") == "error: reached"
    replace_an_image(moved / "wood")
    assert analyze(f"--dataset=folder:{moved / 'wood'}") == (
        f"error: {moved / 'run' / 'run.json'}: the data folder:{moved / 'wood'} differ from those "
        "of the run"
    )
    assert "the data digits differ from those of the run" in analyze("--dataset=digits")
    assert not (moved / "out").exists()


def test_an_explanation_without_the_data_says_how_to_give_them(moved, reached, monkeypatch):
    monkeypatch.chdir(moved)
    said = error_of(explain.main, parse(explain.Config, f"--from={moved / 'run'}"))
    assert "no train/ folder" in said
    assert said.endswith("; if the data moved, give their --dataset or --data_dir")
    config = parse(explain.Config, f"--from={moved / 'run'}", "--dataset=folder:wood")
    assert error_of(explain.main, config) == "error: reached"


def test_data_that_were_replaced_where_they_were_are_refused(moved):
    (moved / "wood").rename(moved / "data")
    (moved / "data").rename(moved / "trees")
    (moved / "data").mkdir()
    (moved / "trees").rename(moved / "data" / "trees")
    load_run(moved / "run")
    replace_an_image(moved / "data" / "trees")
    with pytest.raises(OtherDataError, match=r"trees differ from those of the run"):
        load_run(moved / "run")


class Interrupted(Exception):
    """Stands for whatever ends a run."""


def test_a_run_is_resumed_with_its_data_elsewhere(finished, invoke, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished / "data", tmp_path / "data")
    typed, workdir = "--dataset=folder:data/trees", f"--workdir={tmp_path / 'run'}"
    append = metrics.append_metrics

    def append_and_stop(run_dir, members, common, values):
        append(run_dir, members, common, values)
        if common["step"] == 2:
            raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(metrics, "append_metrics", append_and_stop)
        invoke(typed, *RUN, workdir)

    (tmp_path / "data" / "trees").rename(tmp_path / "wood")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "no train/ folder" in error_of(invoke, typed, *RUN, workdir, "--resume")
    other = f"--dataset=folder:{write_images(tmp_path / 'other', seed=1)}"
    refused = f"error: --resume: the data differ from those of the run in {tmp_path / 'run'}"
    assert error_of(invoke, other, *RUN, workdir, "--resume") == refused
    there = f"--dataset=folder:{tmp_path / 'wood'}"
    invoke(there, *RUN, workdir, "--resume")
    same = (tmp_path / "run" / "results.csv").read_bytes()
    assert same == (finished / "run" / "results.csv").read_bytes()
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["dataset"] == "folder:data/trees"  # what the run was started with

    capsys.readouterr()
    for dataset in (typed, there):
        invoke(dataset, *RUN, workdir, "--resume")
        assert "this run is finished; nothing to do" in capsys.readouterr().out
    assert "other differ from those of the run" in error_of(
        invoke, other, *RUN, workdir, "--resume"
    )


def test_a_relative_path_is_found_from_any_folder_on_resume(
    finished, invoke, tmp_path, monkeypatch
):
    """The same command from another folder means the run's images, not those of that folder."""
    monkeypatch.chdir(finished)
    shutil.copytree(finished / "run", tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    path.write_text(path.read_text().replace('"finished": true', '"finished": false'))
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "data" / "trees", seed=1)
    invoke("--dataset=folder:data/trees", *RUN, f"--workdir={tmp_path / 'run'}", "--resume")
    assert json.loads(path.read_text())["finished"]
