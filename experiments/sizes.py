"""How slope, ratio of margins, test error and gap depend on the number of training images.

    python -m experiments.sizes --from=RUN1,RUN2,RUN3 --workdir=DIR

The runs must differ in the number of training images, and have the same network, data set, test
images and levels; other settings that differ are listed on the page. Only run.json and results.csv
are read.

    DIR/sizes.csv        a row per size and quantity (`normjax.controls.sizes`)
    DIR/networks.csv     a row per network with true labels
    DIR/sizes.md         the rows as a table
    DIR/figures/sizes.png and .pdf; for the paper's 3-layer net on CIFAR-10, its printed slopes too
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments import flags
from experiments.paper.figures import FIGURES
from experiments.paper.runs import flagfile_of, read_flags
from normjax.controls.sizes import PER_NETWORK, QUANTITIES, SizeRow, compare_sizes
from normjax.data import dataset_label
from normjax.files import one_line, read_object
from normjax.plots.sizes import plot_sizes
from normjax.plots.style import join_title, save_figure
from normjax.report.render import render, write_page
from normjax.results.columns import write_columns
from normjax.results.table import read_results, selection_name
from normjax.training.checkpoints import RUN_FILE
from normjax.training.config import SweepConfig, setting
from normjax.training.finished_run import (
    check_output,
    check_runs,
    different_settings,
    read_definitions,
)

TABLE_FILE, NETWORKS_FILE, PAGE_FILE = "sizes.csv", "networks.csv", "sizes.md"
SAME = {"test_images": int, "num_classes": int, "image_shape": list, "parameters": dict}


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the command."""

    source: tuple[str, ...] = setting(
        help="Folders of finished runs with different numbers of training images.",
        flag="from",
        check=check_runs,
        is_path=True,
    )
    selection: str | None = setting(None, "final or loss=TARGET; default: final.")
    norm: str | None = setting(None, "Norm, as in the results: 2, 1/100, ...; default: 2.")
    workdir: str = setting("runs/sizes", "Output folder.", check=check_output, is_path=True)


@dataclasses.dataclass(frozen=True)
class SizedRun:
    """A finished run, from its run.json and results.csv.

    Attributes:
      folder: its folder.
      config: its settings.
      run: run.json.
      results: results.csv.
    """

    folder: str
    config: SweepConfig
    run: dict
    results: pd.DataFrame


def main(config: Config) -> None:
    """Compare the runs and write the results."""
    try:
        runs = read_runs(config.source)
        tables = {size: one.results for size, one in runs.items()}
        rows, networks = compare_sizes(tables, config.selection, config.norm)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
    first, workdir = next(iter(runs.values())), Path(config.workdir)
    selection, norm = networks["selection"].iloc[0], networks["norm"].iloc[0]
    title = join_title(
        [dataset_label(first.config.dataset), first.config.model, selection_name(selection)]
    )
    differing = different_settings({size: one.config for size, one in runs.items()})
    differing.pop("train_size", None)
    printed = printed_slopes(first, norm, set(networks["family"]))
    page = {
        "title": title,
        "rows": rows,
        "sizes": list(runs),
        "quantities": QUANTITIES,
        "present": {row.quantity for row in rows},
        "printed": printed,
        "differing": differing,
        "missing": [row for row in rows if row.reason],
    }
    names = [field.name for field in dataclasses.fields(SizeRow)]
    write_columns(workdir / TABLE_FILE, pd.DataFrame(rows, columns=names))
    columns = ["train_images", "family", "level", "seed", "selection", "norm", *PER_NETWORK]
    write_columns(workdir / NETWORKS_FILE, networks[columns])
    write_page(workdir / PAGE_FILE, "sizes.md", **page)
    save_figure(plot_sizes(rows, networks, title, printed), workdir / "figures" / "sizes")
    print(render("sizes.md", **page), end="")
    print(f"{workdir / PAGE_FILE}; figure: {workdir / 'figures'}")


def read_runs(folders: Sequence[str]) -> dict[int, SizedRun]:
    """Return {number of training images: run}, smallest first.

    Raises:
      OSError: a file cannot be read.
      ValueError: a run is unfinished or damaged, two have one size, or they differ in network, data
        set or test images.
    """
    runs: dict[int, SizedRun] = {}
    for folder in folders:
        path = Path(folder) / RUN_FILE
        config, _ = read_definitions(path)
        run = read_object(path, train_images=int, **SAME)
        size = run["train_images"]
        if size in runs:
            raise ValueError(f"{runs[size].folder} and {folder} both have {size:,} training images")
        runs[size] = SizedRun(folder, config, run, read_results(folder))
    first, *others = runs.values()
    for other in others:
        same = [name for name in SAME if first.run[name] != other.run[name]]
        for name in ("model", "batch_norm", "dataset"):
            values = [getattr(one.config, name) for one in (first, other)]
            same += [name] if len(set(map(str, values))) > 1 else []
        if same:
            raise ValueError(f"{first.folder} and {other.folder} differ in {', '.join(same)}")
    return dict(sorted(runs.items()))


def printed_slopes(first: SizedRun, norm: str, families: set[str]) -> dict[str, float]:
    """Return {figure: slope} that the paper prints for these families and this norm.

    There are none unless the runs are of the paper's 3-layer net on images like CIFAR-10's.
    """
    is_papers = first.config.model == "convnet3" and first.run["image_shape"] == [32, 32, 3]
    if not is_papers or first.run["num_classes"] != 10:
        return {}
    found = {}
    for name, figure in FIGURES.items():
        own = set(figure.families) - {"random_labels"}
        if figure.printed and own == families and read_flags(flagfile_of(name))["norms"] == norm:
            with_random = ", random labels too" if "random_labels" in figure.families else ""
            found[f"paper, figure {name}{with_random}"] = figure.printed.slope
    return found


if __name__ == "__main__":
    flags.run(main, Config)
