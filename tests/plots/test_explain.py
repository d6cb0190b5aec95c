"""The figures of explain: each panel shows the numbers of the explanation, and none of its own."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from normjax.controls.explain import explain_line
from normjax.controls.logits import NetworkLogits, explain_logits, measure_network
from normjax.plots import style
from normjax.plots.explain import DIVISOR_NAMES, plot_line, plot_logits
from normjax.results.table import select
from tests.helpers.synthetic_results import synthetic_table

NUM_CLASSES = 10


def with_random_labels(table):
    own = table[:2].assign(
        family="random_labels", labels="random", level=1.0, normalized_test_excess=-1e-4
    )
    own["normalized_test_loss"] = math.log(10) - 1e-4
    own["member"] += 100
    return pd.concat([table, own])


@pytest.fixture(scope="module")
def table():
    levels = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    return with_random_labels(select(synthetic_table(levels=levels, num_seeds=2), norm="2"))


@pytest.fixture(scope="module")
def found(table):
    return explain_line(table, num_draws=200)


@pytest.fixture(scope="module")
def panels(found):
    return plot_line(found, "Digits").axes


def markers(axes, marker):
    """The points of all lines with this marker, in order."""
    parts = [np.column_stack(line.get_data()) for line in axes.lines if line.get_marker() == marker]
    return np.concatenate(parts) if parts else np.empty((0, 2))


def by_label(axes, start):
    (line,) = (line for line in axes.lines if line.get_label().startswith(start))
    return np.column_stack(line.get_data()).astype(float)


def row_names(axes):
    return [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]


def test_the_title_says_which_networks_and_the_verdict(found):
    title = plot_line(found, "Digits").get_suptitle()
    assert title == f"Digits · 14 networks · last epoch · Frobenius norm · verdict: {found.verdict}"


def test_lines_are_those_of_the_losses_drawn_less_ln_k(panels, found, table):
    axes = panels[0]
    names = ["normalized_train_excess", "normalized_test_excess"]
    np.testing.assert_allclose(
        np.sort(markers(axes, "*"), axis=0), np.sort(table[names].to_numpy(), axis=0), rtol=1e-14
    )
    true = table[table["labels"] == "natural"]
    for start, rows in (("Least squares", table), ("Without RL", true)):
        slope, offset = np.polyfit(rows[names[0]], rows[names[1]], 1)
        drawn = by_label(axes, start)
        np.testing.assert_allclose(drawn[:, 0], [table[names[0]].min(), 0])
        np.testing.assert_allclose(drawn[:, 1], offset + slope * drawn[:, 0], atol=1e-12)
    anchored = by_label(axes, "Through (ln K, ln K)")
    slope = (true[names[0]] @ true[names[1]]) / (true[names[0]] @ true[names[0]])
    np.testing.assert_allclose(anchored[:, 1], slope * anchored[:, 0], rtol=1e-12)
    assert axes.get_title(loc="left") == f"The line: R² {found.fit.r2:.5f}, slope " + (
        f"{found.fit.slope:.4f}"
    )
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    r2 = found.fit_without_random_labels.r2
    assert texts[:2] == ["Least squares", f"Without RL: R² {r2:.5f}"]


def test_left_out_margins_and_their_skill(panels, found):
    axes, divisor = panels[1], found.divisor
    for marker, values in (("s", divisor.best), ("o", divisor.line)):
        np.testing.assert_allclose(markers(axes, marker), np.column_stack([divisor.actual, values]))
    low, high = divisor.interval
    title = f"Left-out levels: skill {divisor.skill:.2f} ({low:.2f} to {high:.2f})"
    assert axes.get_title(loc="left") == title
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts[0].startswith(f"Norms alone ({divisor.rival}): RMSE")


def test_what_level_and_norm_leave(panels, found):
    axes, content = panels[2], found.content
    expected = np.column_stack([content.train, content.test])
    np.testing.assert_allclose(np.sort(markers(axes, "*"), axis=0), np.sort(expected, axis=0))
    (line,) = (line for line in axes.lines if line.get_color() == style.LINE_COLOR)
    slope = np.linalg.lstsq(expected[:, :1], expected[:, 1], rcond=None)[0]
    np.testing.assert_allclose(line.get_ydata(), slope * line.get_xdata(), rtol=1e-9)
    low, high = content.interval
    assert line.get_label() == f"r {content.correlation:.2f} (95%: {low:.2f} to {high:.2f})"


def test_ratios_and_influence(panels, found, table):
    true = table[table["labels"] == "natural"]
    ratios = true["normalized_test_excess"] / true["normalized_train_excess"]
    drawn = markers(panels[3], "*")
    np.testing.assert_allclose(np.sort(drawn[:, 0]), np.sort(true["product_norm"]), rtol=1e-14)
    np.testing.assert_allclose(np.sort(drawn[:, 1]), np.sort(ratios), rtol=1e-12)
    (mean,) = {line.get_ydata()[0] for line in panels[3].lines if line.get_linestyle() == "--"}
    assert mean == found.ratio.mean
    drawn = markers(panels[5], "*")
    groups = list(found.influence.group)
    expected = [(n.cooks_distance, groups.index(f"{n.family} {n.level:g}")) for n in found.networks]
    np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(expected, axis=0), rtol=1e-14)
    together = list(zip(found.influence.group.values(), range(7), strict=True))
    np.testing.assert_allclose(markers(panels[5], "|"), together)
    assert row_names(panels[5])[-1] == "random labels 1"


def test_rankings_and_their_intervals(panels, found):
    axes = panels[4]
    assert row_names(axes)[-1] == "Normalized training loss"
    rankings = list(reversed(found.error_ranking.values()))
    np.testing.assert_allclose(markers(axes, "o")[:, 0], [r.kendall for r in rankings])
    bars = [line.get_xdata() for line in axes.lines if line.get_linewidth() == 2.5]
    np.testing.assert_allclose(bars, [r.kendall_interval for r in rankings])
    assert axes.get_xlabel().endswith(", 95% intervals")


def test_without_intervals_none_are_announced():
    few = explain_line(select(synthetic_table(levels=(0.0, 0.5, 1.0)), norm="2"), num_draws=200)
    axes = plot_line(few).axes[4]
    assert len(markers(axes, "o")) == 4
    assert not [line for line in axes.lines if line.get_linewidth() == 2.5]
    assert axes.get_xlabel() == "Kendall's tau-b with the test error"


def test_colors_agree_between_panels_and_the_legend(found):
    figure = plot_line(found)
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["0", "0.1", "0.25", "0.5", "0.75", "1", "RL"]
    colors = [to_hex(handle.get_color()) for handle in legend.legend_handles]
    assert colors[-1] == style.TEST_COLOR and len(set(colors)) == 7
    for index in (0, 2, 3, 5):
        own = {
            line.get_label().removeprefix("_"): to_hex(line.get_color())
            for line in figure.axes[index].lines
            if line.get_marker() == "*" and len(line.get_xdata())
        }
        assert own.items() <= dict(zip(texts, colors, strict=True)).items()
        assert ("RL" in own) == (index in (0, 5))


def test_controls_that_are_missing_say_why(table):
    two = explain_line(table[:2], num_draws=200)
    panels = plot_line(two).axes
    for index, name in (
        (1, "divisor"),
        (2, "content"),
        (4, "error_ranking"),
        (5, "influence"),
    ):
        assert [text.get_text() for text in panels[index].texts] == [two.reasons[name]]
        assert list(panels[index].get_xticks()) == []
    assert panels[0].get_title(loc="left") == "The line"
    with pytest.raises(ValueError, match="no network with finite losses to draw"):
        plot_line(explain_line(table.assign(test_loss=math.nan), num_draws=200))


@pytest.fixture(scope="module")
def logits(found):
    rng = np.random.default_rng(0)
    true = [network for network in found.networks if not network.has_random_labels]
    norms = [network.product_norm for network in true]
    measures = []
    for index, network in enumerate(true):
        splits = []
        for scale in (8.0, 5.0):
            labels = rng.integers(NUM_CLASSES, size=40).astype(np.int32)
            values = (
                rng.normal(size=(40, NUM_CLASSES))
                + scale * (1 + 0.1 * index) * np.eye(NUM_CLASSES)[labels]
            )
            splits += [values.astype(np.float32), labels]
        balanced = 0.8 * network.product_norm
        measures.append(
            measure_network(NetworkLogits(*splits, network.product_norm, 3.0, balanced), norms)
        )
    return explain_logits(
        measures, norms, [network.level for network in true], NUM_CLASSES, num_draws=200
    )


def test_lines_under_other_divisors(found, logits):
    figure = plot_logits(found, logits, "Digits")
    assert " · 12 networks · " in figure.get_suptitle()
    for axes, name in zip(figure.axes[1:5], list(DIVISOR_NAMES)[1:], strict=True):
        assert axes.get_title(loc="left") == f"{DIVISOR_NAMES[name]}: R² {logits.fits[name].r2:.5f}"
        chance = math.log(NUM_CLASSES) if "ln K" in axes.get_xlabel() else 0
        assert (chance > 0) == (name in ("balanced", "one_norm"))
        points = np.transpose(logits.points[name])
        drawn = markers(axes, "*") + chance
        np.testing.assert_allclose(np.sort(drawn, 0), np.sort(points, 0), rtol=1e-12)
        line = next(line for line in axes.lines if line.get_color() == style.LINE_COLOR)
        slope, _ = np.polyfit(*(points - points.mean(axis=0)).T, 1)
        x, y = line.get_data()
        np.testing.assert_allclose(np.diff(y) / np.diff(x), slope, rtol=1e-6)
    before = np.transpose(logits.points["product_norm"]) - math.log(NUM_CLASSES)
    np.testing.assert_allclose(markers(figure.axes[1], "o"), before, rtol=1e-12)


def test_temperatures_and_sampling(found, logits):
    first, *_, last = plot_logits(found, logits).axes
    for start, name in (("Each network's", "product_norm"), ("One norm", "one_norm")):
        drawn = by_label(first, start)
        np.testing.assert_allclose(drawn[:, 0], logits.temperatures)
        expected = np.maximum(1 - np.array(logits.temperature_r2[name]), 1e-7)
        np.testing.assert_allclose(drawn[:, 1], expected)
    sampling = logits.sampling
    widths = [bar.get_width() for bar in last.patches]
    assert widths == [sampling.of_a_loss, sampling.of_a_residual, sampling.rmse]
    assert row_names(last)[-1] == "RMSE of the line"


def test_divisors_and_temperatures_without_a_line(found, logits):
    reasons = {"fits.balanced": "entrywise norms only", "sampling": "no networks"}
    temperatures = {
        **logits.temperature_r2,
        "one_norm": (None, *logits.temperature_r2["one_norm"][1:]),
    }
    changes = {
        "fits": {**logits.fits, "balanced": None},
        "sampling": None,
        "temperature_r2": temperatures,
        "reasons": reasons,
    }
    changed = (
        dataclasses.replace(logits, **changes)
        if dataclasses.is_dataclass(logits)
        else logits._replace(**changes)
    )
    first, second, *_, last = plot_logits(found, changed).axes
    np.testing.assert_allclose(by_label(first, "One norm")[:, 0], logits.temperatures[1:])
    assert [text.get_text() for text in second.texts] == ["entrywise norms only"]
    assert [text.get_text() for text in last.texts] == ["no networks"]
    nowhere = {name: (None,) * len(logits.temperatures) for name in temperatures}
    few = dataclasses.replace(
        logits, temperature_r2=nowhere, reasons={"fits.product_norm": "2 points"}
    )
    assert [text.get_text() for text in plot_logits(found, few).axes[0].texts] == ["2 points"]


def test_influence_that_no_network_has_is_an_empty_panel(found):
    unknown = [dataclasses.replace(one, cooks_distance=None) for one in found.networks]
    axes = plot_line(dataclasses.replace(found, networks=tuple(unknown))).axes
    (panel,) = (one for one in axes if one.get_title("left") == "Influence on the line")
    assert not len(markers(panel, "*"))
