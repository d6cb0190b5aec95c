"""Estimate how often 95% intervals contain the truth, for synthetic networks with known rules.

    python -m benchmarks.interval_coverage --lines=1000

Normalized losses are drawn on a line of slope 0.6, as in docs/is_it_real.md; half of the variance
of their errors is common to the networks of one level. Levels are drawn anew for each line, or
fixed by design, or drawn with errors that grow with the distance from ln K. Ranks and pairs are of
correlated normal numbers, margins of `synthetic_lines`. Coverage is over the lines that have an
interval. Nothing is trained; 1,000 lines take about one minute on 2 cores.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from benchmarks.synthetic_lines import draw_line
from benchmarks.verdict_errors import draw_content, rate
from normjax.controls.content import measure_content
from normjax.controls.divisor import measure_divisor
from normjax.controls.picks import OF_LEVELS, OF_ONE_LEVEL, pick_rates
from normjax.statistics.rank_correlation import rank_correlation
from normjax.statistics.regression import fit_line

SIZES = ((6, 2), (12, 1), (4, 1), (1, 8))
DESIGNS = ("drawn", "fixed", "drawn, growing errors")
QUANTITIES = ("slope", "intercept", "r2", "rmse")
LN_K = math.log(10)
Interval = tuple[float, float] | None


def draw_losses(
    design: str, rng: np.random.Generator, num_levels: int, num_seeds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return normalized training and test losses minus ln K of num_levels x num_seeds networks."""
    n = num_levels * num_seeds

    def noise() -> np.ndarray:
        by_level = np.repeat(rng.normal(size=num_levels), num_seeds)
        return np.sqrt(0.5) * (by_level + rng.normal(size=n))

    if num_levels == 1:  # networks that differ only in their seed
        x = -0.07 + 0.004 * rng.normal(size=n)
        return x, 0.65 * x + 4.5e-4 * rng.normal(size=n)
    levels = np.linspace(-0.075, -0.024, num_levels)
    if design != "fixed":
        levels = rng.uniform(-0.1, -0.01, num_levels)
    x = np.repeat(levels, num_seeds) + 1e-3 * rng.normal(size=n)
    return x, 0.6 * x + 5e-4 * noise() * (-x / 0.05 if design.endswith("growing errors") else 1)


def true_line(design: str, num_levels: int, num_seeds: int, num_lines: int = 4000) -> np.ndarray:
    """Return slope, intercept, R2 and RMSE of the line through the networks of many draws."""
    rng = np.random.default_rng(0)
    draws = [draw_losses(design, rng, num_levels, num_seeds) for _ in range(num_lines)]
    if num_levels == 1:
        draws = [draw_losses(design, rng, 1, 100_000)]
    x, y = np.concatenate(draws, axis=1)
    fit = fit_line(LN_K + x, LN_K + y, [0] * 3 + [1] * (x.size - 3))  # two levels: no intervals
    return np.array([getattr(fit, name) for name in QUANTITIES])


def line_intervals(
    design: str, num_lines: int, num_levels: int, num_seeds: int, seed: int = 0
) -> tuple[list[list[Interval]], list[float]]:
    """Return, per quantity of a line, its intervals and the truth."""
    rng, found = np.random.default_rng(seed), []
    levels = np.repeat(np.arange(num_levels), num_seeds).tolist()
    for _ in range(num_lines):
        x, y = draw_losses(design, rng, num_levels, num_seeds)
        intervals = fit_line(LN_K + x, LN_K + y, levels).intervals
        found.append([intervals and getattr(intervals, name) for name in QUANTITIES])
    truth = true_line(design, num_levels, num_seeds)
    return list(map(list, zip(*found, strict=True))), truth.tolist()


