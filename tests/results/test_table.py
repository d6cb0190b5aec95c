"""The results table: exact round trips, and one clear line for every kind of broken file."""

import csv
import math

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from normjax.files import replacing
from normjax.results.columns import read_columns, write_columns
from normjax.results.table import (
    COLUMNS,
    check_table,
    groups,
    is_finite,
    level_names,
    make_table,
    member_names,
    num_classes,
    on_own_labels,
    read_results,
    select,
    selection_name,
    write_results,
)
from tests.helpers.synthetic_results import synthetic_table

HEADER = (
    "experiment,member,seed,family,level,labels,selection,epoch,norm,product_norm,"
    "train_loss,train_error,test_loss,test_error,"
    "normalized_train_loss,normalized_test_loss,normalized_train_error,normalized_test_error,"
    "normalized_train_excess,normalized_test_excess"
)


@pytest.fixture
def table():
    return synthetic_table()


@pytest.fixture
def written(table, tmp_path):
    path = tmp_path / "results.csv"
    write_results(path, table)
    return path


def refusal(path):
    """The message of the error that a file makes, which is one line and names the file."""
    with pytest.raises(ValueError, match=r".") as info:
        read_results(path)
    message = str(info.value)
    assert str(path) in message and "\n" not in message and len(message) < 400
    return message


def test_columns_are_the_contract(written):
    assert ",".join(COLUMNS) == HEADER
    assert written.read_text().splitlines()[0] == HEADER


def test_columns_have_their_types(written):
    for table in (read_results(written), synthetic_table(), make_table([])):
        kinds = {name: table[name].dtype.kind for name in COLUMNS}
        assert kinds == {name: {str: "O", int: "i", float: "f"}[kind] for name, kind in
                         COLUMNS.items()}  # fmt: skip


def test_round_trip_is_exact_and_deterministic(table, written, tmp_path):
    assert_frame_equal(read_results(written), table, check_exact=True)
    assert_frame_equal(read_results(tmp_path), table, check_exact=True)  # the run folder
    write_results(tmp_path / "again.csv", read_results(written))
    assert (tmp_path / "again.csv").read_bytes() == written.read_bytes()


