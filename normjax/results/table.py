"""results.csv as a pandas DataFrame: one row per network, selection, kind of labels and norm.

| column | meaning |
| --- | --- |
| experiment | the command that wrote the row, such as `random_pretrain` |
| member | number of the network in its run |
| seed | seed of its initialization and label corruption |
| family | `pretrain`, `init_scale`, `default_init` or `random_labels` |
| level | corruption fraction, or the initial standard deviation |
| labels | `natural` or `random`: the labels it is evaluated on |
| selection | `final`, or `loss=0.0044` for the snapshot nearest that training loss |
| epoch | epoch of the selected snapshot |
| norm | `2`, `1`, `inf`, `spectral`; with a scale, `1/100` |
| product_norm | product of the layers' norms, eq. 2 |
| {train,test}_{loss,error} | mean cross entropy in nats and error in [0, 1], as trained |
| normalized_{train,test}_{loss,error} | the same for the normalized network |
| normalized_{train,test}_excess | normalized loss - ln K, without cancellation |

A network of family `random_labels` is trained on random labels and has rows for both kinds. A
network that diverged has NaN in its losses.
"""

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from normjax.files import one_line, read_text, replacing

RESULTS_FILE = "results.csv"
COLUMNS: dict[str, type] = {
    "experiment": str,
    "member": int,
    "seed": int,
    "family": str,
    "level": float,
    "labels": str,
    "selection": str,
    "epoch": int,
    "norm": str,
    "product_norm": float,
    "train_loss": float,
    "train_error": float,
    "test_loss": float,
    "test_error": float,
    "normalized_train_loss": float,
    "normalized_test_loss": float,
    "normalized_train_error": float,
    "normalized_test_error": float,
    "normalized_train_excess": float,
    "normalized_test_excess": float,
}
FLOAT_COLUMNS = [name for name, kind in COLUMNS.items() if kind is float]
_DTYPES = {str: object, int: np.int64, float: np.float64}

# What several rows of one network share, by what identifies the network.
_NETWORK, _EVALUATION = ["experiment", "member"], ["experiment", "member", "labels", "selection"]
_SHARED = (
    (_NETWORK, ("seed", "family", "level")),
    (_EVALUATION, ("epoch", "train_loss", "train_error", "test_loss", "test_error")),
)
_TOLERANCE = 1e-6  # our tables are right to 1e-15; rounded ones can be read too


def make_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows as a table with the columns and dtypes of results.csv."""
    table = pd.DataFrame(list(rows), columns=list(COLUMNS))
    return table.astype({name: _DTYPES[kind] for name, kind in COLUMNS.items()})


def write_results(path: str | os.PathLike, table: pd.DataFrame) -> None:
    """Write results.csv and replace the file at `path` atomically."""
    write_columns(path, table[list(COLUMNS)])


def write_columns(path: str | os.PathLike, table: pd.DataFrame) -> None:
    """Write any table as CSV and replace the file at `path` atomically.

    Floats have the shortest digits that give the same float64 back, so that equal tables make equal
    bytes; NaN is written as nan.
    """
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, na_rep="nan", lineterminator="\n")


def read_columns(path: str | os.PathLike, kinds: Mapping[str, type]) -> pd.DataFrame:
    """Read a table with these columns, each a str, int or float.

    Columns may be in any order; further columns are dropped.

    Raises:
      OSError: the file can not be read.
      ValueError: it is not CSV or cut, a column is missing, or a value is of another type; the
        message names file and line.
    """
    path = Path(path)
    texts = read_texts(path, kinds)
    return pd.DataFrame({n: parse_column(path, texts[n], kind) for n, kind in kinds.items()})


def read_results(path: str | os.PathLike) -> pd.DataFrame:
    """Read results.csv, given the file or the folder of the run that holds it.

    Columns may be in any order; further columns are dropped.

    Returns:
      The table, with the columns of the module's docstring: strings, int64 and float64.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing, a value is not possible in its column, a line is cut or
        repeated, or lines of one network contradict each other; the message names file and line.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RESULTS_FILE
    table = read_columns(path, COLUMNS)
    _check_values(table, path)
    _check_networks(table, path)
    return table


