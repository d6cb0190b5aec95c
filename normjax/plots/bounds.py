"""The figure of eq. 4's terms, drawn from bounds.json alone."""

from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normjax.plots.style import (
    LABEL_COLOR,
    LINE_COLOR,
    STYLE,
    TEST_COLOR,
    TRAIN_COLOR,
    join_title,
    new_figure,
)


def plot_bounds(summary: Mapping[str, Any]) -> Figure:
    """The networks' generalization gaps above the terms of eq. 4, on one logarithmic axis.

    Args:
      summary: the contents of bounds.json, as `experiments.bounds` writes it.
    """
    title = join_title(
        [
            summary["data_name"],
            f"{summary['num_examples']:,} training images",
            f"{len(summary['networks'])} networks at {summary['selection']}",
            "every layer of Frobenius norm 1",
        ]
    )
    with matplotlib.rc_context(STYLE):
        num_rows = 2 + (summary["labels"] is not None) + 1 + len(summary["upper"])
        figure, (axes,) = new_figure(title, (9.6, 1.6 + 0.42 * num_rows), 1, 1)
        names = ["Gap |test − training loss| of each network", *_draw_terms(axes, summary)]
        _draw_gaps(axes, summary["networks"])
        axes.set_yticks(range(num_rows), names)
        axes.set_ylim(num_rows - 0.4, -0.6)
        axes.set_xscale("log")
        axes.margins(x=0.09)
        axes.axvline(
            summary["ln_num_classes"],
            color=LINE_COLOR,
            lw=1,
            ls=":",
            label="ln K, the loss of chance",
        )
        axes.set_xlabel("Nats of cross entropy")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.3, -0.13),
            ncols=6,
            fontsize=8.5,
            columnspacing=1.2,
            handletextpad=0.5,
        )
    return figure


def format_nats(value: float) -> str:
    """Three significant digits; whole numbers with commas from a thousand on."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _draw_gaps(axes: Axes, networks: list[dict[str, Any]]) -> None:
    """A dot for each network, those of random labels in their own color."""
    for is_random, color, name in (
        (False, TRAIN_COLOR, "True labels"),
        (True, TEST_COLOR, "Random labels"),
    ):
        gaps = [n["gap"] for n in networks if (n["family"] == "random_labels") == is_random]
        if gaps:
            style = {"color": color, "ms": 6, "mec": "white", "mew": 0.5, "alpha": 0.8}
            axes.plot(gaps, [0] * len(gaps), "o", label=name, **style)


def _draw_terms(axes: Axes, summary: Mapping[str, Any]) -> list[str]:
    """The terms in rows from the second on; their names."""
    rows = [("Confidence term, losses in [0, 1]", summary["confidence_term"], 0, "s", LINE_COLOR)]
    lower = [
        ("labels", "2 $R_N$ from below: random labels"),
        ("signs", "2 $R_N$ from below: random signs"),
    ]
    for key, name in lower:
        if (found := summary[key]) is not None:
            rows.append((name, found["two_r"], found["standard_error"], ">", LABEL_COLOR))
    for name, value in summary["upper"].items():
        rows.append((f"2 $R_N$ from above: {name}", value, 0, "<", LINE_COLOR))
    labels = {"s": "Exact", ">": "At least, with standard error", "<": "At most"}
    for i, (_, value, error, marker, color) in enumerate(rows, 1):
        axes.errorbar(
            value,
            i,
            xerr=error or None,
            fmt=marker,
            color=color,
            ms=5.5,
            capsize=4,
            label=labels.pop(marker, None),
        )
        axes.annotate(
            format_nats(value),
            (value, i),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    return [row[0] for row in rows]
