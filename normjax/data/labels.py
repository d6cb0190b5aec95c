"""Label corruption, as in the paper's random pretraining."""

import numpy as np

METHODS = ("swap", "redraw")


def corrupt_labels(
    labels: np.ndarray,
    level: float,
    *,
    method: str,
    num_classes: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Corrupt the labels of exactly `round(level * N)` examples, chosen uniformly.

    "swap" permutes the labels of the chosen examples, which keeps the class counts (in the paper,
    labels are "swapped with each other in a random fashion"). "redraw" gives each chosen example a
    uniform new label, possibly the true one (as in the code of the paper's authors); at level 1 the
    labels are completely random.

    Examples:
      >>> import numpy as np
      >>> import normjax
      >>> labels = np.repeat(np.arange(10), 10)
      >>> rng = np.random.default_rng(0)
      >>> corrupted, chosen = normjax.corrupt_labels(
      ...     labels, 0.5, method="swap", num_classes=10, rng=rng)
      >>> len(chosen), sorted(corrupted) == sorted(labels), bool((corrupted == labels).all())
      (50, True, False)

    Args:
      labels: int [N], 0..num_classes-1; not modified.
      level: the fraction of chosen examples, in [0, 1]. A chosen example may keep its label, so the
        fraction of *wrong* labels is smaller.
      method: "swap" or "redraw".
      num_classes: K.
      rng: the random generator.

    Returns:
      The corrupted labels, a new array of the same shape and dtype, and the sorted indices of the
      chosen examples, int64 [round(level * N)].

    Raises:
      ValueError: a level outside [0, 1], an unknown method, labels that are not a vector of
        integers 0..num_classes-1, or a dtype that cannot hold these.
    """
    labels = np.asarray(labels)
    if not 0 <= level <= 1:  # also False for NaN
        raise ValueError(f"corruption level {level} is not allowed: it must lie in [0, 1]")
    if method not in METHODS:
        raise ValueError(f"corruption {method!r} is not known: allowed are {', '.join(METHODS)}")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be a vector of integers, not {labels.dtype} of shape {labels.shape}"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"labels range from {labels.min()} to {labels.max()}, "
            f"but with num_classes={num_classes} they must lie in 0..{num_classes - 1}"
        )
    if num_classes - 1 > np.iinfo(labels.dtype).max:
        raise ValueError(f"labels of {labels.dtype} cannot hold num_classes={num_classes} classes")

    chosen = np.sort(rng.permutation(len(labels))[: round(level * len(labels))])
    corrupted = labels.copy()
    if method == "swap":
        corrupted[chosen] = rng.permutation(labels[chosen])
    else:
        corrupted[chosen] = rng.integers(num_classes, size=len(chosen))
    return corrupted, chosen
