"""What a run found, in numbers: the fits, the controls, the rank correlations (`summary.json`)."""

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from normjax.files import replacing
from normjax.norms import norm_name  # noqa: F401 (its importers move)
from normjax.results import rows as results
from normjax.results.rows import ResultRow
from normjax.statistics import regression, resampling

SUMMARY_FILE = "summary.json"
_MEASURES = ("product_norm", "normalized_train_loss", "train_loss")


def summarize(rows: Sequence[ResultRow]) -> dict[str, Any]:
    """The fits, controls and rank correlations of a run, per selection and norm.

    Every network is taken as evaluated on the labels that it was trained on.

    Returns:
      A dictionary that JSON can hold: {"experiment", "num_members", "selections": {selection:
      {norm: part}}}, with these values in each part:
        num_members: how many networks entered; left_out: those that did not, each with its reason;
        not_interpolating: those that entered with a training error above zero;
        ln_num_classes: ln K;
        normalized_fit: `regression.fit_line` of normalized test loss on normalized training loss;
        raw_fit: the same of the losses of the networks as trained;
        anchored_fit: `regression.fit_through_anchor` of the normalized losses, anchor ln K;
        norm_permutation: `resampling.permute_norms`;
        test_error_correlations: {measure: {"spearman", "kendall"}} of the test error with
          product_norm, normalized_train_loss and train_loss (tau-b for ties);
        reasons: {name: why} for each of the above that is null, for example too few points.

    Raises:
      ValueError: no rows at all.
    """
    if not rows:
        raise ValueError("no results to summarize")
    rows = results.on_own_labels(rows)
    selections: dict[str, dict[str, Any]] = {}
    for selection, norm in groups(rows):
        selections.setdefault(selection, {})[norm] = _summarize_group(rows, selection, norm)
    return {
        "experiment": rows[0].experiment,
        "num_members": len({row.member for row in rows}),
        "selections": selections,
    }


def write_summary(path: str | os.PathLike, summary: dict[str, Any]) -> None:
    """Writes the summary as JSON; replaces `path` atomically."""
    text = json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def groups(rows: Sequence[ResultRow]) -> list[tuple[str, str]]:
    """The (selection, norm) pairs there are, in order of first appearance."""
    return list(dict.fromkeys((row.selection, row.norm) for row in rows))


def finite_rows(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """The rows of networks that did not diverge: every number in them is finite."""
    return [
        row
        for row in rows
        if all(math.isfinite(getattr(row, name)) for name in results.FLOAT_COLUMNS)
    ]


def member_name(row: ResultRow) -> str:
    """How a network is called in texts: its number, family, level and seed."""
    return f"member {row.member} ({row.family}, level {row.level:g}, seed {row.seed})"


def selection_name(selection: str) -> str:
    """A selection in words."""
    if selection == "final":
        return "last epoch"
    return selection.replace("loss=", "training loss nearest ")


def figure_stem(kind: str, selection: str, norm: str = "") -> str:
    """The file name, less its suffix, of a figure of one selection and norm."""
    name = "__".join(part for part in (kind, selection, norm) if part)
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def _summarize_group(rows: Sequence[ResultRow], selection: str, norm: str) -> dict[str, Any]:
    """The part of the summary that belongs to one selection and one norm."""
    group = results.select(rows, selection=selection, norm=norm)
    points = finite_rows(group)
    column = {
        name: np.array([getattr(row, name) for row in points], np.float64)
        for name in ("test_loss", "test_error", "normalized_test_loss", *_MEASURES)
    }
    train_excess = [row.normalized_train_excess for row in points]
    test_excess = [row.normalized_test_excess for row in points]
    parts: dict[str, Callable[[], Any]] = {
        "normalized_fit": lambda: regression.fit_line(
            column["normalized_train_loss"], column["normalized_test_loss"]
        ),
        "raw_fit": lambda: regression.fit_line(column["train_loss"], column["test_loss"]),
        # In terms of the excess, the point (ln K, ln K) is the origin, and no digits are lost.
        "anchored_fit": lambda: regression.fit_through_anchor(train_excess, test_excess, 0.0),
        "norm_permutation": lambda: resampling.permute_norms(
            train_excess, test_excess, column["product_norm"]
        ),
    }
    reasons: dict[str, str] = {}
    values = {name: _attempt(name, compute, reasons) for name, compute in parts.items()}
    correlations = {
        name: _attempt(
            f"test_error_correlations.{name}",
            lambda name=name: _rank_correlations(column[name], column["test_error"]),
            reasons,
        )
        for name in _MEASURES
    }
    return {
        "num_members": len(points),
        "left_out": _left_out(rows, group, points),
        "not_interpolating": [member_name(row) for row in points if row.train_error > 0],
        "ln_num_classes": _ln_num_classes(points),
        **values,
        "test_error_correlations": correlations,
        "reasons": reasons,
    }


def _attempt(name: str, compute: Callable[[], Any], reasons: dict[str, str]) -> Any:
    """The result as a dictionary with None for NaN; if there is none, None and a reason."""
    value = regression.attempt(reasons, name, compute)
    if value is None:
        return None
    fields = value if isinstance(value, dict) else _fields(value)
    return {
        key: None if isinstance(field, float) and math.isnan(field) else field
        for key, field in fields.items()
    }


def _fields(value: Any) -> dict[str, Any]:
    """Names and values of a dataclass's or a NamedTuple's fields."""
    return value._asdict() if isinstance(value, tuple) else dict(vars(value))


def _rank_correlations(measure: np.ndarray, test_error: np.ndarray) -> dict[str, float]:
    """Spearman's rho and Kendall's tau-b of a measure with the test error."""
    measure, test_error = regression.check_points(measure, test_error, minimum=3)
    if np.ptp(measure) == 0 or np.ptp(test_error) == 0:
        raise ValueError("no spread: all networks have the same value")
    return {
        "spearman": float(stats.spearmanr(measure, test_error).statistic),
        "kendall": float(stats.kendalltau(measure, test_error).statistic),
    }


def _left_out(
    rows: Sequence[ResultRow], group: Sequence[ResultRow], points: Sequence[ResultRow]
) -> list[dict[str, str]]:
    """The run's members that are not among the points, each with its reason."""
    present = {row.member for row in group}
    kept = {row.member for row in points}
    diverged = "diverged: a loss or a norm is not finite"
    absent = f"no snapshot at zero training error for selection {group[0].selection}"
    one_row = {row.member: row for row in rows}
    return [
        {"member": member_name(row), "reason": diverged if member in present else absent}
        for member, row in sorted(one_row.items())
        if member not in kept
    ]


def _ln_num_classes(points: Sequence[ResultRow]) -> float | None:
    """ln K, which is the normalized loss minus its excess; None without points."""
    if not points:
        return None
    return float(
        np.mean([row.normalized_train_loss - row.normalized_train_excess for row in points])
    )
