"""The results of a run as a table: one row per member, selection and norm (`results.csv`)."""

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from normjax.files import one_line, read_csv, replacing

RESULTS_FILE = "results.csv"


class ResultRow(NamedTuple):
    """One trained network, at one selected epoch, normalized by one norm.

    Losses are mean cross-entropies in nats, errors are fractions in [0, 1]. `excess` is the loss
    minus ln K, computed without cancellation, so it keeps its digits where the loss itself is
    indistinguishable from ln K. A diverged member has NaN in its losses.

    Attributes:
      experiment: the entry point that wrote the row, e.g. "random_pretrain".
      member: number of the network within the run.
      seed: seed of the network's initialization and label corruption.
      family: "pretrain", "init_scale", "default_init" or "random_labels".
      level: corruption fraction, or the initial standard deviation.
      labels: "natural" or "random": the labels evaluated on. A network of family "random_labels"
        has rows of both kinds; its training was on the random ones.
      selection: "final" or "loss=0.0044" (the snapshot nearest that training loss).
      epoch: epoch of the selected snapshot.
      norm: "2", "1", "inf", "spectral", or with its scale "1/100".
      product_norm: prod_k ||W_k||, eq. 2.
      train_loss: loss of the network as trained, on the training set.
      train_error: error on the training set.
      test_loss: loss of the network as trained, on the test set.
      test_error: error on the test set.
      normalized_train_loss: loss of the normalized network, on the training set.
      normalized_test_loss: loss of the normalized network, on the test set.
      normalized_train_error: error of the normalized network on the training set.
      normalized_test_error: error of the normalized network on the test set.
      normalized_train_excess: normalized_train_loss - ln K.
      normalized_test_excess: normalized_test_loss - ln K.
    """

    experiment: str
    member: int
    seed: int
    family: str
    level: float
    labels: str
    selection: str
    epoch: int
    norm: str
    product_norm: float
    train_loss: float
    train_error: float
    test_loss: float
    test_error: float
    normalized_train_loss: float
    normalized_test_loss: float
    normalized_train_error: float
    normalized_test_error: float
    normalized_train_excess: float
    normalized_test_excess: float


COLUMNS = ResultRow._fields
_COLUMN_TYPES = ResultRow.__annotations__
FLOAT_COLUMNS = tuple(name for name, kind in _COLUMN_TYPES.items() if kind is float)

# What stands in several rows of one network, and must be the same in all of them.
_NETWORK, _EVALUATION = ("experiment", "member"), ("experiment", "member", "labels", "selection")
_REPEATED = {
    _NETWORK: ("seed", "family", "level"),
    _EVALUATION: ("epoch", "train_loss", "train_error", "test_loss", "test_error"),
}
_TOLERANCE = 1e-6  # ours are right to 1e-15 of themselves; a rounded table is read as well


def write_results(path: str | os.PathLike, rows: Iterable[ResultRow]) -> None:
    """Writes rows as CSV, columns in the order of `ResultRow`; replaces `path` atomically.

    Floats are written with the digits that give the same float64 back, so equal rows make equal
    bytes. NumPy and JAX scalars are accepted.
    """
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow(_COLUMN_TYPES[name](getattr(row, name)) for name in COLUMNS)


