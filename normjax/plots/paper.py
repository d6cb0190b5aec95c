"""The paper's figures, drawn from result rows alone, so that nothing is trained to redraw them.

Each `plot_*` takes the rows of one selection and one norm and returns a matplotlib `Figure`. A star
marks each network and its level stands beside it, as in the paper's figure 7. Networks that
diverged are left out and counted in the title. A network of random labels ("RL") is shown as
evaluated on these; its rows on the natural labels are ignored.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from normjax.plots.panels import (
    RANDOM_LABELS,
    Panel,
    draw_panel,
    in_excess,
    label_levels,
    level_colors,
    level_name,
    level_text,
    needs_excess,
    values_of,
)
from normjax.plots.style import STYLE, TEST_COLOR, TRAIN_COLOR, join_title, new_figure, save_figure
from normjax.results.rows import ResultRow, on_own_labels, select
from normjax.results.summary import figure_stem, finite_rows, groups, norm_name, selection_name

_PANEL_SIZE, _LONE_PANEL_SIZE = (4.6, 3.6), (6.0, 4.2)  # inches
_MANY_LEVELS = 9

_NORMALIZED = Panel("Normalized", "normalized_train_loss", "normalized_test_loss", True)
_NORMALIZED_ERROR = Panel(
    "Error and normalized loss", "normalized_train_loss", "normalized_test_error", False
)
_RAW = Panel("Not normalized", "train_loss", "test_loss", True)
_PRODUCT_NORM = Panel("Loss and product of norms", "product_norm", "test_loss", False)
_ERROR_PRODUCT_NORM = Panel("Error and product of norms", "product_norm", "test_error", False)


def plot_losses_against_level(rows: Sequence[ResultRow], dataset_label: str = "") -> Figure:
    """Loss and error on the training and the test set against the level, as figures 1 and 2.

    Levels stand at equal distances, so that 0 and 1e-4 can be told apart; lines join the means over
    seeds. Networks of random labels stand behind the last level, joined to nothing.

    Raises:
      ValueError: no network with finite losses, as for every `plot_*`.
    """
    points, num_diverged = _drawable(rows)
    levels = list(level_colors(points))
    places = np.array([levels.index(level_text(row)) for row in points])
    joined = range(len(levels) - (RANDOM_LABELS in levels))
    title = _title(points, num_diverged, dataset_label, "")
    with matplotlib.rc_context(STYLE):
        handles: list[tuple] = []
        figure, panels = new_figure(title, _figure_size(2, len(levels)), 1, 2)
        for axes, kind, unit in (
            (panels[0], "loss", "Cross-entropy (nats)"),
            (panels[1], "error", "Error (%)"),
        ):
            for split, color, marker in (
                ("train", TRAIN_COLOR, "o"),
                ("test", TEST_COLOR, "^"),
            ):
                y = values_of(points, f"{split}_{kind}")
                means = [y[places == index].mean() for index in joined]
                mean_line = axes.plot(joined, means, color=color, lw=1.5)
                dots = axes.plot(places, y, marker, color=color, ms=6, alpha=0.7, mew=0)
                handles.append((*mean_line, *dots))
            axes.set_title(unit.split(" (")[0])
            axes.set_xlabel(level_name(points))
            axes.set_ylabel(unit)
            rotation = 90 if len(levels) > _MANY_LEVELS else 0
            axes.set_xticks(range(len(levels)), levels, rotation=rotation)
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        names = ["Training set", "Test set"]
        figure.legend(handles[:2], names, loc="outside lower center", ncols=2)
    return figure


def plot_normalized_fit(rows: Sequence[ResultRow], dataset_label: str = "") -> Figure:
    """Normalized test loss and error against normalized training loss: figures 3, 4, 10, 11."""
    return _plot_panels(rows, dataset_label, [_NORMALIZED, _NORMALIZED_ERROR])


def plot_normalized_and_raw(rows: Sequence[ResultRow], dataset_label: str = "") -> Figure:
    """Test against training loss, normalized (left) and not (right), as figures 5 and 6."""
    return _plot_panels(rows, dataset_label, [_NORMALIZED, _RAW])


def plot_four_panels(rows: Sequence[ResultRow], dataset_label: str = "") -> Figure:
    """Losses, product of norms, normalized losses and error, as figures 7 and 8."""
    return _plot_panels(rows, dataset_label, [_RAW, _PRODUCT_NORM, _NORMALIZED, _NORMALIZED_ERROR])


def plot_error_against_product_norm(rows: Sequence[ResultRow], dataset_label: str = "") -> Figure:
    """Test error against the product of the layers' norms, as figure 9."""
    return _plot_panels(rows, dataset_label, [_ERROR_PRODUCT_NORM])


