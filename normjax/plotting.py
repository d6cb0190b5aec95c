"""The paper's figures, drawn from result rows alone, so that nothing is trained to redraw them.

Each `plot_*` takes the rows of one selection and one norm and returns a matplotlib `Figure`. A star
marks each network and its level stands beside it, as in the paper's figure 7. Networks that
diverged are left out and counted in the title.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from normjax.label_placement import cluster_representatives, place_labels
from normjax.regression import LineFit, fit_line
from normjax.results import ResultRow, replacing, select
from normjax.summary import figure_stem, finite_rows, groups, norm_name, selection_name

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text in the PDF
    "savefig.dpi": 200,
}
_TRAIN_COLOR, _TEST_COLOR = "#0072b2", "#d55e00"  # Okabe and Ito's, safe for colour-blind readers
_LABEL_COLOR, _LINE_COLOR = "#b2182b", "#444444"
_LABEL_SIZE = 8.5
_PANEL_SIZE, _LONE_PANEL_SIZE = (4.6, 3.6), (6.0, 4.2)  # inches

_AXIS_LABELS = {
    "train_loss": "Training cross-entropy (nats)",
    "test_loss": "Test cross-entropy (nats)",
    "test_error": "Test error (%)",
    "normalized_train_loss": "Normalised training cross-entropy (nats)",
    "normalized_test_loss": "Normalised test cross-entropy (nats)",
    "normalized_test_error": "Test error (%)",
}
_LEVEL_NAMES = {
    "pretrain": "Fraction of corrupted labels in pretraining",
    "init_scale": "Standard deviation of the initial weights",
    "default_init": "Level",
    "random_labels": "Level",
}


class _Panel(NamedTuple):
    """What one panel shows: two columns of the results, and whether a line is fitted."""

    title: str
    x: str
    y: str
    has_line: bool


_NORMALIZED = _Panel("Normalised", "normalized_train_loss", "normalized_test_loss", True)
_NORMALIZED_ERROR = _Panel(
    "Error and normalised loss", "normalized_train_loss", "normalized_test_error", False
)
_RAW = _Panel("Not normalised", "train_loss", "test_loss", True)
_PRODUCT_NORM = _Panel("Loss and product of norms", "product_norm", "test_loss", False)
_ERROR_PRODUCT_NORM = _Panel("Error and product of norms", "product_norm", "test_error", False)


def plot_losses_against_level(rows: Sequence[ResultRow], dataset_label: str = "") -> Figure:
    """Loss and error on the training and the test set against the level, as figure 1.

    Levels stand at equal distances, so that 0 and 1e-4 can be told apart; lines join the means over
    seeds.

    Raises:
      ValueError: no network with finite losses, as for every `plot_*`.
    """
    points = _drawable(rows)
    levels = list(_level_colors(points))
    with matplotlib.rc_context(_STYLE):
        handles: list[tuple] = []
        figure, panels = _new_figure(rows, points, dataset_label, "", num_panels=2)
        for axes, kind, unit, factor in (
            (panels[0], "loss", "Cross-entropy (nats)", 1),
            (panels[1], "error", "Error (%)", 100),
        ):
            for split, color, marker in (
                ("train", _TRAIN_COLOR, "o"),
                ("test", _TEST_COLOR, "^"),
            ):
                x = np.array([levels.index(_level_text(row)) for row in points])
                y = factor * np.array([getattr(row, f"{split}_{kind}") for row in points])
                means = [y[x == index].mean() for index in range(len(levels))]
                mean_line = axes.plot(range(len(levels)), means, color=color, lw=1.5)
                dots = axes.plot(x, y, marker, color=color, ms=6, alpha=0.7, mew=0)
                handles.append((*mean_line, *dots))
            axes.set_title(unit.split(" (")[0])
            axes.set_xlabel(_level_name(points))
            axes.set_ylabel(unit)
            axes.set_xticks(range(len(levels)), levels)
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        names = ["Training set", "Test set"]
        figure.legend(handles[:2], names, loc="outside lower center", ncols=2)
    return figure


def plot_normalized_fit(rows: Sequence[ResultRow], dataset_label: str = "") -> Figure:
    """Normalised test loss, and test error, against normalised training loss: figures 3 and 4."""
    return _plot_panels(rows, dataset_label, [_NORMALIZED, _NORMALIZED_ERROR])


def plot_normalized_and_raw(rows: Sequence[ResultRow], dataset_label: str = "") -> Figure:
    """Test against training loss, normalised (left) and not (right), as figure 5."""
    return _plot_panels(rows, dataset_label, [_NORMALIZED, _RAW])


def plot_four_panels(rows: Sequence[ResultRow], dataset_label: str = "") -> Figure:
    """Losses, product of norms, normalised losses and error, as figure 7."""
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

    Selections and norms without a single network of finite losses have no figures.

    Returns:
      The files written, a .png and a .pdf for each figure.
    """
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


