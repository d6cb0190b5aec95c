"""The ratio of raw margins against scipy."""

import numpy as np
import pytest
from scipy import stats

from normjax.controls.margins import margin_ratio


def networks(n=12, seed=0):
    rng = np.random.default_rng(seed)
    train, rho = rng.uniform(16, 25, n), np.exp(rng.uniform(5, 7, n))
    return train, 0.6 * train - 0.002 * rho + 0.2 * rng.normal(size=n), rho


def test_margin_ratio_against_scipy():
    train, test, rho = networks()
    found = margin_ratio(train, test, rho)
    ratio = test / train
    assert found.mean == pytest.approx(ratio.mean())
    assert (found.low, found.high) == (ratio.min(), ratio.max())
    assert found.spread == pytest.approx(np.std(np.log(test) - np.log(train), ddof=1))
    total = np.var(np.log(test), ddof=1) + np.var(np.log(train), ddof=1)
    assert found.spread_if_unrelated == pytest.approx(np.sqrt(total))
    assert found.correlation_with_norm == pytest.approx(stats.spearmanr(ratio, rho)[0])
    with pytest.raises(ValueError, match="not positive"):
        margin_ratio(train, -test, rho)
