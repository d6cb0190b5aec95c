"""Content within levels against statsmodels and loops, and how often it is found where none is."""

import itertools

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from benchmarks.synthetic_lines import draw_line
from benchmarks.verdict_errors import count_found, limits
from normjax.controls.content import measure_content, strata_of
from normjax.controls.power import degrees_of, seeds_for, seeds_for_smallest, strata_sizes
from normjax.controls.thresholds import POWER, max_p_value


def networks(sizes=(2, 2, 2, 2, 2, 2), seed=0):
    rng = np.random.default_rng(seed)
    levels = np.repeat(np.arange(len(sizes)), sizes)
    n = len(levels)
    train = 20 + 3 * np.sin(levels) + 0.4 * rng.normal(size=n)
    test = 11 + levels**2 / 9 + 0.3 * (train - 20) + 0.2 * rng.normal(size=n)
    return train, test, np.exp(5 + 0.3 * levels + 0.05 * rng.normal(size=n)), levels.tolist()


def design(rho, levels, num_powers):
    """Indicators of the strata and powers of ln(norm), as statsmodels takes them."""
    log_norm = np.log(rho) - np.log(rho).mean()
    strata = [f"{level} {place}" for level, place in strata_of(rho, levels)]
    dummies = (np.array(strata)[:, None] == sorted(set(strata))).astype(float)
    return np.column_stack([dummies, *(log_norm**k for k in range(1, num_powers + 1))])


@pytest.mark.parametrize(
    ("sizes", "num_powers"),
    [((2,) * 6, 1), ((8,), 1), ((3, 1, 5, 2, 4), 3), ((2, 9, 2), 2), ((2, 2, 2, 2), 1)],
)
def test_correlation_against_partial_residuals(sizes, num_powers):
    train, test, rho, levels = networks(sizes)
    found = measure_content(train, test, rho, levels, num_draws=200)
    given = design(rho, levels, num_powers)
    x, y = (sm.OLS(v, given).fit().resid for v in (train, test))
    r = np.corrcoef(x, y)[0, 1]
    assert found.correlation == pytest.approx(r, rel=1e-8)
    np.testing.assert_allclose(found.train, x, atol=1e-10)
    np.testing.assert_allclose(found.test, y, atol=1e-10)
    # The degrees of freedom are those of the coefficient of the training margins.
    full = sm.OLS(test, np.column_stack([given, train])).fit()
    assert (found.degrees, found.num_powers) == (full.df_resid, num_powers)
    t = r * np.sqrt(found.degrees / (1 - r**2))
    assert t == pytest.approx(full.tvalues[-1], rel=1e-6)
    z = np.arctanh(r) + 1.96 / np.sqrt(found.degrees - 1) * np.array([-1, 1])
    np.testing.assert_allclose(found.interval, np.tanh(z), rtol=1e-8)
    pooled = np.column_stack([np.ones(len(rho)), given[:, -num_powers:]])
    x, y = (sm.OLS(v, pooled).fit().resid for v in (train, test))
    assert found.pooled_correlation == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-8)


def test_strata_hold_networks_of_one_level_and_similar_norm():
    for size, expected in ((1, [1]), (7, [7]), (8, [4, 4]), (9, [4, 5]), (14, [4, 5, 5])):
        assert strata_sizes(size) == expected
    _, _, rho, levels = networks((9, 2, 1, 7))
    strata = strata_of(rho, levels)
    assert [level for level, _ in strata] == levels
    places = np.array([place for _, place in strata])
    assert rho[:9][places[:9] == 0].max() <= rho[:9][places[:9] == 1].min()
    assert sorted(places[:9]) == [0] * 4 + [1] * 5 and not places[9:].any()


def test_all_orders_against_a_loop():
    train, test, rho, levels = networks()
    found = measure_content(train, test, rho, levels)
    given = design(rho, levels, 1)
    maker = np.eye(12) - given @ np.linalg.pinv(given)
    x, y = maker @ train, maker @ test
    drawn = []
    for flips in itertools.product((False, True), repeat=6):
        order = np.arange(12).reshape(6, 2)
        order[list(flips)] = order[list(flips), ::-1]
        drawn.append(np.corrcoef(x, maker @ y[order.ravel()])[0, 1])
    num_reaching = np.sum(np.array(drawn) >= found.correlation - 1e-9)
    assert (found.num_reaching, found.num_orders, found.is_exact) == (num_reaching, 64, True)
    assert found.p_value == num_reaching / 64
    drawn = measure_content(train, test, rho, levels, num_draws=63)
    assert not drawn.is_exact and drawn.p_value == (drawn.num_reaching + 1) / 64
    assert drawn != measure_content(train, test, rho, levels, num_draws=63, seed=1)


