"""Predictions of parts of the points by what is fitted to all others."""

import dataclasses
import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from normjax.statistics.regression import check_points


@dataclasses.dataclass(frozen=True)
class PredictionErrors:
    """Errors of a line's predictions of what it was fitted without.

    Attributes:
      rmse: root mean square over the points, in units of y.
      largest: the largest absolute error.
      where: the point with that error.
      num_parts: number of parts left out in turn. A part without which fewer than 3 points, or none
        that differ in x, would be left is never left out.
    """

    rmse: float
    largest: float
    where: str
    num_parts: int


def leave_out(
    x: ArrayLike, y: ArrayLike, parts: Sequence[Hashable], where: Sequence[str]
) -> PredictionErrors:
    """Predict each part of the points by the least-squares line through all others.

    Args:
      x: n numbers.
      y: n numbers.
      parts: n labels; points of one label are left out together.
      where: n names, of which that of the worst point is returned.

    Raises:
      ValueError: fewer than 4 points, values that are not finite, a single part, or no part without
        which a line is defined.
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
    """Predict y by least squares on columns, each part with the coefficients of all others.

    Args:
      columns: float64 [n, number of coefficients].
      y: float64 [n].
      parts: n labels; points of one label are left out together.
      is_unique: whether the coefficients must be unique; by default, of all that fit equally well
        the smallest are taken.

    Returns:
      float64 [n]; NaN where the other points are no more than the coefficients, or these are not
      unique.

    Raises:
      ValueError: there is one part only.
    """
    from sklearn.model_selection import LeaveOneGroupOut  # a second of import, for this alone

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
