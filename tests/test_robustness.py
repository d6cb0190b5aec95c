"""Full disks, damaged files, two processes in a folder, networks that diverge."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import init_scale
from normjax import sweep
from normjax.results import metrics
from normjax.results.table import read_results
from normjax.training import ensemble, groups, plan, record
from normjax.training.ensemble import Member
from normjax.training.finished_run import load_run
from normjax.training.saved import read_rows, rows_path
from tests.helpers.tables import assert_close

# Where orbax can't write or read, it raises in its own threads beside the one that waits for it.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)

ROOT = Path(__file__).parent.parent
RUN = (
    "--dataset=digits",
    "--train_size=90",
    "--test_size=40",
    "--model=linear",
    "--corruption_levels=0,1",
    "--members_per_group=1",
    "--pretrain_epochs=2",
    "--epochs=6",
    "--batch_size=32",
    "--learning_rate=0.2",
    "--norms=2",
    "--checkpoint_every=2",
)


@pytest.fixture(scope="module")
def run(invoke):
    """`run(folder, *flags, main=...)`: all share compiled functions, none draws figures."""
    ensembles = []

    def make_ensemble(*args, **kwargs):
        if not ensembles:
            ensembles.append(ensemble.make_ensemble(*args, **kwargs))
        return ensembles[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "make_ensemble", make_ensemble)
        yield lambda folder, *flags, **how: invoke(*RUN, f"--workdir={folder}", *flags, **how)


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder)
    assert read_results(folder)["train_loss"].nunique() == 2
    return folder


class Stopped(Exception):
    """Stands for whatever ends a run."""


def interrupt(run, folder, group, step, *flags):
    """Begins a run that ends after an epoch's metrics are written."""
    append = metrics.append_metrics

    def append_and_stop(run_dir, members, common, values):
        append(run_dir, members, common, values)
        if (common["group"], common["step"]) == (group, step):
            raise Stopped

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(metrics, "append_metrics", append_and_stop)
        run(folder, *flags)


def error_of(call, *args):
    """The line that a run ends with."""
    with pytest.raises(SystemExit) as stop:
        call(*args)
    assert stop.value.code.startswith("error: ") and "\n" not in stop.value.code
    return stop.value.code