def test_levels_scales_and_the_order_of_networks_do_not_matter():
    """Whatever follows the level, or the common power of the norm, changes nothing."""
    train, test, rho, levels = networks()
    found = measure_content(train, test, rho, levels)
    shift = 7 * np.cos(levels)
    for other in (
        measure_content(train + shift, test - 3 * shift, rho, levels),
        measure_content(1e3 * train, 1e-3 * test, 1e9 * rho, levels),
        measure_content(train + np.log(rho), test - 2 * np.log(rho), rho, levels),
        measure_content(*(v[::-1] for v in (train, test, rho, levels))),
    ):
        assert other.correlation == pytest.approx(found.correlation, rel=1e-6)
        assert other.p_value == found.p_value


def test_what_has_no_content_is_refused():
    train, test, rho, levels = networks()
    for arguments, message in (
        ((train, test, rho, range(12)), "12 networks in 12 levels: networks must outnumber"),
        ((train[:4], test[:4], rho[:4], [0] * 4), "4 networks in 1 level: "),
        ((train, test, -rho, levels), "every product norm must be positive"),
        ((np.array(levels) + 1.0, test, rho, levels), "follow exactly from level and norm"),
        ((train, np.log(rho), rho, levels), "follow exactly from level and norm"),
        ((train, test * np.nan, rho, levels), "point 0 is nan"),
        ([np.repeat(v, 2) for v in (train, test, rho, levels)], "one counted twice"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_content(*arguments)
    with pytest.raises(ValueError, match="num_draws is 0"):
        measure_content(train, test, rho, levels, num_draws=0)
    same_norm = measure_content(train, test, np.ones(12), levels)
    assert same_norm.degrees == 4 and np.isfinite(same_norm.correlation)


def test_smooth_levels_are_not_taken_for_content():
    """Levels exchanged as a whole would find a relation here in two of three draws."""
    rng = np.random.default_rng(0)
    p_values = [
        measure_content(*draw_line("U-shaped in the level, same", rng, 6, 2)).p_value
        for _ in range(200)
    ]
    # The largest p of 64 orders that counts is 3 / 64; standard error 1.5%.
    assert np.mean(np.array(p_values) <= 0.05) <= 3 / 64 + 3 * 0.015
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.07)


def test_degrees_and_seeds():
    assert [degrees_of(n) for n in (4, 6, 7, 10, 42)] == [(1, 2), (1, 4), (2, 4), (3, 6), (3, 38)]
    assert [seeds_for_smallest(levels) for levels in (1, 6, 12)] == [42, 7, 4]
    for within in range(1, 40):  # the least seeds of which the strata leave as many
        seeds = within + max((within - 1) // 3, 1)
        left = [n - len(strata_sizes(n)) for n in (seeds - 1, seeds)]
        assert left[0] < within <= left[1]
    assert seeds_for(1.0, 6, 0.05) == 3  # 64 orders of 2 are too few
    assert seeds_for(0.001, 1, 0.025) > 1e6
    seeds = [seeds_for(r, 6, 0.05) for r in (0.2, 0.4, 0.6, 0.8)]
    assert seeds == sorted(seeds, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("num_levels", [1, 2, 3, 6, 12])
@pytest.mark.parametrize("correlation", [0.5, 0.7, 0.9, 0.98])
def test_the_seeds_asked_for_are_enough(correlation, num_levels):
    seeds = seeds_for(correlation, num_levels, max_p_value(num_levels))
    found, _ = count_found(correlation, 300, num_levels, seeds)
    assert limits(found, 300)[1] >= POWER
    _, excluded = count_found(0.0, 300, num_levels, seeds_for_smallest(num_levels))
    assert limits(excluded, 300)[1] >= POWER
    t = stats.binomtest(excluded, 300, POWER - 0.05, "less").pvalue
    assert t > 1e-3
