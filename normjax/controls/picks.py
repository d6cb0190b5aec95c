"""How often a quantity picks the better of two networks, or of two epochs of one network.

The paper recommends monitoring the training loss of the normalized network. Its rivals need no
normalization: the training loss as trained, the product of norms, and for epochs, the later one.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from normjax.controls.explain import choose_rows
from normjax.results.metrics import column, has_true_labels, lines_by_member
from normjax.results.table import is_finite, level_names
from normjax.statistics.intervals import check_units, jackknife_interval, units_of

OUTCOMES = {"test_error": "test error", "test_loss": "test loss"}
NETWORK_QUANTITIES = {
    "normalized_train_excess": "normalized training loss",
    "train_loss": "training loss as trained",
    "product_norm": "product of norms",
}
EPOCH_QUANTITIES = {
    "running_normalized_excess": "normalized training loss",
    "running_loss": "training loss as trained",
    "running_log_product_norm": "product of norms",
    "step": "the later epoch",
}
OF_LEVELS, OF_ONE_LEVEL = "two networks of different levels", "two networks of one level"
OF_EPOCHS = "two epochs of one network"


@dataclasses.dataclass(frozen=True)
class PickRate:
    """How often the smaller value of a quantity is the better choice.

    Attributes:
      choice: `OF_LEVELS`, `OF_ONE_LEVEL` or `OF_EPOCHS`.
      selection: as in results.csv; "" for epochs.
      norm: as in results.csv; "2", the Frobenius norm, for epochs.
      outcome: what is lower for the better choice, a key of `OUTCOMES`.
      quantity: the name of the quantity; for epochs, "the later epoch" is one.
      rate: fraction of pairs, where ties in the quantity count half; 0.5 is chance. Within levels
        it is the mean over levels, for epochs the mean over networks.
      low: lower end of the 95% jackknife interval over levels, or None.
      high: upper end, or None.
      loss: outcome at the smallest value of all that can be chosen, minus the best outcome. For
        choices within a level or a network, the mean over the levels or networks that offer one.
      num_networks: number of networks with true labels and finite losses.
      num_pairs: number of pairs with different outcomes.
      unit: the unit of the interval, "levels" or "networks".
      reason: why there is no interval, or "".
    """

    choice: str
    selection: str
    norm: str
    outcome: str
    quantity: str
    rate: float
    low: float | None
    high: float | None
    loss: float
    num_networks: int
    num_pairs: int
    unit: str
    reason: str


class Pool(NamedTuple):
    """What can be chosen: the value, the outcome and the unit of each candidate.

    Attributes:
      values: float64 [n]; the smallest is picked.
      outcomes: float64 [n]; the smallest is the best.
      units: int [n], from 0 over all pools.
    """

    values: np.ndarray
    outcomes: np.ndarray
    units: np.ndarray


def network_picks(
    table: pd.DataFrame, selection: str | None = None, norm: str | float | None = None
) -> list[PickRate]:
    """Return how often each quantity picks the better of two networks.

    Diverged networks and those with random labels are left out.

    Args:
      table: the results of a run.
      selection: as in results.csv; None: the last epoch.
      norm: as in results.csv; None: the Frobenius norm, or the first one if that is missing.

    Raises:
      ValueError: the selection or norm is missing, or there are fewer than two networks.
    """
    rows = choose_rows(table, selection, norm)
    rows = rows[is_finite(rows) & (rows["family"] != "random_labels")]
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} networks with true labels; two are needed")
    levels = np.unique(level_names(rows), return_inverse=True)[1]
    found = []
    for outcome, (quantity, name) in itertools.product(OUTCOMES, NETWORK_QUANTITIES.items()):
        values, outcomes = (rows[column].to_numpy(np.float64) for column in (quantity, outcome))
        for choice, rate in pick_rates(values, outcomes, levels).items():
            found.append(
                PickRate(
                    choice=choice,
                    selection=rows["selection"].iloc[0],
                    norm=rows["norm"].iloc[0],
                    outcome=outcome,
                    quantity=name,
                    num_networks=len(rows),
                    **rate,
                )
            )
    return found


def pick_rates(
    values: np.ndarray, outcomes: np.ndarray, levels: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Return the rates between levels and within them, where there are pairs.

    Args:
      values: float64 [n] of a quantity.
      outcomes: float64 [n].
      levels: int [n], from 0.

    Returns:
      {choice: the fields of `PickRate` from `rate` on}.
    """
    units, unit = units_of(levels.tolist())
    whole = Pool(values, outcomes, units)
    by_level = [Pool(*(x[levels == k] for x in whole)) for k in range(levels.max() + 1)]
    found = {
        OF_LEVELS: _rate([whole], [levels[:, None] != levels], unit),
        OF_ONE_LEVEL: _rate(by_level, [None] * len(by_level), unit),
    }
    return {choice: rate for choice, rate in found.items() if rate}


