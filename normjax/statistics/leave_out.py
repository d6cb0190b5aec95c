"""Leave-one-part-out predictions."""

import dataclasses
import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from normjax.statistics.regression import check_points


@dataclasses.dataclass(frozen=True)
class PredictionErrors:
    """Errors of a line on points that it was not fitted to.

    Attributes:
      rmse: root mean square error over the points, in units of y.
      largest: the largest absolute error.
      where: the point with the largest error.
      num_parts: number of parts left out in turn. A part is skipped if fewer than 3 points, or only
        points with equal x, would remain.
    """

    rmse: float
    largest: float
    where: str
    num_parts: int


def leave_out(
    x: ArrayLike, y: ArrayLike, parts: Sequence[Hashable], where: Sequence[str]
) -> PredictionErrors:
    """Predict each part of the points with the least-squares line through all others.

    Args:
      x: n numbers.
      y: n numbers.
      parts: n labels; points with the same label are left out together.
      where: n names of the points.

    Raises:
      ValueError: fewer than 4 points, values that are not finite, a single part, or no part that
        can be left out.
    """
    x, y = check_points(x, y, minimum=4)
    line = np.stack([np.ones_like(x), x], axis=1)
    errors = predict_left_out(line, y, parts, is_unique=True) - y
    known = ~np.isnan(errors)
    if not known.any():
        raise ValueError(f"without {parts[0]} there are too few points for a line")
    worst = int(np.nanargmax(np.abs(errors)))
    num_parts = len({part for part, is_known in zip(parts, known, strict=True) if is_known})
    rmse = math.sqrt(np.mean(errors[known] ** 2))
    return PredictionErrors(rmse, float(abs(errors[worst])), where[worst], num_parts)


def predict_left_out(
    columns: np.ndarray, y: np.ndarray, parts: Sequence[Hashable], *, is_unique: bool = False
) -> np.ndarray:
    """Predict y by least squares on `columns`, each part with the coefficients of all others.

    Args:
      columns: float64 [n, number of coefficients].
      y: float64 [n].
      parts: n labels; points with the same label are left out together.
      is_unique: whether to require unique coefficients; by default, the solution of minimum norm
        is used.

    Returns:
      float64 [n]; NaN if the other points do not outnumber the coefficients, or if unique
      coefficients are required and do not exist.

    Raises:
      ValueError: there is only one part.
    """
    from sklearn.model_selection import LeaveOneGroupOut  # this import takes a second

    labels = np.unique([str(part) for part in parts], return_inverse=True)[1]
    if not labels.any():
        raise ValueError(f"all points belong to {parts[0]}: there is nothing to predict it from")
    num_coefficients = columns.shape[1]
    scale = np.abs(columns).max(axis=0)
    scaled = columns / np.where(scale > 0, scale, 1)
    predictions = np.full(len(y), np.nan)
    for others, left_out in LeaveOneGroupOut().split(scaled, y, labels):
        coefficients, _, rank, _ = np.linalg.lstsq(scaled[others], y[others], rcond=None)
        if len(others) > num_coefficients and (rank == num_coefficients or not is_unique):
            predictions[left_out] = scaled[left_out] @ coefficients
    return predictions