def save_figure(figure: Figure, path_without_suffix: str | os.PathLike) -> list[Path]:
    """Writes the figure as .png and as .pdf, each atomically; equal figures give equal bytes."""
    paths = []
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        path = Path(f"{os.fspath(path_without_suffix)}.{suffix}")
        with replacing(path) as temporary, matplotlib.rc_context(_STYLE):
            figure.savefig(temporary, format=suffix, metadata=metadata)
        paths.append(path)
    return paths


def _plot_panels(rows: Sequence[ResultRow], dataset_label: str, panels: Sequence[_Panel]) -> Figure:
    """A figure of panels whose points are the networks, with one legend of the levels."""
    points = _drawable(rows)
    colors = _level_colors(points)
    with matplotlib.rc_context(_STYLE):
        figure, all_axes = _new_figure(
            rows, points, dataset_label, norm_name(points[0].norm), num_panels=len(panels)
        )
        has_numbers = any(panel.has_line for panel in panels)  # then titles stand equally high
        lines = [
            _draw_panel(axes, panel, points, colors, has_numbers)
            for axes, panel in zip(all_axes, panels, strict=True)
        ]
        figure.legend(
            *all_axes[0].get_legend_handles_labels(),
            title=_level_name(points),
            loc="outside lower center",
            ncols=_num_legend_columns(len(colors), most=12 if len(panels) > 1 else 7),
            handletextpad=0.1,
            columnspacing=1.4,
        )
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the labels are placed in the layout as it is now
        for axes, panel, line in zip(all_axes, panels, lines, strict=True):
            _label_levels(axes, panel, points, line)
    return figure


