"""Where to write labels in a scatter plot so that they hide little: plain geometry, no plotting."""

from collections.abc import Sequence

import numpy as np

_ANGLES = np.pi / 4 + np.arange(16) * (2 * np.pi / 16)  # from the upper right, anticlockwise
_GAPS = (4.0, 9.0, 15.0, 22.0)
_CLEARANCE = 4.0  # what a marker takes up around its center


def cluster_representatives(
    points: np.ndarray, texts: Sequence[str], reach: float = 40.0
) -> list[int]:
    """Indices of the points to label: one for each cluster of points with equal text.

    Args:
      points: float [n, 2], positions on the page.
      texts: n labels.
      reach: points of equal text nearer than this to the first of them share one label.
    """
    texts = np.asarray(texts)
    chosen = []
    for text in dict.fromkeys(texts):
        left = np.flatnonzero(texts == text)
        while left.size:
            is_near = np.linalg.norm(points[left] - points[left[0]], axis=1) <= reach
            cluster, left = left[is_near], left[~is_near]
            middle = points[cluster].mean(axis=0)
            nearest = np.linalg.norm(points[cluster] - middle, axis=1).argmin()
            chosen.append(int(cluster[nearest]))
    return chosen


def place_labels(
    points: np.ndarray,
    texts: Sequence[str],
    chosen: Sequence[int],
    bounds: np.ndarray,
    font_size: float,
    line: np.ndarray | None = None,
) -> list[tuple[np.ndarray, float]]:
    """Offsets of the labels' centers from their points, chosen one after the other.

    A label keeps, in this order of weight, inside the bounds, off the labels before it, off the
    markers, nearer to its own kind than to others, off the line, and close to its point.

    Args:
      points: float [n, 2], all markers' positions on the page, in points of 1/72 inch.
      texts: n labels.
      chosen: indices of the points that are labeled.
      bounds: float [2, 2], lower left and upper right corner of the page.
      font_size: in points.
      line: float [m, 2], positions along a line that labels should not cover.

    Returns:
      For each chosen index, the offset, a float vector [2], and the gap between label and point.
    """
    texts = np.asarray(texts)
    line = np.empty((0, 2)) if line is None else line
    placed: list[tuple[np.ndarray, np.ndarray]] = []
    places = []
    for index in chosen:
        half = font_size * np.array([0.32 * len(texts[index]), 0.45])

        def cost(gap: float, offset: np.ndarray, index: int = index, half: np.ndarray = half):
            center = points[index] + offset
            is_out = (center - half < bounds[0]).any() or (center + half > bounds[1]).any()
            num_labels = sum((np.abs(other - center) < size + half).all() for other, size in placed)
            halfway = points[index] + offset / 2
            is_crossing = any((np.abs(other - halfway) < size).all() for other, size in placed)
            nearest = np.linalg.norm(points - center, axis=1).argmin()
            return (
                5 * is_out
                + 3 * num_labels
                + 1 * _num_covered(points, center, half)
                + 1 * is_crossing
                + 0.6 * (texts[nearest] != texts[index])
                + 0.15 * _num_covered(line, center, half)
                + 0.02 * gap
            )

        candidates = [
            (gap, np.array([np.cos(angle), np.sin(angle)]) * (half + gap))
            for gap in _GAPS
            for angle in _ANGLES
        ]
        gap, offset = candidates[int(np.argmin([cost(*candidate) for candidate in candidates]))]
        placed.append((points[index] + offset, half))
        places.append((offset, gap))
    return places


def _num_covered(points: np.ndarray, center: np.ndarray, half: np.ndarray) -> int:
    """How many markers a label of that center and half size covers or touches."""
    return int((np.abs(points - center) < half + _CLEARANCE).all(axis=1).sum())