def assert_same(ours, theirs):
    for name in ("results.csv", "summary.json", "metrics.jsonl"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()


# --- a disk that is full, a folder that can't be written


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (200, "File too large: '{}/flags.txt'"),
        (2500, "{}/checkpoints/progress/000: a checkpoint cannot be written: "),
    ],
)
def test_no_more_bytes_fit_is_one_line_and_the_run_goes_on(run, whole, tmp_path, limit, message):
    """A limit on the size of files stands for a full disk: a write fails in the middle."""
    folder = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        said = error_of(run, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert message.format(folder) in said
    run(folder, "--resume")
    assert_same(folder, whole)


def test_a_full_disk_is_named(tmp_path):
    """Of the device that is always full, Python's own error does not say which file it was."""
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    member = Member(0, 0, "pretrain", 0.5)
    with pytest.raises(OSError, match=r"No space left on device: '.*/metrics\.jsonl'"):
        metrics.append_metrics(tmp_path, [member], {"step": 1}, {"diverged_at": np.int32([0])})


def test_a_folder_that_cannot_be_made_is_one_line_before_training(run, tmp_path, monkeypatch):
    monkeypatch.setattr(groups, "train_group", None)
    (tmp_path / "file").write_text("")
    assert "Not a directory" in error_of(run, tmp_path / "file" / "run")
    if os.geteuid():  # root may write everywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        assert "Permission denied" in error_of(run, tmp_path / "closed" / "run")


# --- damaged files


def test_a_flipped_digit_in_a_groups_rows_is_found(run, whole, tmp_path):
    folder = tmp_path / "run"
    interrupt(run, folder, 1, 3)  # group 0 is finished
    path = rows_path(folder, 0)
    table = read_results(whole)
    assert read_rows(folder, 0).equals(table[table["member"] == 0])
    done = subprocess.run(
        ["sha256sum", "--check", "000.csv.sha256"], cwd=path.parent, capture_output=True
    )
    assert done.returncode == 0
    text = path.read_text()
    assert ",natural,final,6,2," in text
    path.write_text(text.replace(",natural,final,6,2,", ",natural,final,5,2,"))
    said = error_of(run, folder, "--resume")
    assert said.startswith(f"error: {path}: damaged") and "--resume trains them again" in said
    path.unlink()
    run(folder, "--resume")
    assert (folder / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(x) for x in (whole / "metrics.jsonl").read_text().splitlines()]
    in_order = sorted(lines, key=lambda line: (line["group"], line["step"]))
    assert in_order == expected


def test_rows_of_another_group_are_refused(run, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    record = json.loads((folder / "run.json").read_text())
    merged = record | {"groups": [[0, 1]], "finished": False}
    (folder / "run.json").write_text(json.dumps(merged))
    said = error_of(run, folder, "--resume")
    assert said.endswith("000.csv: its networks are not those of group 0 in run.json")


@pytest.mark.parametrize("cut", [1, 30])
def test_metrics_that_are_cut_in_a_line_are_mended(run, whole, tmp_path, capsys, cut):
    folder = tmp_path / "run"
    interrupt(run, folder, 1, 3)  # the last checkpoint is that of epoch 2
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    if cut > 1:
        with pytest.raises(ValueError, match=r"metrics.jsonl, line 11: not a line of metrics"):
            metrics.read_metrics(folder)
    run(folder, "--resume")
    assert_same(folder, whole)
    assert "are lost" not in capsys.readouterr().err


def test_metrics_that_are_lost_are_missed(run, whole, tmp_path, capsys):
    folder = tmp_path / "run"
    interrupt(run, folder, 1, 5)
    path = folder / "metrics.jsonl"
    path.write_bytes(b"\xff\n12\n" + b"".join(path.read_bytes().splitlines(keepends=True)[:-3]))
    run(folder, "--resume")  # from epoch 4, and there are lines until epoch 2
    assert f"{path}: 2 lines are lost for good\n" in capsys.readouterr().err
    expected = (whole / "metrics.jsonl").read_text().splitlines()
    assert path.read_text().splitlines() == expected[:10] + expected[12:]
    assert (folder / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


# --- what --resume takes


def test_without_a_run_resume_begins_and_says_so(run, whole, tmp_path, capsys):
    folder = tmp_path / "run"
    run(folder, "--resume")
    said = f"{folder}: nothing to resume, starting from the beginning\n"
    assert capsys.readouterr().out.startswith(said)
    assert_same(folder, whole)


def test_flags_and_data_that_change_the_result_are_refused(run, tmp_path):
    folder = tmp_path / "run"
    interrupt(run, folder, 0, 3)
    said = error_of(run, folder, "--resume", "--epochs=7", "--norms=2,inf", "--checkpoint_every=9")
    assert said == f"error: --resume: the run in {folder} has a different --epochs, --norms"
    load = sweep.load_data

    def load_others(*args):
        dataset = load(*args)
        images = dataset.test.images.copy()
        images[-1, 0, 0, 0] ^= 1
        return dataset._replace(test=dataset.test._replace(images=images))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "load_data", load_others)
        said = error_of(run, folder, "--resume")
    assert said == f"error: --resume: the data differ from those of the run in {folder}"
    (folder / "run.json").write_text((folder / "run.json").read_text()[:-20])
    assert error_of(run, folder, "--resume").startswith(f"error: {folder}/run.json: not JSON (")


def test_other_random_numbers_are_refused(run, tmp_path):
    """They are recorded; a run does not go on with others, nor are initial weights drawn again."""
    folder = tmp_path / "run"
    with jax.threefry_partitionable(False):
        interrupt(run, folder, 0, 3)
    assert json.loads((folder / "run.json").read_text())["random"] == {
        "jax_default_prng_impl": "threefry2x32",
        "jax_threefry_partitionable": False,
        "jax_random_seed_offset": 0,
        "jax_enable_x64": False,
    }
    of_run = f"error: {folder}/run.json: the run's random numbers are those of "
    said = error_of(run, folder, "--resume")
    assert said == of_run + "JAX_THREEFRY_PARTITIONABLE=False, which is True now"
    with jax.threefry_partitionable(False), jax.default_prng_impl("rbg"):
        said = error_of(run, folder, "--resume")
    assert said == of_run + "JAX_DEFAULT_PRNG_IMPL=threefry2x32, which is rbg now"
    with jax.threefry_partitionable(False):
        run(folder, "--resume")
    with pytest.raises(ValueError, match="JAX_THREEFRY_PARTITIONABLE=False, which is True now"):
        load_run(folder)


def test_switches_for_debugging_do_not_end_healthy_training(run, whole, tmp_path):
    """NaN and infinity stand there for what was not measured."""
    with jax.debug_nans(True), jax.debug_infs(True):
        run(tmp_path / "run", "--test_every=2")
    assert (tmp_path / "run/results.csv").read_bytes() == (whole / "results.csv").read_bytes()


# --- two processes


def test_a_second_process_is_refused(run, tmp_path, capsys):
    folder = tmp_path / "run"
    with record.locked(folder, is_new=True):
        assert error_of(run, folder) == f"error: --workdir={folder} is in use by another process"
    interrupt(run, folder, 0, 3)
    code = f"""
import pathlib, sys
from normjax.training import record
with record.locked(pathlib.Path({str(folder)!r}), is_new=False):
    print("locked", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=-1, stdout=-1)
    try:
        assert other.stdout.readline() == b"locked\n"
        said = error_of(run, folder, "--resume")
        assert said == f"error: --workdir={folder} is in use by another process"
    finally:
        other.kill()
        other.communicate()
    run(folder, "--resume")  # the kernel has freed it
    with pytest.raises(ValueError, match="was just used by another"), record.locked(folder, True):
        pass


# --- networks that diverge


def test_a_network_that_diverges_is_marked_and_disturbs_no_other(run, tmp_path):
    """Parameters near the largest float32; the run is stopped and goes on after that."""
    options = ("--pretrain_epochs=0", "--test_every=3", "--members_per_group=9")

    def run_scales(folder, *flags):
        run(folder, *options, *flags, main=init_scale.main)

    alone, together = tmp_path / "alone", tmp_path / "together"
    run_scales(alone, "--init_stds=0.05,0.1,0.15,0.2")
    stds = "--init_stds=0.05,1e38,0.1,0.15,0.2"
    interrupt(run_scales, together, 0, 3, stds)
    run_scales(together, stds, "--resume")

    lines = [json.loads(x) for x in (together / "metrics.jsonl").read_text().splitlines()]
    places = {(line["level"], line["step"]): line["diverged_at"] for line in lines}
    assert len(lines) == 6 * 6
    assert all(at == (1 if level == 1e38 else None) for (level, _), at in places.items())
    assert '"diverged_at": 1,' in (together / "metrics.jsonl").read_text()

    def table_of(folder):
        table = read_results(folder)
        return table[table["level"] != 1e38].reset_index(drop=True).assign(member=0)

    assert len(table_of(alone)) == 6
    assert_close(table_of(together), table_of(alone), rtol=1e-6)
    summaries = [json.loads((d / "summary.json").read_text()) for d in (together, alone)]
    ours, theirs = (summary[0] for summary in summaries)
    name = "member 1 (init_scale, level 1e+38, seed 0)"
    assert ours["left_out"] == {name: "diverged: a loss or a norm is not finite"}
    assert (ours["num_networks"], ours["fit"]["n"], theirs["left_out"]) == (5, 5, {})
    assert ours["fit"]["slope"] == pytest.approx(theirs["fit"]["slope"])
    page = (together / "report.html").read_text()
    assert "Left out: member 1 (init_scale, level 1e+38, seed 0), diverged" in page


def test_the_very_last_step_counts_too(invoke, tmp_path, monkeypatch):
    """One step that is far too long: the loss was measured before it, and after the last epoch."""
    monkeypatch.setattr(plan, "make_ensemble", ensemble.make_ensemble)  # not `run`'s own
    step = ("--pretrain_epochs=0", "--epochs=1", "--batch_size=90", "--learning_rate=3e38")
    invoke(*RUN, *step, "--members_per_group=2", f"--workdir={tmp_path / 'run'}")
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        assert 1 < values["running_loss"] < 5 and values["train_loss"] is None
        assert values["diverged_at"] == values["step"] == 1


def test_when_a_network_diverged_is_kept(tmp_path):
    """The line of an epoch says null before, and the step since."""
    members = [Member(0, 0, "pretrain", 0.5), Member(1, 0, "pretrain", 1.0)]
    values = {"running_loss": np.float32([0.5, np.inf]), "diverged_at": np.int32([0, 7])}
    metrics.append_metrics(tmp_path, members, {"group": 0, "step": 8}, values)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["diverged_at"] for line in lines] == [None, 7]
    assert [line["running_loss"] for line in lines] == [0.5, None]
