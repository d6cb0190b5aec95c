"""Tables of numbers as CSV: columns by name."""

import csv
import os
from collections.abc import Mapping

import numpy as np

from normjax.files import one_line, read_csv, replacing


def write_table(path: str | os.PathLike, columns: Mapping[str, np.ndarray]) -> None:
    """Writes columns of one length as CSV, every digit kept; replaces `path` atomically."""
    lists = [np.asarray(column).tolist() for column in columns.values()]
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*lists, strict=True))


def read_table(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads what `write_table` wrote: columns of int64 or float64 by name.

    Raises:
      ValueError: it is something else, or is cut; the message names file and line.
    """
    header, lines = read_csv(path)
    table = {}
    for place, name in enumerate(header):
        texts = [fields[place] for fields in lines.values()]
        is_whole = all(text.lstrip("-").isdecimal() for text in texts)
        try:
            table[name] = np.array(texts).astype(np.int64 if is_whole else np.float64)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{path}, column {name}: {one_line(error)}") from None
    return table
