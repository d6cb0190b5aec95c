"""summary.json: every explanation, exactly, as plain JSON; and what is refused as one."""

import copy
import json
import math

import numpy as np
import pandas as pd
import pytest

from normjax.controls.explain import explain_line
from normjax.controls.summary import explain_all, read_summary, write_summary
from tests.helpers.synthetic_results import synthetic_table


@pytest.fixture(scope="module")
def table():
    return synthetic_table(levels=np.linspace(0, 1, 6), selections=("final", "loss=0.0044"))


@pytest.fixture(scope="module")
def explanations(table):
    return explain_all(table)


def test_every_selection_and_norm_is_explained(table, explanations):
    pairs = [(s, n) for s in ("final", "loss=0.0044") for n in ("2", "1/100")]
    assert [(found.selection, found.norm) for found in explanations] == pairs
    assert explanations[3] == explain_line(table, "loss=0.0044", "1/100")
    odd = table.assign(family="random_labels")  # evaluated on natural labels only
    assert explain_all(pd.concat([table, odd.assign(member=odd["member"] + 100)])) == explanations
    with pytest.raises(ValueError, match="row 72: repeats row 0"):
        explain_all(pd.concat([table] * 2))
    for empty in (table.iloc[:0], odd):
        with pytest.raises(ValueError, match="no results to explain"):
            explain_all(empty)


def test_the_file_holds_exactly_the_explanations(explanations, tmp_path):
    path = tmp_path / "summary.json"
    write_summary(path, explanations)
    values = json.loads(path.read_text())
    assert [value["verdict"] for value in values] == [found.verdict for found in explanations]
    assert values[0]["fit"]["slope"] == explanations[0].fit.slope
    assert values[0]["divisor"]["actual"] == list(explanations[0].divisor.actual)
    assert values[0]["content"]["power"]["seeds_for_smallest"] == 7
    assert read_summary(path) == read_summary(tmp_path) == explanations
    before = path.read_bytes()
    write_summary(path, read_summary(path))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_what_is_undefined_is_null(tmp_path):
    table = synthetic_table(norms=("2",)).assign(test_loss=2.5, test_error=0.5)
    table = pd.concat([table, table.assign(selection="loss=0.1", train_loss=math.nan)])
    explanations = explain_all(table)
    assert math.isnan(explanations[0].raw_fit.r2)  # all test losses are equal
    assert "no spread" in explanations[0].reasons["error_ranking"]
    assert explanations[1].num_networks == 0
    write_summary(tmp_path / "summary.json", explanations)
    text = (tmp_path / "summary.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    values = json.loads(text)
    assert values[0]["raw_fit"]["r2"] is None and values[1]["num_classes"] is None
    again = read_summary(tmp_path)
    assert math.isnan(again[0].raw_fit.r2) and again[1] == explanations[1]
    write_summary(tmp_path / "again.json", again)
    assert (tmp_path / "again.json").read_text() == text


def test_other_files_are_refused_in_one_line(explanations, tmp_path):
    path = tmp_path / "summary.json"
    write_summary(path, explanations)
    good = json.loads(path.read_text())

    def changed(change):
        values = copy.deepcopy(good)
        change(values)
        return json.dumps(values)

    for content, message in (
        ("{", "not JSON"),
        ("[" * 100_000, "too deeply nested"),
        ("{}", "it is {}, not of type"),
        ("[1]", r"it[0] is not an object with the fields of Explanation"),
        (changed(lambda v: v[0].pop("fit")), "it[0] is not an object with the fields"),
        (changed(lambda v: v[1].update(extra=1)), "it[1] is not an object with the fields"),
        (changed(lambda v: v[0]["fit"].update(n="12")), "it[0].fit.n is '12', not of type"),
        (changed(lambda v: v[0]["fit"].update(n=True)), "it[0].fit.n is True, not of type"),
        (changed(lambda v: v[0]["fit"].update(slope=False)), "it[0].fit.slope is False"),
        (
            changed(lambda v: v[0]["fit"]["intervals"].update(slope=[1.0])),
            "it[0].fit.intervals.slope is [1.0]",
        ),
        (changed(lambda v: v[0].update(left_out=[])), "it[0].left_out is []"),
        (changed(lambda v: v[0].update(verdict=None)), "it[0].verdict is None"),
        (changed(lambda v: v[0]["networks"][3].update(family=7)), "it[0].networks[3].family is 7"),
        (changed(lambda v: v[0]["fit"].update(rmse=math.nan)), "not JSON (NaN"),
        (changed(lambda v: v[0]["fit"].update(rmse=10**400)), "it[0].fit.rmse is 1000"),
        (
            changed(lambda v: v[0]["fit"].update(rmse=0.1234567)).replace("0.1234567", "1e999", 1),
            "it[0].fit.rmse is inf",
        ),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"summary\.json: ") as info:
            read_summary(path)
        assert message in str(info.value)
        assert str(path) in str(info.value) and "\n" not in str(info.value)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="UTF-8"):
        read_summary(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"summary\.json"):
        read_summary(tmp_path)
