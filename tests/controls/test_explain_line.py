"""The one analysis of a run against scipy, and what it says of networks that do not count."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import normjax
from normjax.controls.explain import choose_rows, explain_line
from normjax.results.table import groups, select, write_results
from tests.helpers.synthetic_results import synthetic_table


def test_numbers_against_scipy():
    table = synthetic_table(selections=("final", "loss=0.0044"))
    for selection, norm in (("final", "2"), ("loss=0.0044", "1/100")):
        found = explain_line(table, selection, norm)
        points = select(table, selection=selection, norm=norm)
        x, y = points["normalized_train_excess"], points["normalized_test_excess"]
        line = stats.linregress(x, y)
        assert found.num_classes == 10 and found.ln_num_classes == math.log(10)
        np.testing.assert_allclose(found.fit.slope, line.slope, rtol=1e-8)
        np.testing.assert_allclose(found.fit.r2, line.rvalue**2, rtol=1e-8)
        intercept = line.intercept + np.log(10) * (1 - line.slope)
        np.testing.assert_allclose(found.fit.intercept, intercept, rtol=1e-8)
        raw = stats.linregress(points["train_loss"], points["test_loss"])
        np.testing.assert_allclose(found.raw_fit.slope, raw.slope, rtol=1e-10)
        np.testing.assert_allclose(found.anchored_fit.slope, x @ y / (x @ x), rtol=1e-10)
        np.testing.assert_allclose(found.norm_permutation.r2, line.rvalue**2, rtol=1e-10)
        divisor = stats.linregress(1 / points["product_norm"], points["normalized_test_loss"])
        np.testing.assert_allclose(found.divisor_fit.r2, divisor.rvalue**2, rtol=1e-8)
        margins = stats.linregress(x * points["product_norm"], y * points["product_norm"])
        np.testing.assert_allclose(found.margin_fit.r2, margins.rvalue**2, rtol=1e-8)
        np.testing.assert_allclose(found.margin_fit.slope, margins.slope, rtol=1e-8)
        for name in ("product_norm", "normalized_train_loss", "train_loss"):
            expected = stats.kendalltau(points[name], points["test_error"]).statistic
            assert found.error_ranking[name].kendall == pytest.approx(expected)
        margin = -x * points["product_norm"]
        for network, ratio, m in zip(found.networks, y / x, margin, strict=True):
            assert network.margin_ratio == pytest.approx(ratio)
            assert network.train_margin == pytest.approx(m)
        assert found.left_out == {} and found.not_interpolating == ()
        assert (found.selection, found.norm, found.num_networks) == (selection, norm, 12)
        distances = [network.cooks_distance for network in found.networks]
        assert distances == list(found.influence.single)
        assert list(found.influence.group) == [f"pretrain {x}" for x in ("0", "0.1", "0.5", "1")]
        assert found.prediction["level"] == found.leave_out["level"]
        assert set(found.reasons) == {"leave_out.family"}


def test_intervals_are_over_levels():
    found = explain_line(synthetic_table(levels=np.linspace(0, 1, 8)))
    for name in ("slope", "intercept", "r2", "adjusted_r2", "rmse"):
        low, high = getattr(found.fit.intervals, name)
        assert low < getattr(found.fit, name) < high
    assert (found.fit.intervals.unit, found.fit.intervals.num_units) == ("levels", 8)
    assert found.fit_without_random_labels == found.fit
    assert found.raw_fit_without_random_labels == found.raw_fit
    few = explain_line(synthetic_table(levels=(0.0, 0.5, 1.0)))
    assert few.fit.intervals is None
    assert few.fit.no_intervals == "3 levels; an interval needs at least 4"
    assert "3 levels; to leave levels out, 4 are needed" in few.reasons["divisor"]


def test_what_is_explained_by_default_and_on_demand(tmp_path):
    table = synthetic_table(selections=("loss=0.0044", "final"))
    assert normjax.explain_line is explain_line
    assert groups(choose_rows(table)) == [("final", "2")]
    assert groups(choose_rows(table, "loss=0.0044", "1/100")) == [("loss=0.0044", "1/100")]
    assert groups(choose_rows(table[table["norm"] != "2"])) == [("final", "1/100")]
    with pytest.raises(ValueError, match="no results for norm '3'; there are: 1/100, 2"):
        choose_rows(table, norm="3")
    with pytest.raises(ValueError, match="no results to explain"):
        explain_line(table.iloc[:0])
    write_results(tmp_path / "results.csv", table)
    expected = explain_line(table, num_draws=100)
    assert explain_line(tmp_path, num_draws=100) == expected
    assert explain_line(tmp_path / "results.csv", num_draws=100) == expected
    assert explain_line(table, num_draws=100, seed=1) != expected


def test_random_labels_enter_the_fit_and_not_the_verdict():
    table = synthetic_table(levels=np.linspace(0, 1, 7), norms=("2",))
    odd = table.iloc[:3].assign(
        member=[40, 41, 42],
        family="random_labels",
        labels="random",
        normalized_test_excess=[-1e-5, 0.0, 1e-5],
        normalized_test_loss=math.log(10) + np.array([-1e-5, 0.0, 1e-5]),
    )
    alone, together = explain_line(table), explain_line(pd.concat([table, odd]))
    assert (together.num_networks, together.num_random_labels) == (24, 3)
    assert together.fit.r2 < alone.fit.r2 - 0.05
    assert together.fit_without_random_labels == alone.fit
    assert together.raw_fit_without_random_labels == alone.raw_fit
    assert together.raw_fit.n == 24
    assert together.fit.intervals != alone.fit.intervals
    for name in (
        *("verdict", "because", "missing", "content", "divisor", "ratio", "error_ranking"),
        *("norm_permutation", "divisor_fit", "margin_fit", "anchored_fit", "deming", "prediction"),
    ):
        assert getattr(together, name) == getattr(alone, name), name
    # Of the three networks, each has less influence than all together.
    assert together.influence.group["random_labels 0"] > 2 * max(together.influence.single)
    # The line of either family is far from the other.
    assert together.leave_out["family"].num_parts == 2
    assert together.leave_out["family"].rmse > 10 * alone.fit.rmse
    # On the natural labels these networks do not enter.
    natural = pd.concat([table, odd, odd.assign(labels="natural")])
    assert explain_line(natural) == together


def test_members_left_out_are_named():
    table = synthetic_table(selections=("final", "loss=0.0044"))
    table.loc[table["member"] == 4, "test_loss"] = math.nan
    table.loc[table["member"] == 5, "train_error"] = 0.02
    table = table[(table["member"] != 7) | (table["selection"] == "final")]
    final, snapshot = (explain_line(table, name) for name in ("final", "loss=0.0044"))
    assert (final.num_networks, snapshot.num_networks) == (11, 10)
    assert (final.num_diverged, snapshot.num_diverged) == (1, 1)
    assert final.fit.n == 11
    assert list(final.left_out) == ["member 4 (pretrain, level 0.1, seed 1)"]
    assert "diverged" in final.left_out["member 4 (pretrain, level 0.1, seed 1)"]
    reason = snapshot.left_out["member 7 (pretrain, level 0.5, seed 1)"]
    assert reason == "no snapshot at zero training error for selection loss=0.0044"
    assert final.not_interpolating == ("member 5 (pretrain, level 0.1, seed 2)",)


def test_too_few_networks_give_reasons_not_errors():
    table = synthetic_table(norms=("2",))
    two = explain_line(table.iloc[:2])
    assert two.verdict == "undecided" and "2 points; at least 3" in two.reasons["fit"]
    none = explain_line(table.iloc[:2].assign(test_loss=math.nan))
    assert (none.num_networks, none.num_diverged, len(none.left_out)) == (0, 2, 2)
    assert none.num_classes is none.ln_num_classes is None and none.networks == ()
    for found in (two, none):
        for name in ("fit", "raw_fit", "margin_fit", "content", "divisor", "influence", "ratio"):
            assert getattr(found, name) is None and found.reasons[name]
        assert (
            found.error_ranking is None and "points; at least 3" in found.reasons["error_ranking"]
        )


def test_norms_that_are_zero_give_reasons_not_errors():
    table = synthetic_table(norms=("2",))
    for zero in (table["member"] == 2, table["member"] >= 0):
        found = explain_line(table.assign(product_norm=table["product_norm"].mask(zero, 0.0)))
        assert found.verdict == "undecided"
        assert "every product norm must be positive" in found.reasons["content"]
        assert "every product norm must be positive" in found.reasons["divisor"]
        assert found.divisor_fit is None and found.fit is not None


def test_tables_and_arguments_are_checked():
    table = synthetic_table(norms=("2",))
    with pytest.raises(ValueError, match="row 12: repeats row 0"):
        explain_line(pd.concat([table, table]))
    for wrong in ({"num_draws": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="at least 1 and 0 are needed"):
            explain_line(table, **wrong)


def test_the_order_of_rows_and_the_spelling_of_the_norm_have_no_influence():
    table = synthetic_table(levels=np.linspace(0, 1, 6))
    shuffled = table.sample(frac=1, random_state=0).rename_axis("member")
    expected = explain_line(table, num_draws=200)
    for norm in ("2", 2, "fro", "2.0"):
        assert explain_line(shuffled, norm=norm, num_draws=200) == expected


def test_members_of_two_experiments_are_different_networks():
    table = synthetic_table(norms=("2",))
    other = table.assign(experiment="init_scale", family="init_scale")
    other.loc[other["member"] == 4, "test_loss"] = math.nan
    found = explain_line(pd.concat([table, other]), num_draws=200)
    assert (found.num_networks, found.num_diverged, len(found.networks)) == (23, 1, 23)
    assert list(found.left_out) == ["init_scale, member 4 (init_scale, level 0.1, seed 1)"]
    assert len({network.name for network in found.networks}) == 23