def epoch_picks(metrics: Sequence[Mapping[str, Any]]) -> list[PickRate]:
    """Return how often each quantity picks the better of two epochs of one network.

    The epochs are those with true labels and a measured test loss. Each network counts equally.

    Args:
      metrics: the lines of `read_metrics`. Quantities that a line lacks are left out, and so are
        networks with a loss that is not finite.
    """
    known = {name for name in EPOCH_QUANTITIES if all(name in line for line in metrics)}
    members = []
    for own in lines_by_member(metrics).values() if metrics else ():
        late = [line for line in own if has_true_labels(line) and "test_loss" in line]
        level = f"{own[0]['family']} {own[0]['level']:g}"
        needed = [*OUTCOMES, *sorted(known)]
        if len(late) > 1 and np.isfinite([column(late, name) for name in needed]).all():
            members.append((level, late))
    if not members:
        return []
    units, unit = units_of([level for level, _ in members])
    found = []
    for outcome, quantity in itertools.product(OUTCOMES, EPOCH_QUANTITIES):
        if quantity not in known:
            continue
        sign = -1 if quantity == "step" else 1
        pools = [
            Pool(sign * column(late, quantity), column(late, outcome), np.full(len(late), number))
            for number, (_, late) in zip(units, members, strict=True)
        ]
        if rate := _rate(pools, [None] * len(pools), unit):
            place = OF_EPOCHS, "", "2", outcome, EPOCH_QUANTITIES[quantity]
            found.append(PickRate(*place, num_networks=len(members), **rate))
    return found


def _rate(
    pools: Sequence[Pool], allowed: Sequence[np.ndarray | None], unit: str
) -> dict[str, Any] | None:
    """Return the fields of `PickRate` from `rate` on, or None if no pair has different outcomes.

    Each pool counts equally. `allowed` has a mask of the pairs of each pool, or None for all.
    """
    pairs, losses = [], []
    for pool, mask in zip(pools, allowed, strict=True):
        i, j = np.triu_indices(len(pool.values), 1)
        better = np.sign(pool.outcomes[i] - pool.outcomes[j])
        used = better != 0 if mask is None else (better != 0) & mask[i, j]
        picked = (1 + better * np.sign(pool.values[i] - pool.values[j])) / 2
        weights = np.full(len(i), 1 / max(used.sum(), 1))
        pairs.append(np.array([picked, weights, pool.units[i], pool.units[j]])[:, used])
        if used.any():
            losses.append(pool.outcomes[pool.values.argmin()] - pool.outcomes.min())
    picked, weights, first, second = np.concatenate(pairs, axis=1)
    if not picked.size:
        return None
    units = np.concatenate([pool.units for pool in pools])
    ends = first.astype(int), second.astype(int), first[first == second].astype(int)

    def sums(terms: np.ndarray) -> np.ndarray:
        """Return the sum of all pairs, and those of the pairs without each unit."""
        parts = terms, terms, -terms[first == second]
        of_unit = [np.bincount(e, p, units.max() + 1) for e, p in zip(ends, parts, strict=True)]
        return terms.sum() - np.concatenate([[0], np.sum(of_unit, axis=0)])

    totals = sums(weights)
    has_pairs = totals > 1e-9 * totals[0]  # without a unit no pair may be left
    rates = np.divide(sums(weights * picked), totals, np.full(totals.size, np.nan), where=has_pairs)
    found = {"rate": float(rates[0]), "low": None, "high": None, "loss": float(np.mean(losses))}
    found |= {"num_pairs": picked.size, "unit": unit, "reason": ""}
    try:
        check_units(units, unit)
        low, high = jackknife_interval(rates[0], rates[1:])
        if low <= 0 and high >= 1:
            raise ValueError("the interval would be all of 0 to 1")
    except ValueError as error:
        return found | {"reason": str(error)}
    return found | {"low": max(low, 0.0), "high": min(high, 1.0)}
