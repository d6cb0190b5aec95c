"""The figure of the linear network, drawn from the saved tables alone."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from normjax.plots.style import LINE_COLOR, STYLE, TEST_COLOR, TRAIN_COLOR, new_figure

_COLORS = (TRAIN_COLOR, TEST_COLOR)
_QUIET = "#9a9a9a"


def plot_linear_margin(
    draws: Mapping[str, np.ndarray], angles: Mapping[str, np.ndarray], summary: Mapping[str, Any]
) -> Figure:
    """Angle to the maximum-margin solution against log time, and test error against its norm.

    Args:
      draws: the columns of results.csv.
      angles: the columns of angles.csv.
      summary: the contents of summary.json.
    """
    title = (
        f"{summary['data_name']} · {summary['train_size']} examples in "
        f"{summary['dimension']} dimensions · {len(draws['draw'])} training sets"
    )
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = new_figure(title, (9.6, 4.8), 1, 2)
        _draw_angles(left, angles, summary["two_draws"])
        _draw_errors(right, draws, summary)
        for axes in (left, right):
            handles, names = axes.get_legend_handles_labels()
            axes.legend(
                handles, names, loc="upper center", bbox_to_anchor=(0.45, -0.17), fontsize=8.5
            )
    return figure


def _draw_angles(
    axes: Axes, angles: Mapping[str, np.ndarray], two_draws: list[dict[str, Any]]
) -> None:
    """The two training sets' curves, over the range of all, and the rate of the theorem."""
    steps = np.unique(angles["step"])
    by_step = [angles["angle_deg"][angles["step"] == step] for step in steps]
    low, middle, high = np.transpose([np.quantile(values, [0.05, 0.5, 0.95]) for values in by_step])
    axes.fill_between(
        steps, low, high, color=_QUIET, alpha=0.25, lw=0, label="5% to 95% of all training sets"
    )
    for color, draw in zip(_COLORS, two_draws, strict=True):
        own = angles["draw"] == draw["draw"]
        axes.plot(
            angles["step"][own], angles["angle_deg"][own], color=color, lw=1.8, label=_name(draw)
        )
    late = steps >= 10
    if late.any():
        rate = middle[-1] * np.log(steps[-1]) / np.log(steps[late])
        label = "constant / log t, through the last median"
        axes.plot(steps[late], rate, "--", color=LINE_COLOR, lw=1.1, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("Gradient descent goes to the maximum margin")
    axes.set_xlabel("Time t (steps of gradient descent)")
    axes.set_ylabel("Angle to the maximum margin (degrees)")


def _draw_errors(axes: Axes, draws: Mapping[str, np.ndarray], summary: Mapping[str, Any]) -> None:
    """A dot for each training set, the two of the other panel in its colors."""
    norms, errors = draws["norm_at_unit_margin"], 100 * draws["test_error"]
    axes.plot(norms, errors, "o", color=_QUIET, ms=4.5, alpha=0.7, mew=0, label="A training set")
    for color, draw in zip(_COLORS, summary["two_draws"], strict=True):
        axes.plot(
            draw["norm_at_unit_margin"],
            100 * draw["test_error"],
            "*",
            color=color,
            ms=13,
            mec="white",
            mew=0.7,
            label=_name(draw),
        )
    found = summary["correlations"]["norm_at_unit_margin"]
    low, high = found["interval"]
    axes.set_title(
        f"Rank correlation {found['spearman']:.2f}, 95% interval {low:.2f} to {high:.2f}"
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("Norm of the maximum-margin solution at unit margin")
    axes.set_ylabel("Test error (%)")


def _name(draw: Mapping[str, Any]) -> str:
    """One of the two training sets in the legend: norm and test error of its solution."""
    return (
        f"Training set {draw['draw']}: norm {draw['norm_at_unit_margin']:.3g}, "
        f"test error {100 * draw['test_error']:.3g}%"
    )
