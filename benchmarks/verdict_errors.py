"""Estimate how often the verdict on a line is wrong, for synthetic margins with known rules.

    python -m benchmarks.verdict_errors --lines=200

Each line is a set of networks with margins and norms in the ranges of 3-layer networks on CIFAR-10.
The printed table shows false alarms in the "independent" rows and misses in the "constant ratio"
rows. Nothing is trained; this takes about ten seconds.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from normjax.controls.margins import predict_margins
from normjax.controls.shuffles import shuffle_margins
from normjax.controls.verdict import ARTIFACT, SUPPORTED, UNDECIDED, judge

KINDS = (
    "independent",
    "independent by level",
    "both follow the norm",
    "constant ratio, 2% noise",
    "constant ratio, 5% noise",
    "constant ratio, 10% noise",
)
SIZES = ((8, 1), (6, 2), (6, 3), (12, 1))  # levels x networks per level


def draw_line(
    kind: str, rng: np.random.Generator, num_levels: int, num_seeds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Return training margins, test margins, norms and levels of num_levels x num_seeds networks.

    Args:
      kind: one of `KINDS`. "independent": all numbers are independent, the pure artifact; "by
        level": levels are independent, networks of one level similar; "both follow the norm":
        margins are powers of the norm with independent noise; "constant ratio": the test margin is
        0.6 times the training margin.
      rng: the random generator.
      num_levels: number of levels.
      num_seeds: number of networks per level.
    """
    n = num_levels * num_seeds
    position = np.repeat(np.linspace(0, 1, num_levels), num_seeds)
    rho = np.exp(rng.uniform(5, 7, n))
    train, test = rng.uniform(16, 25, n), rng.uniform(10, 12.5, n)
    if kind == "independent by level":
        train, test, log_rho = (
            np.repeat(rng.uniform(*ends, num_levels), num_seeds)
            for ends in ((16, 25), (10, 12.5), (5, 7))
        )
        train, test = train + 0.4 * rng.normal(size=n), test + 0.2 * rng.normal(size=n)
        rho = np.exp(log_rho + 0.05 * rng.normal(size=n))
    elif kind == "both follow the norm":
        rho = 250 * np.exp(1.2 * position + 0.05 * rng.normal(size=n))
        train = 16 * (rho / 250) ** 0.3 * np.exp(0.03 * rng.normal(size=n))
        test = 10 * (rho / 250) ** 0.15 * np.exp(0.03 * rng.normal(size=n))
    elif kind.startswith("constant ratio"):
        noise = float(kind.split()[2].rstrip("%")) / 100
        test = 0.6 * train * np.exp(noise * rng.normal(size=n))
    return train, test, rho, [f"pretrain {value:g}" for value in position]


def verdict_rates(
    kind: str,
    num_lines: int,
    num_levels: int = 6,
    num_seeds: int = 2,
    num_draws: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Return {verdict: fraction} over lines of one kind."""
    rng = np.random.default_rng(seed)
    verdicts = []
    for _ in range(num_lines):
        train, test, rho, levels = draw_line(kind, rng, num_levels, num_seeds)
        points = (-train / rho, -test / rho, rho)
        shuffle = shuffle_margins(
            *points, levels, num_draws=num_draws, seed=int(rng.integers(2**31))
        )
        prediction = predict_margins(train, test, rho, levels)
        verdicts.append(judge(train.size, shuffle, prediction).verdict)
    return {name: verdicts.count(name) / num_lines for name in (ARTIFACT, SUPPORTED, UNDECIDED)}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=200, help="synthetic lines per rate")
    num_lines = parser.parse_args(argv).lines
    print("| margins | networks | artifact | supported | undecided |\n|---|---|---|---|---|")
    for kind in KINDS:
        for num_levels, num_seeds in SIZES:
            rates = verdict_rates(kind, num_lines, num_levels, num_seeds)
            cells = " | ".join(f"{rate:.1%}" for rate in rates.values())
            print(f"| {kind} | {num_levels} x {num_seeds} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
