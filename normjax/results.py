"""The results of a run as a table: one row per member, selection and norm (`results.csv`)."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

RESULTS_FILE = "results.csv"


class ResultRow(NamedTuple):
    """One trained network, at one selected epoch, normalised by one norm.

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
      normalized_train_loss: loss of the normalised network, on the training set.
      normalized_test_loss: loss of the normalised network, on the test set.
      normalized_train_error: error of the normalised network on the training set.
      normalized_test_error: error of the normalised network on the test set.
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


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it replaces `path`, on failure it goes.

    A reader therefore never sees half a file. Parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """An OSError within it names the file; of a full disk, Python says nothing but that it is."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or os.fspath(path)
        raise


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

    Columns may stand in any order; columns that are not part of `ResultRow` are ignored.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing, a value is not a number, or a line is cut; the message names
        file, line and column.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RESULTS_FILE
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 (byte {error.start})") from None
    if not text:
        raise ValueError(f"{path}: the file is empty; a header line with the columns is needed")
    if not text.endswith("\n"):
        line = text.count("\n") + 1
        raise ValueError(f"{path}, line {line}: the file is cut, its last line has no line end")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader)
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            raise ValueError(f"{path}, line 1: missing column {', '.join(missing)}")
        rows = []
        for fields in reader:
            place = f"{path}, line {reader.line_num}"
            if len(fields) != len(header):
                column = header[len(fields)] if len(fields) < len(header) else header[-1]
                raise ValueError(
                    f"{place}: {len(fields)} values for {len(header)} columns, "
                    f"the line is cut or torn at column {column}"
                )
            rows.append(_parse_row(dict(zip(header, fields, strict=True)), place))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error})") from None
    return rows


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
        try:
            parsed[name] = kind(values[name])
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise ValueError(f"{place}, column {name}: {values[name]!r} is not {wanted}") from None
    return ResultRow(**parsed)
