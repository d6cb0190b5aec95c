"""What a run writes about itself: flags.txt, run.json, metrics.jsonl; and who may use a folder."""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from normjax.data import Dataset
from normjax.files import naming, read_object, replacing, write_json
from normjax.results.rows import RESULTS_FILE
from normjax.training.checkpoints import RUN_FILE, digest
from normjax.training.config import HOW_NOT_WHAT, SweepConfig, check_workdir, to_flagfile
from normjax.training.ensemble import Member

LOCK_FILE = ".lock"
REPORT_FILE = "report.html"
METRICS_FILE = "metrics.jsonl"
PACKAGES = ("normjax", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


def is_finished(run_dir: Path, config: SweepConfig) -> bool:
    """Whether the run in this folder is finished already.

    Raises:
      ValueError: the folder can't be used: it holds a run and --resume is not given, or that run
        has other settings.
    """
    check_workdir(run_dir)
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


@contextlib.contextmanager
def locked(run_dir: Path, is_new: bool) -> Iterator[None]:
    """Keeps other processes out of a folder, which is made; the kernel ends it with the process.

    Raises:
      ValueError: another process is at work there; or `is_new`, and it has begun a run there since
        `is_finished` found none, and ended.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / LOCK_FILE
    with open(path, "a", encoding="utf-8") as file:  # NFS wants it open for writing
        try:
            with naming(path):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"--workdir={run_dir} is in use by another process") from None
        if is_new and (run_dir / RUN_FILE).exists():
            raise ValueError(f"--workdir={run_dir} was just used by another process")
        yield


def start_run(
    run_dir: Path,
    experiment: str,
    config: SweepConfig,
    dataset: Dataset,
    groups: Sequence[Sequence[Member]],
) -> None:
    """Writes flags.txt and run.json before anything is trained; keeps those of a resumed run."""
    for path in run_dir.rglob(".*.tmp"):  # of `replacing`, in a process that was killed
        path.unlink()
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
        "data_digest": data_digest(dataset),
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


def data_digest(dataset: Dataset) -> str:
    """SHA-256 of all images and labels."""
    splits = (("train", dataset.train), ("test", dataset.test))
    return digest({name: [split.images, split.labels] for name, split in splits})


def finish_run(run_dir: Path, seconds: float) -> None:
    """Marks the run as finished; `seconds` is what the process that finished it took."""
    path = run_dir / RUN_FILE
    run = read_object(path)
    write_json(path, {**run, "finished": True, "wall_time_s": round(seconds, 1)})


def keep_metrics(run_dir: Path, group: int, members: Sequence[Member], step: int) -> None:
    """Drops torn lines, and those of a group's epochs after `step`, which are trained again.

    Says so if lines of earlier epochs are missing: those epochs are not trained again.
    """
    path = run_dir / METRICS_FILE
    before = path.read_bytes() if path.exists() else b""
    kept = []
    missing = {(member.index, epoch) for member in members for epoch in range(1, step + 1)}
    for line in before.splitlines():
        try:
            record = json.loads(line)
            if record["group"] != group or record["step"] <= step:
                kept.append(line + b"\n")
                missing.discard((record["member"], record["step"]))
        except (ValueError, TypeError, KeyError):
            continue
    if missing:
        print(f"{path}: {len(missing)} lines were lost, for good", file=sys.stderr)
    after = b"".join(kept)
    if after != before:
        with replacing(path) as temporary:
            temporary.write_bytes(after)


def append_metrics(
    run_dir: Path, members: Sequence[Member], common: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
    """Appends an epoch: a line for each member, `values` by name [M]; null is not a finite number.

    `common` is what all lines share: group, step (epochs of both phases), phase, epoch. Among the
    values is diverged_at, the step after which the member's loss was no longer finite; 0, which
    becomes null, as long as it is.
    """
    path = run_dir / METRICS_FILE
    with naming(path), open(path, "a", encoding="utf-8") as file:
        for i, member in enumerate(members):
            who = {"member": member.index, "family": member.family}
            who |= {"level": member.level, "seed": member.seed}
            own = {k: v[i].item() if np.isfinite(v[i]) else None for k, v in values.items()}
            own["diverged_at"] = own["diverged_at"] or None
            file.write(json.dumps({**who, **common, **own}) + "\n")


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
