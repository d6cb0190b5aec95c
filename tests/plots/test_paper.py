"""What is drawn: the stars stand at the networks' values, the line is the explanation's."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from PIL import Image
from scipy import stats

from normjax.controls.explain import explain_line
from normjax.formatting import number
from normjax.plots import paper, style
from normjax.results.table import select
from tests.helpers.synthetic_results import synthetic_table

LEVELS = ("0", "0.1", "0.5", "1")


@pytest.fixture(scope="module")
def table():
    return select(synthetic_table(), selection="final", norm="2")


def draw(plot, table, dataset_label=""):
    return plot(table, explain_line(table, num_draws=100), dataset_label)


def near_ln_k(table, scale, shift=0.0):
    """The same networks with normalized losses nearer to ln 10."""
    changed = {}
    for split in ("train", "test"):
        excess = scale * table[f"normalized_{split}_excess"] + shift
        changed |= {
            f"normalized_{split}_excess": excess,
            f"normalized_{split}_loss": math.log(10) + excess,
        }
    return table.assign(**changed)


def with_random_labels(table):
    """Two more networks, trained on random labels and evaluated on both kinds."""
    own = table[:2].assign(family="random_labels", labels="random", level=1.0)
    own["member"] += 100
    return pd.concat([table, own, own.assign(labels="natural", test_loss=99.0)])


def stars(axes):
    """All star markers of a panel, as {level: [n, 2]}."""
    return {
        line.get_label().removeprefix("_"): np.column_stack(line.get_data())
        for line in axes.lines
        if line.get_marker() == "*"
    }


def fitted_lines(axes):
    return [np.column_stack(line.get_data()) for line in axes.lines if line.get_marker() != "*"]


def level_labels(axes):
    return [text for text in axes.texts if text.get_color() == style.LABEL_COLOR]


def assert_stars(axes, table, x, y, factor=1.0, levels=LEVELS):
    drawn = stars(axes)
    assert tuple(drawn) == levels
    for level in levels:
        own = table[(table["level"] == float(level)) & (table["labels"] == "natural")]
        expected = np.column_stack([own[x], factor * own[y]])
        np.testing.assert_allclose(drawn[level], expected, rtol=1e-14)


def test_normalized_fit(table):
    left, right = draw(paper.plot_normalized_fit, table, "Digits").axes
    x_name, y_name = "normalized_train_loss", "normalized_test_loss"
    assert_stars(left, table, x_name, y_name)
    assert_stars(right, table, x_name, "normalized_test_error", factor=100)
    x, y = table[x_name].to_numpy(), table[y_name].to_numpy()
    line = stats.linregress(x - x.mean(), y)
    (drawn,) = fitted_lines(left)
    np.testing.assert_allclose(drawn[:, 0], [x.min(), x.max()], rtol=1e-15)
    np.testing.assert_allclose(
        drawn[:, 1], line.intercept + line.slope * (drawn[:, 0] - x.mean()), rtol=1e-12
    )
    assert fitted_lines(right) == []
    rmse = math.sqrt(np.sum((y - line.intercept - line.slope * (x - x.mean())) ** 2) / 10)
    adjusted = 1 - (1 - line.rvalue**2) * 11 / 10
    assert left.texts[0].get_text() == (
        f"R² {line.rvalue**2:.5f}    adjusted R² {adjusted:.5f}    RMSE {number(rmse, 4)}\n"
        f"slope {line.slope:.4f}    intercept {line.intercept - line.slope * x.mean():.4f}"
    )
    assert left.get_xlabel() == "Normalized training cross-entropy (nats)"
    assert right.get_ylabel() == "Test error (%)"


def test_the_line_is_the_explanations(table):
    """Nothing is fitted in a figure: another explanation of the networks is another line."""
    found = explain_line(table, num_draws=100)
    changed = dataclasses.replace(found.fit, slope=0.25, intercept=1.5, r2=0.125)
    found = dataclasses.replace(found, fit=changed, raw_fit=None)
    found.reasons["raw_fit"] = "no reason"
    left, right = paper.plot_normalized_and_raw(table, found).axes
    (drawn,) = fitted_lines(left)
    np.testing.assert_allclose(drawn[:, 1], 1.5 + 0.25 * drawn[:, 0], rtol=1e-15)
    assert left.texts[0].get_text().startswith("R² 0.12500 ")
    assert fitted_lines(right) == [] and right.texts[0].get_text() == "no line: no reason"


def test_raw_panels_and_product_norm(table):
    raw, product, normalized, error = draw(paper.plot_four_panels, table).axes
    assert_stars(raw, table, "train_loss", "test_loss")
    assert_stars(product, table, "product_norm", "test_loss")
    assert_stars(error, table, "normalized_train_loss", "normalized_test_error", factor=100)
    x, y = table["train_loss"].to_numpy(), table["test_loss"].to_numpy()
    slope, intercept = np.polyfit(x, y, 1)
    (drawn,) = fitted_lines(raw)
    np.testing.assert_allclose(drawn[:, 1], intercept + slope * drawn[:, 0], rtol=1e-9)
    assert len(fitted_lines(normalized)) == 1
    assert fitted_lines(product) == fitted_lines(error) == []
    assert product.get_xlabel().endswith("of the layers' Frobenius norms")
    (lone,) = draw(paper.plot_error_against_product_norm, table).axes
    assert_stars(lone, table, "product_norm", "test_error", factor=100)
    left, right = draw(paper.plot_normalized_and_raw, table).axes
    assert_stars(left, table, "normalized_train_loss", "normalized_test_loss")
    assert_stars(right, table, "train_loss", "test_loss")


def test_losses_against_level(table):
    loss, error = draw(paper.plot_losses_against_level, table).axes
    assert [tick.get_text() for tick in loss.get_xticklabels()] == list(LEVELS)
    for axes, kind, factor in ((loss, "loss", 1), (error, "error", 100)):
        for split, mean_line, dots in (("train", *axes.lines[:2]), ("test", *axes.lines[2:])):
            values = factor * table[f"{split}_{kind}"].to_numpy()
            assert list(dots.get_xdata()) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
            np.testing.assert_allclose(dots.get_ydata(), values, rtol=1e-14)
            means = values.reshape(4, 3).mean(axis=1)  # rows are ordered by level, 3 seeds each
            assert list(mean_line.get_xdata()) == [0, 1, 2, 3]
            np.testing.assert_allclose(mean_line.get_ydata(), means, rtol=1e-12)
    assert (loss.get_ylabel(), error.get_ylabel()) == ("Cross-entropy (nats)", "Error (%)")


def test_a_level_is_written_once_beside_its_highest_star_and_covers_no_other(table):
    figure = draw(paper.plot_four_panels, table)
    figure.draw_without_rendering()
    for axes in figure.axes:
        labels = level_labels(axes)
        texts = [label.get_text() for label in labels]
        assert texts[0] == "0" and len(set(texts)) == len(texts) > 1
        drawn = stars(axes)
        for label in labels:
            own = drawn[label.get_text()]
            np.testing.assert_array_equal(label.xy, own[own[:, 1].argmax()])
        boxes = [label.get_window_extent() for label in labels]
        for index, box in enumerate(boxes):
            assert axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 + 1
            assert not any(box.overlaps(other) for other in boxes[:index])


def test_a_text_closest_to_a_star_of_another_level_is_left_to_the_legend(table):
    """Level 0.1 is scattered around the others; its highest star stands beside one of level 0."""
    mixed = table.assign(product_norm=1000.0 + 100 * table["member"], test_error=0.5)
    place, error = mixed.columns.get_loc("product_norm"), mixed.columns.get_loc("test_error")
    highest = np.flatnonzero(mixed["level"] == 0.1)[0]
    other = np.flatnonzero(mixed["level"] == 0)[0]
    mixed.iloc[highest, [place, error]] = 1500.0, 0.6
    mixed.iloc[other, [place, error]] = 1480.0, 0.605
    figure = draw(paper.plot_error_against_product_norm, mixed)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    texts = {label.get_text(): label for label in level_labels(axes)}
    assert "0" in texts and "0.1" not in texts
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(LEVELS)
    points = np.concatenate(list(stars(axes).values()))
    owners = np.repeat(LEVELS, [len(own) for own in stars(axes).values()])
    for level, label in texts.items():
        box = label.get_window_extent()
        center = np.array([box.x0 + box.x1, box.y0 + box.y1]) / 2
        distances = np.linalg.norm(axes.transData.transform(points) - center, axis=1)
        assert owners[distances.argmin()] == level


def test_levels_too_near_each_other_are_left_to_the_legend(table):
    same = table.assign(product_norm=1000 + table["member"] / 1000, test_error=0.5)
    same.loc[same["level"] == 1, "product_norm"] = 2000.0
    figure = draw(paper.plot_error_against_product_norm, same)
    assert [label.get_text() for label in level_labels(figure.axes[0])] == ["0", "1"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(LEVELS)


def test_many_levels_have_a_color_each_in_even_rows_of_the_legend():
    levels = tuple(np.linspace(0, 1, 15))
    table = select(synthetic_table(levels=levels, num_seeds=1), norm="2")
    (legend,) = draw(paper.plot_normalized_fit, table).legends
    assert legend._ncols == 8
    colors = {to_hex(handle.get_color()) for handle in legend.legend_handles}
    assert len(colors) == len(legend.get_texts()) == 15


def tick_values(axis):
    """The numbers that the ticks show, with the power of ten that stands beside the axis."""
    power = axis.get_offset_text().get_text() or "1"
    texts = [tick.get_text() for tick in axis.get_ticklabels()]
    return [float(text.replace("−", "-")) * float(power.replace("−", "-")) for text in texts]


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0), (1e-3, -0.5), (1e-2, 0), (1e-7, 0)])
def test_ticks_show_their_places(table, scale, shift):
    changed = near_ln_k(table, scale, shift)
    found = dataclasses.replace(explain_line(table, num_draws=100), fit=None)
    found.reasons["fit"] = "not needed here"
    figure = paper.plot_normalized_fit(changed, found)
    figure.draw_without_rendering()
    left, _ = figure.axes
    for axis in (left.xaxis, left.yaxis):
        values, places = tick_values(axis), axis.get_majorticklocs()
        low, high = axis.get_view_interval()
        assert 3 <= np.sum((low <= places) & (places <= high)) <= 6
        np.testing.assert_allclose(values, places, rtol=1e-9, atol=1e-9 * (high - low))


@pytest.mark.parametrize(
    ("scale", "is_excess"), [(1e-7, True), (0.0138, True), (0.0141, False), (1.0, False)]
)
def test_losses_without_digits_are_drawn_less_ln_k(table, scale, is_excess):
    # The excesses reach from -0.0719 to -0.0120 nats.
    faint = near_ln_k(table, scale)
    kind, less = ("excess", " - ln K") if is_excess else ("loss", "")
    x_name, y_name = f"normalized_train_{kind}", f"normalized_test_{kind}"
    raw, _, left, right = draw(paper.plot_four_panels, faint).axes
    assert_stars(left, faint, x_name, y_name)
    assert_stars(right, faint, x_name, "normalized_test_error", factor=100)
    label = f"Normalized training cross-entropy{less} (nats)"
    assert left.get_xlabel() == right.get_xlabel() == label
    assert left.get_ylabel().replace("\n", " ") == f"Normalized test cross-entropy{less} (nats)"
    assert "ln K" not in raw.get_xlabel() + raw.get_ylabel() + right.get_ylabel()
    # The line of the unscaled excess has no digits to lose.
    x, y = (table[f"normalized_{split}_excess"].to_numpy() for split in ("train", "test"))
    line = stats.linregress(x, y)
    (drawn,) = fitted_lines(left)
    away = 0 if is_excess else math.log(10)
    expected = away + scale * (line.intercept + line.slope * np.array([x.min(), x.max()]))
    np.testing.assert_allclose(drawn[:, 1], expected, rtol=1e-9, atol=4e-15)
    intercept = scale * line.intercept + (1 - line.slope) * math.log(10)
    rmse = scale * np.sqrt(np.sum((y - line.intercept - line.slope * x) ** 2) / (len(x) - 2))
    first, second = left.texts[0].get_text().split("\n")
    assert first.startswith(f"R² {line.rvalue**2:.5f} ")
    assert float(first.split("RMSE")[1]) == pytest.approx(rmse, rel=1e-3)
    name = "intercept of the losses" if is_excess else "intercept"
    assert second == f"slope {line.slope:.4f}    {name} {intercept:.4f}"
    assert raw.texts[0].get_text().count("of the losses") == 0


def test_equal_losses_away_from_ln_k_are_drawn_less_ln_k(table):
    """A spread of 1e-5 nats has no digits left, however far from ln K it is."""
    for scale, is_excess in ((1e-4, True), (1e-3, False)):
        found = dataclasses.replace(explain_line(table, num_draws=100), fit=None)
        found.reasons["fit"] = "not needed here"
        left, _ = paper.plot_normalized_fit(near_ln_k(table, scale, -0.5), found).axes
        assert ("ln K" in left.get_xlabel()) == is_excess


def test_product_norms_over_two_decades_have_a_log_axis(table):
    for span, scale in ((99.0, "linear"), (101.0, "log")):
        spread = table.assign(product_norm=7.0 * np.geomspace(1, span, len(table)))
        (lone,) = draw(paper.plot_error_against_product_norm, spread).axes
        raw, product, *_ = draw(paper.plot_four_panels, spread).axes
        assert lone.get_xscale() == product.get_xscale() == scale
        assert lone.get_yscale() == raw.get_xscale() == "linear"
        assert_stars(lone, spread, "product_norm", "test_error", factor=100)
        ending = "Frobenius norms, log scale" if scale == "log" else "Frobenius norms"
        assert lone.get_xlabel().endswith(ending) and product.get_xlabel().endswith(ending)
    assert product.get_xlim()[0] < 7 and product.get_xlim()[1] > 707
    (lone,) = draw(paper.plot_error_against_product_norm, table.assign(norm="1/100")).axes
    assert lone.get_xlabel().endswith("layers' L1 norms / 100")


def test_diverged_networks_are_counted_not_drawn(table):
    broken = table.assign(test_loss=table["test_loss"].where(table["member"] > 0))
    figure = draw(paper.plot_normalized_and_raw, broken, "Digits $x_y$")
    title = figure.get_suptitle()
    assert title == ("Digits $x_y$ · 11 of 12 networks (1 diverged) · last epoch · Frobenius norm")
    assert not figure._suptitle.get_parse_math()  # no formula is read into a data set's name
    figure.draw_without_rendering()
    assert sum(len(points) for points in stars(figure.axes[0]).values()) == 11
    with pytest.raises(ValueError, match="no network with finite losses to draw"):
        draw(paper.plot_four_panels, table.assign(test_loss=np.nan))


def test_a_table_of_other_networks_is_refused(table):
    found = explain_line(table, num_draws=100)
    for other in (synthetic_table(), table[1:], table.assign(norm="1")):
        with pytest.raises(ValueError, match="do not match the 12 that were explained"):
            paper.plot_four_panels(other, found)


def test_two_networks_have_no_line_but_a_reason(table):
    left, _ = draw(paper.plot_normalized_fit, table[:2]).axes
    assert fitted_lines(left) == []
    assert left.texts[0].get_text() == "no line: 2 points; at least 3 are needed"


def test_random_labels_are_called_rl_and_shown_on_their_own_labels(table):
    mixed = with_random_labels(table)
    mixed["test_loss"] += 2.0 * (mixed["labels"] == "random")  # away from the others
    figure = draw(paper.plot_normalized_and_raw, mixed, "Digits")
    left, right = figure.axes
    assert figure.get_suptitle().startswith("Digits · 14 networks · ")
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == [*LEVELS, "RL"]
    title = "Fraction of corrupted labels in pretraining (RL: random labels)"
    assert legend.get_title().get_text() == title
    own = mixed[mixed["labels"] == "random"]
    drawn = stars(right)
    np.testing.assert_allclose(drawn["RL"], own[["train_loss", "test_loss"]], rtol=1e-14)
    colors = {line.get_label(): to_hex(line.get_color()) for line in right.lines}
    assert colors["_RL"] == style.TEST_COLOR
    assert len({colors[f"_{text}"] for text in drawn}) == 5
    assert [to_hex(handle.get_color()) for handle in legend.legend_handles] == [
        colors[f"_{text}"] for text in drawn
    ]
    assert level_labels(right)[-1].get_text() == "RL"
    for axes, kind in ((left, "normalized_"), (right, "")):  # of all networks, as in figure 10
        shown = mixed[:14]
        x, y = (shown[f"{kind}{split}_loss"].to_numpy() for split in ("train", "test"))
        slope = np.polyfit(x - x.mean(), y, 1)[0]
        number = axes.texts[0].get_text().split("slope ")[1].split(" ")[0].replace(",", "")
        assert float(number) == pytest.approx(slope, rel=1e-3)
    ends = mixed[(mixed["level"] == 0) | (mixed["family"] == "random_labels")]
    left, _ = draw(paper.plot_normalized_fit, ends).axes
    assert list(stars(left)) == ["0", "RL"] and len(fitted_lines(left)) == 1  # figure 11


def test_standard_deviations_with_random_labels_against_level(table):
    stds = {0.0: 0.001, 0.1: 0.0025, 0.5: 0.05, 1.0: 0.19}
    scaled = table.assign(family="init_scale", level=table["level"].map(stds))
    loss, error = draw(paper.plot_losses_against_level, with_random_labels(scaled)).axes
    for axes, name, factor in ((loss, "test_loss", 1), (error, "test_error", 100)):
        texts = [tick.get_text() for tick in axes.get_xticklabels()]
        assert texts == ["0.001", "0.0025", "0.05", "0.19", "RL"]
        label = "Standard deviation of the initial weights (RL: random labels)"
        assert axes.get_xlabel() == label
        mean_line, dots = axes.lines[2:]
        assert list(mean_line.get_xdata()) == [0, 1, 2, 3]  # random labels are no level
        assert list(dots.get_xdata()) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4]
        values = factor * scaled[name].to_numpy()
        np.testing.assert_allclose(dots.get_ydata(), [*values, *values[:2]], rtol=1e-14)


def test_draw_figures_takes_networks_on_their_own_labels(table, monkeypatch):
    figures = []
    monkeypatch.setattr(paper, "save_figure", lambda figure, _: figures.append(figure) or [])
    mixed = with_random_labels(table)
    found = explain_line(mixed, num_draws=100)
    none = dataclasses.replace(found, selection="loss=0.1", num_networks=0)
    paper.draw_figures(mixed, [found, none], "unused")
    assert len(figures) == 5  # none of a selection without networks
    for figure in figures:
        assert figure.get_suptitle().startswith("14 networks · last epoch")


def test_draw_figures_writes_readable_and_equal_files(tmp_path):
    table = synthetic_table(
        levels=(0.0, 1.0), num_seeds=2, norms=("1/100", "2"), selections=("loss=0.1",)
    )
    explanations = [explain_line(table, norm=norm, num_draws=100) for norm in ("1/100", "2")]
    paths = paper.draw_figures(table, explanations, tmp_path / "a", "Digits")
    kinds = ("normalized_fit", "normalized_and_raw", "four_panels", "error_against_product_norm")
    stems = [f"{kind}__loss_0.1__{norm}" for norm in ("1_100", "2") for kind in kinds]
    stems.insert(4, "losses_against_level__loss_0.1")  # once, without a norm
    expected = [f"{stem}.{suffix}" for stem in stems for suffix in ("png", "pdf")]
    assert [path.name for path in paths] == expected
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(expected)
    for path in paths:
        if path.suffix == ".pdf":
            assert path.read_bytes().startswith(b"%PDF")
            continue
        with Image.open(path) as image:
            assert image.width >= 1200
            image.load()
    again = paper.plot_normalized_fit(select(table, norm="1/100"), explanations[0], "Digits")
    for path in style.save_figure(again, tmp_path / "again"):
        assert path.read_bytes() == (tmp_path / "a" / (stems[0] + path.suffix)).read_bytes()
