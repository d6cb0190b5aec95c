"""Cook's distance: how far the line moves without a network, or without a group of them."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from normjax.statistics.intervals import members_of
from normjax.statistics.regression import LineFit, check_points, fit_line


@dataclasses.dataclass(frozen=True)
class Influence:
    """The influence of points on a line, alone and deleted together.

    Attributes:
      single: n Cook's distances of single points; NaN where the others have no line.
      group: {group: Cook's distance of all its points together}; NaN where the others have no line.
      slope_without: {group: slope of the line through all others}; NaN likewise.
    """

    single: tuple[float, ...]
    group: dict[str, float]
    slope_without: dict[str, float]


def influence(x: ArrayLike, y: ArrayLike, groups: Sequence[str]) -> Influence:
    """Return Cook's distances of points and of groups; above 1, they dominate the line.

    Cook (1977): `D = sum_i (y^_i - y^_i without the points)^2 / (2 s^2)`, with s^2 = SSE / (n - 2).
    Two points can mask each other: each alone has a small distance, both together a large one.

    Args:
      x: n numbers.
      y: n numbers.
      groups: n labels.

    Raises:
      ValueError: see `fit_line`; also if all points lie on the line.
    """
    x, y = check_points(x, y, minimum=3)
    fit = fit_line(x, y)
    if fit.rmse <= 1e-12 * np.ptp(y):
        raise ValueError("all points lie on the line: none has an influence")
    singles = [_without(x, y, [index], fit) for index in range(x.size)]
    together = {str(group): _without(x, y, own, fit) for group, own in members_of(groups).items()}
    return Influence(
        single=tuple(distance for distance, _ in singles),
        group={group: distance for group, (distance, _) in together.items()},
        slope_without={group: slope for group, (_, slope) in together.items()},
    )


def _without(
    x: np.ndarray, y: np.ndarray, left_out: list[int], fit: LineFit
) -> tuple[float, float]:
    """Return Cook's distance of these points and the slope without them; NaN without a line."""
    try:
        rest = fit_line(np.delete(x, left_out), np.delete(y, left_out))
    except ValueError:
        return np.nan, np.nan
    moved = np.sum((fit.predict(x) - rest.predict(x)) ** 2)
    return float(moved / (2 * fit.rmse**2)), rest.slope
