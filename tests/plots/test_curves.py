"""What the figure of curves shows: losses, the epochs they would stop at, and the phases."""

import numpy as np
import pytest

from normjax.plots import style as plot_style
from normjax.plots.curves import plot_curves
from normjax.results.metrics import stopping_epochs
from tests.helpers.synthetic_metrics import BETTER, EXCESS, NUM_FIRST, make_lines


def lines_by_color(axes, color, style="-"):
    return [
        np.column_stack(line.get_data())
        for line in axes.lines
        if (line.get_color(), line.get_linestyle()) == (color, style)
    ]


def test_curves_show_three_levels_and_mark_the_epochs():
    levels = (0.05, 0.1, 0.25, 0.5, 1.0)
    metrics = []
    for seed in (1, 0):  # the first seed is shown, wherever it stands
        for member, level in enumerate(levels):
            second = [(raw * (1 + level + seed), x, test) for raw, x, test in BETTER]
            metrics += make_lines(10 * (1 - seed) + member, level, second, seed=seed)
    figure = plot_curves(metrics, "Digits")
    axes = figure.axes
    assert len(axes) == 6 and figure.get_suptitle().startswith("Digits · ")
    titles = [panel.get_title(loc="left") for panel in axes[:3]]
    assert titles == ["Level 0.05", "Level 0.25", "Level 1"]
    for column, level in enumerate((0.05, 0.25, 1.0)):
        above, below = axes[column], axes[3 + column]
        assert (above.get_yscale(), below.get_yscale()) == ("log", "linear")
        (train,) = lines_by_color(above, plot_style.TRAIN_COLOR)
        np.testing.assert_allclose(train[:, 0], [1, 2, 3, 4, 5, 6])
        raw = np.array([0.9, 0.5, 0.3, 0.1]) * (1 + level)
        np.testing.assert_allclose(train[:, 1], [1e-9, 1e-9, *raw], rtol=1e-14)
        (test,) = lines_by_color(above, plot_style.TEST_COLOR)
        np.testing.assert_allclose(test[2:], [[3, 1.5], [4, 1.2], [5, 1.3], [6, 1.9]], rtol=1e-14)
        (normalized,) = lines_by_color(below, plot_style.TRAIN_COLOR)
        np.testing.assert_allclose(normalized[:, 1], [-9, -9, -0.1, -0.3, -0.4, -0.2], rtol=1e-14)
        marks = [
            lines_by_color(above, c, "None")
            for c in (plot_style.TRAIN_COLOR, plot_style.TEST_COLOR)
        ]
        np.testing.assert_allclose(np.ravel(marks), [6, raw[3], 4, 1.2], rtol=1e-14)
        (mark,) = lines_by_color(below, plot_style.TRAIN_COLOR, "None")
        np.testing.assert_allclose(np.ravel(mark), [5, -0.4], rtol=1e-14)
        for panel in (above, below):
            assert all(tick == int(tick) for tick in panel.get_xticks())  # epochs are whole
            (change,) = lines_by_color(panel, plot_style.LINE_COLOR, "--")
            np.testing.assert_allclose(change[:, 0], 2.5)
            assert [text.get_text() for text in panel.texts] == ["true labels"]
    assert axes[0].get_ylabel() == "Cross-entropy (nats), log scale"
    assert (
        axes[3].get_ylabel().replace("\n", " ") == "Normalized training cross-entropy - ln K (nats)"
    )
    assert all("Epoch" in panel.get_xlabel() for panel in axes[3:])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["Training (mean over the epoch)", "Test", "Minimum with true labels"]


def test_curves_of_one_phase_without_test_losses():
    lines = make_lines(0, 0.05, [(raw, excess, None) for raw, excess, _ in BETTER])[NUM_FIRST:]
    above, below = plot_curves(lines).axes
    assert [len(panel.lines) for panel in (above, below)] == [1, 1]
    assert list(above.texts) == list(below.texts) == []


def test_bad_lines_are_named():
    with pytest.raises(ValueError, match="no lines of metrics"):
        plot_curves([])
    lines = make_lines(0, 0.1, BETTER)
    del lines[3][EXCESS]
    with pytest.raises(ValueError, match=f"line 4 of the metrics has no {EXCESS}"):
        plot_curves(lines)


def test_a_diverged_network_is_drawn_as_far_as_it_goes():
    second = [(0.9, -0.1, 1.5), (None, None, None), (None, None, None)]
    above, below = plot_curves(make_lines(0, 0.1, second)).axes
    (train,) = lines_by_color(above, plot_style.TRAIN_COLOR)
    assert np.isfinite(train[:, 1]).tolist() == [True, True, True, False, False]
    assert stopping_epochs(make_lines(0, 0.1, second))[0].raw_epoch == 3
    assert len(below.lines) == 3
