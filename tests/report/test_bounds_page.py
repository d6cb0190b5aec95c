"""The words of bounds.md follow the numbers."""

import dataclasses

from normjax.report.render import render
from tests.helpers.synthetic_eq4 import LABELS, SIGNS, synthetic_eq4


def page(**terms):
    return render("bounds.md", found=synthetic_eq4(**terms))


def test_words_follow_the_numbers():
    text = page()
    assert text.startswith("# Eq. 4 on digits, convnet3, final\n\nThe median difference")
    assert "of the 2 networks" in text
    assert "is 0.0075 nats (range 0.005 to 0.01)." in text
    assert "(delta = 0.05, N = 100, losses in an interval of length 1) 0.0065 nats for the" in text
    assert "and 0.0211 nats, 2.11 times the largest gap, for the empirical R_N" in text
    assert "of length 1,972 nats; for that interval the latter is 34.1 nats." in text
    assert "With 4 draws of random signs, 2 R_N is at least 0.5 ± 0.1 nats, 50 times" in text
    assert "right side is 0.521 nats, and the gaps of 2 of the 2 networks are within it." in text
    assert "no networks trained on random labels" in text
    assert "the last quarter of its steps added 10%" in text
    assert "is 5.02 nats (B; the largest is 60), 10 times the lower estimate" in text
    assert "scaled" not in text and "diverged" not in text
    assert "\n\n\n" not in text and "  " not in text


def test_the_table():
    lines = page(labels=LABELS, labels_over_signs=0.04, diverged=[3, 5]).splitlines()
    start = lines.index("| term | nats | |")
    assert lines[start + 2 :] == [
        "| Gap, median | 0.0075 | measured |",
        "| Gap, largest | 0.01 | measured |",
        "| Training loss below ln K, largest | 0.0731 | measured |",
        "| Confidence term, expected R_N, losses in [0, 1] | 0.0065 | computed |",
        "| Confidence term, empirical R_N, losses in [0, 1] | 0.0211 | computed |",
        "| Confidence term, empirical R_N, losses in [0, 1,972] | 34.1 | computed |",
        "| 2 R_N, random labels | 0.02 | at least |",
        "| 2 R_N, random signs | 0.5 ± 0.1 | at least |",
        "| 2 R_N, A | 60 | at most |",
        "| 2 R_N, B | 5.02 | at most |",
        "",
        "Left out, diverged: networks 3, 5.",
    ]


def test_vacuous_is_said_with_its_numbers():
    text = page()
    assert "has loss ln K = 2.3 nats" in text and "here at most 0.0731 nats: 0 of the 2" in text
    assert "0 of the 2 networks, so eq. 4 is vacuous for all of them. The right side" in text
    text = page(num_below_chance=1)
    assert "1 of the 2 networks. The right side" in text and "vacuous" not in text
    assert "tight" not in text


def test_sentences_about_labels_and_fewer_images():
    labels = dataclasses.replace(LABELS, times_gap=2.04)
    text = page(labels=labels, labels_over_signs=0.041)
    assert "are 0.02 nats below ln K" in text
    assert "2.04 times the largest gap, and 0.041 times the estimate" in text
    few = dataclasses.replace(SIGNS, num_examples=15)
    assert "It was estimated on 15 of the images and scaled by 1 / sqrt(N).\n" in page(signs=few)
