"""Tables with given columns as CSV files."""

import io
import math
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from normjax.files import one_line, read_text, replacing

DTYPES = {str: object, int: np.int64, float: np.float64}
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def write_columns(path: str | os.PathLike, table: pd.DataFrame) -> None:
    """Write any table as CSV and replace the file at `path` atomically.

    Floats are written with the shortest digits that restore the same float64, NaN as nan. Equal
    tables give equal bytes.
    """
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, na_rep="nan", lineterminator="\n")


def read_columns(path: str | os.PathLike, kinds: Mapping[str, type]) -> pd.DataFrame:
    """Read a table with these columns, each a str, int or float.

    Columns may be in any order; other columns are dropped. Tables that pandas or a spreadsheet has
    saved again are accepted: an empty cell is NaN in a float column, 3.0 is 3 in an integer column,
    and blank lines may follow the last one.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is not CSV or is truncated, a column is missing, or a value has the wrong
        type; the message names file and line.
    """
    path = Path(path)
    texts = _read_texts(path, kinds)
    return pd.DataFrame(
        {name: _parse_column(path, texts[name], kind) for name, kind in kinds.items()}
    )


def _read_texts(path: Path, needed: Collection[str]) -> pd.DataFrame:
    """Return a CSV file as strings; row i is line i + 2 of the file."""
    text = read_text(path)
    if not text:
        raise ValueError(f"{path}: the file is empty; a header line with the columns is needed")
    if not text.endswith("\n"):
        line = text.count("\n") + 1
        raise ValueError(
            f"{path}, line {line}: the file is truncated: its last line is incomplete, or only its "
            "line end is missing; lines must end in LF or CRLF"
        )
    for separator, word in _OTHER_SEPARATORS.items():
        if "," not in (start := text.partition("\n")[0]) and separator in start:
            raise ValueError(
                f"{path}, line 1: the columns are separated by {word}; commas are needed, and "
                "points in numbers"
            )
    text = re.sub(r"(\r?\n,*)+\Z", "\n", text)  # rows that a spreadsheet left empty
    try:
        # The C engine silently pads short lines.
        whole = pd.read_csv(
            io.StringIO(text, newline=""),
            engine="python",
            header=None,
            dtype=str,
            na_filter=False,
            skip_blank_lines=False,
        )
    except ValueError as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"{path}: not CSV ({one_line(error)})") from None
    if len(whole) != text.count("\n"):
        raise ValueError(f"{path}: a value contains a line break")
    header = whole.iloc[0].tolist()
    if missing := [name for name in needed if name not in header]:
        raise ValueError(f"{path}, line 1: missing column {', '.join(missing)}")
    if repeated := [name for name in needed if header.count(name) > 1]:
        raise ValueError(f"{path}, line 1: column {one_line(repeated[0], 40)} is repeated")
    table = whole.iloc[1:].set_axis(header, axis=1).reset_index(drop=True)
    if (cut := table.isna()).any(axis=None):
        row, column = np.argwhere(cut.to_numpy())[0]
        raise ValueError(
            f"{path}, line {row + 2}: {column} values for {len(header)} columns, the line is "
            f"truncated at column {one_line(header[column], 40)}"
        )
    return table


def _parse_column(path: Path, texts: pd.Series, kind: type) -> pd.Series:
    """Return a column of text as strings, int64 or float64."""
    values = []
    for row, text in enumerate(texts):
        place = f"{path}, line {row + 2}, column {texts.name}: {one_line(text, 40)!r}"
        try:
            value = _parse(text, kind)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise ValueError(f"{place} is not {wanted}") from None
        overflows = kind is float and math.isinf(value) and "inf" not in text.lower()
        if overflows or (kind is int and abs(value) >= 2**63):
            raise ValueError(f"{place} needs more than 64 bits")
        values.append(value)
    return pd.Series(values, dtype=DTYPES[kind])


def _parse(text: str, kind: type) -> Any:
    """Return a cell's value, also as pandas and spreadsheets write it."""
    if kind is float and not text:
        return math.nan
    if kind is int:
        text = re.sub(r"\.0+\Z", "", text)
    return kind(text)
