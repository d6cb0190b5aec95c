"""The ledger: every number that the paper prints beside what our networks gave.

Pure functions from result rows and settings to the ledger's rows, and the two files, `ledger.csv`
and `ledger.md`. A row holds a measured value, or says "not run" and why.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.paper.figures import FIGURES, PaperFigure
from normjax.files import replacing
from normjax.results.rows import ResultRow, on_own_labels
from normjax.results.summary import finite_rows, selection_name
from normjax.statistics.regression import fit_line

LINE = {
    "slope": "slope",
    "intercept": "intercept",
    "r2": "R2",
    "adjusted_r2": "adjusted R2",
    "rmse": "RMSE",
}
LOSSES = {"least_loss": "least training loss", "greatest_loss": "greatest training loss"}
COLUMNS = (
    "figure",
    "quantity",
    "paper",
    "ours",
    "ours_low",
    "ours_high",
    "networks",
    "settings_that_differ",
    "reason",
)
NUM_RESAMPLES = 2000
_MIN_RESAMPLED = 4  # three networks have one R2, whatever is drawn from them
_MIN_POINTS = 3  # of a line
NOT_RUN, NOT_PRINTED = "not run", "not printed"
METHOD = (
    "Lines are fitted by least squares to the normalized test losses on the normalized training "
    "losses (nats). 95% intervals: of slope and intercept Student's t; of R2, adjusted R2 and RMSE "
    f"percentiles of a bootstrap over networks ({NUM_RESAMPLES} resamples, fixed seed, less those "
    f"with fewer than {_MIN_POINTS} different networks), which needs {_MIN_RESAMPLED} networks. "
    "Training losses are the least and the greatest of the networks as trained; they are measured, "
    "not estimated, and have no interval."
)


class Networks(NamedTuple):
    """The networks of a figure.

    Attributes:
      rows: their rows of one selection and norm; losses may be NaN.
      remarks: what is not as in the paper's figure.
    """

    rows: list[ResultRow]
    remarks: list[str]


class LedgerRow(NamedTuple):
    """One number of one figure.

    Attributes:
      figure: its number.
      quantity: a value of `LINE` or of `LOSSES`.
      paper: the printed number, None if there is none.
      ours: ours, None if there is none.
      interval: (low, high) of 95%, None if there is none.
      num_networks: how many networks the line is fitted to.
      differs: settings and other things that are not as in the paper.
      reason: why there is no number of ours, else "".
    """

    figure: str
    quantity: str
    paper: float | None
    ours: float | None
    interval: tuple[float, float] | None
    num_networks: int
    differs: tuple[str, ...]
    reason: str


def choose_networks(
    figure: PaperFigure, rows: Sequence[ResultRow], norm: str, target: str
) -> Networks:
    """The networks that a figure shows, evaluated on the labels that they were trained on.

    Where fewer than three networks have been at the target loss with zero training error, those of
    the last epoch are taken, with a remark.

    Args:
      figure: the figure.
      rows: the results of its run.
      norm: the figure's norm, as in the results.
      target: the run's target loss, as in the results; used by figures that are at the target.
    """
    rows = [
        row
        for row in on_own_labels(rows)
        if row.norm == norm
        and row.family in figure.families
        and (row.family == "random_labels" or figure.only_level in (None, row.level))
    ]
    selection = f"loss={target}" if figure.is_at_target else "final"
    remarks = []
    chosen = [row for row in rows if row.selection == selection]
    if len(chosen) < _MIN_POINTS:
        remarks.append(
            f"{len(chosen)} networks at {selection_name(selection)} and zero training error: "
            "those of the last epoch are taken"
        )
        chosen = [row for row in rows if row.selection == "final"]
    num_members = len({row.member for row in rows})
    if len(chosen) < num_members:
        remarks.append(
            f"{num_members - len(chosen)} of {num_members} networks left out, never at "
            f"{selection_name(selection)} and zero training error"
        )
    num_diverged = len(chosen) - len(finite_rows(chosen))
    if num_diverged:
        remarks.append(f"{num_diverged} of {num_members} networks left out as diverged")
    num_unfitted = sum(row.train_error > 0 for row in chosen)
    if num_unfitted:
        remarks.append(f"{num_unfitted} of {num_members} networks above zero training error")
    return Networks(chosen, remarks)


def measured_rows(name: str, networks: Networks, settings: Sequence[str]) -> list[LedgerRow]:
    """The rows of a figure whose run is finished.

    Args:
      name: the figure's number.
      networks: those that it shows.
      settings: those that differ, see `settings_that_differ`.
    """
    points = finite_rows(networks.rows)
    losses = [row.train_loss for row in points]
    values = {"least_loss": min(losses), "greatest_loss": max(losses)} if losses else {}
    x = np.array([row.normalized_train_loss for row in points])
    y = np.array([row.normalized_test_loss for row in points])
    try:
        fit = fit_line(x, y)
    except ValueError as error:
        intervals, reason = {}, f"no line: {error}"
    else:
        values |= {quantity: getattr(fit, quantity) for quantity in LINE}
        intervals, reason = bootstrap_intervals(x, y), ""
        intervals |= {"slope": fit.slope_interval, "intercept": fit.intercept_interval}
    found = {"num_networks": len(points), "differs": (*settings, *networks.remarks)}
    return [
        row._replace(ours=values[quantity], interval=intervals.get(quantity), **found)
        if quantity in values
        else row._replace(reason=reason)
        for quantity, row in _empty_rows(name).items()
    ]


def missing_rows(name: str, reason: str) -> list[LedgerRow]:
    """The rows of a figure without numbers of ours."""
    return [row._replace(reason=reason) for row in _empty_rows(name).values()]


def bootstrap_intervals(
    x: np.ndarray, y: np.ndarray, confidence: float = 0.95
) -> dict[str, tuple[float, float] | None]:
    """Percentile intervals of r2, adjusted_r2 and rmse of the line, over resampled points.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13. Fixed seed. A resample
    of fewer than three different points always has R2 = 1, or no line, and is left out.

    Args:
      x, y: float64 [n].
      confidence: probability covered.

    Returns:
      (low, high) for each; None for all if there are fewer than four points.
    """
    names = ("r2", "adjusted_r2", "rmse")
    if len(x) < _MIN_RESAMPLED:
        return dict.fromkeys(names)
    draws = np.random.default_rng(0).integers(len(x), size=(NUM_RESAMPLES, len(x)))
    fits = [fit_line(x[i], y[i]) for i in draws if len(np.unique(x[i])) >= _MIN_POINTS]
    tail = (1 - confidence) / 2
    return {
        name: tuple(np.quantile([getattr(fit, name) for fit in fits], [tail, 1 - tail]).tolist())
        for name in names
    }


def settings_that_differ(
    figure: PaperFigure, paper: Mapping[str, str], ours: Mapping[str, str]
) -> list[str]:
    """The settings of a run that are not those of a figure's flagfile, each in words.

    Compared are the flags that the flagfile names, and the numbers of images. The norm and, for
    figures of the last epoch, the target loss are the figure's own; so is a lone level.

    Args:
      figure: the figure.
      paper: the flagfile's values by name.
      ours: those of the run's flags.txt.
    """
    own = {"workdir", "norms"}
    if not figure.is_at_target:
        own.add("target_losses")
    if figure.only_level is not None:
        own.add("corruption_levels")
    names = [name for name in dict.fromkeys([*paper, "train_size", "test_size"]) if name not in own]
    return [
        f"{name} {ours.get(name, 'all')} instead of {paper.get(name, 'all')}"
        for name in names
        if _canonical(ours.get(name)) != _canonical(paper.get(name))
    ]


def write_csv(path: str | os.PathLike, rows: Sequence[LedgerRow]) -> None:
    """Writes the ledger as CSV; replaces `path` atomically."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            low, high = row.interval or ("", "")
            writer.writerow(
                [
                    row.figure,
                    row.quantity,
                    NOT_PRINTED if row.paper is None else row.paper,
                    NOT_RUN if row.ours is None else row.ours,
                    low,
                    high,
                    row.num_networks,
                    "; ".join(row.differs),
                    row.reason,
                ]
            )


