"""Reproduce all figures of the paper, and compare its numbers with ours in a ledger.

    python -m experiments.reproduce --scale=smoke
    python -m experiments.reproduce --figures=4,10,11 --scale=full --data_dir=DIR

Each run that the figures need (`paper.figures.RUNS`) is a command of an experiment, which is
printed. Finished runs are not repeated; interrupted runs are resumed.

    DIR/runs/<run>/      the runs
    DIR/figures/         fig01.png and .pdf to fig15, linear, monitor (the closing recommendation)
    DIR/ledger.csv and ledger.md

Figures of networks at a target loss also get a row for each finished run DIR/runs/<run>_<N>, the
same run on N training images; such a run may have stopped at the target.

Figures without data are skipped with a message. The exit code is 0 if all other figures are drawn.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from experiments import flags, linear_margin
from experiments.paper import ledger, runs
from experiments.paper.figures import FIGURES, OTHER_FIGURES, RUNS, SCALES, run_of, stem_of
from experiments.paper.networks import networks_of, settings_that_differ
from experiments.paper.runs import flagfile_of, read_flags
from normjax.data import dataset_label
from normjax.files import one_line, read_object
from normjax.plots.curves import plot_curves
from normjax.plots.style import save_figure
from normjax.results.metrics import (
    METRICS_FILE,
    LevelStops,
    read_metrics,
    read_stops,
)
from normjax.training.checkpoints import RUN_FILE
from normjax.training.config import check_that, check_workdir, setting
from normjax.training.record import is_marked_finished

ALL_FIGURES = (*FIGURES, *OTHER_FIGURES)
NOT_ASKED = "its figure was not requested"


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the command."""

    figures: tuple[str, ...] = setting(
        ALL_FIGURES,
        "Figures to draw: 1 to 15, linear, monitor.",
        check=check_that(
            lambda names: names and set(names) <= set(ALL_FIGURES),
            f"allowed are {', '.join(ALL_FIGURES)}",
        ),
    )
    scale: str = setting(
        "small",
        "full: the paper's settings. small: hours on 2 cores. smoke: minutes, on digits.",
        allowed=SCALES,
    )
    workdir: str | None = setting(
        None,
        "Output folder; default: --from or runs/reproduce_<scale>.",
        check=check_workdir,
        is_path=True,
    )
    cifar10: str = setting(
        "cifar10", "--dataset of the CIFAR-10 runs, except at scale smoke.", is_path=True
    )
    cifar100: str = setting(
        "cifar100", "--dataset of the CIFAR-100 runs, except at scale smoke.", is_path=True
    )
    data_dir: str | None = setting(None, "Folder of the CIFAR archives.", is_path=True)
    source: str | None = setting(
        None,
        "Output folder of an earlier run, to redraw without training.",
        flag="from",
        check=check_that(
            lambda path: path and (Path(path) / "runs").is_dir(), "it has no folder runs"
        ),
        is_path=True,
    )

    @property
    def folder(self) -> Path:
        """Return the output folder."""
        return Path(self.workdir or self.source or f"runs/reproduce_{self.scale}")


