"""Synthetic margins and norms with known rules, in the ranges of 3-layer networks on CIFAR-10."""

from collections.abc import Callable

import numpy as np

SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda x: x,
    "quadratic": lambda x: x**2,
    "U-shaped": lambda x: (2 * x - 1) ** 2,
    "saturating": lambda x: 1 - np.exp(-3 * x),
}
DIRECTIONS = {"same": 1, "opposite": -1}
NULLS = (
    "independent",
    "independent by level",
    *(f"{shape} in the level, {direction}" for shape in SHAPES for direction in DIRECTIONS),
    "both follow the norm",
    "both follow the norm, wide",
    "both follow the norm, wide and U-shaped",
)
RELATED = (
    "constant ratio, 2% noise",
    "constant ratio, 5% noise",
    "constant ratio, 10% noise",
    "ratio drifts with the norm",
)
SIZES = ((6, 2), (6, 8), (12, 1), (1, 8), (1, 32))  # levels x networks per level


def draw_line(
    kind: str, rng: np.random.Generator, num_levels: int, num_seeds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Return training margins, test margins, norms and levels of num_levels x num_seeds networks.

    Networks of one level have norms that differ by 5% and, unless independent, training margins
    that differ by 0.4, as in the run of docs/is_it_real.md.

    Args:
      kind: one of `NULLS`, in which test and training margins have nothing to do with each other
        given level and norm, or of `RELATED`. "independent": all numbers are, the pure artifact.
        "by level": levels are independent, networks of one level similar. "in the level": both
        follow the position of the level in this shape, in the same or opposite direction. "follow
        the norm": margins are powers of the norm, or of a U-shaped function of its logarithm, with
        2% noise; "wide": norms of one level differ by 30%. "constant ratio": the test margin is 0.6
        times the training margin. "drifts": the ratio falls with the norm, and the margins are
        U-shaped, as in that run.
      rng: the random generator.
      num_levels: number of levels.
      num_seeds: number of networks per level.
    """
    n = num_levels * num_seeds
    place = np.repeat(np.linspace(0, 1, num_levels), num_seeds)

    def noise(scale: float) -> np.ndarray:
        return scale * rng.normal(size=n)

    def by_level(low: float, high: float) -> np.ndarray:
        return np.repeat(rng.uniform(low, high, num_levels), num_seeds)

    log_norm = 5 + 2 * place + noise(0.05)
    if kind == "independent":
        train, test = rng.uniform(16, 25, n), rng.uniform(10, 12.5, n)
        log_norm = rng.uniform(5, 7, n)
    elif kind == "independent by level":
        train, test = by_level(16, 25) + noise(0.4), by_level(10, 12.5) + noise(0.2)
        log_norm = by_level(5, 7) + noise(0.05)
    elif "in the level" in kind:
        shape, direction = kind.split(" in the level, ")
        values = SHAPES[shape](place)
        train = 18 + 4 * values + noise(0.4)
        test = 11 + 1.5 * DIRECTIONS[direction] * values + noise(0.2)
    elif kind.startswith("both follow the norm"):
        log_norm += noise(0.3) if "wide" in kind else 0
        shape = np.log1p(SHAPES["U-shaped"]((log_norm - 5) / 2)) if "U" in kind else log_norm - 6
        train = 20 * np.exp(0.3 * shape + noise(0.02))
        test = 11 * np.exp(0.15 * shape + noise(0.02))
    elif kind.startswith("constant ratio"):
        train = by_level(16, 25) + noise(0.4)
        test = 0.6 * train * np.exp(noise(float(kind.split()[2].rstrip("%")) / 100))
    else:
        log_norm = 5.7 + 1.1 * place + noise(0.05)
        train = 21.2 + 1.7 * SHAPES["U-shaped"](place) + noise(0.4)
        test = 0.64 * train * np.exp(-0.137 * (log_norm - 5.7) + noise(0.01))
    return train, test, np.exp(log_norm), [f"pretrain {value:g}" for value in place]
