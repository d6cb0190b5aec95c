"""Write a page that compares finished runs, one file that opens offline."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from normjax.controls.explain import Explanation
from normjax.files import read_object
from normjax.plots.panels import levels_of
from normjax.plots.paper import NORMALIZED, RAW
from normjax.report import charts
from normjax.report.render import write_page
from normjax.report.run_page import headline_of, main_figure, read_analysis
from normjax.results.table import NETWORK
from normjax.training.checkpoints import RUN_FILE
from normjax.training.config import SweepConfig
from normjax.training.finished_run import different_settings, read_definitions


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """A finished run, as the page shows it.

    Attributes:
      config: its settings.
      experiment: the name of the experiment.
      train_images: number of training images.
      test_images: number of test images.
      num_networks: number of networks, including those with random labels.
      table: its results.
      explanations: its analysis, an entry for each selection and norm.
      headline: the entry that the figure shows.
      figure: the figure of both lines, or None.
    """

    config: SweepConfig
    experiment: str
    train_images: int
    test_images: int
    num_networks: int
    table: pd.DataFrame
    explanations: Sequence[Explanation]
    headline: Explanation
    figure: Path | None


def write_comparison(path: str | os.PathLike, folders: Sequence[str]) -> None:
    """Write the page from the runs' run.json, results.csv, summary.json and figures.

    Args:
      path: the file to write.
      folders: the runs' folders, two or more; the page names the runs by them.

    Raises:
      FileNotFoundError: a run lacks one of the tables.
      ValueError: there are fewer than two runs, one is unfinished, or a file is damaged.
    """
    if len(folders) < 2:
        raise ValueError("at least two runs are needed; a run's own page is its report.html")
    runs = {folder: read_run(Path(folder)) for folder in folders}
    found = {
        (each.selection, each.norm): each for run in runs.values() for each in run.explanations
    }
    levels = charts.level_styles(level for run in runs.values() for level in levels_of(run.table))
    panels = (NORMALIZED, RAW)
    sources = [
        source
        for place, run in enumerate(runs.values())
        for source in charts.scatters(
            f"run-{place}-", panels, run.table, run.explanations, list(levels)
        )
    ]
    write_page(
        path,
        "comparison.html",
        runs=runs,
        groups=list(found.values()),
        levels=levels,
        panels=panels,
        labels=charts.LABELS,
        charts=charts.for_script(sources, next(iter(runs.values())).headline),
        library=charts.library(),
        differing=different_settings({folder: run.config for folder, run in runs.items()}),
    )


def read_run(run_dir: Path) -> ComparedRun:
    """Read what the page shows of a run.

    Raises:
      FileNotFoundError, ValueError: see `write_comparison`.
    """
    config, _ = read_definitions(run_dir / RUN_FILE)
    run = read_object(run_dir / RUN_FILE, experiment=str, train_images=int, test_images=int)
    table, explanations = read_analysis(run_dir)
    headline = headline_of(explanations)
    return ComparedRun(
        config=config,
        experiment=run["experiment"],
        train_images=run["train_images"],
        test_images=run["test_images"],
        num_networks=len(table[NETWORK].drop_duplicates()),
        table=table,
        explanations=explanations,
        headline=headline,
        figure=main_figure(run_dir, headline),
    )