def main(config: Config) -> None:
    """Call `reproduce`; on an error, exit with one line and code 1."""
    try:
        reproduce(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")


def reproduce(config: Config) -> None:
    """Train missing runs, draw the figures and write the ledger.

    Raises:
      ValueError, OSError: a file cannot be read or written; the message names it.
    """
    workdir = config.folder
    runs_dir = Path(config.source or workdir) / "runs"
    for run in RUNS:
        runs.finished_sizes(run, runs_dir)  # fails on a damaged record before anything is trained
    absent: dict[str, str] = {}  # why a figure has no data, or ""
    reasons: dict[str, str] = {}  # why a figure is not drawn, or ""
    figures = tuple(dict.fromkeys(config.figures))
    for run in dict.fromkeys(map(run_of, figures)):
        impossible, reason = provide_run(run, config, runs_dir / run)
        for name in [name for name in figures if run_of(name) == run]:
            absent[name] = impossible or ("" if reason else why_no_metrics(name, runs_dir / run))
            folder = workdir / "figures"
            reasons[name] = reason or absent[name] or draw(name, runs_dir / run, folder)

    rows = []
    for name in FIGURES:
        run_dir = runs_dir / run_of(name)
        rows += ledger_rows(name, run_dir, reasons.get(name, NOT_ASKED))
        if FIGURES[name].is_at_target:
            sizes = runs.finished_sizes(run_of(name), runs_dir)
            rows += [
                row for other in sizes if other != run_dir for row in ledger_rows(name, other, "")
            ]
    ledger.write_csv(workdir / "ledger.csv", rows)
    records = runs.finished_runs(runs_dir)
    ledger.write_markdown(workdir / "ledger.md", rows, *stopping_of(runs_dir), records)

    for run, reason in dict.fromkeys((run_of(name), absent[name]) for name in figures):
        if reason:
            skipped = [name for name in figures if (run_of(name), absent[name]) == (run, reason)]
            print(f"figures skipped: {', '.join(skipped)} (run {run}: {reason})")
    drawn = [name for name in figures if not reasons[name]]
    print(f"figures drawn in {workdir / 'figures'}: {', '.join(drawn) or 'none'}")
    print(f"{workdir / 'ledger.md'}: {sum(row.ours is not None for row in rows)} numbers measured")
    failures = [f"{n} ({reason})" for n, reason in reasons.items() if reason and not absent[n]]
    if failures:
        sys.exit(f"error: figures not drawn: {', '.join(failures)}")
    if not drawn:
        sys.exit("error: none of these figures has data")
    print("all figures with data were drawn")


def provide_run(run: str, config: Config, run_dir: Path) -> tuple[str, str]:
    """Train a run unless it is finished or --from is given.

    Returns:
      Why the run is impossible (missing data or, with --from, a missing run), and why its figures
      cannot be drawn for this or another reason. Both are one line, or "".
    """
    if config.source is not None:
        reason = "" if is_marked_finished(run_dir) else f"no finished run in {run_dir}"
        return reason, reason
    datasets = {"cifar10": config.cifar10, "cifar100": config.cifar100}
    dataset = runs.dataset_of(run, config.scale, datasets)
    if reason := runs.why_no_data(dataset, config.data_dir, run_dir):
        return reason, reason
    command = runs.command_of(run, config.scale, dataset, config.data_dir, run_dir)
    return "", runs.train(run, command)


def why_no_metrics(name: str, run_dir: Path) -> str:
    """Return why a figure lacks the metrics.jsonl of its finished run, or ""."""
    if name != "monitor" or (run_dir / METRICS_FILE).exists():
        return ""
    return f"the run has no {METRICS_FILE}"


def draw(name: str, run_dir: Path, folder: Path) -> str:
    """Draw one figure of a finished run; return why this failed, or ""."""
    try:
        save_figure(draw_figure(name, run_dir), folder / stem_of(name))
    except (ValueError, OSError) as error:
        return one_line(error)
    return ""


def draw_figure(name: str, run_dir: Path) -> Any:
    """Draw one figure from the saved tables of its run.

    Raises:
      ValueError, OSError: there is nothing to draw, or a file cannot be read.
    """
    if name == "linear":
        return linear_margin.draw_figure(run_dir)
    label = dataset_label(read_flags(run_dir / "flags.txt", "dataset")["dataset"])
    if name == "monitor":
        return plot_curves(read_metrics(run_dir), label)
    networks = networks_of(name, run_dir)
    for remark in networks.remarks:
        print(f"figure {name}: {remark}", flush=True)
    return FIGURES[name].plot(networks.table, networks.found, label)


def ledger_rows(name: str, run_dir: Path, reason: str) -> list[ledger.LedgerRow]:
    """Return the rows of a figure, measured if its run is finished.

    Args:
      name: number of the figure.
      run_dir: folder of its run.
      reason: why the figure is not drawn, or "".
    """
    if reason not in ("", NOT_ASKED) or not is_marked_finished(run_dir):
        return ledger.missing_rows(name, reason)
    images = 0
    try:
        images = read_object(run_dir / RUN_FILE, train_images=int)["train_images"]
        paper, ours = read_flags(flagfile_of(name)), read_flags(run_dir / "flags.txt")
        settings = settings_that_differ(FIGURES[name], paper, ours)
        return ledger.measured_rows(name, networks_of(name, run_dir), settings, images)
    except (ValueError, OSError) as error:
        return ledger.missing_rows(name, one_line(error), images)


def stopping_of(runs_dir: Path) -> tuple[list[LevelStops], str]:
    """Return the stopping epochs by level, and why they are unknown, or ""."""
    run_dir = runs_dir / run_of("monitor")
    if not is_marked_finished(run_dir):
        return [], "The run is not finished."
    if reason := why_no_metrics("monitor", run_dir):
        return [], f"Unknown: {reason}."
    try:
        stops = read_stops(run_dir)
    except (ValueError, OSError) as error:
        return [], f"Unknown: {one_line(error)}"
    return stops, "" if stops else "No test loss was measured."


if __name__ == "__main__":
    flags.run(main, Config)
