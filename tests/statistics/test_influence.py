"""Cook's distances against statsmodels, and of groups that hide each other."""

import math

import numpy as np
import pytest
import statsmodels.api as sm
from statsmodels.stats.outliers_influence import OLSInfluence

from normjax.statistics.influence import influence
from tests.statistics.test_regression import points


def test_single_networks_against_statsmodels():
    x, y = points()
    expected = OLSInfluence(sm.OLS(y, sm.add_constant(x)).fit()).cooks_distance[0]
    found = influence(x, y, list("abcdefghijkl"))
    np.testing.assert_allclose(found.single, expected, rtol=1e-9)
    np.testing.assert_allclose(list(found.group.values()), expected, rtol=1e-9)


def test_groups_against_the_formula_of_their_hat_matrix():
    x, y = points()
    groups = list("aabbbbbccccc")
    columns = sm.add_constant(x)
    hat = columns @ np.linalg.inv(columns.T @ columns) @ columns.T
    residuals = y - hat @ y
    found = influence(x, y, groups)
    for name in "abc":
        own = np.array(groups) == name
        moved = np.linalg.solve(np.eye(own.sum()) - hat[np.ix_(own, own)], residuals[own])
        expected = moved @ hat[np.ix_(own, own)] @ moved / (2 * residuals @ residuals / 10)
        assert found.group[name] == pytest.approx(expected, rel=1e-9)
        assert found.slope_without[name] == pytest.approx(np.polyfit(x[~own], y[~own], 1)[0])


def test_two_networks_hide_each_other():
    x, y = points(14)
    x[-2:], y[-2:] = -0.2, 0.2
    found = influence(x, y, ["line"] * 12 + ["odd"] * 2)
    assert max(found.single) < found.group["odd"] / 3
    assert math.isnan(found.group["line"]) and math.isnan(found.slope_without["line"])
    with pytest.raises(ValueError, match="all points lie on the line"):
        influence([1.0, 2, 3, 4], [1.0, 2, 3, 4], list("aabb"))
