"""Write the report of a run: `report.html`, one file that opens offline."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from normjax.controls.explain import MEASURE_NAMES, Explanation
from normjax.controls.summary import SUMMARY_FILE, read_summary
from normjax.files import read_object, read_text
from normjax.plots.paper import figure_stem
from normjax.report.render import write_page
from normjax.results.metrics import METRICS_FILE, read_stops
from normjax.results.table import NETWORK, RESULTS_FILE, groups, on_own_labels, read_results, select
from normjax.training.record import REPORT_FILE


def write_report(run_dir: str | os.PathLike) -> Path:
    """Write `report.html` from the files of a finished run and replace it atomically.

    The report shows results.csv and summary.json, and, if present, run.json, flags.txt,
    metrics.jsonl and figures/*.png. Images are embedded; nothing is loaded from elsewhere.

    Args:
      run_dir: the folder of the run.

    Returns:
      The path of the report.

    Raises:
      FileNotFoundError: results.csv or summary.json does not exist.
      ValueError: a file is damaged, or summary.json does not match results.csv; the message names
        the file.
    """
    run_dir = Path(run_dir)
    table, explanations = read_analysis(run_dir)
    headline = headline_of(explanations)
    figure = main_figure(run_dir, headline)
    figures = sorted((run_dir / "figures").glob("*.png"))
    flags, run = run_dir / "flags.txt", run_dir / "run.json"
    write_page(
        run_dir / REPORT_FILE,
        "report.html",
        experiment=table["experiment"].iloc[0],
        explanations=explanations,
        headline=headline,
        figure=figure,
        more_figures=[path for path in figures if path != figure],
        measure_names=MEASURE_NAMES,
        rows=select(table, selection=headline.selection, norm=headline.norm).to_dict("records"),
        stops=read_stops(run_dir) if (run_dir / METRICS_FILE).exists() else [],
        flags=read_text(flags) if flags.exists() else "",
        run=_pretty(run) if run.exists() else "",
    )
    return run_dir / REPORT_FILE


def read_analysis(run_dir: Path) -> tuple[pd.DataFrame, list[Explanation]]:
    """Return the table of a run and its explanations.

    Raises:
      FileNotFoundError, ValueError: see `write_report`.
    """
    table = read_results(run_dir / RESULTS_FILE)
    if table.empty:
        raise ValueError(f"{run_dir / RESULTS_FILE}: it has no networks")
    explanations = read_summary(run_dir / SUMMARY_FILE)
    _check_same(table, explanations, run_dir / SUMMARY_FILE)
    return table, explanations


def headline_of(explanations: Sequence[Explanation]) -> Explanation:
    """Return the explanation that a page opens with: last epoch and Frobenius norm, if present."""
    return max(explanations, key=lambda found: (found.selection == "final", found.norm == "2"))


def main_figure(run_dir: Path, headline: Explanation) -> Path | None:
    """Return the figure of both lines of an explanation, or None if the run has none."""
    stem = figure_stem("normalized_and_raw", headline.selection, headline.norm)
    path = run_dir / "figures" / f"{stem}.png"
    return path if path.exists() else None


def _check_same(table: pd.DataFrame, explanations: Sequence[Explanation], path: Path) -> None:
    """Raise unless the explanations match the table's networks, selections and norms."""
    table = on_own_labels(table)
    num_members = len(table[NETWORK].drop_duplicates())
    are_same = [(found.selection, found.norm) for found in explanations] == groups(table) and all(
        found.num_networks + len(found.left_out) == num_members for found in explanations
    )
    if not are_same:
        raise ValueError(f"{path}: {RESULTS_FILE} has other networks, selections or norms")


def _pretty(path: Path) -> str:
    """Return an indented JSON object."""
    try:
        return json.dumps(read_object(path), indent=2, ensure_ascii=False)
    except RecursionError:
        raise ValueError(f"{path}: too deeply nested to be shown") from None
