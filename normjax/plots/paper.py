"""The paper's figures, drawn from results and explanations.

Each `plot_*` takes the rows of one selection and norm and their `Explanation`, and returns a
Matplotlib `Figure`. Each network is a star; its color is its level, which is written at most once,
beside the level's highest network. Diverged networks are omitted and counted in the title. Networks
with random labels ("RL") are shown as evaluated on random labels.
"""

import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from normjax.controls.explain import Explanation
from normjax.norms import norm_name
from normjax.plots.levels import add_level_legend, level_colors, level_text
from normjax.plots.panels import (
    Panel,
    draw_panel,
    in_excess,
    level_name,
    levels_of,
    needs_excess,
    values_of,
)
from normjax.plots.style import STYLE, TEST_COLOR, TRAIN_COLOR, join_title, new_figure, save_figure
from normjax.results.table import groups, is_finite, on_own_labels, select, selection_name

_PANEL_SIZE, _LONE_PANEL_SIZE = (4.6, 3.6), (6.0, 4.2)  # inches
_MANY_LEVELS = 9

NORMALIZED = Panel("Normalized", "normalized_train_loss", "normalized_test_loss", "fit")
NORMALIZED_ERROR = Panel(
    "Error and normalized loss", "normalized_train_loss", "normalized_test_error"
)
RAW = Panel("Not normalized", "train_loss", "test_loss", "raw_fit")
PRODUCT_NORM = Panel("Loss and product of norms", "product_norm", "test_loss")
ERROR_PRODUCT_NORM = Panel("Error and product of norms", "product_norm", "test_error")


def plot_losses_against_level(
    table: pd.DataFrame, found: Explanation, dataset_label: str = ""
) -> Figure:
    """Draw training and test loss and error against the level: figures 1 and 2.

    Levels are equally spaced to separate 0 and 1e-4. Lines connect the means over seeds. Networks
    with random labels are at the end, without a line.

    Args:
      table: the results of one selection and norm.
      found: their explanation.
      dataset_label: name of the data set, for the title.

    Raises:
      ValueError: all networks diverged, or the table does not match the explanation; the same for
        every `plot_*`.
    """
    networks = _networks(table, found)
    levels = levels_of(networks)
    order = list(level_colors(levels))
    places = np.array([order.index(level) for level in levels])
    joined = range(len(order) - (None in order))
    with matplotlib.style.context(STYLE):
        handles: list[Any] = []  # a line and its dots share a legend entry
        size = _figure_size(2, len(order))
        figure, panels = new_figure(_title(found, dataset_label), size, 1, 2)
        for axes, kind, unit in (
            (panels[0], "loss", "Cross-entropy (nats)"),
            (panels[1], "error", "Error (%)"),
        ):
            for split, color, marker in (
                ("train", TRAIN_COLOR, "o"),
                ("test", TEST_COLOR, "^"),
            ):
                y = values_of(networks, f"{split}_{kind}")
                means = [y[places == index].mean() for index in joined]
                mean_line = axes.plot(joined, means, color=color, lw=1.5)
                dots = axes.plot(places, y, marker, color=color, ms=6, alpha=0.7, mew=0)
                handles.append((*mean_line, *dots))
            axes.set_title(unit.split(" (")[0])
            axes.set_xlabel(level_name(networks))
            axes.set_ylabel(unit)
            rotation = 90 if len(order) > _MANY_LEVELS else 0
            axes.set_xticks(range(len(order)), map(level_text, order), rotation=rotation)
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        names = ["Training set", "Test set"]
        figure.legend(handles[:2], names, loc="outside lower center", ncols=2)
    return figure


def plot_normalized_fit(table: pd.DataFrame, found: Explanation, dataset_label: str = "") -> Figure:
    """Draw normalized test loss and error against normalized training loss: figures 3, 4, 10, 11.

    See `plot_losses_against_level` for the arguments.
    """
    return _plot_panels(table, found, dataset_label, [NORMALIZED, NORMALIZED_ERROR])


def plot_normalized_and_raw(
    table: pd.DataFrame, found: Explanation, dataset_label: str = ""
) -> Figure:
    """Draw test against training loss, normalized (left) and not (right): figures 5 and 6."""
    return _plot_panels(table, found, dataset_label, [NORMALIZED, RAW])


def plot_four_panels(table: pd.DataFrame, found: Explanation, dataset_label: str = "") -> Figure:
    """Draw losses, product of norms, normalized losses and error: figures 7 and 8."""
    panels = [RAW, PRODUCT_NORM, NORMALIZED, NORMALIZED_ERROR]
    return _plot_panels(table, found, dataset_label, panels)


