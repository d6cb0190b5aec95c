"""What the leaderboard's figure draws, read off its artists."""

import numpy as np
import pytest

from normjax.generalization.ranking import rank_measures
from normjax.plots.leaderboard import plot_leaderboard

LEVELS = ["0", "0.1", "0.2", "0.5", "0.8", "1"]


def ranked(levels, num_test=5000):
    factors = {"corruption": np.repeat(LEVELS, 2).tolist(), "seed": ["0", "1"] * 6}
    error = 0.1 + 0.05 * np.arange(12)
    noise = np.random.default_rng(0).normal(size=(2, 12))
    measures = {
        "some_norm": error + 0.1 * noise[0],
        "normalized_train_loss": error + 0.3 * noise[1],
        "holes": np.full(12, np.nan),
    }
    return rank_measures(measures, error, error, factors, levels, num_test=num_test)


@pytest.fixture(scope="module")
def rows():
    return ranked(np.repeat(LEVELS, 2).tolist())


def points(axes, marker):
    """Centers of the single markers, {y: x}."""
    return {
        float(line.get_ydata()[0]): float(line.get_xdata()[0])
        for line in axes.lines
        if line.get_marker() == marker and len(line.get_xdata()) == 1
    }


def bars(axes):
    """Horizontal bars, {y: (low, high)}."""
    return {
        float(line.get_ydata()[0]): tuple(map(float, line.get_xdata()))
        for line in axes.lines
        if line.get_marker() == "None" and len(set(line.get_ydata())) == 1
    }


def test_points_and_bars_are_the_ranked_numbers(rows):
    left, middle, right = plot_leaderboard(rows, "A title").axes
    known = list(enumerate(rows))[:2]
    assert [label.get_text() for label in left.get_yticklabels()] == [
        row.name.replace("_", " ") for row in rows
    ]
    assert points(left, "o") == {i: row.tau for i, row in known}
    assert bars(left) == {i: row.correlation.kendall_interval for i, row in known}
    assert points(middle, "o") == {i: row.mean_psi for i, row in known}
    assert bars(middle) == {i: row.psi_interval for i, row in known}
    assert points(middle, "s") == {i: row.psi["corruption"] for i, row in known}
    assert points(middle, "^") == {i: row.psi["seed"] for i, row in known}
    assert points(right, "o") == {i: row.sign_errors.worst for i, row in known}
    assert points(right, "|") == {i: row.sign_errors.mean for i, row in known}
    # The best is on top.
    assert left.get_ylim()[0] > left.get_ylim()[1]
    names = {text.get_text() for text in left.get_legend().get_texts()}
    assert names == {"Measure, 95% interval", "The paper's measure"}


def test_measures_that_are_worse_than_the_first_are_hollow():
    levels = [str(i) for i in range(24)]
    error = 0.1 + 0.02 * np.arange(24)
    measures = {"good": error, "bad": -error + 0.05 * np.random.default_rng(0).normal(size=24)}
    rows = rank_measures(measures, error, error, {"corruption": levels}, levels, num_test=5000)
    assert [row.difference.is_real for row in rows] == [False, True]
    left = plot_leaderboard(rows, "A title").axes[0]
    filled = [line for line in left.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in filled] == [False, True]
    assert "Worse than the first" in {text.get_text() for text in left.get_legend().get_texts()}


def test_without_intervals_there_are_no_bars():
    left, middle, right = plot_leaderboard(ranked(["a", "b"] * 6, num_test=1), "A title").axes
    assert bars(left) == bars(middle) == {} and len(points(left, "o")) == 2
    assert "Measure" in {text.get_text() for text in left.get_legend().get_texts()}
    assert points(right, "o") == {} and right.get_title(loc="left") == "Worst comparison"
    assert "No pair of networks" in right.texts[0].get_text()