_PER_NORM = (
    plot_normalized_fit,
    plot_normalized_and_raw,
    plot_four_panels,
    plot_error_against_product_norm,
)


def draw_figures(
    rows: Sequence[ResultRow], folder: str | os.PathLike, dataset_label: str = ""
) -> list[Path]:
    """Draws every figure for each selection and norm, e.g. `normalized_fit__final__2.png`.

    Networks of random labels are drawn as evaluated on these. Selections and norms without a
    single network of finite losses have no figures.

    Returns:
      The files written, a .png and a .pdf for each figure.
    """
    rows = on_own_labels(rows)
    paths: list[Path] = []
    seen: set[str] = set()
    for selection, norm in groups(rows):
        group = select(rows, selection=selection, norm=norm)
        if not finite_rows(group):
            continue
        figures = {
            figure_stem(plot.__name__.removeprefix("plot_"), selection, norm): plot
            for plot in _PER_NORM
        }
        if selection not in seen:  # the losses as trained have no norm
            figures[figure_stem("losses_against_level", selection)] = plot_losses_against_level
            seen.add(selection)
        for stem, plot in figures.items():
            paths += save_figure(plot(group, dataset_label), Path(folder) / stem)
    return paths


def _plot_panels(rows: Sequence[ResultRow], dataset_label: str, panels: Sequence[Panel]) -> Figure:
    """A figure of panels whose points are the networks, with one legend of the levels."""
    points, num_diverged = _drawable(rows)
    if needs_excess(points):
        panels = [in_excess(panel) for panel in panels]
    colors = level_colors(points)
    title = _title(points, num_diverged, dataset_label, norm_name(points[0].norm))
    num_columns = min(len(panels), 2)
    with matplotlib.rc_context(STYLE):
        size = _figure_size(len(panels), len(colors))
        figure, all_axes = new_figure(title, size, len(panels) // num_columns, num_columns)
        has_numbers = any(panel.has_line for panel in panels)  # then titles stand equally high
        lines = [
            draw_panel(axes, panel, points, colors, has_numbers)
            for axes, panel in zip(all_axes, panels, strict=True)
        ]
        figure.legend(
            *all_axes[0].get_legend_handles_labels(),
            title=level_name(points),
            loc="outside lower center",
            ncols=_num_legend_columns(len(colors), most=12 if len(panels) > 1 else 7),
            handletextpad=0.1,
            columnspacing=1.4,
        )
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the labels are placed in the layout as it is now
        for axes, panel, line in zip(all_axes, panels, lines, strict=True):
            label_levels(axes, panel, points, line)
    return figure


def _title(
    points: Sequence[ResultRow], num_diverged: int, dataset_label: str, norm_text: str
) -> str:
    """Which networks a figure shows, and how many there were."""
    count = f"{len(points)} networks"
    if num_diverged:
        total = len(points) + num_diverged
        count = f"{len(points)} of {total} networks ({num_diverged} diverged)"
    return join_title([dataset_label, count, selection_name(points[0].selection), norm_text])


def _figure_size(num_panels: int, num_levels: int) -> tuple[float, float]:
    """Width and height in inches of a figure of one panel, or of panels in two columns."""
    width, height = _LONE_PANEL_SIZE if num_panels == 1 else _PANEL_SIZE
    scale = 1.35 if num_levels > _MANY_LEVELS else 1.0  # room for their labels
    return scale * width * min(num_panels, 2), scale * height * math.ceil(num_panels / 2) + 0.7


def _num_legend_columns(num_entries: int, most: int) -> int:
    """Columns that fill as few rows as needed, evenly."""
    return math.ceil(num_entries / math.ceil(num_entries / most))


def _drawable(rows: Sequence[ResultRow]) -> tuple[list[ResultRow], int]:
    """The networks to draw of one selection and norm, and how many are left out as diverged.

    Raises:
      ValueError: rows of several selections or norms, or no network with finite losses.
    """
    kinds = groups(rows)
    if len(kinds) > 1:
        raise ValueError(f"a figure shows one selection and norm, not {len(kinds)}: use select")
    rows = on_own_labels(rows)
    points = finite_rows(rows)
    if not points:
        raise ValueError("no network with finite losses to draw")
    return points, len(rows) - len(points)
