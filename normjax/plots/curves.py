"""The figure of losses during training, with the epochs at which they would stop it."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from normjax.plots.style import (
    LINE_COLOR,
    STYLE,
    TEST_COLOR,
    TRAIN_COLOR,
    join_title,
    new_figure,
    set_linear_ticks,
)
from normjax.results.metrics import (
    Stop,
    column,
    has_true_labels,
    lines_by_member,
    stopping_epochs,
)


def plot_curves(metrics: Sequence[Mapping[str, Any]], dataset_label: str = "") -> Figure:
    """Draw training and test losses (top) and normalized training excess (bottom) by epoch.

    The columns show the first network of the lowest, the middle and the highest level. Dots mark
    the epochs of `stopping_epochs`. A vertical line marks the start of the second phase. Without
    test losses, only the training curves are drawn.

    Args:
      metrics: the lines of metrics.jsonl.
      dataset_label: name of the data set, for the title.

    Raises:
      ValueError: see `stopping_epochs`.
    """
    members = lines_by_member(metrics)
    shown = _choose_members(members)
    stops = {stop.member: stop for stop in stopping_epochs(metrics)}
    title = join_title([dataset_label, "losses during training", "one network per level"])
    with matplotlib.style.context(STYLE):
        figure, axes = new_figure(title, (0.6 + 3.5 * len(shown), 6.4), 2, len(shown))
        for above, below, member in zip(axes, axes[len(shown) :], shown, strict=False):
            lines, stop = members[member], stops.get(member)
            above.set_title(f"Level {lines[0]['level']:g}")
            above.set_yscale("log")
            _draw_losses(above, lines, stop)
            _draw_normalized_loss(below, lines, stop)
            for panel in (above, below):
                panel.margins(y=0.12)  # room for the annotations
                panel.xaxis.set_major_locator(MaxNLocator(integer=True))
                _mark_phases(panel, lines)
            below.set_xlabel("Epoch (of both phases)")
        axes[0].set_ylabel("Cross-entropy (nats), log scale")
        axes[len(shown)].set_ylabel("Normalized training\ncross-entropy - ln K (nats)")
        handles = {h.get_label(): h for panel in axes for h in panel.get_legend_handles_labels()[0]}
        figure.legend(handles.values(), map(str, handles), loc="outside lower center", ncols=5)
    return figure


def _draw_losses(axes: Axes, lines: Sequence[Mapping[str, Any]], stop: Stop | None) -> None:
    """Draw the training loss of every epoch, and the test loss where measured."""
    steps, test_losses = column(lines, "step"), column(lines, "test_loss")
    axes.plot(
        steps,
        column(lines, "running_loss"),
        color=TRAIN_COLOR,
        lw=1.5,
        label="Training (mean over the epoch)",
    )
    is_measured = np.isfinite(test_losses)
    if is_measured.any():
        axes.plot(
            steps[is_measured], test_losses[is_measured], color=TEST_COLOR, lw=1.5, label="Test"
        )
    if stop is not None:
        _mark_epoch(axes, lines, stop.best_epoch, "test_loss", TEST_COLOR)
        _mark_epoch(axes, lines, stop.raw_epoch, "running_loss", TRAIN_COLOR)


def _draw_normalized_loss(
    axes: Axes, lines: Sequence[Mapping[str, Any]], stop: Stop | None
) -> None:
    """Draw the normalized training excess of every epoch."""
    excess = column(lines, "running_normalized_excess")
    axes.plot(column(lines, "step"), excess, color=TRAIN_COLOR, lw=1.5)
    set_linear_ticks(axes.yaxis, 5)
    if stop is not None:
        name = "running_normalized_excess"
        _mark_epoch(axes, lines, stop.normalized_epoch, name, TRAIN_COLOR)


def _mark_epoch(
    axes: Axes, lines: Sequence[Mapping[str, Any]], epoch: int, name: str, color: str
) -> None:
    """Draw a dot on a curve at an epoch."""
    (line,) = (line for line in lines if line["step"] == epoch)
    label = "Minimum with true labels"
    axes.plot(line["step"], line[name], "o", color=color, ms=6, mec="white", label=label, zorder=3)


def _mark_phases(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw a line at the start of the second phase, and annotate what changes."""
    num_first = sum(line["phase"] == "pretrain" for line in lines)
    if num_first:
        axes.axvline(num_first + 0.5, color=LINE_COLOR, lw=0.8, ls="--", zorder=1.5)
        axes.annotate(
            "optimizer restarts" if has_true_labels(lines[0]) else "true labels",
            (num_first + 0.5, 1),
            (3, -2),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color=LINE_COLOR,
        )


def _choose_members(members: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[int]:
    """Return the first network of the lowest, the middle and the highest level."""
    firsts: dict[float, int] = {}
    for member, lines in sorted(members.items(), key=lambda item: (item[1][0]["seed"], item[0])):
        firsts.setdefault(lines[0]["level"], member)
    levels = sorted(firsts)
    return [firsts[levels[i]] for i in sorted({0, len(levels) // 2, len(levels) - 1})]
