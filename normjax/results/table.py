"""results.csv as a pandas DataFrame: one row per network, selection, kind of labels and norm.

| column | meaning |
| --- | --- |
| experiment | the command that wrote the row, such as `random_pretrain` |
| member | number of the network in the run |
| seed | seed of initialization and label corruption |
| family | `pretrain`, `init_scale`, `default_init` or `random_labels` |
| level | corruption fraction or initial standard deviation |
| labels | `natural` or `random`: the labels of the evaluation |
| selection | `final`, or `loss=0.0044` for the snapshot nearest to that training loss |
| epoch | epoch of the selected snapshot |
| norm | `2`, `1`, `inf`, `spectral`; with a scale, `1/100` |
| product_norm | product of the layers' norms, eq. 2 |
| {train,test}_{loss,error} | mean cross entropy in nats and error in [0, 1], as trained |
| normalized_{train,test}_{loss,error} | the same for the normalized network |
| normalized_{train,test}_excess | normalized loss minus ln K, without cancellation |

A network of family `random_labels` is trained on random labels and has rows for both kinds of
labels. The losses of a diverged network are NaN.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from normjax.files import local_path, one_line
from normjax.norms import parse_norm
from normjax.results.columns import DTYPES, read_columns, write_columns

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
RowName = Callable[[int], str]

# Columns that rows with equal keys must share.
NETWORK = ["experiment", "member"]
_EVALUATION = [*NETWORK, "labels", "selection"]
_SHARED = (
    (NETWORK, ("seed", "family", "level")),
    (_EVALUATION, ("epoch", "train_loss", "train_error", "test_loss", "test_error")),
)
_TOLERANCE = 1e-6  # our own tables are accurate to 1e-15; rounded tables are accepted too


def make_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows as a table with the columns and dtypes of results.csv.

    NumPy and JAX scalars are accepted; other keys of the rows are dropped.

    Raises:
      KeyError: a row has no value for a column.
    """
    rows = list(rows)
    return pd.DataFrame(
        {
            name: pd.Series([kind(row[name]) for row in rows], dtype=DTYPES[kind])
            for name, kind in COLUMNS.items()
        }
    )


def write_results(path: str | os.PathLike, table: pd.DataFrame) -> None:
    """Write results.csv and replace the file at `path` atomically."""
    write_columns(path, _in_own_types(table))


def read_results(path: str | os.PathLike) -> pd.DataFrame:
    """Read results.csv, given the file or the folder of its run.

    Columns may be in any order; other columns are dropped.

    Returns:
      A table with the columns of the module docstring: strings, int64 and float64.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: a column is missing, a value is invalid, a line is truncated or repeated, or
        lines of one network contradict each other; the message names file and line.
    """
    path = local_path(path)
    if path.is_dir():
        path = path / RESULTS_FILE
    if not path.exists():
        raise FileNotFoundError(f"there is no {path.name} in {path.parent}")
    table = read_columns(path, COLUMNS)
    try:
        return check_table(table, lambda row: f"line {row + 2}")
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from None


def check_table(table: pd.DataFrame, name_row: RowName = "row {}".format) -> pd.DataFrame:
    """Return a table with the columns and dtypes of results.csv, rows numbered from 0.

    Columns may be in any order; other columns are dropped. Names of norms become canonical: "fro"
    is "2".

    Args:
      table: the table.
      name_row: {position of a row: its name in error messages}.

    Raises:
      ValueError: a column is missing or has the wrong type, a value is invalid, or rows are
        repeated or contradict each other; the message names the row.
    """
    names = list(table.columns)
    for name, kind in COLUMNS.items():
        if names.count(name) != 1:
            raise ValueError(f"column {name} is {'repeated' if name in names else 'missing'}")
        if kind is str:
            is_kind = table[name].map(lambda value: isinstance(value, str)).all()
        else:
            is_kind = table[name].dtype.kind in ("iu" if kind is int else "iuf")
        if not is_kind:
            raise ValueError(f"column {name} is of type {table[name].dtype}, not {kind.__name__}")
    table = table.assign(norm=table["norm"].map(_canonical_norm))
    table = _in_own_types(table).reset_index(drop=True)
    _check_values(table, name_row)
    _check_networks(table, name_row)
    return table


def select(
    table: pd.DataFrame, *, selection: str | None = None, norm: str | float | None = None
) -> pd.DataFrame:
    """Return the rows of one selection and one norm; None keeps all.

    Norms are compared by their canonical names: 2, "2.0" and "fro" are "2".

    Raises:
      ValueError: no row has the selection or norm; the message lists the valid ones.
    """
    for name, wanted, canonical in (
        ("selection", selection, str),
        ("norm", norm, _canonical_norm),
    ):
        if wanted is not None:
            is_wanted = table[name].map(canonical) == canonical(wanted)
            if not is_wanted.any():
                known = ", ".join(sorted(table[name].unique()))
                raise ValueError(f"no results for {name} {str(wanted)!r}; there are: {known}")
            table = table[is_wanted]
    return table


def on_own_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that evaluate a network on the labels it was trained on."""
    return table[(table["family"] == "random_labels") == (table["labels"] == "random")]


def is_finite(table: pd.DataFrame) -> pd.Series:
    """Return, per row, whether all numbers are finite, i.e. the network did not diverge."""
    return table[FLOAT_COLUMNS].map(math.isfinite).all(axis=1)


def groups(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the (selection, norm) pairs in order of first appearance."""
    pairs = table[["selection", "norm"]].drop_duplicates()
    return list(pairs.itertuples(index=False, name=None))


