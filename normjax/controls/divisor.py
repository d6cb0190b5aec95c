"""Divisor: do the norms alone predict the test margins of what was left out as well as the line?"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from normjax.controls.thresholds import MIN_LEVELS
from normjax.statistics.intervals import units_of, without_each
from normjax.statistics.leave_out import predict_left_out
from normjax.statistics.regression import check_points

MIN_NETWORKS = 5

# Curves in the norm, here divided by the mean of all norms. None sees a training margin.
RIVALS: dict[str, Callable[[np.ndarray], tuple[np.ndarray, ...]]] = {
    "1": lambda r: (r**0,),
    "1, ρ": lambda r: (r**0, r),
    "1, 1/ρ, 1/ρ²": lambda r: (r**0, 1 / r, 1 / r**2),
    "1, ln ρ, ln² ρ": lambda r: (r**0, np.log(r), np.log(r) ** 2),
    "1, ρ, 1/ρ": lambda r: (r**0, r, 1 / r),
}


@dataclasses.dataclass(frozen=True)
class Divisor:
    """Predictions of left-out raw test margins by the line and by the norms alone.

    Attributes:
      skill: 1 - (squared error of the line) / (squared error of the best rival). 0: the training
        margins add nothing; 1: they predict perfectly; below 0: the norms alone are better.
      interval: its 95% interval: jackknife of the logarithm of the ratio over what is left out,
        with Student's t of G - 3 degrees of freedom for G parts.
      rival: name of the rival with the smallest error, a key of `RIVALS`.
      rmse: root mean square error of the line, `test margin = b * training margin - a * rho`.
      rival_rmse: {rival: the same for its curve}; NaN if it is undefined without one of the parts.
      left_out: what is left out in turn, "levels" or "networks".
      actual: n raw test margins.
      line: their predictions by the line.
      best: their predictions by the best rival.
    """

    skill: float
    interval: tuple[float, float]
    rival: str
    rmse: float
    rival_rmse: dict[str, float]
    left_out: str
    actual: tuple[float, ...]
    line: tuple[float, ...]
    best: tuple[float, ...]


def measure_divisor(
    train_margins: ArrayLike,
    test_margins: ArrayLike,
    product_norms: ArrayLike,
    levels: Sequence[Hashable],
) -> Divisor:
    """Compare the line with curves in the norm on what was left out.

    The line of normalized losses times -rho reads `test margin = b * training margin - a * rho`. It
    has no divisor, and all networks have equal weight. Whole levels are left out, or networks if
    there is one level.

    Raises:
      ValueError: 2 or 3 levels, fewer than 5 networks, values that are not finite, norms that are
        not positive, or test margins that a curve predicts exactly.
    """
    train, test, rho = check_points(
        train_margins, test_margins, product_norms, minimum=MIN_NETWORKS
    )
    if (rho <= 0).any():
        raise ValueError(f"product norm {rho.min()}; every product norm must be positive")
    num_levels = len(set(levels))
    if 1 < num_levels < MIN_LEVELS:
        raise ValueError(f"{num_levels} levels; to leave levels out, {MIN_LEVELS} are needed")
    units, unit = units_of(levels)
    scaled = rho / rho.mean()

    def left_out(columns: Sequence[np.ndarray]) -> np.ndarray:
        return predict_left_out(np.stack(columns, axis=1), test, units.tolist())

    line = left_out((train, scaled))
    predictions = {name: left_out(curve(scaled)) for name, curve in RIVALS.items()}
    rmse = {name: math.sqrt(np.mean((p - test) ** 2)) for name, p in predictions.items()}
    rival = min(rmse, key=lambda name: math.inf if math.isnan(rmse[name]) else rmse[name])
    if np.isnan(line).any():
        raise ValueError(f"the line is undefined without one of the {unit}")
    if rmse[rival] <= 1e-10 * np.abs(test).max():
        raise ValueError("no spread in the raw test margins: the norms alone predict them exactly")
    skill, interval = _skill(line - test, predictions[rival] - test, units)
    return Divisor(
        skill=skill,
        interval=interval,
        rival=rival,
        rmse=math.sqrt(np.mean((line - test) ** 2)),
        rival_rmse=rmse,
        left_out="levels" if num_levels > 1 and unit == "levels" else "networks",
        actual=tuple(test.tolist()),
        line=tuple(line.tolist()),
        best=tuple(predictions[rival].tolist()),
    )


def _skill(
    line: np.ndarray, rival: np.ndarray, units: np.ndarray
) -> tuple[float, tuple[float, float]]:
    """Return the skill and its interval, from the errors [n] of the line and the rival."""
    scale = np.abs(rival).max()
    line, rival, remaining = line / scale, rival / scale, without_each(units)
    line_sums, rival_sums = remaining @ line**2, remaining @ rival**2
    ratio = np.sum(line**2) / np.sum(rival**2)
    if line_sums.min() <= 1e-20 * np.sum(rival**2):
        return float(1 - ratio), (float(1 - ratio), float(1 - ratio))
    logs = np.log(line_sums / rival_sums)
    num_units = len(logs)
    error = math.sqrt((num_units - 1) / num_units * np.sum((logs - logs.mean()) ** 2))
    margin = error * special.stdtrit(num_units - 3, 0.975)
    low, high = (float(1 - ratio * math.exp(m)) for m in (margin, -margin))
    return float(1 - ratio), (low, high)
