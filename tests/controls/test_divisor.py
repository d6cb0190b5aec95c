"""The line against curves in the norms, on left-out levels, against loops."""

import numpy as np
import pytest
from scipy import stats

from normjax.controls.divisor import RIVALS, measure_divisor
from tests.controls.test_content import networks


def left_out(columns, test, parts):
    predicted = np.empty_like(test)
    for part in set(parts):
        out = np.array(parts) == part
        fit = np.linalg.lstsq(columns[~out], test[~out], rcond=None)[0]
        predicted[out] = columns[out] @ fit
    return predicted


def curves(rho):
    r, ones = rho / 100, np.ones_like(rho)
    return {
        "1": [ones],
        "1, ρ": [ones, r],
        "1, 1/ρ, 1/ρ²": [ones, 1 / r, 1 / r**2],
        "1, ln ρ, ln² ρ": [ones, np.log(r), np.log(r) ** 2],
        "1, ρ, 1/ρ": [ones, r, 1 / r],
    }


@pytest.mark.parametrize(("sizes", "unit"), [((2,) * 6, "levels"), ((9,), "networks")])
def test_predictions_and_skill_against_a_loop(sizes, unit):
    train, test, rho, levels = networks(sizes)
    parts = levels if unit == "levels" else list(range(9))
    found = measure_divisor(train, test, rho, levels)
    line = left_out(np.stack([train, rho / 100], axis=1), test, parts)
    rivals = {
        name: left_out(np.stack(columns, axis=1), test, parts)
        for name, columns in curves(rho).items()
    }
    rmse = {name: np.sqrt(np.mean((p - test) ** 2)) for name, p in rivals.items()}
    best = min(rmse, key=lambda name: rmse[name])
    assert list(found.rival_rmse) == list(RIVALS) == list(rmse)
    np.testing.assert_allclose(list(found.rival_rmse.values()), list(rmse.values()), rtol=1e-6)
    assert (found.rival, found.left_out) == (best, unit)
    np.testing.assert_allclose(found.line, line, rtol=1e-8)
    np.testing.assert_allclose(found.best, rivals[best], rtol=1e-6)
    np.testing.assert_allclose(found.actual, test)
    ratio = np.sum((line - test) ** 2) / np.sum((rivals[best] - test) ** 2)
    assert found.skill == pytest.approx(1 - ratio, rel=1e-6)
    names = sorted(set(parts))
    sums = np.array(
        [
            [np.sum((p - test)[np.array(parts) == name] ** 2) for name in names]
            for p in (line, rivals[best])
        ]
    )
    logs = np.log((sums.sum(1, keepdims=True) - sums)[0] / (sums.sum(1, keepdims=True) - sums)[1])
    g = len(names)
    error = np.sqrt((g - 1) / g * np.sum((logs - logs.mean()) ** 2))
    ends = 1 - ratio * np.exp(stats.t.ppf(0.975, g - 3) * error * np.array([1, -1]))
    np.testing.assert_allclose(found.interval, ends, rtol=1e-5)


def test_a_constant_ratio_beats_every_curve_and_a_curve_the_line():
    rng = np.random.default_rng(1)
    levels = np.repeat(range(6), 3).tolist()
    train, rho = rng.uniform(16, 25, 18), np.exp(rng.uniform(5, 7, 18))
    real = measure_divisor(train, 0.6 * train * np.exp(0.01 * rng.normal(size=18)), rho, levels)
    assert real.skill > 0.9 and real.interval[0] > 0
    curve = 10 + 2 * np.log(rho) + 0.01 * rng.normal(size=18)
    artifact = measure_divisor(train, curve, rho, levels)
    assert artifact.skill < 0 and artifact.rival == "1, ln ρ, ln² ρ"
    perfect = measure_divisor(train, 0.6 * train - 0.001 * rho, rho, levels)
    assert perfect.skill == pytest.approx(1) and perfect.interval == pytest.approx((1, 1))


def test_scales_do_not_matter():
    train, test, rho, levels = networks()
    found = measure_divisor(train, test, rho, levels)
    scaled = measure_divisor(train * 1e-120, test * 1e-120, rho * 1e150, levels)
    assert scaled.skill == pytest.approx(found.skill, rel=1e-6)


def test_what_can_not_be_compared_is_refused():
    train, test, rho, levels = networks()
    for arguments, message in (
        ((train, test, rho, [0] * 6 + [1] * 6), "2 levels; to leave levels out, 4 are needed"),
        ((train[:4], test[:4], rho[:4], levels[:4]), "4 points; at least 5"),
        ((train, test, 0 * rho, levels), "every product norm must be positive"),
        ((train, np.full(12, 11.0), rho, levels), "no spread in the raw test margins"),
        ((rho / 100, test, rho, levels), "the line is undefined without one of the levels"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_divisor(*arguments)
    few = measure_divisor(train[::2][:4].repeat(2), test[:8], rho[:8], levels[:8])
    assert all(np.isfinite(value) for value in few.rival_rmse.values())
    alone = measure_divisor(train[::2][:5], test[::2][:5], rho[::2][:5], range(5))
    assert alone.left_out == "networks"