def write_markdown(
    path: str | os.PathLike, rows: Sequence[LedgerRow], sections: Sequence[tuple[str, str]]
) -> None:
    """Writes the ledger as a page: the table, what differs, and `sections` of (title, text)."""
    notes: dict[tuple[str, ...], str] = {}
    for row in rows:
        if row.differs:
            notes.setdefault(row.differs, f"[{len(notes) + 1}]")
    table = [
        "| figure | quantity | paper | ours | 95% interval | networks | differs |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            row.figure,
            row.quantity,
            _text(row.paper, NOT_PRINTED),
            _text(row.ours, NOT_RUN),
            "-" if row.interval is None else " to ".join(_text(x, "-") for x in row.interval),
            str(row.num_networks) if row.ours is not None else "-",
            row.reason or notes.get(row.differs, "-"),
        )
        table.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    differs = [f"- {note} {'; '.join(texts)}" for texts, note in notes.items()]
    parts = ["# The paper's numbers and ours", METHOD, "\n".join(table)]
    if differs:
        parts += ["## What differs from the figures' flagfiles", "\n".join(differs)]
    for title, text in sections:
        parts += [f"## {title}", text]
    with replacing(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _empty_rows(name: str) -> dict[str, LedgerRow]:
    """A figure's rows without ours, by quantity: all that is printed, or else the line's R2."""
    figure = FIGURES[name]
    printed = {}
    if figure.train_losses is not None:
        printed |= dict(zip(LOSSES, figure.train_losses, strict=True))
    if figure.printed is not None:
        printed |= dict(zip(LINE, figure.printed, strict=True))
    elif figure.has_line:
        printed |= {"r2": None}
    names = LINE | LOSSES
    return {
        quantity: LedgerRow(name, names[quantity], paper, None, None, 0, (), "")
        for quantity, paper in printed.items()
    }


def _canonical(text: str | None) -> tuple[float | str, ...]:
    """A flag's value as it is compared: 0.50 is 0.5, True is true."""
    items = "" if text is None else text
    return tuple(_number(item.strip()) for item in items.split(",") if item.strip())


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text.lower()


def _text(value: float | None, otherwise: str) -> str:
    """Five significant digits."""
    return otherwise if value is None else f"{value:.5g}"
