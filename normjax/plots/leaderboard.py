"""The figure of the leaderboard: how well each measure ranks the networks, best first."""

from collections.abc import Sequence

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normjax.generalization.ranking import RankedMeasure
from normjax.plots.style import LINE_COLOR, STYLE, TEST_COLOR, TRAIN_COLOR, new_figure

_OURS = "normalized_train_loss"
_QUIET = "#9a9a9a"
_FACTOR_MARKERS = ("s", "^", "v", "D")


def plot_leaderboard(ranked: Sequence[RankedMeasure], title: str) -> Figure:
    """Draw three panels with a row per measure: tau, psi by factor, and sign errors.

    Points are values, bars are 95% intervals; missing ones are not drawn. The paper's measure has
    its own color. Points are hollow if a simultaneous interval shows the measure worse than the
    first.

    Args:
      ranked: the measures, best first.
      title: the title, which describes the networks.
    """
    places = np.arange(len(ranked))
    with matplotlib.style.context(STYLE):
        size = (11.0, 0.27 * len(ranked) + 2.2)
        figure, (left, middle, right) = new_figure(title, size, 1, 3)
        _draw_taus(left, ranked, places)
        _draw_psis(middle, ranked, places)
        _draw_sign_errors(right, ranked, places)
        left.set_yticks(places, [row.name.replace("_", " ") for row in ranked])
        for label, row in zip(left.get_yticklabels(), ranked, strict=True):
            label.set_color(_color(row) if row.name == _OURS else "#333333")
        for axes in (left, middle, right):
            axes.set_ylim(len(ranked) - 0.4, -0.6)
            axes.grid(axis="y", visible=False)
            if axes is not left:
                axes.set_yticks(places, [])
            handles, names = axes.get_legend_handles_labels()
            axes.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, -0.6 / size[1]))
    return figure


def _draw_taus(axes: Axes, ranked: Sequence[RankedMeasure], places: np.ndarray) -> None:
    """Draw Kendall's tau with intervals."""
    has_intervals = any(row.correlation and row.correlation.kendall_interval for row in ranked)
    for place, row in zip(places, ranked, strict=True):
        if row.correlation is None:
            continue
        _draw_interval(axes, row.correlation.kendall_interval, place, row)
        label, color, fill = _with_interval("Measure", has_intervals), _color(row), _color(row)
        if row.difference is not None and row.difference.is_real:
            label, fill = "Worse than the first", "white"
        if row.name == _OURS:
            label = "The paper's measure"
        label = _once(axes, label)
        axes.plot(row.tau, place, "o", color=color, mfc=fill, ms=5.5, label=label)
    axes.set_title("All networks")
    axes.set_xlabel("Kendall's τ with the test error")
    _span(axes, -1, 1, 0)


def _draw_psis(axes: Axes, ranked: Sequence[RankedMeasure], places: np.ndarray) -> None:
    """Draw the mean psi with intervals, and a hollow marker per factor."""
    has_intervals = any(row.psi_interval for row in ranked)
    for place, row in zip(places, ranked, strict=True):
        _draw_interval(axes, row.psi_interval, place, row)
        for (factor, value), marker in zip(row.psi.items(), _FACTOR_MARKERS, strict=False):
            if np.isfinite(value):
                label = _once(axes, f"Only the {factor} varies")
                axes.plot(
                    value, place, marker, color=LINE_COLOR, mfc="white", ms=4.5, lw=0, label=label
                )
        if np.isfinite(row.mean_psi):
            label = _once(axes, _with_interval("Mean over hyperparameters", has_intervals))
            label = label if row.name != _OURS else None
            axes.plot(row.mean_psi, place, "o", color=_color(row), ms=5.5, label=label)
    axes.set_title("One factor at a time")
    axes.set_xlabel("Granulated Kendall's Ψ")
    _span(axes, -1, 1, 0)


def _draw_sign_errors(axes: Axes, ranked: Sequence[RankedMeasure], places: np.ndarray) -> None:
    """Draw the mean and the worst sign error."""
    for place, row in zip(places, ranked, strict=True):
        errors, color = row.sign_errors, _color(row)
        if not errors.num_environments:
            continue
        axes.plot((errors.mean, errors.worst), (place, place), color=_QUIET, lw=1.2, zorder=1.5)
        axes.plot(errors.mean, place, "|", color=color, ms=9, mew=2, label=_once(axes, "Mean"))
        axes.plot(errors.worst, place, "o", color=color, ms=5.5, label=_once(axes, "Worst"))
    num_environments = ranked[0].sign_errors.num_environments
    axes.set_title(f"Worst of {num_environments} comparisons")
    if not num_environments:
        axes.set_title("Worst comparison")
        text = "No pair of networks whose\ntest errors differ beyond\nthe noise of the test set"
        box = axes.text(0.5, len(ranked) / 2, text, color=LINE_COLOR, ha="center", va="center")
        box.set_backgroundcolor("white")
    axes.set_xlabel("Sign error (chance: 0.5)")
    _span(axes, 0, 1, 0.5)


def _draw_interval(
    axes: Axes, bounds: tuple[float, float] | None, place: float, row: RankedMeasure
) -> None:
    """Draw a bar for the interval, if any."""
    if bounds is not None:
        axes.plot(bounds, (place, place), color=_color(row), lw=1.4, alpha=0.6)


def _with_interval(label: str, has_intervals: bool) -> str:
    """Return the legend entry."""
    return f"{label}, 95% interval" if has_intervals else label


def _span(axes: Axes, low: float, high: float, chance: float) -> None:
    """Set limits with room for the markers, and draw a line at the chance level."""
    margin = 0.05 * (high - low)
    axes.set_xlim(low - margin, high + margin)
    axes.axvline(chance, color=LINE_COLOR, lw=0.8, ls="--", zorder=1)


def _color(row: RankedMeasure) -> str:
    """Return the color of a row; the paper's measure has its own."""
    return TEST_COLOR if row.name == _OURS else TRAIN_COLOR


def _once(axes: Axes, label: str) -> str | None:
    """Return the label, or None if the legend already has it."""
    return None if label in axes.get_legend_handles_labels()[1] else label
