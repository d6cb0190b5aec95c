"""Many training sets: exact errors by sampling, correlations by scipy, tables there and back."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from normjax.generalization import linear_sweep
from normjax.results.columns import read_columns, write_columns


@pytest.mark.parametrize("kind", ["classes", "teacher"])
def test_exact_errors_by_sampling(kind):
    distribution = linear_sweep.DISTRIBUTIONS[kind]
    weights = np.array([[1.0, 0, 0], [1.0, 0.5, -1], [0.1, 2, 0], [-1.0, 0, 1]])
    n = 100_000
    x, y = distribution.draw(np.random.default_rng(5), n, 3)
    sampled = np.mean(y * (weights @ x.T) <= 0, axis=1)
    exact = distribution.error(weights)
    assert exact.shape == (4,) and (np.abs(exact - sampled) <= 4 * np.sqrt(0.25 / n)).all()
    expected = {"classes": stats.norm.cdf(-2), "teacher": 0.0}[kind]
    assert exact[0] == pytest.approx(expected, rel=1e-12) and distribution.error(-weights[0]) > 0.9


def a_table(n=60, seed=1):
    """A table of training sets whose norms and errors are correlated, gradient descent's too."""
    rng = np.random.default_rng(seed)
    values = {name: rng.uniform(1, 2, n) for name in linear_sweep.DRAW_COLUMNS}
    values |= {name: np.arange(n) for name in ("draw", "train_size", "dimension")}
    values["test_error"] = np.round(values["norm_at_unit_margin"] + rng.standard_normal(n) / 3, 3)
    values["num_support_vectors"] = np.arange(n)
    values["gd_train_error"] = np.where(np.arange(n) < 1, 0.1, 0.0)
    values["gd_norm_at_unit_margin"][0] = np.nan
    return pd.DataFrame(values)


def test_correlations_are_those_of_independent_training_sets():
    table = a_table()
    summary = linear_sweep.summarize(table, seed=0)
    assert summary["reasons"] == {} and summary["gd_not_separating"] == [0]
    x, y = table["norm_at_unit_margin"].to_numpy(), table["test_error"].to_numpy()
    found = summary["correlations"]["norm_at_unit_margin"]
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-12)
    assert found["kendall"] == pytest.approx(stats.kendalltau(x, y).statistic, rel=1e-12)
    assert (found["unit"], found["n"]) == ("networks", 60)
    rng, draws = np.random.default_rng(7), []
    for _ in range(1000):
        rows = rng.integers(0, 60, 60)
        draws.append(stats.spearmanr(x[rows], y[rows]).statistic)
    expected = np.quantile(draws, [0.025, 0.975])
    np.testing.assert_allclose(found["spearman_interval"], expected, atol=0.04)
    product = stats.spearmanr(table["data_radius"] * x, y).statistic
    assert summary["correlations"]["radius_times_norm"]["spearman"] == pytest.approx(product)
    descended = summary["correlations"]["gd_norm_at_unit_margin"]
    rest = table[1:]
    expected = stats.spearmanr(rest["gd_norm_at_unit_margin"], rest["gd_test_error"]).statistic
    assert descended["n"] == 59 and descended["spearman"] == pytest.approx(expected, rel=1e-12)


def test_what_has_no_correlation_has_a_reason():
    summary = linear_sweep.summarize(a_table().assign(gd_test_error=0.25), seed=0)
    assert summary["correlations"]["gd_norm_at_unit_margin"] is None
    assert summary["reasons"] == {
        "gd_norm_at_unit_margin": "no spread: all networks have the same value"
    }
    # JSON has no NaN: the first training set's is null.
    assert summary["two_draws"][0]["gd_norm_at_unit_margin"] is None
    back = json.loads(json.dumps(summary, allow_nan=False))
    assert back["two_draws"][1]["draw"] == 1


def test_tables_keep_every_digit(tmp_path):
    table = a_table()
    write_columns(tmp_path / "new" / "t.csv", table[list(linear_sweep.DRAW_COLUMNS)])
    pd.testing.assert_frame_equal(
        read_columns(tmp_path / "new" / "t.csv", linear_sweep.DRAW_COLUMNS), table, check_exact=True
    )
    first = pd.DataFrame({"draw": [0, 7], "step": [1, 1], "angle_deg": [0.1 + 0.2, np.nan]})
    write_columns(tmp_path / "a.csv", first)
    text = "draw,step,angle_deg\n0,1,0.30000000000000004\n7,1,nan\n"
    assert (tmp_path / "a.csv").read_text() == text
    back = read_columns(tmp_path / "a.csv", linear_sweep.ANGLE_COLUMNS)
    pd.testing.assert_frame_equal(back, first, check_exact=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("draw,step,angle_deg\n1,2,3\n3", "line 3: the file is truncated"),
        ("draw,step,angle_deg\n1,2,3\n3\n", "line 3"),
        ("draw,step,angle_deg\n1,2,x\n", "line 2, column angle_deg: 'x' is not a number"),
        ("draw,step,angle_deg\n1,2.5,3\n", "line 2, column step: '2.5' is not a whole number"),
        ("draw,angle_deg\n1,2\n", "line 1: missing column step"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ValueError, match=rf"t\.csv.*{message}"):
        read_columns(tmp_path / "t.csv", linear_sweep.ANGLE_COLUMNS)
