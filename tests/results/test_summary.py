"""The summary: its numbers are those of the functions it names, and nothing is lost in silence."""

import json

import numpy as np
import pytest
from scipy import stats

from normjax.results.rows import select
from normjax.results.summary import figure_stem, norm_name, summarize, write_summary
from tests.helpers.synthetic_results import synthetic_rows


def column(rows, name):
    return np.array([getattr(row, name) for row in rows])


def test_numbers_against_scipy():
    rows = synthetic_rows(selections=("final", "loss=0.0044"))
    summary = summarize(rows)
    assert summary["num_members"] == 12
    assert list(summary["selections"]) == ["final", "loss=0.0044"]
    for selection, norm in (("final", "2"), ("loss=0.0044", "1/100")):
        part = summary["selections"][selection][norm]
        points = select(rows, selection=selection, norm=norm)
        x, y = column(points, "normalized_train_excess"), column(points, "normalized_test_excess")
        line = stats.linregress(x, y)
        fit = part["normalized_fit"]
        np.testing.assert_allclose(fit["slope"], line.slope, rtol=1e-8)
        np.testing.assert_allclose(fit["r2"], line.rvalue**2, rtol=1e-8)
        np.testing.assert_allclose(
            fit["intercept"], line.intercept + np.log(10) * (1 - line.slope), rtol=1e-8
        )
        raw = stats.linregress(column(points, "train_loss"), column(points, "test_loss"))
        np.testing.assert_allclose(part["raw_fit"]["slope"], raw.slope, rtol=1e-10)
        np.testing.assert_allclose(part["anchored_fit"]["slope"], x @ y / (x @ x), rtol=1e-10)
        np.testing.assert_allclose(part["norm_permutation"]["r2"], line.rvalue**2, rtol=1e-10)
        np.testing.assert_allclose(part["ln_num_classes"], np.log(10), rtol=1e-12)
        for name in ("product_norm", "normalized_train_loss", "train_loss"):
            values, error = column(points, name), column(points, "test_error")
            expected = part["test_error_correlations"][name]
            assert expected["spearman"] == pytest.approx(stats.spearmanr(values, error)[0])
            assert expected["kendall"] == pytest.approx(stats.kendalltau(values, error)[0])
        assert part["reasons"] == {} and part["left_out"] == []


def test_members_left_out_are_named():
    rows = [
        row._replace(test_loss=float("nan"))
        if row.member == 4
        else row._replace(train_error=0.02)
        if row.member == 5
        else row
        for row in synthetic_rows(selections=("final", "loss=0.0044"))
        if not (row.member == 7 and row.selection == "loss=0.0044")
    ]
    selections = summarize(rows)["selections"]
    final, snapshot = selections["final"]["2"], selections["loss=0.0044"]["2"]
    assert (final["num_members"], snapshot["num_members"]) == (11, 10)
    assert final["normalized_fit"]["n"] == 11
    assert [entry["member"] for entry in final["left_out"]] == [
        "member 4 (pretrain, level 0.1, seed 1)"
    ]
    assert "diverged" in final["left_out"][0]["reason"]
    assert "zero training error" in snapshot["left_out"][1]["reason"]
    assert final["not_interpolating"] == ["member 5 (pretrain, level 0.1, seed 2)"]


def test_too_few_points_give_reasons_not_errors(tmp_path):
    rows = [row for row in synthetic_rows() if row.member < 2]
    part = summarize(rows)["selections"]["final"]["2"]
    for name in ("normalized_fit", "raw_fit", "anchored_fit", "norm_permutation"):
        assert part[name] is None
        assert "2 points; at least 3" in part["reasons"][name]
    assert part["test_error_correlations"]["train_loss"] is None
    all_diverged = [row._replace(train_loss=float("nan")) for row in rows]
    summary = summarize(all_diverged)
    assert summary["selections"]["final"]["2"]["ln_num_classes"] is None
    write_summary(tmp_path / "summary.json", summary)
    with pytest.raises(ValueError, match="no results"):
        summarize([])


def test_summary_is_plain_json(tmp_path):
    rows = [row._replace(test_loss=2.5, test_error=0.5) for row in synthetic_rows()]
    summary = summarize(rows)
    part = summary["selections"]["final"]["2"]
    assert part["raw_fit"]["r2"] is None  # all test losses are equal
    assert "no spread" in part["reasons"]["test_error_correlations.product_norm"]
    path = tmp_path / "summary.json"
    write_summary(path, summary)
    text = path.read_text()
    assert "NaN" not in text
    assert json.loads(text) == json.loads(json.dumps(summary))
    write_summary(path, summarize(rows))
    assert path.read_text() == text
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_names():
    assert norm_name("2") == "Frobenius norm"
    assert norm_name("1/100") == "L1 norm / 100"
    assert norm_name("inf") == "L∞ norm"
    assert norm_name("my_norm") == "my_norm"
    assert figure_stem("fit", "loss=0.0044", "1/100") == "fit__loss_0.0044__1_100"
    assert figure_stem("levels", "../final") == "levels__.._final"
