"""Leave-one-part-out predictions."""

import dataclasses
import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from normjax.statistics.intervals import members_of
from normjax.statistics.regression import check_points

_LEAST_EIGENVALUE = 1e-9  # below it, the other points do not determine the coefficients


@dataclasses.dataclass(frozen=True)
class PredictionErrors:
    """Errors of a line on points that it was not fitted to.

    Attributes:
      rmse: root mean square error over the points, in units of y.
      relative: rmse divided by that of predicting the mean of the other points; 0 is perfect, 1 is
        no better than the mean. NaN if the mean has no error.
      largest: the largest absolute error.
      where: the point with the largest error.
      num_parts: number of parts left out in turn. A part is skipped if fewer than 3 points, or only
        points with equal x, would remain.
    """

    rmse: float
    relative: float
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
    ones = np.ones_like(x)
    errors = predict_left_out(np.stack([ones, x - x.mean()], axis=1), y, parts) - y
    known = ~np.isnan(errors)
    if not known.any():
        raise ValueError(f"without {parts[0]} there are too few points for a line")
    worst = int(np.nanargmax(np.abs(errors)))
    num_parts = len({part for part, is_known in zip(parts, known, strict=True) if is_known})
    rmse = math.sqrt(np.mean(errors[known] ** 2))
    of_mean = predict_left_out(ones[:, None], y, parts) - y
    scale = math.sqrt(np.mean(of_mean[known] ** 2))
    return PredictionErrors(
        rmse=rmse,
        relative=rmse / scale if np.ptp(y) > 0 else math.nan,
        largest=float(abs(errors[worst])),
        where=where[worst],
        num_parts=num_parts,
    )


def predict_left_out(columns: np.ndarray, y: np.ndarray, parts: Sequence[Hashable]) -> np.ndarray:
    """Predict y by least squares on `columns`, each part with the coefficients of all others.

    Args:
      columns: float64 [n, k].
      y: float64 [n].
      parts: n labels; points with the same label are left out together.

    Returns:
      float64 [n]; NaN if the other points do not outnumber the coefficients, or do not determine
      them.

    Raises:
      ValueError: there is only one part.
    """
    known = list(members_of(parts).values())
    if len(known) == 1:
        raise ValueError(f"all points belong to {parts[0]}: there is nothing to predict it from")
    n, k = columns.shape
    part_of, remains = np.empty(n, int), np.ones((len(known), n))
    for index, own in enumerate(known):
        part_of[own], remains[index, own] = index, 0
    scale = np.abs(columns).max(axis=0)
    basis, singular, _ = np.linalg.svd(columns / np.where(scale > 0, scale, 1), full_matrices=False)
    if n <= k or singular[-1] <= 1e-10 * singular[0]:
        return np.full(n, np.nan)
    fitted = basis @ (basis.T @ y)
    # In an orthonormal basis the normal equations of all points but one part are well conditioned.
    gram = np.einsum("gn,nj,nk->gjk", remains, basis, basis)
    moments = np.einsum("gn,n,nk->gk", remains, y - fitted, basis)
    is_unique = (remains.sum(axis=1) > k) & (np.linalg.eigvalsh(gram)[:, 0] > _LEAST_EIGENVALUE)
    gram[~is_unique] = np.eye(k)
    change = np.linalg.solve(gram, moments[..., None])[..., 0]
    change[~is_unique] = np.nan
    return fitted + np.sum(basis * change[part_of], axis=1)
