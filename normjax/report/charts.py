"""The interactive charts of a page: Vega-Lite specifications, their data, and the library.

Charts are dicts for JSON. Their colors are the CSS variables of `page.css`, so that dark, light and
print need no script. Lines are those of the analysis: nothing is fitted here or in the browser.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from normjax.controls.explain import Explanation
from normjax.plots.levels import Level, level_colors, level_text
from normjax.plots.panels import (
    AXIS_LABELS,
    Panel,
    in_excess,
    level_name,
    levels_of,
    needs_excess,
    needs_log,
)
from normjax.plots.paper import ERROR_PRODUCT_NORM, NORMALIZED, NORMALIZED_ERROR, PRODUCT_NORM, RAW
from normjax.results.metrics import column, lines_by_member
from normjax.results.table import is_finite, on_own_labels, select

LEVEL = Panel("Error by level", "level", "test_error")
PANELS = (NORMALIZED, RAW, NORMALIZED_ERROR, PRODUCT_NORM, ERROR_PRODUCT_NORM, LEVEL)
MOST_POINTS = 10_000  # of the curves of one quantity
_VEGA = Path(__file__).parent / "vega"
_IS_SHOWN = "shown === null || shown === datum.level"
_LIGHT, _DARK = (0.0, 0.59), (0.4, 1.0)  # parts of viridis with a contrast of 3 to the background

# {quantity in metrics.jsonl: (title, its label in `LABELS`)}
_CURVES = {
    "running_loss": ("Training loss", "train_loss"),
    "running_normalized_excess": ("Normalized training loss", "normalized_train_excess"),
    "running_log_product_norm": ("Product of norms", "log_product_norm"),
    "test_loss": ("Test loss", "test_loss"),
    "test_error": ("Test error", "test_error"),
}
# {column: (its name beside the pointer, its format)}
_WHO = {name: (name.capitalize(), "") for name in ("network", "family", "level", "seed", "epoch")}
_SHOWN = _WHO | {
    "train_loss": ("Train loss", ",.3~r"),
    "test_loss": ("Test loss", ",.3f"),
    "train_error": ("Train error", ".3~p"),
    "test_error": ("Test error", ".3~p"),
    "product_norm": ("Product of norms", ",.6~g"),
    "normalized_train_loss": ("Normalized train loss", ".6f"),
    "normalized_test_loss": ("Normalized test loss", ".6f"),
}
_DRAWN = ("normalized_train_excess", "normalized_test_excess", "normalized_test_error")
LABELS = AXIS_LABELS | {
    "level": "Level",
    "product_norm": "Product of the layers' norms",
    "log_product_norm": "ln of the product of norms",
}

_CONFIG = {
    "aria": False,  # the page has a text and a table for each chart
    "background": None,
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
    "view": {"stroke": None},
    "axis": {
        "domainColor": "var(--axis)",
        "gridColor": "var(--grid)",
        "labelColor": "var(--ticks)",
        "labelFontSize": 11,
        "tickColor": "var(--axis)",
        "tickCount": 5,
        "titleColor": "var(--ink)",
        "titleFontSize": 11.5,
        "titleFontWeight": "normal",
    },
}


@functools.cache
def library() -> str:
    """Return Vega and Vega-Lite as the text of a script, which defines `vega` and `vegaLite`."""
    license_text, *scripts = (
        (_VEGA / name).read_text(encoding="utf-8")
        for name in ("LICENSE", "vega.min.js", "vega-lite.min.js")
    )
    return "\n".join([f"/*\n{license_text}*/", *scripts])


def level_styles(levels: Iterable[Level]) -> dict[str, tuple[str, str]]:
    """Return {level: (color on white, color on black)} in ascending order."""
    levels = set(levels)
    light, dark = (level_colors(levels, shades) for shades in (_LIGHT, _DARK))
    return {level_text(level): (_hex(light[level]), _hex(dark[level])) for level in light}


def level_of(line: Mapping[str, Any]) -> Level:
    """Return the level of a line of metrics.jsonl; None for random labels."""
    return None if line["family"] == "random_labels" else line["level"]


def for_script(sources: Sequence[Mapping[str, Any]], first: Explanation) -> dict[str, Any]:
    """Return what `page.js` draws; the page opens with the selection and norm of `first`."""
    return {"config": _CONFIG, "first": (first.selection, first.norm), "sources": sources}


def scatters(
    place: str,
    panels: Sequence[Panel],
    table: pd.DataFrame,
    explanations: Iterable[Explanation],
    levels: Sequence[str],
) -> list[dict[str, Any]]:
    """Return the networks of each explanation, with the specification of a chart for each panel.

    Args:
      place: prefix of the ids of the charts' places on the page; the panel's number follows.
      panels: columns and lines of the charts.
      table: the results of a run.
      explanations: the explanations of its selections and norms, with the lines.
      levels: all levels of the page.
    """
    sources = []
    for found in explanations:
        rows = _rows(table, found)
        if rows.empty:
            continue
        shown = rows[[*_SHOWN, *_DRAWN]].to_dict("split")
        views = {
            f"{place}{i}": _scatter(each, rows, found, levels) for i, each in enumerate(panels)
        }
        group = (found.selection, found.norm)
        sources.append(_source(shown["columns"], shown["data"], views, group))
    return sources


def _rows(table: pd.DataFrame, found: Explanation) -> pd.DataFrame:
    """Return the networks of an explanation, one per row, with `network` and the level's text."""
    rows = on_own_labels(select(table, selection=found.selection, norm=found.norm))
    rows = rows[is_finite(rows)]
    has_several = table["experiment"].nunique() > 1
    names = rows["experiment"] + ", " + rows["member"].astype(str)
    rows = rows.assign(network=names if has_several else rows["member"])
    return rows.assign(level=list(map(level_text, levels_of(rows))))


