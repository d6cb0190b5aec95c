"""Networks as stars, colored by level, with one legend per figure.

A level is a number, or None for networks with random labels.
"""

from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from normjax.plots.style import LABEL_COLOR, STAR, TEST_COLOR

RANDOM_LABELS = "RL"
_NEAR = np.array([0.11, 0.07])  # texts closer than this fraction of a panel would overlap
_BESIDE = (-8, 9)  # points from a star to the center of its text

Level = float | None


def level_text(level: Level) -> str:
    """Return the label of a level in figures; "RL" for random labels, as in the paper."""
    return RANDOM_LABELS if level is None else f"{level:g}"


def level_colors(
    levels: Iterable[Level], shades: tuple[float, float] = (0.0, 0.87)
) -> dict[Level, tuple]:
    """Return {level: color} in ascending order, from viridis without its brightest colors.

    Random labels come last, in a color outside the scale.

    Args:
      levels: the levels.
      shades: the part of viridis, from 0 to 1.
    """
    known = set(levels)
    numbers = sorted(level for level in known if level is not None)
    found = matplotlib.colormaps["viridis"](np.linspace(*shades, len(numbers)))
    colors = dict(zip(numbers, map(tuple, found), strict=True))
    return colors | ({None: to_rgba(TEST_COLOR)} if None in known else {})


def draw_stars(
    axes: Axes,
    x: np.ndarray,
    y: np.ndarray,
    levels: Sequence[Level],
    colors: Mapping[Level, tuple],
) -> None:
    """Draw a star per network.

    Args:
      axes: the panel.
      x: float [n].
      y: float [n].
      levels: n levels.
      colors: `level_colors` of all levels of the figure.
    """
    for level, color in colors.items():
        own = _of_level(levels, level)
        # The underscore keeps the label out of the panel's own legend.
        axes.plot(x[own], y[own], **STAR, color=color, label=f"_{level_text(level)}", zorder=3)
    axes.margins(0.11, 0.09)


def write_levels(axes: Axes, x: np.ndarray, y: np.ndarray, levels: Sequence[Level]) -> None:
    """Write each level once, beside its highest network.

    Call this after the scales and margins of the panel are final. A label that would overlap
    another one, or stand closer to a network of another level, is omitted: the legend has it.
    """
    axes.autoscale_view()
    stars = axes.transData.transform(np.stack([x, y], axis=1))
    to_panel = axes.transAxes.inverted().transform
    written: list[np.ndarray] = []
    for level in level_colors(levels):
        own = _of_level(levels, level)
        highest = np.flatnonzero(own)[y[own].argmax()]
        text = stars[highest] + np.array(_BESIDE) * axes.figure.dpi / 72
        distances = np.linalg.norm(stars - text, axis=1)
        if distances[~own].min(initial=np.inf) < distances[own].min():
            continue
        place = to_panel(text)
        if any((np.abs(place - other) < _NEAR).all() for other in written):
            continue
        written.append(place)
        axes.annotate(
            level_text(level),
            (x[highest], y[highest]),
            _BESIDE,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8.5,
            color=LABEL_COLOR,
            zorder=2,  # below the stars
            path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
        )


def add_level_legend(figure: Figure, colors: Mapping[Level, tuple], title: str, most: int) -> None:
    """Add a legend of the levels below all panels, in even rows of at most `most` entries."""
    num_rows = -(-len(colors) // most)
    figure.legend(
        [Line2D([], [], **STAR, color=color) for color in colors.values()],
        list(map(level_text, colors)),
        title=title,
        loc="outside lower center",
        ncols=-(-len(colors) // num_rows),
        handletextpad=0.1,
        columnspacing=1.4,
    )


def _of_level(levels: Sequence[Level], level: Level) -> np.ndarray:
    """Return, per network, whether it has this level."""
    return np.array([other == level for other in levels], dtype=bool)
