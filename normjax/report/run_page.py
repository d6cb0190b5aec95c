"""Write the report of a run: `report.html`, one file that opens offline."""

import itertools
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from normjax.controls.explain import MEASURE_NAMES, Explanation
from normjax.controls.summary import SUMMARY_FILE, read_summary
from normjax.data import dataset_label
from normjax.files import check_types, is_address, read_object, read_text
from normjax.plots.panels import levels_of
from normjax.plots.paper import figure_stem
from normjax.report import charts
from normjax.report.render import render, write_page
from normjax.results.metrics import METRICS_FILE, level_stops, read_lines
from normjax.results.table import NETWORK, RESULTS_FILE, groups, on_own_labels, read_results, select
from normjax.training.checkpoints import RUN_FILE
from normjax.training.record import REPORT_FILE

# {kind of figure: its caption}
FIGURES = {
    "normalized_and_raw": "Test against training loss, normalized (left) and as trained (right)",
    "losses_against_level": "Training and test loss and error by level",
    "normalized_fit": "Normalized test loss, and test error, against normalized training loss",
    "four_panels": "Losses, product of norms, normalized losses and error",
    "error_against_product_norm": "Test error against the product of norms",
}
MOST_BYTES = 2_950_000  # of a page; figures that don't fit are in their folder only
_Shown = tuple[str, Explanation]  # caption, networks
_RUN_KINDS = {"experiment": str, "config": dict, "given": list[str]}


def write_report(run_dir: str | os.PathLike) -> Path:
    """Write `report.html` from the files of a finished run and replace it atomically.

    The report shows results.csv and summary.json, and, if present, run.json, flags.txt,
    metrics.jsonl and the figures of `draw_figures`. Nothing is loaded from elsewhere.

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
    lines = read_lines(run_dir) if (run_dir / METRICS_FILE).exists() else []
    flags, run = run_dir / "flags.txt", run_dir / RUN_FILE
    record = read_object(run) if run.exists() else {}
    check_types(record, {n: kind for n, kind in _RUN_KINDS.items() if n in record}, str(run))
    levels = charts.level_styles([*levels_of(table), *map(charts.level_of, lines)])
    scatters = charts.scatters("panel-", charts.PANELS, table, explanations, list(levels))
    curves = charts.curves("curve-", lines, list(levels)) if lines else []
    content: dict[str, Any] = {
        "title": ", ".join(_title(table, record)),
        "settings": record.get("config", {}) | record,
        "command": _command(record),
        "num_networks": len(table[NETWORK].drop_duplicates()),
        "levels": levels,
        "explanations": explanations,
        "panels": charts.PANELS,
        "labels": charts.LABELS,
        "curves": curves,
        "charts": charts.for_script([*scatters, *curves], headline),
        "library": charts.library(),
        "measure_names": MEASURE_NAMES,
        "stops": level_stops(lines),
        "networks": [
            select(table, selection=found.selection, norm=found.norm).to_dict("records")
            for found in explanations
        ],
        "flags": read_text(flags) if flags.exists() else "",
        "run_text": _pretty(record, run) if record else "",
    }
    figures = _figures(run_dir, explanations, headline)
    room = MOST_BYTES - len(render("report.html", **content, figures={}, num_omitted=0))
    content["figures"] = shown = _that_fit(figures, room)
    content["num_omitted"] = len(figures) - len(shown)
    write_page(run_dir / REPORT_FILE, "report.html", **content)
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
    path = _figure_path(run_dir, "normalized_and_raw", headline)
    return path if path.exists() else None


def _figure_path(run_dir: Path, kind: str, found: Explanation) -> Path:
    norm = "" if kind == "losses_against_level" else found.norm  # it does not depend on the norm
    return run_dir / "figures" / f"{figure_stem(kind, found.selection, norm)}.png"


def _figures(
    run_dir: Path, explanations: Sequence[Explanation], headline: Explanation
) -> dict[Path, _Shown]:
    """Return a run's figures as {path: (caption, explanation)}, the headline's first."""
    figures: dict[Path, _Shown] = {}
    for found in sorted(explanations, key=lambda found: found is not headline):
        for kind, caption in FIGURES.items():
            if (path := _figure_path(run_dir, kind, found)).exists():
                figures.setdefault(path, (caption, found))
    return figures


def _that_fit(figures: Mapping[Path, _Shown], room: int) -> dict[Path, _Shown]:
    """Return the first figures that take no more than `room` bytes of a page."""
    sizes = itertools.accumulate(4 * path.stat().st_size // 3 + 1000 for path in figures)
    return dict(itertools.islice(figures.items(), sum(size <= room for size in sizes)))


def _title(table: pd.DataFrame, record: Mapping[str, Any]) -> list[str]:
    """Return the experiments and, if run.json names it, the data set."""
    name = record.get("dataset")
    known = [dataset_label(name)] if isinstance(name, str) else []
    return [*table["experiment"].unique(), *known]


def _command(record: Mapping[str, Any]) -> str:
    """Return the command that repeats a run, from its run.json; "" if there is none."""
    workdir = record.get("config", {}).get("workdir")
    if not isinstance(workdir, str) or "experiment" not in record or record.get("given"):
        return ""
    folder = "" if is_address(workdir) else f"{workdir}/"
    flags = (f"--flagfile={folder}flags.txt", "--workdir=NEW")
    return shlex.join(["python", "-m", f"experiments.{record['experiment']}", *flags])


def _check_same(table: pd.DataFrame, explanations: Sequence[Explanation], path: Path) -> None:
    """Raise unless the explanations match the table's networks, selections and norms."""
    table = on_own_labels(table)
    num_members = len(table[NETWORK].drop_duplicates())
    are_same = [(found.selection, found.norm) for found in explanations] == groups(table) and all(
        found.num_networks + len(found.left_out) == num_members for found in explanations
    )
    if not are_same:
        raise ValueError(f"{path}: {RESULTS_FILE} has other networks, selections or norms")


def _pretty(record: Mapping[str, Any], path: Path) -> str:
    """Return an indented JSON object, the content of the file at `path`."""
    try:
        return json.dumps(record, indent=2, ensure_ascii=False)
    except RecursionError:
        raise ValueError(f"{path}: too deeply nested to be shown") from None
