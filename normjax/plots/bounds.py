"""The figure of the terms of eq. 4."""

from collections.abc import Sequence

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normjax.formatting import number
from normjax.generalization.eq4 import Eq4, Gap
from normjax.plots.style import (
    LABEL_COLOR,
    LINE_COLOR,
    STYLE,
    TEST_COLOR,
    TRAIN_COLOR,
    join_title,
    new_figure,
)


def plot_bounds(found: Eq4) -> Figure:
    """Draw the generalization gaps and the terms of eq. 4 on one logarithmic axis."""
    title = join_title(
        [
            found.data_name,
            f"{number(found.num_examples)} training images",
            f"{len(found.networks)} networks at {found.selection}",
            "every layer with Frobenius norm 1",
        ]
    )
    with matplotlib.style.context(STYLE):
        num_rows = 4 + (found.labels is not None) + len(found.upper)
        figure, (axes,) = new_figure(title, (9.6, 1.6 + 0.42 * num_rows), 1, 1)
        names = ["Gap |test − training loss| of each network", *_draw_terms(axes, found)]
        _draw_gaps(axes, found.networks)
        axes.set_yticks(range(num_rows), names)
        axes.set_ylim(num_rows - 0.4, -0.6)
        axes.set_xscale("log")
        axes.margins(x=0.09)
        label = "ln K, the loss of chance"
        axes.axvline(found.ln_num_classes, color=LINE_COLOR, lw=1, ls=":", label=label)
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


def _draw_gaps(axes: Axes, networks: Sequence[Gap]) -> None:
    """Draw a dot per network; networks with random labels have their own color."""
    for is_random, color, name in (
        (False, TRAIN_COLOR, "True labels"),
        (True, TEST_COLOR, "Random labels"),
    ):
        gaps = [one.gap for one in networks if (one.family == "random_labels") == is_random]
        if gaps:
            style = {"color": color, "ms": 6, "mec": "white", "mew": 0.5, "alpha": 0.8}
            axes.plot(gaps, [0] * len(gaps), "o", label=name, **style)


def _draw_terms(axes: Axes, found: Eq4) -> list[str]:
    """Draw the terms from the second row on; return their names."""
    terms = {1.0: found.confidence_term, found.loss_range: found.confidence_term_of_range}
    rows = [
        (f"Confidence term, losses in [0, {number(length)}]", term, None, "s", LINE_COLOR)
        for length, term in terms.items()
    ]
    lower = [
        ("2 $R_N$ from below: random labels", found.labels),
        ("2 $R_N$ from below: random signs", found.signs),
    ]
    for name, estimate in lower:
        if estimate is not None:
            rows.append((name, estimate.two_r, estimate.standard_error, ">", LABEL_COLOR))
    for name, value in found.upper.items():
        rows.append((f"2 $R_N$ from above: {name}", value, None, "<", LINE_COLOR))
    labels = {"s": "Computed", ">": "At least, with standard error", "<": "At most"}
    for i, (_, value, error, marker, color) in enumerate(rows, 1):
        axes.errorbar(
            value,
            i,
            xerr=error,
            fmt=marker,
            color=color,
            ms=5.5,
            capsize=4,
            label=labels.pop(marker, None),
        )
        axes.annotate(
            number(value), (value, i), (0, 6), textcoords="offset points", ha="center", fontsize=8
        )
    return [row[0] for row in rows]
