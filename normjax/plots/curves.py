"""Losses during training, and the epoch that each of them would have stopped at.

The paper's closing recommendation is to monitor the training loss of the normalized network. These
functions show, from a run's metrics.jsonl alone, what that would have been good for.

"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from normjax import formatting
from normjax.files import check_types, parse_object, read_text
from normjax.plots.style import (
    LINE_COLOR,
    STYLE,
    TEST_COLOR,
    TRAIN_COLOR,
    join_title,
    new_figure,
    set_linear_ticks,
)

METRICS_FILE = "metrics.jsonl"
_NEEDED = {"member": int, "family": str, "level": float, "seed": int, "step": int, "phase": str}
_NEEDED |= {"running_loss": float | None, "running_normalized_excess": float | None}
_MEASURED = {"test_loss": float | None, "test_error": float | None}  # every --test_every epochs


class Stop(NamedTuple):
    """Where one network would have been stopped, by three losses, while it saw the true labels.

    Epochs count from 1 over both phases; of equal losses the earliest epoch counts.
    """

    member: int
    level: float
    best_epoch: int  # of the least test loss
    raw_epoch: int  # of the least training loss, as trained
    normalized_epoch: int  # of the least training loss of the normalized network
    test_loss_at_best: float  # nats, as are the next two
    test_loss_at_raw: float
    test_loss_at_normalized: float
    test_error_at_raw: float  # a fraction
    test_error_at_normalized: float


def read_metrics(run_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without those of networks of random labels.

    Nothing can be learned about test examples from random labels, so that they say nothing about
    when to stop.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is cut, isn't a JSON object with the values that all lines have, stands
        there twice or contradicts an earlier one; the message names file and line.
    """
    path = Path(run_dir) / METRICS_FILE
    lines: dict[tuple[int, int], dict[str, Any]] = {}
    networks: dict[int, tuple] = {}
    for number, text in enumerate(read_text(path).removesuffix("\n").split("\n"), 1):
        place = f"{path}, line {number}: not a line of metrics"
        line = parse_object(text, place, **_NEEDED)
        if set(_MEASURED) & set(line):
            check_types(line, _MEASURED, place)
        if line["phase"] not in ("pretrain", "train"):
            raise ValueError(f"{place}: phase is neither pretrain nor train")
        key = line["member"], line["step"]
        if key in lines:
            raise ValueError(f"{place}: epoch {key[1]} of member {key[0]} stands there already")
        lines[key] = line
        network = line["family"], line["level"], line["seed"]
        if networks.setdefault(line["member"], network) != network:
            raise ValueError(f"{place}: member {line['member']} was another network before")
    return [line for line in lines.values() if line["family"] != "random_labels"]


def stopping_epochs(metrics: Sequence[Mapping[str, Any]]) -> list[Stop]:
    """The stopping epochs of each network, among the epochs with true labels and a test loss.

    Those are the second phase's, and the first's too where nothing was corrupted. The training
    losses are the running means over an epoch, which training has anyway.

    Args:
      metrics: the lines of metrics.jsonl. Epochs where a loss is null count nowhere.

    Returns:
      A `Stop` for each network that has a test loss, ordered by level and member.

    Raises:
      ValueError: no lines, or a line without one of the values needed; it is named.
    """
    stops = []
    for lines in _by_member(metrics).values():
        late = [line for line in lines if _has_true_labels(line)]
        names = ("step", "test_error", "test_loss", "running_loss", "running_normalized_excess")
        columns = np.column_stack([_column(late, name) for name in names])
        columns = columns[np.isfinite(columns).all(axis=1)]
        if not len(columns):
            continue
        epochs, test_errors, test_losses = columns[:, :3].T
        chosen = columns[:, 2:].argmin(axis=0)
        stops.append(
            Stop(
                lines[0]["member"],
                lines[0]["level"],
                *epochs[chosen].astype(int).tolist(),
                *test_losses[chosen].tolist(),
                *test_errors[chosen[1:]].tolist(),
            )
        )
    return sorted(stops, key=lambda stop: (stop.level, stop.member))


def describe_stopping(stops: Sequence[Stop]) -> str:
    """A line per level: would the normalized loss have chosen better epochs than the raw one?

    Better is a lower test loss, in the mean over the level's networks.
    """
    if not stops:
        return "No test loss was measured."
    lines = []
    for level in sorted({stop.level for stop in stops}):
        own = [stop for stop in stops if stop.level == level]
        best, raw, normalized, *errors = np.array([stop[-5:] for stop in own]).T
        raw_error, normalized_error = (100 * error.mean() for error in errors)
        verb = "would have chosen" if normalized.mean() < raw.mean() else "would not have chosen"
        losses = [formatting.number(loss.mean(), 4) for loss in (normalized, raw, best)]
        lines.append(
            f"Level {level:g}: the normalized training loss {verb} a better epoch to stop at than "
            f"the training loss as trained: mean test loss {losses[0]} against {losses[1]}, lower "
            f"in {np.sum(normalized < raw)} and higher in {np.sum(normalized > raw)} of {len(own)} "
            f"networks; {losses[2]} at the best epochs. Mean test error {normalized_error:.1f}% "
            f"against {raw_error:.1f}%."
        )
    return "\n".join(lines)


