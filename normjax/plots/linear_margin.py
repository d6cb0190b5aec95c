"""The figure of the linear network."""

from collections.abc import Mapping
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from normjax.formatting import fixed, number, percent
from normjax.plots.style import LINE_COLOR, STYLE, TEST_COLOR, TRAIN_COLOR, new_figure

_COLORS = (TRAIN_COLOR, TEST_COLOR)
_QUIET = "#9a9a9a"


def plot_linear_margin(
    draws: pd.DataFrame, angles: pd.DataFrame, summary: Mapping[str, Any]
) -> Figure:
    """Draw the angle to the maximum margin against log time, and test error against norm.

    Args:
      draws: results.csv, a row per training set.
      angles: angles.csv.
      summary: summary.json.
    """
    title = (
        f"{summary['data_name']} · {summary['train_size']} examples in "
        f"{summary['dimension']} dimensions · {len(draws)} training sets"
    )
    with matplotlib.style.context(STYLE):
        figure, (left, right) = new_figure(title, (9.6, 4.8), 1, 2)
        _draw_angles(left, angles, summary["two_draws"])
        _draw_errors(right, draws, summary)
        for axes in (left, right):
            handles, names = axes.get_legend_handles_labels()
            axes.legend(
                handles, names, loc="upper center", bbox_to_anchor=(0.45, -0.17), fontsize=8.5
            )
    return figure


def _draw_angles(axes: Axes, angles: pd.DataFrame, two_draws: list[dict[str, Any]]) -> None:
    """Draw the curves of two training sets, the range of all, and the rate of the theorem."""
    by_step = angles.groupby("step")["angle_deg"]
    low, middle, high = (by_step.quantile(q).to_numpy() for q in (0.05, 0.5, 0.95))
    steps = np.unique(angles["step"])
    label = "5% to 95% of all training sets"
    axes.fill_between(steps, low, high, color=_QUIET, alpha=0.25, lw=0, label=label)
    for color, draw in zip(_COLORS, two_draws, strict=True):
        own = angles[angles["draw"] == draw["draw"]]
        axes.plot(own["step"], own["angle_deg"], color=color, lw=1.8, label=_name(draw))
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
    axes.set_title("Gradient descent converges to the maximum margin")
    axes.set_xlabel("Time t (steps of gradient descent)")
    axes.set_ylabel("Angle to the maximum margin (degrees)")


def _draw_errors(axes: Axes, draws: pd.DataFrame, summary: Mapping[str, Any]) -> None:
    """Draw a dot per training set, with the two of the left panel in their colors."""
    norms, errors = draws["norm_at_unit_margin"], 100 * draws["test_error"]
    axes.plot(norms, errors, "o", color=_QUIET, ms=4.5, alpha=0.7, mew=0, label="Training set")
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
    axes.set_title(_correlation(summary))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("Norm of the maximum-margin solution at unit margin")
    axes.set_ylabel("Test error (%)")


def _correlation(summary: Mapping[str, Any]) -> str:
    """Return Spearman's correlation with its interval, or why it is undefined."""
    found = summary["correlations"]["norm_at_unit_margin"]
    if found is None:
        return f"No rank correlation: {summary['reasons']['norm_at_unit_margin']}"
    low, high = found["spearman_interval"]
    return (
        f"Rank correlation {fixed(found['spearman'])}, 95% interval {fixed(low)} to {fixed(high)}"
    )


def _name(draw: Mapping[str, Any]) -> str:
    """Return the legend entry of a training set: norm and test error of its solution."""
    return (
        f"Training set {draw['draw']}: norm {number(draw['norm_at_unit_margin'])}, "
        f"test error {percent(draw['test_error'])}"
    )