def read_results(path: str | os.PathLike) -> list[ResultRow]:
    """Reads `results.csv`, given the file or the run folder that holds it.

    Columns may stand in any order; columns that are not part of `ResultRow` are ignored. NaN is
    read where a member can have it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing, a value is not what its column means, a line is cut, stands
        twice, lacks or contradicts another of the same network; the message names file and line.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RESULTS_FILE
    header, lines = read_csv(path, COLUMNS)
    rows = {}
    for number, fields in lines.items():
        place = f"{path}, line {number}"
        rows[number] = _parse_row(dict(zip(header, fields, strict=True)), place)
        _check_row(rows[number], place)
    _check_table(rows, path)
    return list(rows.values())


def select(
    rows: Sequence[ResultRow], *, selection: str | None = None, norm: str | None = None
) -> list[ResultRow]:
    """The rows of one selection and one norm, in their order; None keeps all.

    Raises:
      ValueError: no row has that selection or norm; the message lists those there are.
    """
    for name, wanted in (("selection", selection), ("norm", norm)):
        known = sorted({getattr(row, name) for row in rows})
        if wanted is not None and wanted not in known:
            raise ValueError(f"no results for {name} {wanted!r}; there are: {', '.join(known)}")
    return [row for row in rows if selection in (None, row.selection) and norm in (None, row.norm)]


def on_own_labels(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """The rows whose networks are evaluated on the labels that they were trained on."""
    return [row for row in rows if (row.family == "random_labels") == (row.labels == "random")]


def _parse_row(values: dict[str, str], place: str) -> ResultRow:
    """One line's values, converted to the types of their columns."""
    parsed = {}
    for name, kind in _COLUMN_TYPES.items():
        text = values[name]
        try:
            parsed[name] = kind(text)
            if kind is float and math.isinf(parsed[name]) and "inf" not in text.lower():
                raise ValueError("it has overflowed")
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            text = one_line(text, 40)
            raise ValueError(f"{place}, column {name}: {text!r} is not {wanted}") from None
    return ResultRow(**parsed)


def _check_row(row: ResultRow, place: str) -> None:
    """Raises ValueError if a value can't be what its column means; NaN can be any loss or error."""

    def check(ok: bool, name: str, allowed: str) -> None:
        if not ok:
            value = one_line(repr(getattr(row, name)), 40)
            raise ValueError(f"{place}, column {name}: {value} is not possible: {allowed}")

    for name in ("experiment", "family", "selection", "norm"):
        check(bool(getattr(row, name)), name, "it must not be empty")
    check(row.labels in ("natural", "random"), "labels", "natural or random")
    check(0 <= row.level < math.inf, "level", "at least 0 and finite")
    for name in ("member", "seed", "epoch", "product_norm"):
        check(not getattr(row, name) < 0, name, "at least 0")
    for name in FLOAT_COLUMNS:
        value = getattr(row, name)
        if name.endswith("_loss"):  # which rounding may take below 0
            check(not value < -_TOLERANCE, name, "at least 0")
        if name.endswith("_error"):
            check(not (value < 0 or value > 1), name, "from 0 to 1")
    train = row.normalized_train_loss - row.normalized_train_excess
    test = row.normalized_test_loss - row.normalized_test_excess
    scale = max(1.0, abs(row.normalized_train_loss), abs(row.normalized_test_loss))
    if abs(train - test) > _TOLERANCE * scale:
        raise ValueError(
            f"{place}: loss less excess is ln K, which can't be {train:g} for the training set and "
            f"{test:g} for the test set"
        )


def _check_table(rows: Mapping[int, ResultRow], path: Path) -> None:
    """Raises ValueError if lines (by number) stand twice, contradict one another or are missing."""
    first: dict[tuple, tuple[int, ResultRow]] = {}
    lines_of: dict[tuple, dict[str, int]] = {}
    for line, row in rows.items():
        for keys, names in _REPEATED.items():
            earlier, other = first.setdefault(_values(row, keys), (line, row))
            for name in names:
                value, expected = getattr(row, name), getattr(other, name)
                if repr(value) != repr(expected):  # NaN is the same as NaN
                    raise ValueError(
                        f"{path}, line {line}, column {name}: {one_line(repr(value), 40)}, but "
                        f"line {earlier} of the same network has {one_line(repr(expected), 40)}"
                    )
        norms = lines_of.setdefault(_values(row, _EVALUATION), {})
        if row.norm in norms:
            raise ValueError(f"{path}, line {line}: stands already in line {norms[row.norm]}")
        norms[row.norm] = line
    all_norms = {row.norm for row in rows.values()}
    for norms in lines_of.values():
        if missing := sorted(all_norms - set(norms)):
            raise ValueError(
                f"{path}, line {min(norms.values())}: this network has no line for norm "
                f"{one_line(missing[0], 40)}"
            )


def _values(row: ResultRow, names: Iterable[str]) -> tuple:
    return tuple(getattr(row, name) for name in names)
