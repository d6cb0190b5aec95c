"""All of the paper's figures in one command, and the ledger of its numbers beside ours.

    python -m experiments.reproduce --scale=smoke
    python -m experiments.reproduce --figures=4,10,11 --scale=full --data_dir=DIR

Each run that the figures need (`paper_figures.RUNS`) is an experiment's own command, which is
printed; runs that are finished are not repeated, and an interrupted one goes on. Then

    DIR/runs/<run>/      the runs
    DIR/figures/         fig01.png and .pdf to fig15, linear, monitor (the closing recommendation)
    DIR/ledger.csv and ledger.md

Figures whose data can't be found are left out, with a line that says so. The exit code is 0 if all
that the data allow was drawn.
"""

import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import flags as shared_flags
from experiments import linear_margin
from experiments.paper import ledger
from experiments.paper.figures import (
    FIGURES,
    FLAGFILES,
    OTHER_FIGURES,
    RUNS,
    SCALES,
    run_of,
    stem_of,
)
from normjax.data import dataset_label, load_dataset
from normjax.files import one_line, read_object, read_text
from normjax.plots import curves
from normjax.plots import paper as plotting
from normjax.results.rows import ResultRow, read_results
from normjax.training.checkpoints import RUN_FILE
from normjax.training.config import check_workdir

ALL_FIGURES = (*FIGURES, *OTHER_FIGURES)
NOT_ASKED = "its figure was not asked for"
# What run.json holds for a run of networks.
_NETWORKS = {"dataset": str, "model": str, "train_images": int, "groups": list[list[int]]}
_NETWORKS |= {"devices": list[str]}


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides what is reproduced; fields are the flags of the same name."""

    figures: tuple[str, ...]
    scale: str
    workdir: str
    cifar10: str
    cifar100: str
    data_dir: str | None
    source: str | None  # --from


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines this command's flags."""
    own = {"flag_values": values}
    flags.DEFINE_list(
        "figures", list(ALL_FIGURES), "Figures to draw: 1 to 15, linear, monitor.", **own
    )
    flags.DEFINE_enum(
        "scale",
        "small",
        SCALES,
        "full: the paper's settings. small: about an hour on 2 cores. smoke: minutes, on digits.",
        **own,
    )
    flags.DEFINE_string(
        "workdir", None, "Folder for all; runs/reproduce_<scale> or --from's if not given.", **own
    )
    flags.DEFINE_string(
        "cifar10", "cifar10", "--dataset of the CIFAR-10 runs; not at smoke.", **own
    )
    flags.DEFINE_string(
        "cifar100", "cifar100", "--dataset of the CIFAR-100 runs; not at smoke.", **own
    )
    flags.DEFINE_string("data_dir", None, "Folder with the CIFAR archives.", **own)
    flags.DEFINE_string("from", None, "A workdir to draw again from, training nothing.", **own)


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> Config:
    """The command line as a configuration; a mistake is one line on stderr and exit code 1."""

    def make_config() -> Config:
        given = {name: values[name].value for name in ("scale", "cifar10", "cifar100", "data_dir")}
        source, workdir = values["from"].value, values["workdir"].value
        figures = tuple(dict.fromkeys(name.strip() for name in values["figures"].value))
        default = source or f"runs/reproduce_{given['scale']}"
        config = Config(figures=figures, workdir=workdir or default, source=source, **given)
        validate(config)
        return config

    return shared_flags.parse(argv, make_config, values)


def validate(config: Config) -> None:
    """Checks the values.

    Raises:
      ValueError: one line that names the flag, its value and what is allowed.
    """
    unknown = [name for name in config.figures if name not in ALL_FIGURES]
    if unknown or not config.figures:
        text = ",".join(config.figures)
        raise ValueError(f"--figures={text}: allowed are {', '.join(ALL_FIGURES)}")
    if config.source is not None and not (Path(config.source) / "runs").is_dir():
        raise ValueError(f"--from={config.source}: there is no folder runs in it")
    check_workdir(config.workdir)