def test_bytes_are_those_of_python_floats(table, written):
    """Bit for bit what the csv module makes of Python's numbers, also of the odd ones."""
    odd = [
        5e-324,
        1e16,
        0.1 + 0.2,
        123456789.12345678,
        math.inf,
        -0.0,
        1e-5,
        1.7976931348623157e308,
    ]
    table.loc[: len(odd) - 1, "product_norm"] = odd
    table.loc[8, "test_loss"] = math.nan
    write_results(written, table)
    with open(written.with_name("expected.csv"), "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(table.to_numpy(object).tolist())
    assert written.read_bytes() == written.with_name("expected.csv").read_bytes()


def test_scalars_of_other_types_and_nan_survive(table, tmp_path):
    row = table.iloc[0].to_dict() | {"train_loss": np.float32(0.1), "member": np.int32(4)}
    row |= {"test_loss": float("nan"), "remark": "dropped"}
    write_results(tmp_path / "r.csv", make_table([row]))
    (read,) = read_results(tmp_path / "r.csv").itertuples()
    assert read.train_loss == float(np.float32(0.1)) != 0.1
    assert math.isnan(read.test_loss)
    assert read.member == 4
    single = table.astype({"test_loss": np.float32})  # written as float64's digits
    write_results(tmp_path / "r.csv", single)
    assert (read_results(tmp_path / "r.csv")["test_loss"] == single["test_loss"]).all()
    with pytest.raises(KeyError, match="norm"):
        make_table([{name: 0 for name in COLUMNS if name != "norm"}])


def test_extra_columns_and_other_orders_are_read(table, written):
    odd = table[[*reversed(COLUMNS)]].assign(remark='a, "b"', **{"": "x"})
    write_columns(written, odd)
    assert_frame_equal(read_results(written), table, check_exact=True)


def test_quotes_byte_order_mark_and_crlf_are_read(table, written):
    text = written.read_text()
    quoted = "\n".join(
        ",".join(f'"{field}"' for field in line.split(",")) for line in text.splitlines()
    )
    for content in (quoted + "\n", "\ufeff" + text, text.replace("\n", "\r\n")):
        written.write_bytes(content.encode())
        assert_frame_equal(read_results(written), table, check_exact=True)


def test_an_empty_table_is_read(written, table):
    write_results(written, table.iloc[:0])
    read = read_results(written)
    assert read.empty and list(read) == list(COLUMNS)
    assert num_classes(read) is None and is_finite(read).empty and groups(read) == []
    assert level_names(read) == member_names(read) == []


def test_no_temporary_file_stays(written, table, tmp_path):
    before = written.read_bytes()
    with pytest.raises(KeyError):
        write_results(written, table.drop(columns="norm"))
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
        (1, lambda line: line.replace("product_norm,", ""), "Expected 19 fields in line 2, saw 20"),
        (3, lambda line: line.rsplit(",", 2)[0], "line 3: 18 values for 20 columns, the line is "
                                                 "truncated at column normalized_train_excess"),
        (3, lambda line: line + ",7", "not CSV (Expected 20 fields in line 3, saw 21)"),
        (2, lambda line: line.replace(",0.0003", ",x0.0003", 1), "line 2, column train_loss: 'x0"),
        (2, lambda line: line.replace("pretrain,0,", "pretrain,1.5,", 1), "column member: '1.5' is "
                                                                         "not a whole number"),
        (4, lambda line: '"' + line, "not CSV"),
        (5, lambda line: '"random"' + line, "not CSV"),
        (5, lambda line: line.replace(",pretrain", ',"pre\ntrain"', 1), "a value contains a line"),
        (5, lambda line: line.replace("pretrain", "pre\rtrain", 1), "a value contains a line"),
        (5, lambda line: "", "line 5: 0 values for 20 columns, the line is truncated"),
        (25, lambda line: "\n" + line, "line 25: 0 values for 20 columns"),
        (25, lambda line: ",," + "\n" + line, "line 25: 3 values for 20 columns"),
        (3, lambda line: line.replace(",100,", ",,", 1), "line 3, column epoch: '' is not a whole"),
        (3, lambda line: line.replace(",100,", f",{10**30},", 1), "column epoch: '100000000000"),
        (3, lambda line: line.replace(",100,", f",{2**63},", 1), "needs more than 64 bits"),
        (3, lambda line: line.replace(",100,", f",{'9' * 5000},", 1), "line 3, column epoch: '999"),
        (2, lambda line: line.replace(",0.0,", ",1e999,", 1), "level: '1e999' needs more than 64"),
    ],
)  # fmt: skip
def test_broken_lines_are_named(written, number, change, message):
    edit_line(written, number, change)
    assert message in refusal(written)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": "natura1"}, "line 4, column labels: 'natura1' is not possible: natural or"),
        ({"family": ""}, "line 4, column family: '' is not possible: it must not be empty"),
        ({"level": math.nan}, "column level: nan is not possible: at least 0 and finite"),
        ({"level": math.inf}, "column level: inf is not possible"),
        ({"member": -1}, "column member: -1 is not possible: at least 0"),
        ({"product_norm": -2.0}, "column product_norm: -2.0 is not possible"),
        ({"test_loss": -1.9}, "column test_loss: -1.9 is not possible: at least 0"),
        ({"test_error": 1.5}, "column test_error: 1.5 is not possible: from 0 to 1"),
        ({"normalized_test_loss": 3.0}, "line 4: normalized test loss - excess is "),
        ({"normalized_train_loss": 3.0}, "line 4: normalized train loss - excess is "),
        ({"normalized_train_excess": -1e300}, "line 4: normalized train loss - excess is 1e+300"),
        ({"seed": 7}, "line 5, column seed: 1, but line 4 of the same network has 7"),
        ({"test_loss": 1.25}, "of the same network has 1.25"),
        ({"epoch": 99}, "line 5, column epoch: 100, but line 4 of the same network has 99"),
        ({"norm": "1/100"}, "line 5: repeats line 4"),
        ({"norm": "7"}, "line 2: this network has no row for norm 7"),
    ],
)
def test_what_cannot_be_is_named(table, written, changes, message):
    for name, value in changes.items():
        table.loc[2, name] = value  # in line 4; the next row is of the same network
    write_results(written, table)
    assert message in refusal(written)


