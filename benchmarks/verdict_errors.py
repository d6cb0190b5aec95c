"""Estimate how often the verdict on a line is wrong, and how many seeds it needs.

    python -m benchmarks.verdict_errors --lines=1000

The first table has the rates of the verdicts over synthetic lines (`synthetic_lines.draw_line`),
with 95% limits of Clopper and Pearson. "Supported" is a false alarm above the rule, in which
training and test margins have nothing to do with each other, and "artifact" a miss below it. The
second table has the power: how often a correlation within levels is found, or called smaller than
0.5, with as many seeds per level as `controls.power` asks for; 80% is the goal. Nothing is trained;
1,000 lines take about four minutes on 2 cores.
"""

import argparse
import itertools
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from scipy import stats

from benchmarks.synthetic_lines import NULLS, RELATED, SIZES, draw_line
from normjax.controls.content import measure_content
from normjax.controls.divisor import measure_divisor
from normjax.controls.power import seeds_for, seeds_for_smallest
from normjax.controls.thresholds import SMALLEST_EFFECT, max_p_value
from normjax.controls.verdict import ARTIFACT, SUPPORTED, UNDECIDED, judge
from normjax.statistics.intervals import members_of
from normjax.statistics.regression import attempt

NUM_DRAWS = 999
CORRELATIONS = (0.0, 0.5, 0.7, 0.9)
NUM_LEVELS = (1, 4, 6, 12)


def verdict_of(
    train: np.ndarray, test: np.ndarray, rho: np.ndarray, levels: list[str], seed: int
) -> str:
    """Return the verdict on a line, as `explain_line` reaches it, with fewer random orders."""
    reasons: dict[str, str] = {}
    margins = train, test, rho, levels
    content = attempt(
        reasons, "content", lambda: measure_content(*margins, num_draws=NUM_DRAWS, seed=seed)
    )
    divisor = attempt(reasons, "divisor", lambda: measure_divisor(*margins))
    return judge(content, divisor, list(map(len, members_of(levels).values())), reasons).verdict


def count_verdicts(
    kind: str, num_lines: int, num_levels: int, num_seeds: int, seed: int = 0
) -> dict[str, int]:
    """Return {verdict: number of lines} over lines of one kind."""
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys((SUPPORTED, ARTIFACT, UNDECIDED), 0)
    for _ in range(num_lines):
        line = draw_line(kind, rng, num_levels, num_seeds)
        counts[verdict_of(*line, seed=int(rng.integers(2**31)))] += 1
    return counts


def draw_content(
    correlation: float, rng: np.random.Generator, num_levels: int, num_seeds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Return margins of this correlation within levels, norms and levels."""
    n = num_levels * num_seeds
    train, noise = rng.normal(size=(2, n))
    test = correlation * train + np.sqrt(1 - correlation**2) * noise
    levels = [f"level {index}" for index in np.repeat(np.arange(num_levels), num_seeds)]
    return 20 + 0.4 * train, 11 + 0.2 * test, np.exp(6 + 0.05 * rng.normal(size=n)), levels


def count_found(
    correlation: float, num_lines: int, num_levels: int, num_seeds: int, seed: int = 0
) -> tuple[int, int]:
    """Return on how many lines of this correlation within levels it is found, and called small."""
    rng = np.random.default_rng(seed)
    found = excluded = 0
    for _ in range(num_lines):
        line = draw_content(correlation, rng, num_levels, num_seeds)
        content = measure_content(*line, num_draws=NUM_DRAWS, seed=int(rng.integers(2**31)))
        found += content.p_value <= max_p_value(num_levels)
        excluded += content.interval[1] < SMALLEST_EFFECT
    return found, excluded


def limits(count: int, total: int) -> tuple[float, float]:
    """Return the 95% limits of Clopper and Pearson for a rate."""
    interval = stats.binomtest(count, total).proportion_ci(method="exact")
    return float(interval.low), float(interval.high)


def rate(count: int, total: int) -> str:
    """Format a rate with its limits."""
    low, high = limits(count, total)
    return f"{count / total:.1%} ({low:.1%} to {high:.1%})"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables; exit with code 1 if a null is supported in more than 5% of its lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=1000, help="synthetic lines per rate")
    num_lines = parser.parse_args(argv).lines
    cells = list(itertools.product((*NULLS, *RELATED), SIZES))
    asked = [
        (
            r,
            levels,
            seeds_for(r, levels, max_p_value(levels))
            if r > SMALLEST_EFFECT
            else seeds_for_smallest(levels),
        )
        for r, levels in itertools.product(CORRELATIONS, NUM_LEVELS)
    ]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        verdicts = [
            pool.submit(count_verdicts, kind, num_lines, *size, seed)
            for seed, (kind, size) in enumerate(cells)
        ]
        powers = [
            pool.submit(count_found, r, num_lines, levels, seeds, seed)
            for seed, (r, levels, seeds) in enumerate(asked)
        ]
        print("| margins | networks | supported | artifact | undecided |\n|---|---|---|---|---|")
        highest = 0.0
        for (kind, (num_levels, num_seeds)), job in zip(cells, verdicts, strict=True):
            counts = job.result()
            shown = " | ".join(rate(count, num_lines) for count in counts.values())
            print(f"| {kind} | {num_levels} x {num_seeds} | {shown} |", flush=True)
            if kind in NULLS:
                highest = max(highest, counts[SUPPORTED] / num_lines)
            if (kind, (num_levels, num_seeds)) == (NULLS[-1], SIZES[-1]):
                print("| **below: margins are related** | | | | |")
        print("\n| correlation within levels | levels | seeds per level | found | below 0.5 |")
        print("|---|---|---|---|---|")
        for (r, num_levels, num_seeds), job in zip(asked, powers, strict=True):
            found, excluded = (rate(count, num_lines) for count in job.result())
            print(f"| {r} | {num_levels} | {num_seeds} | {found} | {excluded} |", flush=True)
    upper = limits(round(highest * num_lines), num_lines)[1]
    print(f"\nHighest rate of support without a relation: {highest:.1%}, at most {upper:.1%}.")
    if highest > 0.05:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