def _new_figure(
    rows: Sequence[ResultRow],
    points: Sequence[ResultRow],
    dataset_label: str,
    norm_text: str,
    num_panels: int,
) -> tuple[Figure, list[Axes]]:
    """An empty figure of one or two columns, its title saying which networks it shows."""
    num_columns = min(num_panels, 2)
    num_rows = -(-num_panels // 2)
    width, height = _PANEL_SIZE if num_panels > 1 else _LONE_PANEL_SIZE
    size = (width * num_columns, height * num_rows + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06, wspace=0.04, hspace=0.05)
    first = points[0]
    count = f"{len(points)} networks"
    if len(points) < len(rows):
        count = f"{len(points)} of {len(rows)} networks ({len(rows) - len(points)} diverged)"
    parts = [dataset_label, count, selection_name(first.selection), norm_text]
    figure.suptitle(
        _plain(" · ".join(part for part in parts if part)),
        x=0.012,
        ha="left",
        fontsize=10,
        color="#333333",
    )
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    return figure, list(axes.flat)


def _num_legend_columns(num_entries: int, most: int) -> int:
    """Columns that fill as few rows as needed, evenly."""
    return math.ceil(num_entries / math.ceil(num_entries / most))


def _draw_panel(
    axes: Axes,
    panel: _Panel,
    points: Sequence[ResultRow],
    colors: dict[str, tuple],
    has_numbers: bool,
) -> LineFit | None:
    """Stars coloured by level, the fitted line with its numbers, axes with readable ticks."""
    x, y = _values(points, panel.x), _values(points, panel.y)
    texts = np.array([_level_text(row) for row in points])
    fit = None
    numbers = ""
    if panel.has_line:
        try:
            fit = fit_line(x, y)
        except ValueError as error:
            numbers = f"no line: {error}"
    if fit is not None:
        ends = np.array([x.min(), x.max()])
        axes.plot(ends, fit.predict(ends), color=_LINE_COLOR, lw=1.3, zorder=1.5)
        numbers = (
            f"R² {fit.r2:.5f}    adjusted R² {fit.adjusted_r2:.5f}    RMSE {_digits(fit.rmse)}\n"
            f"slope {_digits(fit.slope)}    intercept {_digits(fit.intercept)}"
        )
    for text, color in colors.items():
        chosen = texts == text
        axes.plot(
            x[chosen],
            y[chosen],
            "*",
            color=color,
            ms=10,
            mec="white",
            mew=0.5,
            label=text,
            zorder=3,
        )
    axes.set_title(panel.title, pad=30 if has_numbers else 6)
    axes.annotate(
        numbers, (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", fontsize=8.5
    )
    axes.set_xlabel(_axis_label(panel.x, points[0].norm))
    axes.set_ylabel(_axis_label(panel.y, points[0].norm))
    axes.margins(0.09)
    for axis, num_ticks in ((axes.xaxis, 4), (axes.yaxis, 5)):
        formatter = ScalarFormatter(useOffset=False)
        formatter.set_powerlimits((-3, 4))
        axis.set_major_formatter(formatter)
        axis.set_major_locator(MaxNLocator(num_ticks))
    return fit


def _label_levels(
    axes: Axes, panel: _Panel, points: Sequence[ResultRow], fit: LineFit | None
) -> None:
    """Writes each level beside its stars, once per cluster of stars, in the final layout."""

    def on_page(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        pixels = axes.transData.transform(np.column_stack([x, y]))
        return pixels * 72 / axes.figure.dpi

    x, y = _values(points, panel.x), _values(points, panel.y)
    texts = [_level_text(row) for row in points]
    stars = on_page(x, y)
    along = np.linspace(x.min(), x.max(), 80)
    line = None if fit is None else on_page(along, fit.predict(along))
    bounds = axes.bbox.get_points() * 72 / axes.figure.dpi
    chosen = cluster_representatives(stars, texts)
    places = place_labels(stars, texts, chosen, bounds, _LABEL_SIZE, line)
    leader = {"arrowstyle": "-", "lw": 0.6, "color": _LABEL_COLOR, "shrinkA": 0, "shrinkB": 5}
    for index, (offset, gap) in zip(chosen, places, strict=True):
        axes.annotate(
            texts[index],
            (x[index], y[index]),
            offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_LABEL_SIZE,
            color=_LABEL_COLOR,
            zorder=4,
            path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
            arrowprops=leader if gap > 10 else None,
        )


def _drawable(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """The rows of one selection and norm that are finite; an error if they are mixed or none."""
    kinds = groups(rows)
    if len(kinds) > 1:
        raise ValueError(f"a figure shows one selection and norm, not {len(kinds)}: use select")
    points = finite_rows(rows)
    if not points:
        raise ValueError("no network with finite losses to draw")
    return points


def _values(points: Sequence[ResultRow], name: str) -> np.ndarray:
    """One column in the unit it is drawn in: errors in percent."""
    factor = 100 if name.endswith("_error") else 1
    return factor * np.array([getattr(row, name) for row in points], np.float64)


def _level_text(row: ResultRow) -> str:
    """The level as written beside a point; "RL" for random labels, as in the paper."""
    return "RL" if row.labels == "random" else f"{row.level:g}"


def _level_colors(points: Sequence[ResultRow]) -> dict[str, tuple]:
    """A colour for each level, in order of level, random labels last; from viridis less its top."""
    ordered = sorted(points, key=lambda row: (row.labels == "random", row.level))
    texts = list(dict.fromkeys(_level_text(row) for row in ordered))
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.87, len(texts)))
    return dict(zip(texts, map(tuple, colors), strict=True))


def _level_name(points: Sequence[ResultRow]) -> str:
    """What the level is, for the legend and the axis."""
    families = [row.family for row in points if row.labels != "random"] or [points[0].family]
    return _LEVEL_NAMES.get(families[0], "Level")


def _axis_label(name: str, norm: str) -> str:
    """A column's name and unit; the product of norms says which."""
    if name != "product_norm":
        return _AXIS_LABELS[name]
    return rf"Product $\prod_k \|W_k\|$ of the layers' {_plain(norm_name(norm))}s"


def _digits(value: float) -> str:
    """Four significant digits."""
    return f"{value:#.4g}".rstrip(".")


def _plain(text: str) -> str:
    """Text in which a dollar sign does not start a formula."""
    return text.replace("$", r"\$")