@pytest.mark.parametrize("ln_k", [math.log(7.5), 0.0, -3.0, math.log(1e12), 1e300])
def test_losses_and_excesses_of_no_number_of_classes(table, written, ln_k):
    for split in ("train", "test"):
        table[f"normalized_{split}_excess"] = table[f"normalized_{split}_loss"] - ln_k
    write_results(written, table)
    assert "line 2: normalized train loss - excess is" in refusal(written)


@pytest.mark.parametrize("ln_k", [math.log(2), math.log(100)])
def test_number_of_classes_is_exact_beside_huge_losses(table, written, ln_k):
    for split in ("train", "test"):
        table[f"normalized_{split}_loss"] = table[f"normalized_{split}_excess"] + ln_k + 1
        table[f"normalized_{split}_excess"] += 1
        for row, huge in ((0, 1e17), (1, 1e17), (5, math.nan), (6, math.inf)):
            table.loc[row, f"normalized_{split}_loss"] = huge
            table.loc[row, f"normalized_{split}_excess"] = huge
    write_results(written, table)
    read = read_results(written)
    assert num_classes(read) == round(math.exp(ln_k))
    assert num_classes(read.iloc[5:7]) is None
    assert np.flatnonzero(~is_finite(read)).tolist() == [5, 6]


def test_a_diverged_member_may_have_nan_and_infinity(table, written):
    lost = ["train_loss", "test_loss", "train_error", "test_error", *list(COLUMNS)[-6:]]
    for members in ([1], table["member"].unique()):
        diverged = table["member"].isin(members)
        table.loc[diverged, lost] = math.nan
        table.loc[diverged, "product_norm"] = math.inf
        write_results(written, table)
        read = read_results(written)
        assert_frame_equal(read, table, check_exact=True)
        assert (is_finite(read) == ~diverged).all()
    assert num_classes(read) is None  # all diverged


def test_lines_and_columns_that_are_not_as_often_as_they_should_be(written):
    lines = written.read_text().splitlines(keepends=True)
    for content, message in (
        (lines + lines[3:4], "line 26: repeats line 4"),
        (lines[:6] + lines[7:], "line 6: this network has no row for norm 1/100"),
        ([lines[0].replace("epoch", "seed"), *lines[1:]], "line 1: missing column epoch"),
        ([lines[0][:-1] + ",seed\n", *(f"{line[:-1]},1\n" for line in lines[1:])],
         "line 1: column seed is repeated"),
    ):  # fmt: skip
        written.write_text("".join(content))
        assert message in refusal(written)


def test_cut_empty_and_binary_files(written):
    written.write_bytes(written.read_bytes()[:-5])
    assert "line 25: the file is truncated" in refusal(written)
    written.write_bytes(b"")
    assert "empty" in refusal(written)
    for blank in (b"\n", b"\xef\xbb\xbf\n", b"\n\n"):
        written.write_bytes(blank)
        refusal(written)
    written.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refusal(written)
    written.unlink()
    with pytest.raises(FileNotFoundError, match=rf"^there is no results.csv in {written.parent}$"):
        read_results(written.parent)


