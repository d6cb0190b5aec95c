"""One panel of the paper's figures: networks as stars, their levels, a line, readable axes."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

from normjax.plots.label_placement import cluster_representatives, place_labels
from normjax.plots.style import (
    LABEL_COLOR,
    LINE_COLOR,
    TEST_COLOR,
    digits,
    plain,
    set_linear_ticks,
)
from normjax.results.rows import ResultRow
from normjax.results.summary import norm_name
from normjax.statistics.regression import LineFit, fit_line

_LABEL_SIZE = 8.5
_LOG_SPAN = 100  # product norms with a larger ratio have a logarithmic axis
_LEAST_EXCESS, _LEAST_SPREAD = 1e-3, 1e-5  # nats; below, a loss near ln K has too few digits left
RANDOM_LABELS = "RL"

_AXIS_LABELS = {
    "train_loss": "Training cross-entropy (nats)",
    "test_loss": "Test cross-entropy (nats)",
    "test_error": "Test error (%)",
    "normalized_train_loss": "Normalized training cross-entropy (nats)",
    "normalized_test_loss": "Normalized test cross-entropy (nats)",
    "normalized_train_excess": "Normalized training cross-entropy - ln K (nats)",
    "normalized_test_excess": "Normalized test cross-entropy - ln K (nats)",
    "normalized_test_error": "Test error (%)",
}
_LEVEL_NAMES = {
    "pretrain": "Fraction of corrupted labels in pretraining",
    "init_scale": "Standard deviation of the initial weights",
    "default_init": "Fraction of corrupted labels",
    "random_labels": "Labels",
}
_EXCESS_OF = {
    f"normalized_{split}_loss": f"normalized_{split}_excess" for split in ("train", "test")
}


class Panel(NamedTuple):
    """What one panel shows: two columns of the results, and whether a line is fitted."""

    title: str
    x: str
    y: str
    has_line: bool


def draw_panel(
    axes: Axes,
    panel: Panel,
    points: Sequence[ResultRow],
    colors: dict[str, tuple],
    has_numbers: bool,
) -> LineFit | None:
    """Stars colored by level, the fitted line with its numbers, axes with readable ticks."""
    x, y = values_of(points, panel.x), values_of(points, panel.y)
    texts = np.array([level_text(row) for row in points])
    fit = None
    numbers = ""
    if panel.has_line:
        try:
            fit = fit_line(x, y)
        except ValueError as error:
            numbers = f"no line: {error}"
    if fit is not None:
        ends = np.array([x.min(), x.max()])
        axes.plot(ends, fit.predict(ends), color=LINE_COLOR, lw=1.3, zorder=1.5)
        numbers = (
            f"R² {fit.r2:.5f}    adjusted R² {fit.adjusted_r2:.5f}    RMSE {digits(fit.rmse)}\n"
            f"slope {digits(fit.slope)}    {_intercept(panel, fit, points)}"
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
    axes.margins(0.09)
    for name, num_ticks, axis, set_scale, set_label in (
        (panel.x, 4, axes.xaxis, axes.set_xscale, axes.set_xlabel),
        (panel.y, 5, axes.yaxis, axes.set_yscale, axes.set_ylabel),
    ):
        label = _axis_label(name, points[0].norm)
        if _needs_log(points, name):
            set_scale("log")
            label += ", log scale"
        else:
            set_linear_ticks(axis, num_ticks)
        is_too_high = name == panel.y and name in _EXCESS_OF.values()
        set_label(label.replace(" cross-entropy", "\ncross-entropy") if is_too_high else label)
    return fit


def label_levels(
    axes: Axes, panel: Panel, points: Sequence[ResultRow], fit: LineFit | None
) -> None:
    """Writes each level beside its stars, once per cluster of stars, in the final layout."""

    def on_page(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        pixels = axes.transData.transform(np.column_stack([x, y]))
        return pixels * 72 / axes.figure.dpi

    x, y = values_of(points, panel.x), values_of(points, panel.y)
    texts = [level_text(row) for row in points]
    stars = on_page(x, y)
    along = np.linspace(x.min(), x.max(), 80)
    line = None if fit is None else on_page(along, fit.predict(along))
    bounds = axes.bbox.get_points() * 72 / axes.figure.dpi
    chosen = cluster_representatives(stars, texts)
    places = place_labels(stars, texts, chosen, bounds, _LABEL_SIZE, line)
    leader = {"arrowstyle": "-", "lw": 0.6, "color": LABEL_COLOR, "shrinkA": 0, "shrinkB": 5}
    for index, (offset, gap) in zip(chosen, places, strict=True):
        axes.annotate(
            texts[index],
            (x[index], y[index]),
            offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_LABEL_SIZE,
            color=LABEL_COLOR,
            zorder=4,
            path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
            arrowprops=leader if gap > 10 else None,
        )


def needs_excess(points: Sequence[ResultRow]) -> bool:
    """Whether normalized losses are too near ln K, or too near each other, to be read off."""
    excess = np.column_stack([values_of(points, name) for name in _EXCESS_OF.values()])
    is_small = (np.abs(excess) < _LEAST_EXCESS).all()
    return bool(is_small or (np.ptp(excess, axis=0) < _LEAST_SPREAD).any())


def in_excess(panel: Panel) -> Panel:
    """The same panel with normalized losses less ln K, which keep all their digits."""
    return panel._replace(x=_EXCESS_OF.get(panel.x, panel.x), y=_EXCESS_OF.get(panel.y, panel.y))


def values_of(points: Sequence[ResultRow], name: str) -> np.ndarray:
    """One column in the unit it is drawn in: errors in percent."""
    factor = 100 if name.endswith("_error") else 1
    return factor * np.array([getattr(row, name) for row in points], np.float64)


def level_text(row: ResultRow) -> str:
    """The level as written beside a point; "RL" for random labels, as in the paper."""
    return RANDOM_LABELS if row.labels == "random" else f"{row.level:g}"


def level_colors(points: Sequence[ResultRow]) -> dict[str, tuple]:
    """A color for each level, in order of level, from viridis less its top; random labels last.

    Random labels are no level among the others, and have a color from outside.
    """
    ordered = sorted(points, key=lambda row: (row.labels == "random", row.level))
    texts = dict.fromkeys(level_text(row) for row in ordered)
    levels = [text for text in texts if text != RANDOM_LABELS]
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.87, len(levels)))
    colors = dict(zip(levels, map(tuple, shades), strict=True))
    return {text: colors.get(text, to_rgba(TEST_COLOR)) for text in texts}


def level_name(points: Sequence[ResultRow]) -> str:
    """What the level is, for the legend and the axis."""
    families = [row.family for row in points if row.labels != "random"] or [points[0].family]
    has_random_labels = any(row.labels == "random" for row in points)
    explanation = f" ({RANDOM_LABELS}: random labels)" if has_random_labels else ""
    return _LEVEL_NAMES.get(families[0], "Level") + explanation


def _intercept(panel: Panel, fit: LineFit, points: Sequence[ResultRow]) -> str:
    """The fit's intercept in words; that of the losses themselves where the axes have ln K off."""
    if panel.x not in _EXCESS_OF.values():
        return f"intercept {digits(fit.intercept)}"
    ln_num_classes = points[0].normalized_train_loss - points[0].normalized_train_excess
    return f"intercept of the losses {digits(fit.intercept + (1 - fit.slope) * ln_num_classes)}"


def _needs_log(points: Sequence[ResultRow], name: str) -> bool:
    """Whether this column is the product of norms, over more than two decades."""
    values = values_of(points, name)
    return name == "product_norm" and values.max() > _LOG_SPAN * values.min() > 0


def _axis_label(name: str, norm: str) -> str:
    """A column's name and unit; the product of norms says which."""
    if name != "product_norm":
        return _AXIS_LABELS[name]
    norms = plain(norm_name(norm).replace(" norm", " norms"))
    return rf"Product $\prod_k \|W_k\|$ of the layers' {norms}"