def main(config: Config) -> None:
    """Trains what is missing, draws, and writes the ledger; a damaged file is one line."""
    try:
        reproduce(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")


def reproduce(config: Config) -> None:
    """Trains what is missing, draws, and writes the ledger.

    Raises:
      ValueError, OSError: a file can't be read or written; the message names it.
    """
    workdir = Path(config.workdir)
    runs_dir = Path(config.source or workdir) / "runs"
    for run in RUNS:
        is_finished(runs_dir / run)  # a damaged record ends it before anything is trained
    impossible: dict[str, str] = {}  # why a run has nothing to draw, "" if it has
    reasons: dict[str, str] = {}  # why a figure is not drawn, "" if it is
    for run in dict.fromkeys(map(run_of, config.figures)):
        impossible[run] = why_impossible(run, config, runs_dir / run)
        reason = impossible[run]
        if not reason and config.source is None:
            reason = train(run, config, runs_dir / run)
        for name in [name for name in config.figures if run_of(name) == run]:
            reasons[name] = reason or draw(name, runs_dir / run, workdir / "figures")

    rows = []
    for name in FIGURES:
        rows += ledger_rows(name, runs_dir / run_of(name), reasons.get(name, NOT_ASKED))
    ledger.write_csv(workdir / "ledger.csv", rows)
    sections = [("When to stop", describe_stopping(runs_dir)), ("Runs", describe_runs(runs_dir))]
    ledger.write_markdown(workdir / "ledger.md", rows, sections)

    for run, reason in impossible.items():
        if reason:
            left_out = ", ".join(name for name in config.figures if run_of(name) == run)
            print(f"figures left out: {left_out} (run {run}: {reason})")
    drawn = [name for name in config.figures if not reasons[name]]
    print(f"figures drawn in {workdir / 'figures'}: {', '.join(drawn) or 'none'}")
    print(f"{workdir / 'ledger.md'}: {sum(row.ours is not None for row in rows)} numbers measured")
    failures = [
        f"{name} ({reason})"
        for name, reason in reasons.items()
        if reason and not impossible[run_of(name)]
    ]
    if failures:
        sys.exit(f"error: figures not drawn: {', '.join(failures)}")
    if not drawn:
        sys.exit("error: there are no data to draw any of these figures")
    print("all that the data allow was drawn")


def why_impossible(run: str, config: Config, run_dir: Path) -> str:
    """Why a run's figures can't be drawn for want of data or, with --from, of the run."""
    if config.source is not None:
        return "" if is_finished(run_dir) else f"no finished run in {run_dir}"
    name = dataset_of(run, config)
    if name is None or (run_dir / RUN_FILE).exists():  # a finished run needs no data
        return ""
    try:
        load_dataset(name, data_dir=config.data_dir)
    except (ValueError, OSError) as error:
        return one_line(error)
    return ""


def dataset_of(run: str, config: Config) -> str | None:
    """The --dataset of a run; None if it draws its own data."""
    data = RUNS[run].data
    if not data:
        return None
    return "digits" if config.scale == "smoke" else getattr(config, data)


def command_of(run: str, config: Config, run_dir: Path) -> list[str]:
    """The arguments for Python that make a run, or go on with it."""
    spec = RUNS[run]
    values = spec.flags(config.scale)
    if dataset := dataset_of(run, config):
        values["dataset"] = dataset
        if config.data_dir is not None:
            values["data_dir"] = config.data_dir
    return [
        "-m",
        f"experiments.{spec.experiment}",
        f"--flagfile={FLAGFILES / spec.flagfile}.flags",
        *[f"--{name}={value}" for name, value in values.items()],
        f"--workdir={run_dir}",
        *(["--resume"] if (run_dir / RUN_FILE).exists() else []),
    ]


def train(run: str, config: Config, run_dir: Path) -> str:
    """Runs an experiment in a process of its own; returns why it failed, in one line, or "".

    Memory that JAX holds for one run is thus free for the next.
    """
    command = command_of(run, config, run_dir)
    print(f"{run}: python {shlex.join(command)}", flush=True)
    lines = [""]
    with subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            sys.stderr.write(line)
            if line.strip():
                lines.append(line.strip())
    return "" if process.returncode == 0 else lines[-1] or f"exit code {process.returncode}"


def is_finished(run_dir: Path) -> bool:
    """Whether there is a finished run in this folder."""
    path = run_dir / RUN_FILE
    return path.exists() and read_object(path, finished=bool)["finished"]


def draw(name: str, run_dir: Path, folder: Path) -> str:
    """Draws one figure of a finished run; returns why that is impossible, or ""."""
    try:
        plotting.save_figure(draw_figure(name, run_dir), folder / stem_of(name))
    except (ValueError, OSError) as error:
        return one_line(error)
    return ""


def draw_figure(name: str, run_dir: Path) -> Any:
    """One figure, from the saved tables of its run.

    Raises:
      ValueError: there is nothing to draw.
    """
    if name == "linear":
        return linear_margin.draw_figure(run_dir)
    label = dataset_label(read_flags(run_dir / "flags.txt", "dataset")["dataset"])
    if name == "monitor":
        return curves.plot_curves(curves.read_metrics(run_dir), label)
    networks = networks_of(name, run_dir)
    for remark in networks.remarks:
        print(f"figure {name}: {remark}", flush=True)
    return FIGURES[name].plot(networks.rows, label)


def networks_of(name: str, run_dir: Path) -> ledger.Networks:
    """The networks of one of the paper's figures."""
    paper, ours = read_flags(flagfile_of(name)), read_flags(run_dir / "flags.txt")
    rows: Sequence[ResultRow] = read_results(run_dir)
    targets = ours.get("target_losses", "")
    try:
        target = format(float(targets), "g") if targets else ""
    except ValueError:
        path = run_dir / "flags.txt"
        raise ValueError(f"{path}: --target_losses={targets}: one loss is needed") from None
    return ledger.choose_networks(FIGURES[name], rows, paper["norms"], target)


def ledger_rows(name: str, run_dir: Path, reason: str) -> list[ledger.LedgerRow]:
    """A figure's rows; `reason` is why it is not drawn now, "" if it is.

    A figure that was not asked for is measured if its run is finished.
    """
    if reason not in ("", NOT_ASKED) or not is_finished(run_dir):
        return ledger.missing_rows(name, reason)
    try:
        paper, ours = read_flags(flagfile_of(name)), read_flags(run_dir / "flags.txt")
        settings = ledger.settings_that_differ(FIGURES[name], paper, ours)
        return ledger.measured_rows(name, networks_of(name, run_dir), settings)
    except (ValueError, OSError) as error:
        return ledger.missing_rows(name, one_line(error))


def describe_stopping(runs_dir: Path) -> str:
    """Whether the normalized loss chooses better epochs to stop at than the raw one, in words."""
    run_dir = runs_dir / run_of("monitor")
    if not is_finished(run_dir):
        return "The run is not finished."
    try:
        lines = curves.describe_stopping(curves.stopping_epochs(curves.read_metrics(run_dir)))
    except (ValueError, OSError) as error:
        return f"It can't be said: {one_line(error)}"
    return "\n".join(f"- {line}" for line in lines.splitlines())


def describe_runs(runs_dir: Path) -> str:
    """A line for each finished run: what it was, on what, and how long."""
    lines = []
    for run in RUNS:
        if not is_finished(runs_dir / run):
            continue
        path = runs_dir / run / RUN_FILE
        record = read_object(path, experiment=str, wall_time_s=float, git_commit=str | None)
        parts = [f"`{run}`: experiments.{record['experiment']}"]
        if "dataset" in record:
            read_object(path, **_NETWORKS)
            num_networks = sum(map(len, record["groups"]))
            parts.append(
                f"{record['model']}, {num_networks} networks, {record['train_images']:,} training "
                f"images ({dataset_label(record['dataset'])})"
            )
            kinds = " and ".join(dict.fromkeys(record["devices"]))
            parts.append(f"{len(record['devices'])} x {kinds}")
        parts.append(f"{record['wall_time_s']} s, commit {record['git_commit']}")
        lines.append("- " + ", ".join(parts))
    return "\n".join(lines) or "None is finished."


def flagfile_of(name: str) -> Path:
    """The flagfile with the paper's settings for a figure."""
    return FLAGFILES / f"{stem_of(name)}.flags"


def read_flags(path: Path, *needed: str) -> dict[str, str]:
    """The values by name of a flagfile with lines --name=value.

    Raises:
      OSError: the file can't be read.
      ValueError: a line is something else, or there is none of a flag that is needed.
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


if __name__ == "__main__":
    define_flags()
    shared_flags.run_command(main, parse)