def test_other_tables_are_written_and_read(tmp_path):
    kinds = {"name": str, "count": int, "value": float}
    table = pd.DataFrame(
        {"name": ['a,"b"', "", "nan"], "count": [1, 0, -(2**62)], "value": [0.1, math.nan, -0.0]}
    )
    write_columns(tmp_path / "t.csv", table)
    read = read_columns(tmp_path / "t.csv", kinds)
    assert_frame_equal(read, table.astype({"name": object}), check_exact=True)
    assert math.copysign(1, read["value"][2]) == -1
    with pytest.raises(ValueError, match="line 2, column value: 'a,\"b\"' is not a number"):
        write_columns(tmp_path / "t.csv", table.assign(value=table["name"]))
        read_columns(tmp_path / "t.csv", kinds)


def test_select():
    table = synthetic_table(selections=("final", "loss=0.0044"))
    chosen = select(table, selection="loss=0.0044", norm="1/100")
    assert len(chosen) == 12
    assert groups(chosen) == [("loss=0.0044", "1/100")]
    assert select(table).equals(table)
    with pytest.raises(ValueError, match=r"no results for norm '3'; there are: 1/100, 2"):
        select(table, norm="3")
    assert groups(table) == [(s, n) for s in ("final", "loss=0.0044") for n in ("2", "1/100")]


def test_norms_have_one_name(table, written):
    for norm in (2, 2.0, "2.0", "fro"):
        assert select(table, norm=norm).equals(select(table, norm="2"))
    odd = table.assign(norm=table["norm"].map({"2": "fro", "1/100": "my_norm"}))
    assert len(select(odd, norm=2)) == len(select(odd, norm="my_norm")) == 12
    write_results(written, odd)
    assert groups(read_results(written)) == [("final", "2"), ("final", "my_norm")]
    write_results(written, pd.concat([table, table.assign(norm="fro")]))
    assert "line 26: repeats line 2" in refusal(written)


def test_tables_are_checked_like_files(table):
    shuffled = table.assign(extra=0).sample(frac=1, random_state=0)
    shuffled.index.name = "member"
    shuffled["member"] = shuffled["member"].astype(np.int32)
    assert_frame_equal(check_table(shuffled).reset_index(drop=True), shuffled[list(COLUMNS)]
                       .astype({"member": np.int64}).reset_index(drop=True))  # fmt: skip
    for damaged, message in (
        (table.drop(columns="norm"), "column norm is missing"),
        (pd.concat([table, table["norm"]], axis=1), "column norm is repeated"),
        (table.assign(member=0.5), "column member is of type float64, not int"),
        (table.assign(test_loss="x"), "column test_loss is of type"),
        (table.assign(norm=2), "column norm is of type int64, not str"),
        (table.assign(test_error=[0.1] * 3 + [2.0] * 21), "row 3, column test_error: 2.0 is not"),
        (pd.concat([table, table]), "row 24: repeats row 0"),
        (table.assign(seed=[7] + [0] * 23), "row 1, column seed: 0, but row 0 of the same network"),
    ):
        with pytest.raises(ValueError, match=message):
            check_table(damaged)


def test_own_labels_and_names(table):
    random = table["member"] < 2
    table.loc[random, "family"] = "random_labels"
    both = pd.concat([table, table[random].assign(labels="random")])
    own = on_own_labels(both)
    assert len(own) == len(table)
    assert ((own["labels"] == "random") == (own["member"] < 2)).all()
    assert member_names(table)[2] == "member 1 (random_labels, level 0, seed 1)"
    assert level_names(table)[-1] == "pretrain 1"
    two = pd.concat([table[-1:], table[-1:].assign(experiment="other")])
    name = "member 11 (pretrain, level 1, seed 2)"
    assert member_names(two) == [f"random_pretrain, {name}", f"other, {name}"]
    assert selection_name("final") == "last epoch"
    assert selection_name("loss=0.0044") == "training loss nearest 0.0044"
