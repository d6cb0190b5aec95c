"""Write a page that compares finished runs, one file that opens offline."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from normjax.controls.explain import Explanation
from normjax.files import read_object
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
      num_networks: number of networks, those with random labels included.
      explanations: its analysis, an entry for each selection and norm.
      headline: the entry that the figure shows.
      figure: the figure of both lines, or None.
    """

    config: SweepConfig
    experiment: str
    train_images: int
    test_images: int
    num_networks: int
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
    found = [(each.selection, each.norm) for run in runs.values() for each in run.explanations]
    write_page(
        path,
        "comparison.html",
        runs=runs,
        groups=list(dict.fromkeys(found)),
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
        explanations=explanations,
        headline=headline,
        figure=main_figure(run_dir, headline),
    )