def draw_ranks(
    correlation: float, rng: np.random.Generator, num_levels: int, num_seeds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return two quantities of num_levels x num_seeds networks, correlated between levels."""
    shared = rng.normal(size=(2, num_levels if num_levels > 1 else num_seeds))
    shared[1] = correlation * shared[0] + math.sqrt(1 - correlation**2) * shared[1]
    x, y = np.repeat(shared, num_seeds if num_levels > 1 else 1, axis=1)
    return x + 0.3 * rng.normal(size=x.size), y + 0.3 * rng.normal(size=x.size)


def tau_intervals(
    correlation: float, num_lines: int, num_levels: int, num_seeds: int, seed: int = 0
) -> tuple[list[list[Interval]], list[float]]:
    """Return the intervals of tau, and its mean over all draws."""
    rng, found, taus = np.random.default_rng(seed), [], []
    levels = np.repeat(np.arange(num_levels), num_seeds).tolist()
    for _ in range(num_lines):
        x, y = draw_ranks(correlation, rng, num_levels, num_seeds)
        ranking = rank_correlation(x, y, levels, num_draws=1)
        found.append(ranking.kendall_interval)
        taus.append(ranking.kendall)
    return [found], [float(np.mean(taus))]


def pick_intervals(
    correlation: float, num_lines: int, num_levels: int, num_seeds: int, seed: int = 0
) -> tuple[list[list[Interval]], list[float]]:
    """Return the intervals of the rates between and within levels, and their means."""
    rng = np.random.default_rng(seed)
    levels = np.repeat(np.arange(num_levels), num_seeds)
    intervals: list[list[Interval]] = [[], []]
    rates: list[list[float]] = [[], []]
    for _ in range(num_lines):
        x, y = draw_ranks(correlation, rng, num_levels, num_seeds)
        y += 0.5 * correlation * (x - np.repeat(x.reshape(-1, num_seeds).mean(1), num_seeds))
        found = pick_rates(x, y, levels)
        for i, choice in enumerate((OF_LEVELS, OF_ONE_LEVEL)):
            low, high = found[choice]["low"], found[choice]["high"]
            intervals[i].append(None if low is None else (low, high))
            rates[i].append(found[choice]["rate"])
    return intervals, np.mean(rates, axis=1).tolist()


def skill_intervals(
    kind: str, num_lines: int, num_levels: int, num_seeds: int, seed: int = 0
) -> tuple[list[list[Interval]], list[float]]:
    """Return the intervals of the skill, and the skill from mean squared errors over all draws."""
    rng, found, errors = np.random.default_rng(seed), [], []
    for _ in range(num_lines):
        divisor = measure_divisor(*draw_line(kind, rng, num_levels, num_seeds))
        found.append(divisor.interval)
        errors.append([divisor.rmse**2, *np.square(list(divisor.rival_rmse.values()))])
    line, *rivals = np.mean(errors, axis=0)
    return [found], [float(1 - line / np.nanmin(rivals))]


def content_intervals(
    correlation: float, num_lines: int, num_levels: int, num_seeds: int, seed: int = 0
) -> tuple[list[list[Interval]], list[float]]:
    """Return the intervals of the correlation within levels, and the truth."""
    rng = np.random.default_rng(seed)
    drawn = [draw_content(correlation, rng, num_levels, num_seeds) for _ in range(num_lines)]
    return [[measure_content(*line, num_draws=1).interval for line in drawn]], [correlation]


def coverage(intervals: Sequence[Interval], truth: float) -> tuple[int, int]:
    """Return how many intervals contain the true value, and how many there are."""
    known = [interval for interval in intervals if interval is not None]
    return sum(low <= truth <= high for low, high in known), len(known)


def _line_name(design: str, num_levels: int) -> str:
    return f"line, levels {design}" if num_levels > 1 else "line, one level"


Case = tuple[str, Sequence[str], Callable, tuple]
CASES: tuple[Case, ...] = (
    *(
        (_line_name(design, levels), QUANTITIES, line_intervals, (design, levels, seeds))
        for levels, seeds in SIZES
        for design in (DESIGNS if levels > 1 else DESIGNS[:1])
    ),
    *(
        (f"ranks, correlation {r}", ("tau",), tau_intervals, (r, *size))
        for size in SIZES
        for r in (0.0, 0.6, 0.9)
    ),
    *(
        (f"pairs, correlation {r}", ("between levels", "within levels"), pick_intervals, (r, *size))
        for size in ((6, 2), (6, 8), (12, 2))
        for r in (0.0, 0.6, 0.9)
    ),
    *(
        (f"margins, {kind}", ("skill",), skill_intervals, (kind, *size))
        for size in ((6, 2), (12, 1), (4, 2))
        for kind in (
            "constant ratio, 5% noise",
            "ratio drifts with the norm",
            "linear in the level, same",
        )
    ),
    *(
        (f"margins, correlation {r} within levels", ("r",), content_intervals, (r, *size))
        for size in ((6, 2), (1, 8), (6, 8))
        for r in (0.0, 0.5, 0.9)
    ),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=1000, help="synthetic lines per rate")
    num_lines = parser.parse_args(argv).lines
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(function, arguments[0], num_lines, *arguments[1:])
            for _, _, function, arguments in CASES
        ]
        print("Percent of lines.\n")
        print("| networks | of | interval | coverage | without an interval |")
        print("|---|---|---|---|---|")
        for (name, quantities, _, (_, levels, seeds)), job in zip(CASES, jobs, strict=True):
            for quantity, intervals, truth in zip(quantities, *job.result(), strict=True):
                held, known = coverage(intervals, truth)
                share = rate(held, known) if known else "-"
                without = f"{100 * (1 - known / num_lines):.1f}"
                print(
                    f"| {levels} x {seeds} | {name} | {quantity} | {share} | {without} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
