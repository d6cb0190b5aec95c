"""Write a run's flags.txt and run.json, and lock its folder."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout

from normjax.data import Dataset
from normjax.data.dataset import FOLDER
from normjax.files import check_types, naming, read_object, replacing, write_json
from normjax.results.table import RESULTS_FILE
from normjax.training import processes
from normjax.training.checkpoints import RUN_FILE, digest
from normjax.training.config import HOW_NOT_WHAT, SweepConfig, to_flagfile
from normjax.training.plan import Sweep

LOCK_FILE = ".lock"
DATA_PATHS = ("dataset", "data_dir")  # settings that can hold the path of the data
REPORT_FILE = "report.html"
# What a key yields, then also the width of the numbers that dropout and augmentation draw.
KEY_SETTINGS = ("jax_default_prng_impl", "jax_threefry_partitionable", "jax_random_seed_offset")
RANDOM_SETTINGS = (*KEY_SETTINGS, "jax_enable_x64")
PACKAGES = ("normjax", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


def is_finished(
    run_dir: Path, experiment: str, config: Any, *, is_data_checked: bool = False
) -> bool:
    """Return whether the run in this folder is already finished.

    Args:
      run_dir: the folder.
      experiment: the name of the experiment.
      config: its configuration.
      is_data_checked: whether the caller compares the digest of the data, which may have moved,
        so their name does not matter.

    Raises:
      ValueError: the folder holds a run and --resume is not given, or that run is of another
        experiment or has other settings.
    """
    path = run_dir / RUN_FILE
    if not path.exists():
        if (run_dir / RESULTS_FILE).exists() or (run_dir / "checkpoints").exists():
            raise ValueError(f"--workdir={run_dir} holds other results")
        if config.resume:
            processes.say(f"{run_dir}: nothing to resume, starting from the beginning")
        return False
    if not config.resume:
        raise ValueError(
            f"--workdir={run_dir} already holds a run: give another folder, or --resume to continue"
        )
    run = read_object(path, experiment=str, finished=bool, config=dict)
    if run["experiment"] != experiment:
        raise ValueError(f"--resume: the run in {run_dir} is of experiment {run['experiment']}")
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    then = {field.name: field.default for field in dataclasses.fields(config)} | run["config"]
    may_differ = (*HOW_NOT_WHAT, "dataset") if is_data_checked else HOW_NOT_WHAT
    other = [n for n in now if n not in may_differ and then[n] != now[n]]
    if other:
        raise ValueError(f"--resume: the run in {run_dir} has a different --{', --'.join(other)}")
    return run["finished"] and (run_dir / REPORT_FILE).exists()


def is_marked_finished(run_dir: Path) -> bool:
    """Return whether run.json exists and marks the run as finished.

    Raises:
      ValueError, OSError: run.json is damaged or cannot be read.
    """
    path = run_dir / RUN_FILE
    return path.exists() and read_object(path, finished=bool)["finished"]


@contextlib.contextmanager
def locked(run_dir: Path, is_new: bool) -> Iterator[None]:
    """Create a folder and lock it; the kernel releases the lock when the process ends.

    If no run was started in a new folder, nothing stays behind. A process that has just opened the
    removed lock file tries again: `filelock` notices that.

    Raises:
      ValueError: another process holds the lock; or `is_new`, and another process has started a
        run in the folder since `is_finished` found none.
    """
    was_there = run_dir.exists()
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / LOCK_FILE
    with kernel_lock(path, f"--workdir={run_dir} is in use by another process"):
        try:
            if is_new and (run_dir / RUN_FILE).exists():
                raise ValueError(f"--workdir={run_dir} was just used by another process")
            yield
        finally:
            if is_new and not (run_dir / RUN_FILE).exists():
                path.unlink(missing_ok=True)
                if not was_there:
                    with contextlib.suppress(OSError):  # it is not empty
                        run_dir.rmdir()


@contextlib.contextmanager
def kernel_lock(path: Path, problem: str) -> Iterator[None]:
    """Lock a file; the kernel releases the lock when the process ends.

    Args:
      path: the file.
      problem: the error message if another process holds the lock.

    Raises:
      ValueError: another process holds the lock.
    """
    # A soft lock would outlive a killed process.
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        with naming(path):
            lock.acquire()
    except Timeout:
        raise ValueError(problem) from None
    try:
        yield
    finally:
        lock.release()


def start_run(run_dir: Path, sweep: Sweep, given: Sequence[str] = ()) -> None:
    """Write flags.txt and run.json before training starts; keep those of a resumed run.

    Args:
      run_dir: the folder of the run.
      sweep: the sweep.
      given: "model" and "dataset", if they were passed from Python.
    """
    for path in run_dir.rglob(".*.tmp"):  # left by `replacing` if the process was killed
        path.unlink()
    if (run_dir / RUN_FILE).exists():
        return
    config, dataset = sweep.config, sweep.dataset
    paths = {} if "dataset" in given else absolute_paths(config)
    note = f"# Given from Python, not by flags: {', '.join(given)}\n" if given else ""
    with replacing(run_dir / "flags.txt") as path:
        path.write_text(note + to_flagfile(config), encoding="utf-8")
    run = {
        "experiment": sweep.experiment,
        "finished": False,
        "wall_time_s": None,
        "dataset": config.dataset,
        "train_images": len(dataset.train.labels),
        "test_images": len(dataset.test.labels),
        "num_classes": dataset.num_classes,
        "image_shape": dataset.image_shape,
        "data_digest": data_digest(dataset),
        "model": config.model,
        "parameters": sweep.parameters,
        "conv": sweep.conv,
        "given": list(given),
        "groups": [[member.index for member in group] for group in sweep.groups],
        "members": [member._asdict() for group in sweep.groups for member in group],
        "seed": config.seed,
        "random": random_settings(),
        "devices": [device.device_kind for device in jax.devices()],
        "versions": versions(PACKAGES),
        "git_commit": git_commit(),
        "config": dataclasses.asdict(config),
        "absolute": paths,
    }
    write_json(run_dir / RUN_FILE, run)


def start_plain_run(
    run_dir: Path, experiment: str, config: Any, packages: Sequence[str] = PACKAGES
) -> None:
    """Write flags.txt and run.json of an experiment that is not a sweep.

    Args:
      run_dir: the folder of the run.
      experiment: the name of the experiment.
      config: its configuration, with a seed.
      packages: the packages whose versions matter.
    """
    with replacing(run_dir / "flags.txt") as path:
        path.write_text(to_flagfile(config), encoding="utf-8")
    run = {
        "experiment": experiment,
        "finished": False,
        "wall_time_s": None,
        "seed": config.seed,
        "random": random_settings(),
        "versions": versions(packages),
        "git_commit": git_commit(),
        "config": dataclasses.asdict(config),
        "absolute": absolute_paths(config),
    }
    write_json(run_dir / RUN_FILE, run)


def absolute_paths(config: Any) -> dict[str, str]:
    """Return {setting: absolute value} for the settings of the data with a relative path."""
    found = {}
    for name in DATA_PATHS:
        value = getattr(config, name, None) or ""
        scheme = FOLDER if value.startswith(FOLDER) else ""
        path = value.removeprefix(scheme)
        if (scheme or name == "data_dir") and path and not os.path.isabs(path):
            found[name] = scheme + os.path.abspath(path)
    return found


def located(config: SweepConfig, run: Mapping[str, Any], place: str) -> SweepConfig:
    """Return a configuration with absolute paths of the data, if it names them as a run does.

    A path that no longer exists stays as it is, relative to the current folder.

    Args:
      config: the configuration.
      run: the content of run.json.
      place: the start of an error message.

    Raises:
      ValueError: the record is damaged.
    """
    check_types(run, {"config": dict}, place)
    stored = run.get("absolute", {})  # unknown in older runs
    check_types({"absolute": stored}, {"absolute": dict}, place)
    check_types(stored, {name: str for name in DATA_PATHS if name in stored}, place)
    return dataclasses.replace(
        config,
        **{
            name: stored[name]
            for name in DATA_PATHS
            if name in stored
            and getattr(config, name) == run["config"].get(name)
            and os.path.exists(stored[name].removeprefix(FOLDER))
        },
    )


def random_settings() -> dict[str, Any]:
    """Return JAX's settings that change which random numbers a seed gives."""
    return {name: getattr(jax.config, name, None) for name in RANDOM_SETTINGS}


def check_random_settings(
    run: Mapping[str, Any], path: Path, names: Sequence[str] = RANDOM_SETTINGS
) -> None:
    """Raise ValueError if JAX would now draw other random numbers than a run did.

    Args:
      run: the content of run.json.
      path: that file, for the message.
      names: the settings that matter.
    """
    check_types(run, {"random": dict}, str(path))
    for name in names:
        then, now = run["random"].get(name), getattr(jax.config, name, None)
        if then != now:
            raise ValueError(
                f"{path}: the run's random numbers are those of {name.upper()}={then}, which is "
                f"{now} now"
            )


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of the installed packages."""
    found = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def data_digest(dataset: Dataset) -> str:
    """Return the SHA-256 of all images and labels."""
    splits = (("train", dataset.train), ("test", dataset.test))
    return digest({name: [split.images, split.labels] for name, split in splits})


def finish_run(run_dir: Path, seconds: float) -> None:
    """Mark the run as finished; `seconds` is the run time of this process."""
    path = run_dir / RUN_FILE
    run = read_object(path)
    write_json(path, {**run, "finished": True, "wall_time_s": round(seconds, 1)})


def git_commit() -> str | None:
    """Return the commit of the source, with "-dirty" if modified; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