def _scatter(
    panel: Panel, rows: pd.DataFrame, found: Explanation, levels: Sequence[str]
) -> dict[str, Any]:
    """Return the specification of a scatter plot."""
    if needs_excess(rows):
        panel = in_excess(panel)
    mark = {"type": "point", "filled": True, "size": 60, "stroke": "var(--ink)", "strokeWidth": 0.7}
    networks = {"mark": mark, "encoding": _colored(levels, 0.9) | {"tooltip": _tooltip(_SHOWN)}}
    layers = [networks]
    if panel.line and (fit := getattr(found, panel.line)):
        offset = found.ln_num_classes if panel.shows_excess else 0
        ends = np.array([rows[panel.x].min(), rows[panel.x].max()])
        heights = fit.predict(ends + offset) - offset
        if np.isfinite(heights).all():
            values = pd.DataFrame({panel.x: ends, panel.y: heights}).to_dict("records")
            line = {"type": "line", "color": "var(--line)", "strokeWidth": 1.3}
            layers = [{"data": {"values": values}, "mark": line}, networks]
    if panel.x == "level":
        x = {"field": "level", "type": "ordinal", "sort": list(levels), "title": level_name(rows)}
        x["axis"] = {"labelAngle": 0, "labelOverlap": True}
    else:
        x = _axis(panel.x, panel.x, needs_log(rows, panel.x))
    return _frame(layers) | {"encoding": {"x": x, "y": _axis(panel.y, panel.y)}}


