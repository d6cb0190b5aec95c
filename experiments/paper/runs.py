"""The runs of the paper's figures: their commands and their records."""

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.paper.figures import FLAGFILES, RUNS, stem_of
from normjax.data import dataset_label, load_dataset
from normjax.files import one_line, read_object, read_text
from normjax.training.checkpoints import RUN_FILE
from normjax.training.record import is_marked_finished

# Fields of run.json for a run of networks.
_NETWORKS = {"dataset": str, "model": str, "train_images": int, "groups": list[list[int]]}
_NETWORKS |= {"devices": list[str]}


def dataset_of(run: str, scale: str, datasets: Mapping[str, str]) -> str | None:
    """Return the --dataset of a run; None if it draws its own data.

    Args:
      run: key in `RUNS`.
      scale: one of `figures.SCALES`; "smoke" uses the embedded digits.
      datasets: {"cifar10" or "cifar100": value of --dataset}.
    """
    data = RUNS[run].data
    if not data:
        return None
    return "digits" if scale == "smoke" else datasets[data]


def command_of(
    run: str, scale: str, dataset: str | None, data_dir: str | None, run_dir: Path
) -> list[str]:
    """Return the arguments for Python that start or resume a run.

    Args:
      run: key in `RUNS`.
      scale: one of `figures.SCALES`.
      dataset: value of --dataset, or None.
      data_dir: value of --data_dir, or None.
      run_dir: value of --workdir.
    """
    spec = RUNS[run]
    values = spec.flags(scale)
    if dataset is not None:
        values["dataset"] = dataset
        if data_dir is not None:
            values["data_dir"] = data_dir
    return [
        "-m",
        f"experiments.{spec.experiment}",
        f"--flagfile={FLAGFILES / spec.flagfile}.flags",
        *[f"--{name}={value}" for name, value in values.items()],
        f"--workdir={run_dir}",
        *(["--resume"] if (run_dir / RUN_FILE).exists() else []),
    ]


def why_no_data(dataset: str | None, data_dir: str | None, run_dir: Path) -> str:
    """Return, in one line, why a run's data cannot be loaded, or "".

    Runs that were already started and runs that draw their own data are not checked.
    """
    if dataset is None or (run_dir / RUN_FILE).exists():
        return ""
    try:
        load_dataset(dataset, data_dir=data_dir)
    except (ValueError, OSError) as error:
        return one_line(error)
    return ""


def train(run: str, command: list[str]) -> str:
    """Run a command in its own process, which frees its memory for the next one.

    Returns:
      Why it failed, in one line, or "".
    """
    print(f"{run}: python {shlex.join(command)}", flush=True)
    lines = [""]
    with subprocess.Popen(
        [sys.executable, *command], stderr=subprocess.PIPE, text=True, errors="backslashreplace"
    ) as process:
        for line in process.stderr or ():
            sys.stderr.write(line)
            if line.strip():
                lines.append(line.strip())
    return "" if process.returncode == 0 else lines[-1] or f"exit code {process.returncode}"


def finished_runs(runs_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the records of the finished runs, for the ledger.

    Returns:
      By folder: "experiment", "wall_time_s", "git_commit"; for runs of networks also "networks"
      (number), "dataset" (label), "model", "train_images", "devices".

    Raises:
      ValueError, OSError: a run.json is damaged or cannot be read.
    """
    records = {}
    for folder in [path for run in RUNS for path in finished_sizes(run, runs_dir)]:
        path = folder / RUN_FILE
        record = read_object(path, experiment=str, wall_time_s=float, git_commit=str | None)
        if "dataset" in record:
            read_object(path, **_NETWORKS)
            record["networks"] = sum(map(len, record["groups"]))
            record["dataset"] = dataset_label(record["dataset"])
        records[folder.name] = record
    return records


def finished_sizes(run: str, runs_dir: Path) -> list[Path]:
    """Return the finished folders of a run: its own, then RUN_N with N images, smallest N first.

    Args:
      run: key in `RUNS`.
      runs_dir: the parent folder.

    Raises:
      ValueError, OSError: a run.json is damaged or cannot be read, or RUN_N does not have N images.
    """
    sizes = {}
    for path in runs_dir.glob(f"{run}_*"):
        found = re.fullmatch(rf"{run}_([1-9]\d*)", path.name)
        if found and is_marked_finished(path):
            images = read_object(path / RUN_FILE, train_images=int)["train_images"]
            if images != int(found[1]):
                raise ValueError(f"{path}: its run has {images:,} training images")
            sizes[images] = path
    own = [runs_dir / run] if is_marked_finished(runs_dir / run) else []
    return own + [sizes[images] for images in sorted(sizes)]


def flagfile_of(name: str) -> Path:
    """Return the path of the flagfile with the paper's settings for a figure."""
    return FLAGFILES / f"{stem_of(name)}.flags"


def read_flags(path: Path, *needed: str) -> dict[str, str]:
    """Return {name: value} of a flagfile with lines --name=value.

    Raises:
      OSError: the file cannot be read.
      ValueError: a line has another form, or a needed flag is missing.
    """
    values = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            found = re.fullmatch(r"--(\w+)=(.*)", line.strip())
            if not found:
                raise ValueError(f"{path}, line {number}: must have the form --name=value")
            values[found[1]] = found[2]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{path}: --{missing[0]} is missing")
    return values
