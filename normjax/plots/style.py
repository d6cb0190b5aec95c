"""Style, colors, layout and output of all figures."""

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from normjax.files import replacing

# For `matplotlib.style.context`. The defaults come first, to override the user's settings.
STYLE = ["default", str(Path(__file__).with_name("normjax.mplstyle"))]
TRAIN_COLOR, TEST_COLOR = "#0072b2", "#d55e00"  # Okabe-Ito, safe for color blindness
LABEL_COLOR, LINE_COLOR, QUIET_COLOR = "#b2182b", "#444444", "#9a9a9a"
STAR = {"marker": "*", "linestyle": "", "markersize": 10, "mec": "white", "mew": 0.5}


def new_figure(
    title: str, size: tuple[float, float], num_rows: int, num_columns: int
) -> tuple[Figure, list[Axes]]:
    """Return an empty figure and its panels, row by row. Call this and draw within `STYLE`.

    Args:
      title: the title at the upper left; dollar signs are not parsed as math.
      size: width and height in inches.
      num_rows: rows of panels.
      num_columns: columns of panels.
    """
    figure = Figure(figsize=size)
    figure.suptitle(title, x=0.012, ha="left", color="#333333", parse_math=False)
    return figure, list(figure.subplots(num_rows, num_columns, squeeze=False).flat)


def join_title(parts: Sequence[str]) -> str:
    """Join the nonempty parts of a title with dots."""
    return " · ".join(part for part in parts if part)


def set_linear_ticks(axis: Axis, num_ticks: int) -> None:
    """Set at most `num_ticks` intervals, and place a common power of ten outside the corner."""
    axis.set_major_locator(MaxNLocator(num_ticks))
    outside, alignment = (1.0, "left") if isinstance(axis, XAxis) else (-0.02, "right")
    axis.get_offset_text().set(x=outside, horizontalalignment=alignment)


def write_reason(axes: Axes, reason: str) -> None:
    """Write why a panel is empty."""
    axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", wrap=True)
    axes.set_xticks([])
    axes.set_yticks([])


def save_figure(figure: Figure, path_without_suffix: str | os.PathLike) -> list[Path]:
    """Write a figure as .png and .pdf, each atomically; equal figures give equal bytes."""
    paths = []
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        path = Path(f"{os.fspath(path_without_suffix)}.{suffix}")
        with replacing(path) as temporary, matplotlib.style.context(STYLE):
            figure.savefig(temporary, format=suffix, metadata=metadata)
        paths.append(path)
    return paths