def plot_error_against_product_norm(
    table: pd.DataFrame, found: Explanation, dataset_label: str = ""
) -> Figure:
    """Draw test error against the product of norms: figure 9."""
    return _plot_panels(table, found, dataset_label, [ERROR_PRODUCT_NORM])


_PER_NORM = (
    plot_normalized_fit,
    plot_normalized_and_raw,
    plot_four_panels,
    plot_error_against_product_norm,
)


def draw_figures(
    table: pd.DataFrame,
    explanations: Iterable[Explanation],
    folder: str | os.PathLike,
    dataset_label: str = "",
) -> list[Path]:
    """Draw all figures of each explanation with networks, such as `normalized_fit__final__2.png`.

    Args:
      table: the results of a run.
      explanations: the explanations of its selections and norms.
      folder: the output folder.
      dataset_label: name of the data set, for the titles.

    Returns:
      The files, a .png and a .pdf per figure.
    """
    paths: list[Path] = []
    seen: set[str] = set()
    for found in explanations:
        if not found.num_networks:
            continue
        group = select(table, selection=found.selection, norm=found.norm)
        figures = {
            figure_stem(plot.__name__.removeprefix("plot_"), found.selection, found.norm): plot
            for plot in _PER_NORM
        }
        if found.selection not in seen:  # this figure does not depend on the norm
            stem = figure_stem("losses_against_level", found.selection)
            figures[stem] = plot_losses_against_level
            seen.add(found.selection)
        for stem, plot in figures.items():
            paths += save_figure(plot(group, found, dataset_label), Path(folder) / stem)
    return paths


def figure_stem(kind: str, selection: str, norm: str = "") -> str:
    """Return the file name, without suffix, of a figure of one selection and norm."""
    name = "__".join(part for part in (kind, selection, norm) if part)
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def _plot_panels(
    table: pd.DataFrame, found: Explanation, dataset_label: str, panels: Sequence[Panel]
) -> Figure:
    """Draw a figure of several panels with one legend of the levels."""
    networks = _networks(table, found)
    if needs_excess(networks):
        panels = [in_excess(panel) for panel in panels]
    colors = level_colors(levels_of(networks))
    title = _title(found, dataset_label, norm_name(found.norm))
    num_columns = min(len(panels), 2)
    with matplotlib.style.context(STYLE):
        size = _figure_size(len(panels), len(colors))
        figure, all_axes = new_figure(title, size, len(panels) // num_columns, num_columns)
        has_numbers = any(panel.line for panel in panels)
        for axes, panel in zip(all_axes, panels, strict=True):
            draw_panel(axes, panel, networks, found, colors, has_numbers)
        add_level_legend(figure, colors, level_name(networks), 12 if len(panels) > 1 else 7)
    return figure


def _title(found: Explanation, dataset_label: str, norm_text: str = "") -> str:
    """Return the title: the number of networks and the selection."""
    count = f"{found.num_networks} networks"
    if found.num_diverged:
        total = found.num_networks + found.num_diverged
        count = f"{found.num_networks} of {total} networks ({found.num_diverged} diverged)"
    return join_title([dataset_label, count, selection_name(found.selection), norm_text])


def _figure_size(num_panels: int, num_levels: int) -> tuple[float, float]:
    """Return the size in inches of a figure with one panel or with two columns of panels."""
    width, height = _LONE_PANEL_SIZE if num_panels == 1 else _PANEL_SIZE
    scale = 1.35 if num_levels > _MANY_LEVELS else 1.0  # room for the labels
    return scale * width * min(num_panels, 2), scale * height * math.ceil(num_panels / 2) + 0.7


def _networks(table: pd.DataFrame, found: Explanation) -> pd.DataFrame:
    """Return the rows to draw, one per network of the explanation.

    Raises:
      ValueError: there are no rows, or the table does not match the explanation.
    """
    if not found.num_networks:
        raise ValueError("no network with finite losses to draw")
    networks = on_own_labels(table)
    networks = networks[is_finite(networks)]
    is_same = groups(networks) == [(found.selection, found.norm)]
    if not is_same or len(networks) != found.num_networks:
        raise ValueError(
            f"the table's {len(networks)} networks of {len(groups(networks))} selections and norms "
            f"do not match the {found.num_networks} that were explained"
        )
    return networks
