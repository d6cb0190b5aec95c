"""How often the normalized training loss picks the better of two networks, or of two epochs.

    python -m experiments.monitor --from=RUN --workdir=DIR

Its rivals are the training loss as trained, the product of norms and, for epochs, the later one.
Only results.csv, run.json and metrics.jsonl are read.

    DIR/picks.csv   a row per choice, selection, outcome and quantity (`normjax.controls.picks`)
    DIR/monitor.md  the rows as tables
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import flags
from normjax.controls.picks import OUTCOMES, PickRate, epoch_picks, network_picks
from normjax.data import dataset_label
from normjax.files import one_line
from normjax.plots.style import join_title
from normjax.report.render import render, write_page
from normjax.results.columns import write_columns
from normjax.results.metrics import METRICS_FILE, read_metrics
from normjax.results.table import RESULTS_FILE, read_results
from normjax.training.checkpoints import RUN_FILE
from normjax.training.config import check_that, setting
from normjax.training.finished_run import check_output, read_definitions


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the command."""

    source: str = setting(
        help="Folder of a finished run.",
        flag="from",
        check=check_that(lambda path: Path(path).is_dir(), "no such folder"),
        is_path=True,
    )
    norm: str | None = setting(None, "Norm, as in the results: 2, 1/100, ...; default: 2.")
    workdir: str = setting("runs/monitor", "Output folder.", check=check_output, is_path=True)


def main(config: Config) -> None:
    """Compute the rates and write them."""
    run_dir, workdir = Path(config.source), Path(config.workdir)
    no_epochs = ""
    try:
        table = read_results(run_dir)
        settings, _ = read_definitions(run_dir / RUN_FILE)
        picks = []
        for selection in table["selection"].unique():
            picks += network_picks(table, selection, config.norm)
        if (run_dir / METRICS_FILE).exists():
            of_epochs = epoch_picks(read_own_metrics(run_dir, table))
            no_epochs = "" if of_epochs else "no test losses were measured along training"
            picks += of_epochs
        else:
            no_epochs = f"the run has no {METRICS_FILE}"
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
    title = join_title([dataset_label(settings.dataset), settings.model])
    tables = tables_of(picks)
    page = {"title": title, "outcomes": OUTCOMES, "tables": tables, "no_epochs": no_epochs}
    names = [field.name for field in dataclasses.fields(PickRate)]
    write_columns(workdir / "picks.csv", pd.DataFrame(picks, columns=names))
    write_page(workdir / "monitor.md", "monitor.md", **page)
    print(render("monitor.md", **page), end="")
    print(workdir / "monitor.md")


def read_own_metrics(run_dir: Path, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the lines of `read_metrics`, which must be of networks in the table.

    Raises:
      OSError: the file cannot be read.
      ValueError: a line is damaged, or of another network.
    """
    names = ["member", "family", "level", "seed"]
    networks = set(table[names].itertuples(index=False, name=None))
    lines = read_metrics(run_dir)
    for line in lines:
        if tuple(line[name] for name in names) not in networks:
            raise ValueError(
                f"{run_dir / METRICS_FILE}: member {line['member']} (family {line['family']}, "
                f"level {line['level']:g}, seed {line['seed']}) is not in {RESULTS_FILE}"
            )
    return lines


def tables_of(picks: Sequence[PickRate]) -> list[dict[str, Any]]:
    """Return the rates of each choice and selection, by quantity and outcome."""
    tables = []
    for place in dict.fromkeys((pick.choice, pick.selection) for pick in picks):
        own = [pick for pick in picks if (pick.choice, pick.selection) == place]
        rows: dict[str, dict[str, PickRate | None]] = {}
        for pick in own:
            rows.setdefault(pick.quantity, dict.fromkeys(OUTCOMES))[pick.outcome] = pick
        tables.append(
            {
                **{name: getattr(own[0], name) for name in ("choice", "selection", "norm")},
                "rows": rows,
                "num_networks": own[0].num_networks,
                "num_pairs": max(pick.num_pairs for pick in own),
                "reasons": list(dict.fromkeys(pick.reason for pick in own if pick.reason)),
            }
        )
    return tables


if __name__ == "__main__":
    flags.run(main, Config)
