"""What the figure of eq. 4's terms draws, read off its artists."""

import dataclasses

import pytest

from normjax.plots.bounds import plot_bounds
from tests.helpers.synthetic_eq4 import LABELS, SIGNS, synthetic_eq4


@pytest.mark.parametrize("labels", [None, LABELS])
def test_the_figure_shows_the_terms(labels):
    found = synthetic_eq4(labels=labels)
    (axes,) = plot_bounds(found).axes
    assert axes.get_xscale() == "log" and "Nats" in axes.get_xlabel()
    terms = [found.confidence_term, found.confidence_term_of_range]
    terms += [*([LABELS.two_r] if labels else []), SIGNS.two_r, *found.upper.values()]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == len(terms) + 1
    assert names[-3].endswith("random signs") and names[-1].endswith("above: B")
    points = {
        float(line.get_ydata()[0]): line.get_xdata().tolist()
        for line in axes.lines
        if line.get_marker() in ("s", "<", ">")
    }
    assert points == {float(i): [value] for i, value in enumerate(terms, 1)}
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["0.0211", "34.1", *(["0.02"] if labels else []), "0.5", "60", "5.02"]


def test_gaps_standard_errors_and_chance():
    (axes,) = plot_bounds(synthetic_eq4()).axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    gaps = {line.get_label(): line.get_xdata()[0] for line in dots}
    assert gaps == {"True labels": 0.01, "Random labels": 0.005}
    (bar,) = axes.collections
    (ends,) = bar.get_segments()
    assert ends[:, 0] == pytest.approx([0.4, 0.6]) and ends[:, 1].tolist() == [3, 3]
    chance = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert [line.get_xdata()[0] for line in chance] == [2.3]
    lone = dataclasses.replace(SIGNS, standard_error=None)
    assert not plot_bounds(synthetic_eq4(signs=lone)).axes[0].collections
