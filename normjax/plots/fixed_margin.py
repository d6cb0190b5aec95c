"""The figure of networks at fixed normalized margins."""

from collections.abc import Mapping
from typing import Any

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from normjax.formatting import fixed, number
from normjax.plots.style import LINE_COLOR, STYLE, TEST_COLOR, TRAIN_COLOR, new_figure

_KINDS = {"true": ("True labels", TRAIN_COLOR), "random": ("Random labels", TEST_COLOR)}


def plot_fixed_margin(table: pd.DataFrame, summary: Mapping[str, Any], title: str) -> Figure:
    """Draw test error against the normalized margin, and margins against their targets.

    Args:
      table: results.csv, a row per network.
      summary: summary.json.
      title: the title.
    """
    with matplotlib.style.context(STYLE):
        figure, (left, right) = new_figure(title, (10.4, 5.0), 1, 2)
        for kind, (name, color) in _KINDS.items():
            own = table[table["labels"] == kind]
            _draw(left, own, "train_margin", 100 * own["test_error"], name, color)
            _draw(right, own, "target_margin", own["train_margin"], name, color)
            low, high = (own["train_margin"] + sign * own["train_margin_std"] for sign in (-1, 1))
            right.vlines(own["target_margin"], low, high, color=color, lw=0.8, alpha=0.7)
        targets = sorted(set(table["target_margin"]))
        right.plot(targets, targets, color=LINE_COLOR, lw=1, ls=":", label="Target")
        left.set_title(_correlation(summary))
        left.set_xlabel("Normalized training margin (mean)")
        left.set_ylabel("Test error on true labels (%)")
        right.set_title("Margins and their targets")
        right.set_xlabel("Target margin")
        right.set_ylabel("Normalized training margin (mean ± standard deviation)")
        left.set_xscale("symlog", linthresh=targets[0] / 2, linscale=0.5)
        right.set_xscale("log")
        right.xaxis.set_major_locator(FixedLocator(targets))
        right.xaxis.set_minor_locator(NullLocator())
        right.xaxis.set_major_formatter(FuncFormatter(lambda x, _: number(x)))
        right.set_yscale("symlog", linthresh=targets[0], linscale=0.5)
        for axes in (left, right):
            axes.legend(fontsize=8)
    return figure


def _draw(axes: Axes, own: pd.DataFrame, x: str, y: pd.Series, name: str, color: str) -> None:
    """Draw a dot per network, open where the margin was not reached."""
    for is_reached, label, face in ((1, name, color), (0, f"{name}, not reached", "none")):
        chosen = own["reached"] == is_reached
        if chosen.any():
            style = {"color": color, "mfc": face, "ms": 5.5, "alpha": 0.85}
            axes.plot(own.loc[chosen, x], y[chosen], "o", label=label, **style)


def _correlation(summary: Mapping[str, Any]) -> str:
    """Return tau with its interval for true labels, or why it is undefined."""
    found = summary["correlations"]["true"]
    if found is None:
        return f"True labels, no rank correlation: {summary['reasons']['true']}"
    text = f"True labels: tau {fixed(found['kendall'])}"
    if found["kendall_interval"] is None:
        return text
    low, high = found["kendall_interval"]
    return f"{text}, 95% interval {fixed(low)} to {fixed(high)}"
