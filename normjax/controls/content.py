"""Content: do training and test margins go together among networks of one level, given the norm?

Levels confound: two unrelated quantities that both follow the corruption of labels look related.
Therefore only networks of one level, which differ in their seed, are compared; with 8 or more,
only those of similar norm. They must be independent given level and norm. A seed that several
levels share breaks this, as does a dependence on the norm that differs between levels.
"""

import dataclasses
import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from normjax.controls.power import MIN_WITHIN, Power, degrees_of, power_of, strata_sizes
from normjax.statistics.intervals import members_of
from normjax.statistics.regression import check_points
from normjax.statistics.resampling import orders_within, p_value_of


@dataclasses.dataclass(frozen=True)
class Content:
    """The relation of raw training and test margins within levels.

    Attributes:
      correlation: r, the partial correlation of test and training margins, given the stratum
        (`strata_of`) and a polynomial in the logarithm of the norm.
      interval: its 95% interval (Fisher's z).
      p_value: fraction of orders with at least the observed r, counting the observed order. It is
        one-sided: only a positive r counts as content.
      num_reaching: number of orders with at least the observed r; with all orders, the observed one
        is among them.
      num_orders: number of orders.
      is_exact: whether these are all orders within levels.
      degrees: degrees of freedom of r.
      num_powers: degree of the polynomial.
      pooled_correlation: the same partial correlation with levels ignored; NaN if undefined. Its
        excess over r is due to the levels (Simpson's paradox).
      power: what more seeds would decide.
      train: n training margins, minus what stratum and norm explain.
      test: the same for the test margins.
    """

    correlation: float
    interval: tuple[float, float]
    p_value: float
    num_reaching: int
    num_orders: int
    is_exact: bool
    degrees: int
    num_powers: int
    pooled_correlation: float
    power: Power
    train: tuple[float, ...]
    test: tuple[float, ...]


def measure_content(
    train_margins: ArrayLike,
    test_margins: ArrayLike,
    product_norms: ArrayLike,
    levels: Sequence[Hashable],
    *,
    num_draws: int = 10_000,
    seed: int = 0,
) -> Content:
    """Measure whether training and test margins go together within levels.

    What the strata of `strata_of` and a polynomial in ln(norm) explain is removed from both
    margins. The residuals of the test margins are permuted within strata and residualized again
    (Freedman and Lane 1983). Either margin may depend on the level in any way, provided networks of
    one level are independent and their margins depend on the norm through one polynomial for all
    levels. Its degree is that of `power.degrees_of`.

    Args:
      train_margins: n raw mean centered training margins.
      test_margins: the same on the test set.
      product_norms: n positive product norms.
      levels: n labels.
      num_draws: number of random orders; all are enumerated if no more exist.
      seed: seed of the random orders.

    Raises:
      ValueError: too few networks within levels, margins without spread within them, values that
        are not finite, norms that are not positive, or num_draws < 1.
    """
    train, test, rho = check_points(train_margins, test_margins, product_norms, minimum=2)
    if (rho <= 0).any():
        raise ValueError(f"product norm {rho.min()}; every product norm must be positive")
    if len({*zip(train, test, rho, levels, strict=True)}) < train.size:
        raise ValueError("networks of one level with equal margins and norms: one counted twice")
    if num_draws < 1:
        raise ValueError(f"num_draws is {num_draws}; at least 1 is needed")
    members = list(members_of(levels).values())
    if train.size - len(members) < MIN_WITHIN:
        raise ValueError(
            f"{train.size} networks in {len(members)} level{'s' if len(members) > 1 else ''}: "
            f"networks must outnumber levels by at least {MIN_WITHIN}"
        )
    strata = strata_of(rho, levels)
    own_strata = list(members_of(strata).values())
    num_powers, degrees = degrees_of(train.size - len(own_strata))
    log_norm = np.log(rho) - np.mean(np.log(rho))
    powers = (log_norm / max(np.abs(log_norm).max(), 1e-9)) ** np.arange(1, num_powers + 1)[:, None]
    is_stratum = np.zeros((len(own_strata), train.size))
    for row, own in zip(is_stratum, own_strata, strict=True):
        row[own] = 1
    given = _basis(is_stratum, powers)
    left, kept = (_left(given, values) for values in (train, test))
    orders, is_exact = orders_within(strata, num_draws, np.random.default_rng(seed))
    moved = _left(given, kept[orders])
    real, drawn = (_correlations(left, values) for values in (kept[None], moved))
    correlation = float(real[0])
    # The enumeration contains the observed order, which rounding must not exclude.
    num_reaching = int(np.sum(drawn >= correlation - 1e-9))
    z, margin = (
        math.atanh(np.clip(correlation, -1 + 1e-12, 1 - 1e-12)),
        1.96 / math.sqrt(degrees - 1),
    )
    return Content(
        correlation=correlation,
        interval=(math.tanh(z - margin), math.tanh(z + margin)),
        p_value=p_value_of(num_reaching, len(orders), is_exact),
        num_reaching=num_reaching,
        num_orders=len(orders),
        is_exact=is_exact,
        degrees=degrees,
        num_powers=num_powers,
        pooled_correlation=_pooled(train, test, powers),
        power=power_of(correlation, len(members)),
        train=tuple(left.tolist()),
        test=tuple(kept.tolist()),
    )


def strata_of(product_norms: np.ndarray, levels: Sequence[Hashable]) -> list[tuple[Hashable, int]]:
    """Return the level and place of each network's stratum.

    Networks of one level are divided by their norm into strata of at least `STRATUM`, because a
    polynomial does not follow every curve, and what it leaves in both margins would look like a
    relation.
    """
    strata: list[tuple[Hashable, int]] = [(level, 0) for level in levels]
    for level, own in members_of(levels).items():
        by_norm = np.array(own)[np.argsort(product_norms[own], kind="stable")]
        ends = np.cumsum(strata_sizes(len(own)))
        for place, part in enumerate(np.split(by_norm, ends[:-1])):
            for index in part:
                strata[index] = (level, place)
    return strata


def _pooled(train: np.ndarray, test: np.ndarray, powers: np.ndarray) -> float:
    """Return the partial correlation given the norm only; NaN if undefined."""
    try:
        given = _basis(np.ones((1, train.size)), powers)
        return float(_correlations(_left(given, train), _left(given, test)[None])[0])
    except ValueError:
        return math.nan


def _basis(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return orthonormal rows that span `first`, whose rows are orthogonal, and `second`."""
    first = first / np.sqrt(np.sum(first**2, axis=1, keepdims=True))
    rest = second - (second @ first.T) @ first
    _, singular, rows = np.linalg.svd(rest, full_matrices=False)
    return np.concatenate([first, rows[singular > 1e-9]])


def _left(given: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return values [..., n] minus their projection onto orthonormal rows."""
    left = values - (values @ given.T) @ given
    if values.ndim == 1 and left @ left <= 1e-20 * (values @ values):
        raise ValueError("margins follow exactly from level and norm: no spread is left")
    return left


def _correlations(x: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Return the correlations of residuals x [n] with each row of ys [B, n]; 0 without spread."""
    spread = np.sqrt((x @ x) * np.sum(ys**2, axis=1))
    return np.divide(ys @ x, spread, out=np.zeros(len(ys)), where=spread > 0)
