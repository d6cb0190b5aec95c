"""Intervals over levels against published numbers, plain formulas, and how often they are wrong."""

import numpy as np
import pytest
from scipy import linalg, stats

from benchmarks.interval_coverage import CASES, coverage, main
from normjax.statistics.intervals import (
    check_units,
    cluster_robust_intervals,
    jackknife_interval,
    units_of,
    without_each,
)


def test_the_unit_is_the_level_where_there_are_levels():
    units, unit = units_of(list("abacb"))
    assert (units.tolist(), unit) == ([0, 1, 0, 2, 1], "levels")
    for labels in ("aaa", "abc"):
        units, unit = units_of(list(labels))
        assert (units.tolist(), unit) == ([0, 1, 2], "networks")
    assert check_units(np.array([0, 1, 2, 3]), "levels") == 4
    with pytest.raises(ValueError, match="3 levels; an interval needs at least 4"):
        check_units(np.array([0, 1, 2, 0]), "levels")
    np.testing.assert_array_equal(without_each(np.array([0, 1, 0])), [[0, 1, 0], [1, 0, 1]])


# The test data of Kolesar's R package dfadjust (tests/testthat/test_clustervar.R), which compares
# its numbers with Stata's. Its adjusted errors are 1.96 times smaller than half an interval.
X = np.concatenate([np.sin(np.arange(1, 11)), np.sin(np.arange(2, 12))])
Y = np.concatenate([np.cos(np.arange(10)), np.tan(np.arange(1, 11))])
CLUSTERS = np.tile(np.array([2, 1, 3, 2, 2, 3, 3, 1, 1, 2]) - 1, 2)
COLUMNS = np.stack([np.ones(20), X], axis=1)


def half_widths(units):
    return [
        (high - low) / 2 for low, high in cluster_robust_intervals(COLUMNS, Y, units, np.eye(2))
    ]


def test_independent_networks_against_stata():
    errors, degrees = (0.4227339762, 0.4421048122), (17.6142349, 12.10389102)
    expected = [e * stats.t.ppf(0.975, df) for e, df in zip(errors, degrees, strict=True)]
    np.testing.assert_allclose(half_widths(np.arange(20)), expected, rtol=1e-8)


def test_cluster_robust_errors_against_dfadjust_and_the_plain_formula():
    """CR2 errors are dfadjust's; its degrees of freedom have another working model."""
    inverse = np.linalg.inv(COLUMNS.T @ COLUMNS)
    maker = np.eye(20) - COLUMNS @ inverse @ COLUMNS.T
    residuals, meat, transforms = maker @ Y, np.zeros((2, 2)), []
    for cluster in range(3):
        own = np.equal(CLUSTERS, cluster)
        root = linalg.inv(linalg.sqrtm(maker[np.ix_(own, own)]))
        score = COLUMNS[own].T @ root @ residuals[own]
        meat += np.outer(score, score)
        transforms.append(maker[:, own] @ root @ COLUMNS[own] @ inverse)
    errors = np.sqrt(np.diag(inverse @ meat @ inverse))
    published = (1.053441197, 2.001430933), (0.533126248, 1.783242385)
    adjusted = [error * stats.norm.ppf(0.975) / stats.t.ppf(0.975, df) for error, df in published]
    np.testing.assert_allclose(errors, adjusted, rtol=1e-7)
    expected = []
    for index, error in enumerate(errors):
        g = np.stack([transform[:, index] for transform in transforms], axis=1)
        eigenvalues = np.linalg.eigvalsh(g.T @ g)
        degrees = eigenvalues.sum() ** 2 / np.sum(eigenvalues**2)
        expected.append(error * stats.t.ppf(0.975, degrees))
    np.testing.assert_allclose(half_widths(CLUSTERS), expected, rtol=1e-9)


def test_jackknife_of_a_mean_is_students_interval():
    """Of a mean, the standard error is the usual one; the degrees of freedom are one fewer."""
    values = np.array([3.0, 1, 4, 1, 5, 9])
    left_out = [np.delete(values, i).mean() for i in range(6)]
    low, high = jackknife_interval(values.mean(), left_out)
    margin = stats.sem(values) * stats.t.ppf(0.975, 4)
    np.testing.assert_allclose([low, high], [values.mean() - margin, values.mean() + margin])
    with pytest.raises(ValueError, match="the same without any one"):
        jackknife_interval(1.0, [1.0, 1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="undefined without one"):
        jackknife_interval(1.0, [1.0, np.nan, 2.0, 1.0])


# What docs/verdict_errors.md states, in percent of the lines with an interval. Errors that grow,
# and the skill, have the least coverage.
LEAST = {"slope": 92, "intercept": 92, "r2": 91, "rmse": 87, "tau": 92, "skill": 85, "r": 92}
LEAST |= {"between levels": 89, "within levels": 94}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", CASES, ids=[f"{name} {args[1]}x{args[2]}" for name, _, _, args in CASES]
)
def test_coverage(case):
    """No rate is below its floor by more than binomial chance, at 1 in 1,000."""
    _, quantities, function, arguments = case
    for name, intervals, truth in zip(
        quantities, *function(arguments[0], 400, *arguments[1:], seed=1), strict=True
    ):
        held, known = coverage(intervals, truth)
        if known:
            p_value = stats.binomtest(held, known, LEAST[name] / 100, "less").pvalue
            assert p_value > 1e-3, f"{name}: {held} of {known}"


@pytest.mark.slow
def test_the_benchmark_prints_its_table(capsys):
    main(["--lines=5"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {6}
    assert len(rows) == 2 + sum(len(quantities) for _, quantities, _, _ in CASES)
    assert "| 4 x 1 | ranks, correlation 0.0 | tau | - | 100.0 |" in rows
