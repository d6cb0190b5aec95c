"""summary.json: the explanation of every selection and norm of a run."""

import dataclasses
import json
import math
import os
import sys
import types
import typing
from pathlib import Path
from typing import Any

import pandas as pd

from normjax.controls.explain import Explanation, explain_line
from normjax.files import one_line, read_text, replacing
from normjax.results.table import check_table, groups, on_own_labels

SUMMARY_FILE = "summary.json"


def explain_all(table: pd.DataFrame) -> list[Explanation]:
    """Explain every selection and norm of a results table, in order of first appearance.

    Raises:
      ValueError: the table is damaged (see `check_table`) or empty.
    """
    table = on_own_labels(check_table(table))
    if table.empty:
        raise ValueError("no results to explain")
    return [explain_line(table, selection, norm) for selection, norm in groups(table)]


def write_summary(path: str | os.PathLike, explanations: list[Explanation]) -> None:
    """Write explanations as a JSON list, atomically; numbers that are not finite become null."""
    write_plain_json(path, explanations)


def write_plain_json(path: str | os.PathLike, value: Any) -> None:
    """Write dataclasses, dicts and sequences as JSON; numbers that are not finite become null."""
    text = json.dumps(_plain(value), indent=2, allow_nan=False, ensure_ascii=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_summary(path: str | os.PathLike) -> list[Explanation]:
    """Read summary.json, given the file or the folder of its run.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the content is not from `write_summary`; the message names the file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / SUMMARY_FILE
    text = read_text(path)
    try:
        values = json.loads(text, parse_constant=_refuse)
        return list(_parse(tuple[Explanation, ...], values, "it"))
    except RecursionError:
        raise ValueError(f"{path}: not JSON (too deeply nested)") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({one_line(error)})") from None
    except ValueError as error:
        raise ValueError(f"{path}: not the summary of a run: {one_line(error, 300)}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"not JSON ({constant})")


def _plain(value: Any) -> Any:
    """Convert a value to JSON types."""
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse(kind: Any, value: Any, place: str) -> Any:
    """Invert `_plain` for a value of this type; a null float becomes NaN."""
    if isinstance(kind, types.UnionType):
        present = typing.get_args(kind)[0]  # every union here is with None
        return None if value is None else _parse(present, value, place)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if not isinstance(value, dict) or set(value) != set(hints):
            raise ValueError(f"{place} is not an object with the fields of {kind.__name__}")
        return kind(**{n: _parse(hint, value[n], f"{place}.{n}") for n, hint in hints.items()})
    if origin is dict and isinstance(value, dict):
        return {key: _parse(arguments[1], item, f"{place}.{key}") for key, item in value.items()}
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) == len(value):
            items = enumerate(zip(kinds, value, strict=True))
            return tuple(_parse(kind, item, f"{place}[{i}]") for i, (kind, item) in items)
    if kind is float:
        if value is None:
            return math.nan
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) <= sys.float_info.max
        ):
            return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise ValueError(f"{place} is {one_line(repr(value), 40)}, not of type {kind}")
