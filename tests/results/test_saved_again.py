"""Tables that pandas or a spreadsheet has opened and saved again are read, or refused with why."""

import csv
import io
import json
import math

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from normjax.results.columns import read_columns
from normjax.results.metrics import read_metrics
from normjax.results.table import COLUMNS, is_finite, read_results, write_results
from tests.helpers.synthetic_metrics import make_lines
from tests.helpers.synthetic_results import synthetic_table

LOST = [name for name in COLUMNS if name.endswith(("_loss", "_error", "_excess"))]


@pytest.fixture
def table():
    """One network diverged; the names of its norms are numbers."""
    table = synthetic_table()
    table.loc[table["member"] == 3, LOST] = math.nan
    table.loc[table["member"] == 3, "product_norm"] = math.inf
    return table.assign(norm=table["norm"].replace("1/100", "1").astype(object))


@pytest.fixture
def path(table, tmp_path):
    write_results(tmp_path / "results.csv", table)
    return tmp_path / "results.csv"


def by_pandas(**how):
    """A change of a file's text that pandas makes by reading and writing it."""
    return lambda text: pd.read_csv(io.StringIO(text)).to_csv(**{"index": False, **how})


def by_csv(**how):
    """The same by Python's csv module, as spreadsheets do."""

    def change(text):
        saved = io.StringIO()
        csv.writer(saved, **how).writerows(csv.reader(io.StringIO(text)))
        return saved.getvalue()

    return change


def with_whole_floats(text):
    """Integers become floats where pandas has joined them with missing ones."""
    table = pd.read_csv(io.StringIO(text))
    return table.astype(dict.fromkeys(("member", "seed", "epoch"), float)).to_csv(index=False)


def with_empty_cells_around(text):
    """Two empty columns and three empty rows, as a spreadsheet keeps what was once used."""
    lines = [line + ",," for line in text.splitlines()]
    return "\n".join(lines + [lines[0].count(",") * ","] * 3) + "\n"


@pytest.mark.parametrize(
    "save",
    [
        by_pandas(),
        by_pandas(index=True),
        by_pandas(lineterminator="\r\n", quoting=csv.QUOTE_ALL),
        by_pandas(na_rep="NaN", columns=sorted(COLUMNS)),
        by_csv(),
        by_csv(quoting=csv.QUOTE_ALL),
        with_whole_floats,
        with_empty_cells_around,
        lambda text: "\ufeff" + by_csv()(text),
        lambda text: text + "\n\n",
        lambda text: by_csv()(text) + "\r\n",
        lambda text: text.replace(",nan", ","),
    ],
)
def test_what_others_save_is_the_same_table(path, table, save):
    path.write_bytes(save(path.read_text()).encode())
    read = read_results(path)
    assert_frame_equal(read, table, rtol=1e-14)  # pandas itself drops a last digit
    assert not is_finite(read)[read["member"] == 3].any()


def test_norms_written_as_floats(path, table):
    """Where inf is among the norms, pandas makes floats of all."""
    table = table.assign(norm=table["norm"].replace("1", "inf").astype(object))
    write_results(path, table)
    path.write_text(by_pandas()(path.read_text()))
    assert "2.0" in path.read_text() and "inf" in path.read_text()
    assert_frame_equal(read_results(path), table, rtol=1e-14)


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (by_csv(delimiter=";"), "line 1: the columns are separated by semicolons; commas are"),
        (by_csv(delimiter="\t"), "line 1: the columns are separated by tabs; commas are needed"),
        (by_pandas(sep=";", decimal=","), "line 1: the columns are separated by semicolons"),
        (by_pandas(decimal=",", quoting=csv.QUOTE_ALL), "is not a number"),
        (lambda text: text.rstrip("\n"), "line 25: the file is truncated: its last line is "
                                         "incomplete, or only its line end is missing"),
        (lambda text: text.replace("\n", "\r"), "lines must end in LF or CRLF"),
        (lambda text: text.replace(",1,", ",Jan 00,", 9), "is not"),
        (lambda text: text.replace(",100,1,", ",100,01.01.2000,", 1), "column norm: '01.01.2000' "
                                                                     "is not possible: 2, 1/100"),
        (lambda text: text.replace(",100,1,", ",100,Jan-00,", 1), "column norm: 'Jan-00' is not"),
        (lambda text: text.replace(",100,1,", ",100,0.01,", 1), "column norm: '0.01' is not"),
        (lambda text: text.replace(",100,", ",1E+02,", 1), "'1E+02' is not a whole number"),
        (lambda text: text.replace(",100,", ",100.5,", 1), "'100.5' is not a whole number"),
        (lambda text: text.replace(",100,", ",,", 1), "column epoch: '' is not a whole number"),
        (lambda text: text.replace(",nan", ",#NUM!", 1), "'#NUM!' is not a number"),
        (by_pandas(na_rep="NA"), "'NA' is not a number"),
        (lambda text: text.replace("level", "Level"), "line 1: missing column level"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_exactly_is_refused(path, save, message):
    path.write_bytes(save(path.read_text()).encode())
    with pytest.raises(ValueError, match=r".") as raised:
        read_results(path)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_spreadsheets_unicode_text_is_refused(path):
    path.write_bytes(by_csv(delimiter="\t")(path.read_text()).encode("utf-16"))
    with pytest.raises(ValueError, match=r"results\.csv: not a UTF-8 text file \(byte 0\)"):
        read_results(path)


def test_other_tables_are_read_alike(tmp_path):
    kinds = {"name": str, "count": int, "value": float}
    lines = (b"\xef\xbb\xbfvalue,,name,count,", b",x,,3.0,", b"1e3,,b,-4,", b",,,,", b"", b"")
    (tmp_path / "t.csv").write_bytes(b"\r\n".join(lines))
    read = read_columns(tmp_path / "t.csv", kinds)
    assert read["name"].tolist() == ["", "b"] and read["count"].tolist() == [3, -4]
    np.testing.assert_array_equal(read["value"], [math.nan, 1000])


def test_metrics_that_an_editor_saved(tmp_path):
    lines = make_lines(0, 0.0, [(0.9, -0.1, 1.5), (0.8, -0.2, 1.2)])
    text = "\n".join(map(json.dumps, lines))
    for saved in (text, text + "\n\n", "\ufeff" + text.replace("\n", "\r\n") + "\r\n"):
        (tmp_path / "metrics.jsonl").write_bytes(saved.encode())
        assert read_metrics(tmp_path) == lines
