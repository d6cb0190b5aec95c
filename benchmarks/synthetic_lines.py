"""Synthetic margins and norms with known rules, in the ranges of 3-layer networks on CIFAR-10."""

import math
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
HARD = (
    "levels apart from the norm",
    "levels apart from the norm, spread by level",
    "norm slope by level",
    "half a seed shared by the levels",
    "a seed shared by the levels",
    "logistic in the norm",
    "step in the norm",
    "noise grows with the norm",
)
SIZES = ((6, 2), (6, 8), (12, 1), (1, 8), (1, 32))  # levels x networks per level


def draw_line(
    kind: str, rng: np.random.Generator, num_levels: int, num_seeds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Return training margins, test margins, norms and levels of num_levels x num_seeds networks.

    Networks of one level have norms that differ by 5% and, unless independent, training margins
    that differ by 0.4, as in the run of docs/is_it_real.md.

    Args:
      kind: one of `NULLS` or `HARD`, in which test and training margins have nothing to do with
        each other given level and norm, or of `RELATED`. "independent": all numbers are, the pure
        artifact. "by level": levels are independent, networks of one level similar. "in the level":
        both follow the position of the level in this shape, in the same or opposite direction.
        "follow the norm": margins are powers of the norm, or of a U-shaped function of its
        logarithm, with 2% noise; "wide": norms of one level differ by 30%. "constant ratio": the
        test margin is 0.6 times the training margin. "drifts": the ratio falls with the norm, and
        the margins are U-shaped, as in that run. `HARD` is described at `_draw_hard`.
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
    if kind in HARD:
        train, test, log_norm = _draw_hard(kind, rng, num_levels, num_seeds)
    elif kind == "independent":
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


def _draw_hard(
    kind: str, rng: np.random.Generator, num_levels: int, num_seeds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unrelated margins and ln(norm) that the verdict can take for content.

    "levels apart from the norm": both margins differ by level, which the norms do not show, so the
    line has skill, and only the content stands between the line and support; "spread by level": the
    spread among seeds differs tenfold. "norm slope by level": both follow the norm within a level,
    with slopes of -3 to 3. "a seed shared": networks of one seed have the same error at all levels,
    in half or all of the variance. "logistic", "step": both follow such a curve in the norm, over a
    factor of 2.7 and norms that differ by 30%. "noise grows": with the fifth power of the norm.
    """
    n = num_levels * num_seeds
    place = np.repeat(rng.permutation(num_levels) / max(num_levels - 1, 1), num_seeds)
    slope = np.repeat(np.linspace(-1, 1, num_levels), num_seeds)
    first, second = rng.normal(size=(2, n))
    log_norm = 6 + rng.normal(scale=0.15, size=n)
    if kind == "logistic in the norm":
        log_norm = 6 + rng.uniform(-1, 1, n)
        shape = 1 / (1 + np.exp(-8 * (log_norm - 6)))
        return 20 + 3 * shape + 0.2 * first, 11 + 1.5 * shape + 0.1 * second, log_norm
    if kind in ("step in the norm", "noise grows with the norm"):
        log_norm = 6 + rng.normal(scale=0.3, size=n)
        if kind.startswith("noise"):
            scale = np.exp(5 * (log_norm - 6))
            return 20 + 0.1 * scale * first, 11 + 0.05 * scale * second, log_norm
        shape = np.tanh((log_norm - 6) / 0.05)
        return 20 + shape + 0.3 * first, 11 + 0.5 * shape + 0.15 * second, log_norm
    if kind.endswith("a seed shared by the levels"):
        shared = 0.5 if kind.startswith("half") else 1.0
        common = np.tile(rng.normal(size=(2, num_seeds)), num_levels)
        first, second = (
            math.sqrt(shared) * c + math.sqrt(1 - shared) * own
            for c, own in zip(common, (first, second), strict=True)
        )
    elif kind.endswith("spread by level"):
        spread = np.repeat(np.geomspace(0.1, 1, num_levels), num_seeds)
        first, second = spread * first, spread * second
    bend = 3 * slope * (log_norm - 6) if kind == "norm slope by level" else 0
    train = 18 + 4 * place + 2 * bend + 0.4 * first
    return train, 11 + 2 * place + bend + 0.2 * second, log_norm
