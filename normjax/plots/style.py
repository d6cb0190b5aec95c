"""What all figures share: style, colors, title, ticks, and how they are written to files."""

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from normjax.files import replacing

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text in the PDF
    "savefig.dpi": 200,
}
TRAIN_COLOR, TEST_COLOR = "#0072b2", "#d55e00"  # Okabe and Ito's, safe for color-blind readers
LABEL_COLOR, LINE_COLOR = "#b2182b", "#444444"


def new_figure(
    title: str, size: tuple[float, float], num_rows: int, num_columns: int
) -> tuple[Figure, list[Axes]]:
    """An empty figure and its panels, row by row; to be called, and drawn into, within `STYLE`.

    Args:
      title: stands at the upper left; a dollar sign in it starts no formula.
      size: width and height in inches.
      num_rows, num_columns: of panels.
    """
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06, wspace=0.04, hspace=0.05)
    figure.suptitle(plain(title), x=0.012, ha="left", fontsize=10, color="#333333")
    return figure, list(figure.subplots(num_rows, num_columns, squeeze=False).flat)


def join_title(parts: Sequence[str]) -> str:
    """The parts of a title that are not empty, with dots between them."""
    return " · ".join(part for part in parts if part)


def set_linear_ticks(axis: Axis, num_ticks: int) -> None:
    """At most `num_ticks` intervals, numbers in full or times a power of ten, no offset.

    The power of ten stands outside the panel's corner, where no label or title comes.
    """
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_powerlimits((-3, 4))
    axis.set_major_formatter(formatter)
    axis.set_major_locator(MaxNLocator(num_ticks))
    outside, alignment = (1.0, "left") if axis.axis_name == "x" else (-0.02, "right")
    axis.get_offset_text().set(x=outside, horizontalalignment=alignment)


def digits(value: float) -> str:
    """Four significant digits."""
    return f"{value:#.4g}".rstrip(".")


def plain(text: str) -> str:
    """Text in which a dollar sign does not start a formula."""
    return text.replace("$", r"\$")


def save_figure(figure: Figure, path_without_suffix: str | os.PathLike) -> list[Path]:
    """Writes the figure as .png and as .pdf, each atomically; equal figures give equal bytes."""
    paths = []
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        path = Path(f"{os.fspath(path_without_suffix)}.{suffix}")
        with replacing(path) as temporary, matplotlib.rc_context(STYLE):
            figure.savefig(temporary, format=suffix, metadata=metadata)
        paths.append(path)
    return paths
