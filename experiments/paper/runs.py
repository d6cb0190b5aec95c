"""The runs that the paper's figures are drawn from: their commands, and what they wrote."""

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

# What run.json holds for a run of networks.
_NETWORKS = {"dataset": str, "model": str, "train_images": int, "groups": list[list[int]]}
_NETWORKS |= {"devices": list[str]}


def dataset_of(run: str, scale: str, datasets: Mapping[str, str]) -> str | None:
    """Return the --dataset of a run; None if it draws its own data.

    Args:
      run: key in `RUNS`.
      scale: at "smoke" all data are the embedded digits.
      datasets: --dataset of "cifar10" and "cifar100".
    """
    data = RUNS[run].data
    if not data:
        return None
    return "digits" if scale == "smoke" else datasets[data]


def command_of(
    run: str, scale: str, dataset: str | None, data_dir: str | None, run_dir: Path
) -> list[str]:
    """Return the arguments for Python that start a run, or resume it.

    Args:
      run: key in `RUNS`.
      scale: one of `figures.SCALES`.
      dataset: the run's --dataset, None for none.
      data_dir: the run's --data_dir, None for none.
      run_dir: the run's --workdir.
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
    """Return why a run's data can not be loaded, in one line; "" if they can.

    A run that was started needs no check here, and neither does one that draws its own data.
    """
    if dataset is None or (run_dir / RUN_FILE).exists():
        return ""
    try:
        load_dataset(dataset, data_dir=data_dir)
    except (ValueError, OSError) as error:
        return one_line(error)
    return ""


def train(run: str, command: list[str]) -> str:
    """Run a command in its own process, so that its memory is free for the next one.

    Returns:
      Why it failed, in one line; "" if it did not.
    """
    print(f"{run}: python {shlex.join(command)}", flush=True)
    lines = [""]
    with subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            sys.stderr.write(line)
            if line.strip():
                lines.append(line.strip())
    return "" if process.returncode == 0 else lines[-1] or f"exit code {process.returncode}"


def is_finished(run_dir: Path) -> bool:
    """Return whether the folder holds a finished run.

    Raises:
      ValueError, OSError: its run.json is damaged or can not be read.
    """
    path = run_dir / RUN_FILE
    return path.exists() and read_object(path, finished=bool)["finished"]


def finished_runs(runs_dir: Path) -> dict[str, dict[str, Any]]:
    """Return what the finished runs say of themselves, for the ledger.

    Returns:
      By key in `RUNS`: "experiment", "wall_time_s", "git_commit"; for runs of networks also
      "networks" (how many), "dataset" (its label), "model", "train_images", "devices".

    Raises:
      ValueError, OSError: a run.json is damaged or can not be read.
    """
    records = {}
    for run in RUNS:
        if not is_finished(runs_dir / run):
            continue
        path = runs_dir / run / RUN_FILE
        record = read_object(path, experiment=str, wall_time_s=float, git_commit=str | None)
        if "dataset" in record:
            read_object(path, **_NETWORKS)
            record["networks"] = sum(map(len, record["groups"]))
            record["dataset"] = dataset_label(record["dataset"])
        records[run] = record
    return records


def flagfile_of(name: str) -> Path:
    """Return the path of the flagfile with the paper's settings for a figure."""
    return FLAGFILES / f"{stem_of(name)}.flags"


def read_flags(path: Path, *needed: str) -> dict[str, str]:
    """Return the values by name of a flagfile with lines --name=value.

    Raises:
      OSError: the file can not be read.
      ValueError: a line is something else, or a needed flag is missing.
    """
    values = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            found = re.fullmatch(r"--(\w+)=(.*)", line.strip())
            if not found:
                raise ValueError(f"{path}, line {number}: not a flag as --name=value")
            values[found[1]] = found[2]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{path}: there is no --{missing[0]}")
    return values