def plot_curves(metrics: Sequence[Mapping[str, Any]], dataset_label: str = "") -> Figure:
    """Draw training and test loss, and below them the normalized training loss less ln K, by epoch.

    The columns are the lowest, the middle and the highest level, each with the network of the first
    seed. Dots mark the epochs of `stopping_epochs`. A vertical line marks the start of the second
    phase, and with it of the true labels. Without test losses only the training curves are drawn.

    Args:
      metrics: the lines of metrics.jsonl.
      dataset_label: name of the data set, for the title.

    Raises:
      ValueError: see `stopping_epochs`.
    """
    members = _by_member(metrics)
    shown = _choose_members(members)
    stops = {stop.member: stop for stop in stopping_epochs(metrics)}
    title = join_title([dataset_label, "losses during training", "one network of each level"])
    with matplotlib.style.context(STYLE):
        figure, axes = new_figure(title, (0.6 + 3.5 * len(shown), 6.4), 2, len(shown))
        for above, below, member in zip(axes, axes[len(shown) :], shown, strict=False):
            lines, stop = members[member], stops.get(member)
            above.set_title(f"Level {lines[0]['level']:g}")
            above.set_yscale("log")
            _draw_losses(above, lines, stop)
            _draw_normalized_loss(below, lines, stop)
            for panel in (above, below):
                panel.margins(y=0.12)  # room for the words
                panel.xaxis.set_major_locator(MaxNLocator(integer=True))
                _mark_phases(panel, lines)
            below.set_xlabel("Epoch (of both phases)")
        axes[0].set_ylabel("Cross-entropy (nats), log scale")
        axes[len(shown)].set_ylabel("Normalized training\ncross-entropy - ln K (nats)")
        handles = {h.get_label(): h for panel in axes for h in panel.get_legend_handles_labels()[0]}
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=5)
    return figure


def _draw_losses(axes: Axes, lines: Sequence[Mapping[str, Any]], stop: Stop | None) -> None:
    """Draw the training loss at every epoch, and the test loss where it was measured."""
    steps, test_losses = _column(lines, "step"), _column(lines, "test_loss")
    axes.plot(
        steps,
        _column(lines, "running_loss"),
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
    """Draw the training loss of the normalized network less ln K at every epoch."""
    excess = _column(lines, "running_normalized_excess")
    axes.plot(_column(lines, "step"), excess, color=TRAIN_COLOR, lw=1.5)
    set_linear_ticks(axes.yaxis, 5)
    if stop is not None:
        name = "running_normalized_excess"
        _mark_epoch(axes, lines, stop.normalized_epoch, name, TRAIN_COLOR)


def _mark_epoch(
    axes: Axes, lines: Sequence[Mapping[str, Any]], epoch: int, name: str, color: str
) -> None:
    """Draw a dot on a curve at an epoch."""
    (line,) = (line for line in lines if line["step"] == epoch)
    label = "Least with the true labels"
    axes.plot(line["step"], line[name], "o", color=color, ms=6, mec="white", label=label, zorder=3)


def _mark_phases(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw a line where the second phase starts, and say what changes there."""
    num_first = sum(line["phase"] == "pretrain" for line in lines)
    if num_first:
        axes.axvline(num_first + 0.5, color=LINE_COLOR, lw=0.8, ls="--", zorder=1.5)
        axes.annotate(
            "optimizer restarts" if _has_true_labels(lines[0]) else "true labels",
            (num_first + 0.5, 1),
            (3, -2),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color=LINE_COLOR,
        )


def _has_true_labels(line: Mapping[str, Any]) -> bool:
    """Return whether the epoch's labels are not corrupted."""
    return line["phase"] == "train" or line["family"] != "pretrain" or line["level"] == 0


def _choose_members(members: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[int]:
    """Return the first network of the lowest, the middle and the highest level."""
    firsts: dict[float, int] = {}
    for member, lines in sorted(members.items(), key=lambda item: (item[1][0]["seed"], item[0])):
        firsts.setdefault(lines[0]["level"], member)
    levels = sorted(firsts)
    return [firsts[levels[i]] for i in sorted({0, len(levels) // 2, len(levels) - 1})]


def _by_member(metrics: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    """The lines of each network in the order of their epochs, checked."""
    if not metrics:
        raise ValueError("no lines of metrics")
    members: dict[int, list[Mapping[str, Any]]] = {}
    for number, line in enumerate(metrics, 1):
        missing = [name for name in _NEEDED if name not in line]
        if missing:
            raise ValueError(f"line {number} of the metrics has no {', '.join(missing)}")
        members.setdefault(line["member"], []).append(line)
    return {m: sorted(lines, key=lambda line: line["step"]) for m, lines in members.items()}


def _column(lines: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """One value of each line in float64; NaN where it is null or absent."""
    return np.array([line.get(name) for line in lines], np.float64)
