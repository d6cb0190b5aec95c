"""What a run writes about itself: flags.txt, run.json, metrics.jsonl; and who may use a folder."""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.flags import HOW_NOT_WHAT, Config, to_flagfile
from normjax.checkpoints import RUN_FILE
from normjax.data import Dataset
from normjax.ensemble import Member
from normjax.reading import read_object
from normjax.report import REPORT_FILE
from normjax.results import RESULTS_FILE, replacing

METRICS_FILE = "metrics.jsonl"
PACKAGES = ("normjax", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


def is_finished(run_dir: Path, config: Config) -> bool:
    """Whether the run in this folder is finished already.

    Raises:
      ValueError: the folder can't be used: it holds a run and --resume is not given, or that run
        has other settings.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(f"--workdir={run_dir} is a file; a folder is needed")
    path = run_dir / RUN_FILE
    if not path.exists():
        if (run_dir / RESULTS_FILE).exists() or (run_dir / "checkpoints").exists():
            raise ValueError(f"--workdir={run_dir} holds the results of something else")
        if config.resume:
            print(f"{run_dir}: nothing to resume, starting from the beginning")
        return False
    if not config.resume:
        raise ValueError(
            f"--workdir={run_dir} holds a run already: give another folder, or --resume to go on"
        )
    run = read_object(path, finished=bool, config=dict)
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    other = [n for n in now if n not in HOW_NOT_WHAT and run["config"].get(n) != now[n]]
    if other:
        raise ValueError(f"--resume: the run in {run_dir} has other --{', --'.join(other)}")
    return run["finished"] and (run_dir / REPORT_FILE).exists()


def start_run(
    run_dir: Path,
    experiment: str,
    config: Config,
    dataset: Dataset,
    groups: Sequence[Sequence[Member]],
) -> None:
    """Writes flags.txt and run.json before anything is trained; keeps those of a resumed run."""
    run_dir.mkdir(parents=True, exist_ok=True)
    if (run_dir / RUN_FILE).exists():
        return
    with replacing(run_dir / "flags.txt") as path:
        path.write_text(to_flagfile(config), encoding="utf-8")
    run = {
        "experiment": experiment,
        "finished": False,
        "wall_time_s": None,
        "dataset": config.dataset,
        "train_images": len(dataset.train.labels),
        "test_images": len(dataset.test.labels),
        "num_classes": dataset.num_classes,
        "image_shape": dataset.image_shape,
        "model": config.model,
        "groups": [[member.index for member in group] for group in groups],
        "members": [member._asdict() for group in groups for member in group],
        "seed": config.seed,
        "devices": [device.device_kind for device in jax.devices()],
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)},
        },
        "git_commit": git_commit(),
        "config": dataclasses.asdict(config),
    }
    write_json(run_dir / RUN_FILE, run)


def finish_run(run_dir: Path, seconds: float) -> None:
    """Marks the run as finished; `seconds` is what the process that finished it took."""
    path = run_dir / RUN_FILE
    run = read_object(path)
    write_json(path, {**run, "finished": True, "wall_time_s": round(seconds, 1)})


def keep_metrics(run_dir: Path, group: int, step: int) -> None:
    """Drops the lines of epochs that will be trained again, and a line that was torn."""
    path = run_dir / METRICS_FILE
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if (record["group"], record["step"]) <= (group, step):
            kept.append(line)
    with replacing(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def append_metrics(
    run_dir: Path, members: Sequence[Member], common: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
    """Appends an epoch: a line for each member, `values` by name [M]; null is not a finite number.

    `common` is what all lines share: group, step (epochs of both phases), phase, epoch.
    """
    with open(run_dir / METRICS_FILE, "a", encoding="utf-8") as file:
        for i, member in enumerate(members):
            who = {"member": member.index, "family": member.family}
            who |= {"level": member.level, "seed": member.seed}
            own = {k: float(v[i]) if np.isfinite(v[i]) else None for k, v in values.items()}
            file.write(json.dumps({**who, **common, **own}) + "\n")


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON; replaces `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def git_commit() -> str | None:
    """The commit of the source tree, "-dirty" if it was changed; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