def curves(
    place: str, lines: Sequence[Mapping[str, Any]], levels: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the curves, title and step of each quantity that was logged in training.

    For a quantity with more than `MOST_POINTS` values, every `step`-th epoch of each network is
    kept, counted back from its last one. Values are rounded to 4 digits.

    Args:
      place: prefix of the ids of the charts' places on the page; a number follows.
      lines: the lines of metrics.jsonl.
      levels: all levels of the page.
    """
    members = lines_by_member(lines).values()
    num_first = max((line["step"] for line in lines if line["phase"] == "pretrain"), default=0)
    start = {
        "data": {"values": [{"epoch": num_first + 0.5}] if num_first else []},
        "mark": {"type": "rule", "strokeDash": [4, 4], "color": "var(--line)"},
    }
    found = []
    for name, (title, unit) in _CURVES.items():
        known = [_known(own, name) for own in members]
        step = -(-sum(map(len, known)) // MOST_POINTS)
        if not step:
            continue
        rows = [_curve(own[::-step][::-1], name) for own in known if own]
        shown = _tooltip(_WHO | {"value": (title, ".3~p" if name == "test_error" else ",.4~r")})
        y = _axis("value", unit, name.endswith("_loss"))
        detail = {"y": y, "detail": {"field": "network"}}
        layers = [
            {"mark": {"type": "line", "strokeWidth": 1.3}, "encoding": _colored(levels, 0.8)},
            {
                "transform": [{"filter": _IS_SHOWN}],
                "mark": {"type": "line", "strokeWidth": 9, "opacity": 0},  # for the pointer
                "encoding": {"tooltip": shown},
            },
        ]
        layers = [{**layer, "encoding": detail | layer["encoding"]} for layer in layers]
        x = {"field": "epoch", "type": "quantitative", "title": "Epoch (of both phases)"}
        spec = _frame([start, *layers]) | {"encoding": {"x": x}}
        spec["transform"] = [{"flatten": ["epoch", "value"]}]
        views = {f"{place}{len(found)}": spec}
        found.append(_source([*_WHO, "value"], rows, views) | {"title": title, "step": step})
    return found


def _source(
    columns: Sequence[str],
    rows: Sequence[Any],
    views: Mapping[str, Any],
    group: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Return data and their charts, {id of the place: specification}; `group` if they have one."""
    return {"columns": columns, "rows": rows, "views": views, "group": group}


def _known(lines: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """Return the lines whose value can be drawn; logarithmic axes have no place for zero."""
    values = column(lines, name)
    is_known = np.isfinite(values) & ((values > 0) | (not name.endswith("_loss")))
    return [line for line, known in zip(lines, is_known, strict=True) if known]


def _curve(lines: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """Return number, family, level and seed of a network, and epochs and values of its curve."""
    who = lines[0]
    values = [float(f"{line[name]:.4g}") for line in lines]
    level = level_text(level_of(who))
    epochs = [line["step"] for line in lines]
    return [who["member"], who["family"], level, who["seed"], epochs, values]


def _frame(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a chart as wide as its place on the page; `shown` is the level that is not faint."""
    params = [{"name": "shown", "value": None}]
    return {"width": "container", "height": 260, "params": params, "layer": layers}


def _axis(field: str, unit: str, is_log: bool = False) -> dict[str, Any]:
    """Return a continuous axis with the label of `unit`."""
    label = LABELS[unit].removesuffix(" (%)") + (", log scale" if is_log else "")
    scale = {"padding": 8} | ({"type": "log", "nice": False} if is_log else {"zero": False})
    axis = {"format": "~%"} if unit.endswith("_error") else {}
    return {"field": field, "type": "quantitative", "title": label, "scale": scale, "axis": axis}


def _colored(levels: Sequence[str], opacity: float) -> dict[str, Any]:
    """Return the encoding of levels by color, and of levels that are not shown by opacity."""
    colors = {"domain": list(levels), "range": [f"var(--level-{i})" for i in range(len(levels))]}
    color = {"field": "level", "type": "nominal", "scale": colors, "legend": None}
    shown = {"test": _IS_SHOWN, "value": opacity}
    return {"color": color, "opacity": {"condition": shown, "value": 0.06}}


def _tooltip(shown: Mapping[str, tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"field": name, "title": title} | ({"format": form, "type": "quantitative"} if form else {})
        for name, (title, form) in shown.items()
    ]


def _hex(color: Sequence[float]) -> str:
    return "#" + bytes(round(255 * part) for part in color[:3]).hex()