def read_texts(path: Path, needed: Iterable[str] = ()) -> pd.DataFrame:
    """Read a CSV file as text; row i is line i + 2 of the file.

    Raises:
      OSError: the file can not be read.
      ValueError: it is empty, not CSV or cut, or a needed column is missing or repeated.
    """
    text = read_text(path)
    if not text:
        raise ValueError(f"{path}: the file is empty; a header line with the columns is needed")
    if not text.endswith("\n"):
        line = text.count("\n") + 1
        raise ValueError(f"{path}, line {line}: the file is cut, its last line has no line end")
    try:
        whole = pd.read_csv(
            path,
            header=None,
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            skip_blank_lines=False,
            encoding="utf-8-sig",
        )
    except ValueError as error:  # pandas' ParserError and EmptyDataError are
        raise ValueError(f"{path}: not CSV ({one_line(error)})") from None
    header = whole.iloc[0].tolist()
    if missing := [name for name in needed if name not in header]:
        raise ValueError(f"{path}, line 1: missing column {', '.join(missing)}")
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise ValueError(f"{path}, line 1: column {one_line(repeated[0], 40)} is repeated")
    table = whole.iloc[1:].set_axis(header, axis=1).reset_index(drop=True)
    for name in header:
        if (cut := table[name].isna()).any():
            line = int(cut.idxmax()) + 2
            raise ValueError(
                f"{path}, line {line}: too few values, the line is cut at column "
                f"{one_line(name, 40)}"
            )
    return table


def parse_column(path: Path, texts: pd.Series, kind: type) -> pd.Series:
    """Return a column of text as strings, int64 or float64.

    Raises:
      ValueError: a text is no such number; the message names file, line and column.
    """
    values = []
    for row, text in enumerate(texts):
        try:
            values.append(kind(text))
            if kind is float and math.isinf(values[-1]) and "inf" not in text.lower():
                raise ValueError("the number overflows")
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            place = f"{path}, line {row + 2}, column {texts.name}"
            raise ValueError(f"{place}: {one_line(text, 40)!r} is not {wanted}") from None
    try:
        return pd.Series(values, name=texts.name, dtype=_DTYPES[kind])
    except OverflowError:
        raise ValueError(f"{path}, column {texts.name}: a number needs more than 64 bits") from None


def select(
    table: pd.DataFrame, *, selection: str | None = None, norm: str | None = None
) -> pd.DataFrame:
    """Return the rows of one selection and one norm, in their order; None keeps all.

    Raises:
      ValueError: no row has that selection or norm; the message lists those there are.
    """
    for name, wanted in (("selection", selection), ("norm", norm)):
        if wanted is not None:
            known = sorted(table[name].unique())
            if wanted not in known:
                raise ValueError(f"no results for {name} {wanted!r}; there are: {', '.join(known)}")
            table = table[table[name] == wanted]
    return table


def on_own_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows in which a network is evaluated on the labels it was trained on."""
    return table[(table["family"] == "random_labels") == (table["labels"] == "random")]


def is_finite(table: pd.DataFrame) -> pd.Series:
    """Return, per row, whether every number is finite: the network did not diverge."""
    return pd.Series(np.isfinite(table[FLOAT_COLUMNS]).all(axis=1), index=table.index)


def groups(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the (selection, norm) pairs in order of first appearance."""
    pairs = table[["selection", "norm"]].drop_duplicates()
    return list(pairs.itertuples(index=False, name=None))


def num_classes(table: pd.DataFrame) -> int | None:
    """Return K, the number of classes; None where all networks diverged.

    A normalized loss and its excess differ by ln K. `read_results` has checked that they do so with
    one whole K in all rows, so that this is exact.
    """
    differences = _ln_num_classes(table).to_numpy()
    known = differences[np.isfinite(differences)]
    return round(math.exp(known[0])) if known.size else None


