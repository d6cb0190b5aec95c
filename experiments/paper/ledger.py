"""The ledger: every number that the paper prints, next to ours.

A row has a measured number, or "not run" and the reason. Lines and intervals come from
`explain_line` on the figure's networks.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.paper.figures import FIGURES
from experiments.paper.networks import Networks
from normjax.report.render import write_page
from normjax.results.columns import write_columns
from normjax.results.metrics import LevelStops
from normjax.results.table import is_finite

LINE = {
    "slope": "slope",
    "intercept": "intercept",
    "r2": "R2",
    "adjusted_r2": "adjusted R2",
    "rmse": "RMSE",
}
LOSSES = {"least_loss": "smallest training loss", "greatest_loss": "largest training loss"}
NOT_RUN, NOT_PRINTED = "not run", "not printed"


@dataclasses.dataclass(frozen=True)
class LedgerRow:
    """One number of one figure; the fields are the columns of ledger.csv.

    Attributes:
      figure: number of the figure.
      quantity: a value of `LINE` or `LOSSES`.
      paper: the printed number, or None.
      ours: our number, or None.
      ours_low: lower end of our 95% interval, or None.
      ours_high: upper end, or None.
      networks: number of networks, or 0.
      train_images: number of training images, or 0.
      settings_that_differ: differences from the paper.
      reason: why our number or its interval is missing, or "".
    """

    figure: str
    quantity: str
    paper: float | None = None
    ours: float | None = None
    ours_low: float | None = None
    ours_high: float | None = None
    networks: int = 0
    train_images: int = 0
    settings_that_differ: str = ""
    reason: str = ""


def measured_rows(
    name: str, networks: Networks, settings: Sequence[str], train_images: int
) -> list[LedgerRow]:
    """Return the rows of a figure with a finished run.

    Args:
      name: number of the figure.
      networks: its networks.
      settings: the result of `networks.settings_that_differ`.
      train_images: number of training images.
    """
    found = networks.found
    losses = networks.table["train_loss"][is_finite(networks.table)]
    measured = {"least_loss": {"ours": losses.min()}, "greatest_loss": {"ours": losses.max()}}
    for quantity in LINE:
        if found.fit is None:
            measured[quantity] = {"reason": f"no line: {found.reasons['fit']}"}
            continue
        measured[quantity] = {"ours": getattr(found.fit, quantity)}
        if found.fit.intervals is None:
            measured[quantity]["reason"] = f"no interval: {found.fit.no_intervals}"
        else:
            low, high = getattr(found.fit.intervals, quantity)
            measured[quantity] |= {"ours_low": low, "ours_high": high}
    differs = "; ".join([*settings, *networks.remarks])
    common = {
        "networks": found.num_networks,
        "train_images": train_images,
        "settings_that_differ": differs,
    }
    return [
        dataclasses.replace(row, **common, **measured[quantity])
        for quantity, row in _empty_rows(name).items()
    ]


def missing_rows(name: str, reason: str, train_images: int = 0) -> list[LedgerRow]:
    """Return the rows of a figure without our numbers."""
    common = {"reason": reason, "train_images": train_images}
    return [dataclasses.replace(row, **common) for row in _empty_rows(name).values()]


def write_csv(path: str | os.PathLike, rows: Iterable[LedgerRow]) -> None:
    """Write the ledger as CSV and replace `path` atomically."""
    names = [field.name for field in dataclasses.fields(LedgerRow)]
    table = pd.DataFrame(list(rows), columns=names).astype(object)
    for name in names:
        absent = {"paper": NOT_PRINTED, "ours": NOT_RUN}.get(name, "")
        table[name] = table[name].where(table[name].notna(), absent)
    write_columns(path, table)


def write_markdown(
    path: str | os.PathLike,
    rows: Sequence[LedgerRow],
    stops: Sequence[LevelStops],
    no_stops_because: str,
    runs: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the ledger as a page and replace `path` atomically.

    Args:
      path: path of the page.
      rows: the rows of all figures.
      stops: the stopping epochs of each level.
      no_stops_because: why `stops` is empty, or "".
      runs: the result of `runs.finished_runs`.
    """
    notes: dict[str, int] = {}
    for row in rows:
        for note in (row.settings_that_differ, row.reason):
            if note:
                notes.setdefault(note, len(notes) + 1)
    write_page(
        path,
        "ledger.md",
        rows=rows,
        notes=notes,
        stops=stops,
        no_stops_because=no_stops_because,
        runs=runs,
    )


def _empty_rows(name: str) -> dict[str, LedgerRow]:
    """Return {quantity: row without our number}: all printed numbers, or the line's R2."""
    figure = FIGURES[name]
    printed: dict[str, float | None] = {}
    if figure.train_losses is not None:
        printed |= dict(zip(LOSSES, figure.train_losses, strict=True))
    if figure.printed is not None:
        printed |= dataclasses.asdict(figure.printed)
    elif figure.has_line:
        printed |= {"r2": None}
    names = LINE | LOSSES
    return {
        quantity: LedgerRow(name, names[quantity], paper) for quantity, paper in printed.items()
    }
