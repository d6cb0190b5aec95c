"""The figure of several numbers of training images."""

from collections.abc import Mapping, Sequence

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from normjax.controls.sizes import QUANTITIES, SizeRow
from normjax.formatting import number
from normjax.plots.style import (
    LINE_COLOR,
    QUIET_COLOR,
    STYLE,
    TEST_COLOR,
    TRAIN_COLOR,
    new_figure,
    write_reason,
)

PANELS = ("slope", "margin_ratio", "test_error", "gap", "norm_over_margin", "norm_bound")
_WITH_RANDOM = "slope_with_random_labels"


def plot_sizes(
    rows: Sequence[SizeRow],
    networks: pd.DataFrame,
    title: str,
    printed: Mapping[str, float] | None = None,
) -> Figure:
    """Draw each quantity against the number of training images N.

    Args:
      rows: from `compare_sizes`.
      networks: its second result; each network is a dot.
      title: the title.
      printed: {name: slope} of lines to draw beside the slope.
    """
    with matplotlib.style.context(STYLE):
        figure, panels = new_figure(title, (13.2, 7.6), 2, 3)
        for axes, name in zip(panels, PANELS, strict=True):
            if name == "slope":
                _draw_slopes(axes, rows, printed or {})
            else:
                _draw_means(axes, rows, networks, name)
            _set_axes(axes, rows, name)
    return figure


def _draw_slopes(axes: Axes, rows: Sequence[SizeRow], printed: Mapping[str, float]) -> None:
    """Draw the slopes with their 95% intervals, and the printed ones as lines."""
    for name, color, label in (
        ("slope", TRAIN_COLOR, "Without random labels, 95% interval"),
        (_WITH_RANDOM, TEST_COLOR, "With random labels, 95% interval"),
    ):
        points = _points(rows, name)
        if points:
            axes.plot(list(points), list(points.values()), "o-", color=color, ms=5, label=label)
        for row in rows:
            if row.quantity == name and row.low is not None and row.high is not None:
                axes.plot([row.train_images] * 2, [row.low, row.high], color=color, lw=1)
    for i, (name, slope) in enumerate(printed.items()):
        style = {"color": LINE_COLOR, "lw": 1, "ls": ("--", ":", "-.", (0, (1, 3)))[i % 4]}
        axes.axhline(slope, label=name, **style)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.55 * (high - low))  # the legend lies above the intervals


def _draw_means(axes: Axes, rows: Sequence[SizeRow], networks: pd.DataFrame, name: str) -> None:
    """Draw a dot per network and the line of means over levels."""
    style = {"color": QUIET_COLOR, "ms": 4, "alpha": 0.7, "mew": 0}
    axes.plot(networks["train_images"], networks[name], "o", label="Network", **style)
    points = _points(rows, name)
    axes.plot(
        list(points), list(points.values()), "o-", color=TRAIN_COLOR, ms=5, label="Mean over levels"
    )


def _points(rows: Sequence[SizeRow], name: str) -> dict[int, float]:
    """Return {size: value} of a quantity, where there is a value."""
    own = [row for row in rows if row.quantity == name]
    return {row.train_images: row.value for row in own if row.value is not None}


def _set_axes(axes: Axes, rows: Sequence[SizeRow], name: str) -> None:
    """Label the axes; panels of norms are logarithmic if all values are positive."""
    values = [row.value for row in rows if row.quantity == name]
    if all(value is None for value in values):
        reasons = [row.reason for row in rows if row.quantity == name]
        write_reason(axes, f"None: {reasons[0]}")
        return
    sizes = sorted({row.train_images for row in rows})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: number(round(x))))
    if name.startswith("norm") and all(value is not None and value > 0 for value in values):
        axes.set_yscale("log")
    axes.set_title(QUANTITIES[name])
    axes.set_xlabel("Training images N")
    axes.legend(fontsize=8, loc="upper left" if name == "slope" else "best")