def num_classes(table: pd.DataFrame) -> int | None:
    """Return the number of classes K; None if all networks diverged.

    A normalized loss and its excess differ by ln K; `read_results` checks that K is the same in all
    rows. Huge losses are ignored: their digits do not resolve ln K.
    """
    rows = table[is_finite(table)]
    losses = rows["normalized_train_loss"].abs()
    small = rows[losses <= losses.median()]
    if small.empty:
        return None
    ln_k = (small["normalized_train_loss"] - small["normalized_train_excess"]).median()
    return round(math.exp(min(ln_k, 700.0)))  # larger values are rejected by the check


def level_names(table: pd.DataFrame) -> list[str]:
    """Return, per row, a name for family and level."""
    return [
        f"{family} {level:g}" for family, level in zip(table["family"], table["level"], strict=True)
    ]


def member_names(table: pd.DataFrame) -> list[str]:
    """Return, per row, the network's display name, with its experiment if there are several."""
    has_several = table["experiment"].nunique() > 1
    return [
        (f"{row.experiment}, " if has_several else "")
        + f"member {row.member} ({row.family}, level {row.level:g}, seed {row.seed})"
        for row in table.itertuples()
    ]


def selection_name(selection: str) -> str:
    """Return the display name of a selection."""
    if selection == "final":
        return "last epoch"
    return selection.replace("loss=", "training loss nearest ")


def _canonical_norm(norm: str | float) -> str:
    """Return the canonical name of a norm; the name of a norm function stays as it is."""
    try:
        return parse_norm(str(norm)).name
    except ValueError:
        return str(norm)


def _is_norm(name: str) -> bool:
    """Return whether a text may name a norm; spreadsheets turn "1/100" into a date."""
    try:
        return bool(parse_norm(name))
    except ValueError:  # the name of a function
        return all(part.isidentifier() for part in name.split("."))


def _in_own_types(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of results.csv with their dtypes."""
    return table[list(COLUMNS)].astype({name: DTYPES[kind] for name, kind in COLUMNS.items()})


def _first(is_it: Any) -> int:
    """Return the position of the first True, or 0."""
    return int(np.argmax(is_it))


def _check_values(table: pd.DataFrame, name_row: RowName) -> None:
    """Raise unless every value is valid for its column; losses and errors may be NaN."""

    def check(is_possible: pd.Series, name: str, allowed: str) -> None:
        if not is_possible.all():
            row = _first(~is_possible)
            value = one_line(repr(table[name].tolist()[row]), 40)
            raise ValueError(f"{name_row(row)}, column {name}: {value} is not possible: {allowed}")

    for name in ("experiment", "family", "selection", "norm"):
        check(table[name] != "", name, "it must not be empty")
    check(table["norm"].map(_is_norm), "norm", "2, 1/100, inf or the name of a function")
    check(table["labels"].isin(("natural", "random")), "labels", "natural or random")
    check(table["level"].between(0, math.inf, inclusive="left"), "level", "at least 0 and finite")
    for name in ("member", "seed", "epoch", "product_norm"):
        check(~(table[name] < 0), name, "at least 0")
    for name in FLOAT_COLUMNS:
        if name.endswith("_loss"):  # rounding may make it negative
            check(~(table[name] < -_TOLERANCE), name, "at least 0")
        if name.endswith("_error"):
            check(~((table[name] < 0) | (table[name] > 1)), name, "from 0 to 1")
    _check_num_classes(table, name_row)


def _check_num_classes(table: pd.DataFrame, name_row: RowName) -> None:
    """Raise unless loss - excess is ln K with the same integer K in all rows."""
    known = num_classes(table)
    if known is None:
        return
    for split in ("train", "test"):
        loss = table[f"normalized_{split}_loss"]
        ln_k = loss - table[f"normalized_{split}_excess"]
        error = (ln_k - math.log(max(known, 1))).abs()
        bad = np.isfinite(error) & (error > _TOLERANCE * np.maximum(1, loss.abs()))
        if not 2 <= known < 2**31 or bad.any():
            row = _first(bad)
            raise ValueError(
                f"{name_row(row)}: normalized {split} loss - excess is {ln_k[row]:g}; it must be "
                "ln K of one number of classes everywhere"
            )


def _check_networks(table: pd.DataFrame, name_row: RowName) -> None:
    """Raise if rows are repeated, contradict each other or are missing."""
    for keys, names in _SHARED:
        for name in names:
            column = table[name].map(repr)  # NaN is the same as NaN
            first = column.groupby([table[key] for key in keys]).transform("first")
            if (differs := column != first).any():
                row = _first(differs)
                same = (table[keys] == table.loc[row, keys]).all(axis=1)
                raise ValueError(
                    f"{name_row(row)}, column {name}: {one_line(column[row], 40)}, but "
                    f"{name_row(_first(same))} of the same network has {one_line(first[row], 40)}"
                )
    keys = [*_EVALUATION, "norm"]
    if (repeated := table.duplicated(keys)).any():
        row = _first(repeated)
        same = (table[keys] == table.loc[row, keys]).all(axis=1)
        raise ValueError(f"{name_row(row)}: repeats {name_row(_first(same))}")
    all_norms = set(table["norm"])
    for _, rows in table.groupby(_EVALUATION, sort=False):
        if missing := sorted(all_norms - set(rows["norm"])):
            norm = one_line(missing[0], 40)
            raise ValueError(f"{name_row(rows.index[0])}: this network has no row for norm {norm}")
