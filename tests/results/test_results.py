"""The results table: exact round trips, and one clear line for every kind of broken file."""

import math

import numpy as np
import pytest

from normjax.files import replacing
from normjax.results.rows import COLUMNS, read_results, select, write_results
from tests.helpers.synthetic_results import synthetic_rows

HEADER = (
    "experiment,member,seed,family,level,labels,selection,epoch,norm,product_norm,"
    "train_loss,train_error,test_loss,test_error,"
    "normalized_train_loss,normalized_test_loss,normalized_train_error,normalized_test_error,"
    "normalized_train_excess,normalized_test_excess"
)


@pytest.fixture
def rows():
    return synthetic_rows()


@pytest.fixture
def written(rows, tmp_path):
    path = tmp_path / "results.csv"
    write_results(path, rows)
    return path


def test_columns_are_the_contract(written):
    assert ",".join(COLUMNS) == HEADER
    assert written.read_text().splitlines()[0] == HEADER


def test_round_trip_is_exact_and_deterministic(rows, written, tmp_path):
    assert read_results(written) == rows
    assert read_results(tmp_path) == rows  # the run folder
    write_results(tmp_path / "again.csv", read_results(written))
    assert (tmp_path / "again.csv").read_bytes() == written.read_bytes()


def test_float32_scalars_and_nan_survive(rows, tmp_path):
    value = np.float32(0.1)
    row = rows[0]._replace(train_loss=value, test_loss=float("nan"), member=np.int32(4))
    write_results(tmp_path / "r.csv", [row])
    (read,) = read_results(tmp_path / "r.csv")
    assert read.train_loss == float(value) != 0.1
    assert math.isnan(read.test_loss)
    assert read.member == 4


def test_extra_columns_and_other_orders_are_read(rows, written):
    names = [*reversed(COLUMNS), "remark"]
    lines = [",".join(names)]
    for row in rows:
        lines.append(",".join([str(value) for value in reversed(row)] + ['"a, b"']))
    written.write_text("\n".join(lines) + "\n")
    assert read_results(written) == rows


def test_no_temporary_file_stays(written, tmp_path):
    before = written.read_bytes()
    with pytest.raises(AttributeError):
        write_results(written, ["not a row"])
    with pytest.raises(RuntimeError), replacing(written) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert written.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def edit_line(path, number, change):
    lines = path.read_text().splitlines()
    lines[number - 1] = change(lines[number - 1])
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (1, lambda line: line.replace("product_norm,", ""), r"line 1: missing column product_norm"),
        (3, lambda line: line.rsplit(",", 2)[0], r"line 3: 18 values for 20 columns.*train_excess"),
        (3, lambda line: line + ",7", r"line 3: 21 values for 20 columns"),
        (2, lambda line: line.replace(",0.0003", ",x0.0003", 1), r"line 2, column train_loss: 'x0"),
        (2, lambda line: line.replace("pretrain,0,", "pretrain,1.5,", 1), r"column member: '1.5'"),
        (4, lambda line: '"' + line, r"line \d+: not CSV"),
    ],
)
def test_broken_lines_are_named(written, number, change, message):
    edit_line(written, number, change)
    with pytest.raises(ValueError, match=message) as info:
        read_results(written)
    assert str(written) in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": "natura1"},
            r"line 4, column labels: 'natura1' is not possible: natural or",
        ),
        ({"family": ""}, r"line 4, column family: '' is not possible: it must not be empty"),
        ({"level": float("nan")}, r"column level: nan is not possible: at least 0 and finite"),
        ({"level": float("inf")}, r"column level: inf is not possible"),
        ({"member": -1}, r"column member: -1 is not possible: at least 0"),
        ({"product_norm": -2.0}, r"column product_norm: -2.0 is not possible"),
        ({"test_loss": -1.9}, r"column test_loss: -1.9 is not possible: at least 0"),
        ({"test_error": 1.5}, r"column test_error: 1.5 is not possible: from 0 to 1"),
        ({"normalized_test_loss": 3.0}, r"line 4: loss less excess is ln K, which can't be 2.30"),
        ({"seed": 7}, r"line 5, column seed: 1, but line 4 of the same network has 7"),
        ({"test_loss": 1.25}, r"line 5, column test_loss: .* line 4 of the same network has 1.25"),
        ({"epoch": 99}, r"line 5, column epoch: 100, but line 4 of the same network has 99"),
        ({"norm": "1/100"}, r"line 5: stands already in line 4"),
        ({"norm": "7"}, r"line 2: this network has no line for norm 7"),
    ],
)
def test_what_cannot_be_is_named(rows, written, changes, message):
    rows[2] = rows[2]._replace(**changes)  # in line 4; the next row is of the same network
    write_results(written, rows)
    with pytest.raises(ValueError, match=message) as info:
        read_results(written)
    assert str(written) in str(info.value) and "\n" not in str(info.value)


def test_a_diverged_member_may_have_nan_and_infinity(rows, written):
    nan = dict.fromkeys(("train_loss", "test_loss", "train_error", "test_error"), float("nan"))
    lost = dict.fromkeys(COLUMNS[-6:], float("nan")) | {"product_norm": float("inf")}
    rows = [row._replace(**nan, **lost) if row.member == 1 else row for row in rows]
    write_results(written, rows)
    read = read_results(written)
    texts = [[str(value) for value in row] for row in read]  # in which nan is nan
    assert texts == [[str(value) for value in row] for row in rows]


def test_lines_and_columns_that_are_not_as_often_as_they_should_be(written):
    text = written.read_text()
    lines = text.splitlines(keepends=True)
    for content, message in (
        (lines + lines[3:4], r"line 26: stands already in line 4"),
        (lines[:6] + lines[7:], r"line \d: this network has no line for norm"),
        ([lines[0].replace("epoch", "seed"), *lines[1:]], r"line 1: missing column epoch"),
        ([lines[0][:-1] + ",seed\n", *lines[1:]], r"line 1: column seed stands there twice"),
        (
            [line.replace(",100,", ",1e999,") for line in lines],
            r"column epoch: '1e999' is not a",
        ),
        (
            [line.replace(",0.0,", ",1e999,", 1) for line in lines],
            r"column level: '1e999' is not",
        ),
    ):
        written.write_text("".join(content))
        with pytest.raises(ValueError, match=message):
            read_results(written)


def test_cut_empty_and_binary_files(written):
    written.write_bytes(written.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"line 25: the file is cut"):
        read_results(written)
    written.write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        read_results(written)
    written.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        read_results(written)
    written.unlink()
    with pytest.raises(FileNotFoundError, match=r"results\.csv"):
        read_results(written.parent)


def test_select():
    rows = synthetic_rows(selections=("final", "loss=0.0044"))
    chosen = select(rows, selection="loss=0.0044", norm="1/100")
    assert len(chosen) == 12
    assert {(row.selection, row.norm) for row in chosen} == {("loss=0.0044", "1/100")}
    assert select(rows) == rows
    with pytest.raises(ValueError, match=r"no results for norm '3'; there are: 1/100, 2"):
        select(rows, norm="3")
