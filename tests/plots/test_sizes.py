"""The figure of several sizes, read off its artists."""

import numpy as np

from normjax.controls.sizes import compare_sizes
from normjax.plots.sizes import PANELS, plot_sizes
from tests.helpers.synthetic_results import synthetic_table


def test_the_figure_shows_each_quantity_against_the_size():
    rows, networks = compare_sizes({100: synthetic_table(), 900: synthetic_table(seed=1)})
    figure = plot_sizes(rows, networks, "a title", {"paper, figure 5": 0.836})
    assert len(figure.axes) == len(PANELS)
    for axes, name in zip(figure.axes, PANELS, strict=True):
        values = [row.value for row in rows if row.quantity == name]
        lines = [
            line for line in axes.lines if line.get_linestyle() == "-" and line.get_marker() == "o"
        ]
        np.testing.assert_array_equal(lines[0].get_xydata(), np.transpose([[100, 900], values]))
        assert axes.get_xscale() == "log" and axes.get_xlabel() == "Training images N"
        assert [tick for tick in axes.get_xticks()] == [100, 900]
        dots = [line for line in axes.lines if line.get_label() == "Network"]
        assert len(dots) == (name != "slope")
        if dots:
            expected = networks[["train_images", name]].to_numpy()
            np.testing.assert_array_equal(dots[0].get_xydata(), expected)
    slopes = figure.axes[0]
    (printed,) = [line for line in slopes.lines if line.get_label() == "paper, figure 5"]
    assert set(printed.get_ydata()) == {0.836}
    bars = [line for line in slopes.lines if line.get_marker() == "None" and line is not printed]
    ends = [tuple(line.get_ydata()) for line in bars]
    assert ends == [(row.low, row.high) for row in rows if row.quantity == "slope"]


def test_a_quantity_without_values_has_its_reason():
    table = synthetic_table(levels=(0.0,), num_seeds=2)
    rows, networks = compare_sizes({100: table, 900: table})
    texts = [text.get_text() for text in plot_sizes(rows, networks, "").axes[0].texts]
    assert len(texts) == 1 and texts[0].startswith("None: ") and "3" in texts[0]