def level_names(table: pd.DataFrame) -> list[str]:
    """Return, per row, family and level as one name: networks of one level are alike."""
    return [
        f"{family} {level:g}" for family, level in zip(table["family"], table["level"], strict=True)
    ]


def member_names(table: pd.DataFrame) -> list[str]:
    """Return, per row, what the network is called in texts."""
    return [
        f"member {row.member} ({row.family}, level {row.level:g}, seed {row.seed})"
        for row in table.itertuples()
    ]


def selection_name(selection: str) -> str:
    """Return a selection in words."""
    if selection == "final":
        return "last epoch"
    return selection.replace("loss=", "training loss nearest ")


def _ln_num_classes(table: pd.DataFrame) -> pd.Series:
    return table["normalized_train_loss"] - table["normalized_train_excess"]


def _check_values(table: pd.DataFrame, path: Path) -> None:
    """Raise unless every value is possible in its column; NaN can be any loss or error."""

    def check(is_possible: pd.Series, name: str, allowed: str) -> None:
        if not is_possible.all():
            row = int((~is_possible).idxmax())
            value = one_line(repr(table[name].tolist()[row]), 40)
            raise ValueError(
                f"{path}, line {row + 2}, column {name}: {value} is not possible: {allowed}"
            )

    for name in ("experiment", "family", "selection", "norm"):
        check(table[name] != "", name, "it must not be empty")
    check(table["labels"].isin(("natural", "random")), "labels", "natural or random")
    check(table["level"].between(0, math.inf, inclusive="left"), "level", "at least 0 and finite")
    for name in ("member", "seed", "epoch", "product_norm"):
        check(~(table[name] < 0), name, "at least 0")
    for name in FLOAT_COLUMNS:
        if name.endswith("_loss"):  # rounding may take it below 0
            check(~(table[name] < -_TOLERANCE), name, "at least 0")
        if name.endswith("_error"):
            check(~((table[name] < 0) | (table[name] > 1)), name, "from 0 to 1")
    _check_num_classes(table, path)


def _check_num_classes(table: pd.DataFrame, path: Path) -> None:
    """Raise unless loss - excess is ln K with one whole number K in all rows."""
    known = num_classes(table)
    for split in ("train", "test"):
        loss = table[f"normalized_{split}_loss"]
        ln_k = loss - table[f"normalized_{split}_excess"]
        bad = (ln_k - math.log(max(known or 1, 1))).abs() > _TOLERANCE * np.maximum(1, loss.abs())
        if known is not None and (bad.any() or known < 2):
            row = int(bad.idxmax())
            raise ValueError(
                f"{path}, line {row + 2}: normalized {split} loss - excess is {ln_k[row]:g}; it "
                f"must be ln K of one whole number of classes, here ln {known}"
            )


def _check_networks(table: pd.DataFrame, path: Path) -> None:
    """Raise if rows are repeated, contradict one another or are missing."""
    for keys, names in _SHARED:
        for name in names:
            column = table[name].map(repr)  # NaN is the same as NaN
            first = column.groupby([table[key] for key in keys]).transform("first")
            if (differs := column != first).any():
                row = int(differs.idxmax())
                same = (table[keys] == table.loc[row, keys]).all(axis=1)
                raise ValueError(
                    f"{path}, line {row + 2}, column {name}: {one_line(column[row], 40)}, but line "
                    f"{int(same.idxmax()) + 2} of the same network has {one_line(first[row], 40)}"
                )
    keys = [*_EVALUATION, "norm"]
    if (repeated := table.duplicated(keys)).any():
        row = int(repeated.idxmax())
        same = (table[keys] == table.loc[row, keys]).all(axis=1)
        raise ValueError(f"{path}, line {row + 2}: repeats line {int(same.idxmax()) + 2}")
    all_norms = set(table["norm"])
    for _, rows in table.groupby(_EVALUATION, sort=False):
        if missing := sorted(all_norms - set(rows["norm"])):
            raise ValueError(
                f"{path}, line {int(rows.index[0]) + 2}: this network has no line for norm "
                f"{one_line(missing[0], 40)}"
            )
