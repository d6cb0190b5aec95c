"""One panel of the paper's figures: networks as stars, and their line."""

import dataclasses

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normjax.controls.explain import Explanation
from normjax.formatting import fixed, number
from normjax.norms import norm_name
from normjax.plots.levels import RANDOM_LABELS, Level, draw_stars, write_levels
from normjax.plots.style import LINE_COLOR, set_linear_ticks
from normjax.statistics.regression import LineFit

_LOG_SPAN = 100  # product norms with a larger ratio use a logarithmic axis
_LEAST_EXCESS, _LEAST_SPREAD = 1e-3, 1e-5  # nats; below these, the axis shows the excess

AXIS_LABELS = {
    "train_loss": "Training cross-entropy (nats)",
    "test_loss": "Test cross-entropy (nats)",
    "test_error": "Test error (%)",
    "normalized_train_loss": "Normalized training cross-entropy (nats)",
    "normalized_test_loss": "Normalized test cross-entropy (nats)",
    "normalized_train_excess": "Normalized training cross-entropy - ln K (nats)",
    "normalized_test_excess": "Normalized test cross-entropy - ln K (nats)",
    "normalized_test_error": "Test error (%)",
}
_LEVEL_NAMES = {
    "pretrain": "Fraction of corrupted labels in pretraining",
    "init_scale": "Standard deviation of the initial weights",
    "default_init": "Fraction of corrupted labels",
    "random_labels": "Labels",
}
_EXCESS_OF = {
    f"normalized_{split}_loss": f"normalized_{split}_excess" for split in ("train", "test")
}


@dataclasses.dataclass(frozen=True)
class Panel:
    """The content of one panel.

    Attributes:
      title: the title.
      x: column of the results on the horizontal axis.
      y: column on the vertical axis.
      line: field of the `Explanation` with the line, "fit" or "raw_fit"; "" for none.
    """

    title: str
    x: str
    y: str
    line: str = ""

    @property
    def shows_excess(self) -> bool:
        """Return whether normalized losses are drawn minus ln K."""
        return self.x in _EXCESS_OF.values()


def draw_panel(
    axes: Axes,
    panel: Panel,
    networks: pd.DataFrame,
    found: Explanation,
    colors: dict[Level, tuple],
    has_numbers: bool,
) -> None:
    """Draw the networks colored by level, their line with its numbers, and the axes.

    Args:
      axes: the Matplotlib axes.
      panel: the content.
      networks: a row per network.
      found: the explanation of these networks.
      colors: {level: color}.
      has_numbers: whether any panel of the figure has a line; then all titles leave room for it.
    """
    x, y = values_of(networks, panel.x), values_of(networks, panel.y)
    levels = levels_of(networks)
    draw_stars(axes, x, y, levels, colors)
    axes.set_title(panel.title, pad=30 if has_numbers else 6)
    if panel.line:
        _draw_fit(axes, panel, np.array([x.min(), x.max()]), found)
    for name, num_ticks, axis, set_scale, set_label in (
        (panel.x, 4, axes.xaxis, axes.set_xscale, axes.set_xlabel),
        (panel.y, 5, axes.yaxis, axes.set_yscale, axes.set_ylabel),
    ):
        label = _axis_label(name, found.norm)
        if needs_log(networks, name):
            set_scale("log")
            label += ", log scale"
        else:
            set_linear_ticks(axis, num_ticks)
        is_too_high = name == panel.y and name in _EXCESS_OF.values()
        set_label(label.replace(" cross-entropy", "\ncross-entropy") if is_too_high else label)
    write_levels(axes, x, y, levels)


def draw_line(
    axes: Axes, fit: LineFit, ends: np.ndarray, ln_num_classes: float | None = None, **style
) -> None:
    """Draw a line of losses between two points of the horizontal axis.

    Args:
      axes: the panel.
      fit: the line, in terms of the losses.
      ends: float [2], the horizontal coordinates as drawn.
      ln_num_classes: ln K if the axes show losses minus ln K, else None.
      **style: properties of the line.
    """
    style = {"color": LINE_COLOR, "lw": 1.3, "zorder": 1.5} | style
    offset = ln_num_classes or 0.0
    axes.plot(ends, fit.predict(ends + offset) - offset, **style)


def needs_excess(networks: pd.DataFrame) -> bool:
    """Return whether normalized losses are too close to ln K, or to each other, to be readable."""
    excess = networks[list(_EXCESS_OF.values())].to_numpy()
    is_small = (np.abs(excess) < _LEAST_EXCESS).all()
    return bool(is_small or (np.ptp(excess, axis=0) < _LEAST_SPREAD).any())


def in_excess(panel: Panel) -> Panel:
    """Return the panel with excess losses instead of normalized losses."""
    x, y = (_EXCESS_OF.get(name, name) for name in (panel.x, panel.y))
    return dataclasses.replace(panel, x=x, y=y)


def values_of(networks: pd.DataFrame, name: str) -> np.ndarray:
    """Return a column in the unit of the plot: errors in percent."""
    factor = 100 if name.endswith("_error") else 1
    return factor * networks[name].to_numpy()


def levels_of(networks: pd.DataFrame) -> list[Level]:
    """Return the level of each network; None for random labels."""
    is_random = networks["labels"] == "random"
    return [
        None if random else level
        for random, level in zip(is_random, networks["level"], strict=True)
    ]


def level_name(networks: pd.DataFrame) -> str:
    """Return the name of the level for the legend and the axis."""
    is_random = networks["labels"] == "random"
    families = [*networks["family"][~is_random], "random_labels"]
    explanation = f" ({RANDOM_LABELS}: random labels)" if is_random.any() else ""
    return _LEVEL_NAMES.get(families[0], "Level") + explanation


def _draw_fit(axes: Axes, panel: Panel, ends: np.ndarray, found: Explanation) -> None:
    """Draw the line and write its numbers; the intercept always refers to the losses."""
    fit = getattr(found, panel.line)
    if fit is None:
        numbers = f"no line: {found.reasons[panel.line]}"
    else:
        draw_line(axes, fit, ends, found.ln_num_classes if panel.shows_excess else None)
        intercept = "intercept of the losses" if panel.shows_excess else "intercept"
        numbers = (
            f"R² {fixed(fit.r2, 5)}    adjusted R² {fixed(fit.adjusted_r2, 5)}    "
            f"RMSE {number(fit.rmse, 4)}\n"
            f"slope {number(fit.slope, 4)}    {intercept} {number(fit.intercept, 4)}"
        )
    axes.annotate(
        numbers, (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", fontsize=8.5
    )


def needs_log(networks: pd.DataFrame, name: str) -> bool:
    """Return whether the column is the product of norms and spans more than two decades."""
    values = networks[name]
    return name == "product_norm" and values.max() > _LOG_SPAN * values.min() > 0


def _axis_label(name: str, norm: str) -> str:
    """Return the name and unit of a column; for the product of norms, also the norm."""
    if name != "product_norm":
        return AXIS_LABELS[name]
    norms = norm_name(norm).replace(" norm", " norms").replace("$", r"\$")
    return rf"Product $\prod_k \|W_k\|$ of the layers' {norms}"
