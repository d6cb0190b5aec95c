"""The verdict by its two questions, and how often it is wrong on lines with known answers."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from benchmarks.synthetic_lines import NULLS, RELATED, SIZES, draw_line
from benchmarks.verdict_errors import count_verdicts, levels_asked, limits, main
from normjax.controls.content import measure_content
from normjax.controls.divisor import measure_divisor
from normjax.controls.explain import explain_line
from normjax.controls.power import levels_for_skill
from normjax.controls.verdict import ARTIFACT, SUPPORTED, UNDECIDED, judge
from tests.helpers.synthetic_lines import table_of

LINE = draw_line("constant ratio, 2% noise", np.random.default_rng(0), 6, 2)
CONTENT, DIVISOR = measure_content(*LINE), measure_divisor(*LINE)


def content_of(p_value, high):
    return dataclasses.replace(CONTENT, p_value=p_value, interval=(-0.2, high))


def divisor_of(low, skill):
    return dataclasses.replace(DIVISOR, skill=skill, interval=(low, 0.95))


FOUND, SMALL, OPEN = content_of(0.05, 0.9), content_of(0.051, 0.49), content_of(0.051, 0.51)
REVERSED = content_of(0.999, -0.1)
BETTER, UNKNOWN, WORSE = divisor_of(0.001, 0.5), divisor_of(-0.1, 0.5), divisor_of(-1, -0.001)


@pytest.mark.parametrize(
    ("content", "divisor", "verdict", "missing"),
    [
        (FOUND, BETTER, SUPPORTED, ""),
        (FOUND, UNKNOWN, UNDECIDED, "3 more levels like these (9 in all)"),
        (FOUND, WORSE, UNDECIDED, "the norms alone predict left-out levels as well"),
        (SMALL, WORSE, ARTIFACT, ""),
        (SMALL, UNKNOWN, UNDECIDED, "more levels"),
        (SMALL, BETTER, UNDECIDED, "not among networks of one level"),
        (OPEN, WORSE, UNDECIDED, "5 more seeds per level (7 in all)"),
        (OPEN, BETTER, UNDECIDED, "5 more seeds per level (7 in all)"),
        (REVERSED, WORSE, UNDECIDED, "the relation is reversed"),
        (None, BETTER, UNDECIDED, "other margins: more networks like these do not help"),
        (FOUND, None, UNDECIDED, "other margins or norms: more networks"),
    ],
)
def test_levels_need_both_questions(content, divisor, verdict, missing):
    found = judge(content, divisor, [2] * 6, {"content": "why not", "divisor": "why not"})
    assert found.verdict == verdict
    assert missing in found.missing and bool(found.missing) == (verdict == UNDECIDED)
    assert (content is None or divisor is None) == ("why not" in found.because)


def test_what_is_missing_can_help():
    why = {"content": "why not", "divisor": "why not"}
    assert "6 more seeds per level (7 in all)" in judge(None, BETTER, [1] * 6, why).missing
    assert "at least 4 levels, or a single one" in judge(FOUND, None, [4] * 3, why).missing
    assert "at least 5 networks" in judge(None, None, [1] * 4, why).missing
    few = dataclasses.replace(OPEN, num_orders=16, p_value=1 / 16)
    found = judge(few, BETTER, [2] * 4, why)
    assert "more than 0.05; no p is below 0.062)" in found.because
    observed = few.power.seeds_for_observed
    assert found.missing.endswith(f"80% of draws; {observed} in all show the observed one")


def test_levels_asked_for_are_the_least_that_show_the_skill():
    """By the definition: the interval that so many levels would have, on the logarithm."""
    for skill, low, num_levels in ((0.32, -0.12, 6), (0.5, -0.1, 6), (0.2, -0.05, 9)):
        needed = levels_for_skill(skill, low, num_levels)
        margin = np.log((1 - low) / (1 - skill))
        error = margin / stats.t.ppf(0.975, num_levels - 3) * np.sqrt(num_levels)

        def power(levels, error=error, skill=skill):
            t = stats.t(levels - 3)
            return t.cdf(-np.log(1 - skill) / (error / np.sqrt(levels)) - t.ppf(0.975))

        assert power(needed - 1) < 0.8 <= power(needed)
    assert levels_for_skill(0.01, -0.5, 6) is None and levels_for_skill(-0.1, -0.5, 6) is None


@pytest.mark.parametrize("kind", RELATED[1:])
def test_so_many_levels_decide(kind):
    """In 80% of draws at least; the benchmark has the rates of 1,000 lines."""
    shown = [is_shown for levels, is_shown in levels_asked(kind, 60) if levels]
    assert len(shown) >= 10 and np.mean(shown) >= 0.8


def test_levels_help_no_line_without_a_relation():
    asked = [case for kind in NULLS for case in levels_asked(kind, 20)]
    assert len(asked) <= 0.05 * 20 * len(NULLS) and not any(is_shown for _, is_shown in asked)


def test_one_level_is_judged_by_its_content():
    half = content_of(0.025, 0.9)
    for divisor in (BETTER, UNKNOWN, WORSE, None):
        assert judge(half, divisor, [8], {}).verdict == SUPPORTED
        assert judge(FOUND, divisor, [8], {}).verdict == UNDECIDED  # p = 0.05
        assert judge(SMALL, divisor, [8], {}).verdict == ARTIFACT
    assert "34 more seeds (42 in all)" in judge(OPEN, None, [8], {}).missing
    assert "neither shown nor called small" in judge(OPEN, None, [50], {}).missing
    assert judge(None, None, [], {"content": "", "divisor": ""}).missing.startswith("networks")


def test_counts_of_orders_are_never_fractions_of_nothing():
    none = dataclasses.replace(CONTENT, is_exact=False, num_reaching=0, num_orders=10_000)
    assert (
        "none of 10,000 random orders within levels reach it"
        in judge(none, DIVISOR, [2] * 6, {}).because
    )
    own = judge(CONTENT, DIVISOR, [2] * 6, {}).because
    assert f"{CONTENT.num_reaching} of all 64 orders within levels, the real one among them" in own


def test_known_answers_through_the_whole_of_explain():
    """One draw of each kind; the rates over many are below."""
    rng = np.random.default_rng(0)
    artifact = explain_line(table_of(*draw_line("independent", rng, 6, 8)))
    assert artifact.verdict == ARTIFACT and artifact.missing == ""
    assert artifact.fit.r2 > 0.9  # as good a line as many that were published
    supported = explain_line(table_of(*draw_line("constant ratio, 2% noise", rng, 6, 8)))
    assert supported.verdict == SUPPORTED
    assert supported.ratio.spread < 0.04 < supported.ratio.spread_if_unrelated
    few = explain_line(table_of(*draw_line("constant ratio, 2% noise", rng, 12, 1)))
    assert few.verdict == UNDECIDED
    assert "3 more seeds per level (4 in all)" in few.missing


@pytest.mark.parametrize("kind", ["U-shaped in the level, same", "both follow the norm, wide"])
@pytest.mark.parametrize("size", [(6, 2), (1, 8)])
def test_false_alarms_are_rare(kind, size):
    """`test_error_rates` has all kinds and sizes."""
    assert count_verdicts(kind, 100, *size)[SUPPORTED] <= 7  # 2.5% and three standard errors


@pytest.mark.slow
@pytest.mark.parametrize("size", [size for size in SIZES if size[1] > 1], ids=str)
def test_error_rates(size):
    """Of 100 lines of each kind; the benchmark prints the rates of 1,000.

    One network per level has no content and is never decided.
    """
    counts = {
        kind: count_verdicts(kind, 100, *size, seed=seed)
        for seed, kind in enumerate((*NULLS, *RELATED[:2]), start=100)
    }
    supported = [counts[kind][SUPPORTED] for kind in NULLS]
    assert max(supported) <= 7  # 2.5% and three standard errors
    assert limits(sum(supported), 100 * len(NULLS))[1] <= 0.05
    assert max(counts[kind][ARTIFACT] for kind in RELATED[:2]) <= 18


def test_the_benchmark_prints_its_tables(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--lines=none"])
    try:
        main(["--lines=3"])
    except SystemExit as stop:  # with 3 lines, one false alarm is a third
        assert stop.code == 1
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert [row.count("|") for row in rows] == [7] * 29 + [6] * 18 + [6] * 6
    assert rows[0].startswith("| margins | 6 x 2 | 6 x 8 |")
    assert lines[-1].startswith("Highest rate of support without a relation")


def test_kinds_are_what_they_say():
    rng = np.random.default_rng(2)
    for kind in (*NULLS, *RELATED):
        train, test, rho, levels = draw_line(kind, rng, 4, 2)
        assert train.shape == test.shape == rho.shape == (8,) and len(set(levels)) == 4
        assert min(train.min(), test.min(), rho.min()) > 0
        related = measure_content(*draw_line(kind, rng, 1, 2000), num_draws=1).correlation
        assert (abs(related) < 0.1) == (kind in NULLS), kind
