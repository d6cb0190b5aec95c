"""Estimate how often the verdict on a line is wrong, and how many seeds it needs.

    python -m benchmarks.verdict_errors --lines=1000

The first table has the rates of two verdicts over synthetic lines (`synthetic_lines.draw_line`),
with 95% limits of Clopper and Pearson; the rest is undecided. "Supported" is a false alarm in the
upper rows, where training and test margins have nothing to do with each other, and "artifact" a
miss in the rows of related margins. In the rows after them there is no relation either, but an
assumption of the content is violated, or it alone stands between the line and support: these rates
are measured, not promised. The second table has the power: how often a correlation within levels is
found, or called smaller than 0.5, with as many seeds per level as `controls.power` asks for; 80% is
the goal. The third has the same for the skill: of lines of 6 levels whose skill is positive but of
unknown sign, how many have one above zero with as many levels as are asked for. Nothing is trained;
1,000 lines take three to four minutes on 2 free cores.
"""

import argparse
import itertools
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from scipy import stats

from benchmarks.synthetic_lines import HARD, NULLS, RELATED, SIZES, draw_line
from normjax.controls.content import measure_content
from normjax.controls.divisor import measure_divisor
from normjax.controls.power import levels_for_skill, seeds_for, seeds_for_smallest
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
    """Return on how many lines the correlation is found, and on how many it is called small."""
    rng = np.random.default_rng(seed)
    found = excluded = 0
    for _ in range(num_lines):
        line = draw_content(correlation, rng, num_levels, num_seeds)
        content = measure_content(*line, num_draws=NUM_DRAWS, seed=int(rng.integers(2**31)))
        found += content.p_value <= max_p_value(num_levels)
        excluded += content.interval[1] < SMALLEST_EFFECT
    return found, excluded


def levels_asked(kind: str, num_lines: int, seed: int = 0) -> list[tuple[int | None, bool]]:
    """Return the levels asked for and whether they decide, for each line with an open skill.

    Lines have 6 levels of 8 seeds. None: more levels are asked for than `controls.power` names.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num_lines):
        divisor = measure_divisor(*draw_line(kind, rng, 6, 8))
        if divisor.interval[0] <= 0 < divisor.skill:
            levels = levels_for_skill(divisor.skill, divisor.interval[0], 6)
            larger = measure_divisor(*draw_line(kind, rng, levels, 8)) if levels else None
            found.append((levels, larger is not None and larger.interval[0] > 0))
    return found


def limits(count: int, total: int) -> tuple[float, float]:
    """Return the 95% limits of Clopper and Pearson for a rate."""
    interval = stats.binomtest(count, total).proportion_ci(method="exact")
    return float(interval.low), float(interval.high)


def rate(count: int, total: int) -> str:
    """Format a rate with its limits, in percent."""
    low, high = limits(count, total)
    return f"{100 * count / total:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables; exit with code 1 if a null is supported in more than 5% of its lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=1000, help="synthetic lines per rate")
    num_lines = parser.parse_args(argv).lines
    cells = list(itertools.product((*NULLS, *RELATED, *HARD), SIZES))
    asked = [(r, n, _seeds_asked(r, n)) for r, n in itertools.product(CORRELATIONS, NUM_LEVELS)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        verdicts = {
            cell: pool.submit(count_verdicts, cell[0], num_lines, *cell[1], seed)
            for seed, cell in enumerate(cells)
        }
        powers = [
            pool.submit(count_found, r, num_lines, levels, seeds, seed)
            for seed, (r, levels, seeds) in enumerate(asked)
        ]
        levels = {
            kind: pool.submit(levels_asked, kind, num_lines, seed)
            for seed, kind in enumerate(RELATED)
        }
        print("Percent of lines: supported (95% limits), artifact of the shared divisor.\n")
        names = [f"{levels} x {seeds}" for levels, seeds in SIZES]
        print(f"| margins | {' | '.join(names)} |\n|---|{'---|' * len(SIZES)}")
        for kind in (*NULLS, *RELATED, *HARD):
            counts = [verdicts[kind, size].result() for size in SIZES]
            shown = [
                f"**{rate(c[SUPPORTED], num_lines)}**, {100 * c[ARTIFACT] / num_lines:.1f}"
                for c in counts
            ]
            if kind == RELATED[0]:
                print(f"| *below, margins are related* |{' |' * len(SIZES)}")
            if kind == HARD[0]:
                print(f"| *below, they are not, and it is hard to see* |{' |' * len(SIZES)}")
            print(f"| {kind} | {' | '.join(shown)} |", flush=True)
        print("\n| correlation within levels | levels | seeds per level | found | below 0.5 |")
        print("|---|---|---|---|---|")
        for (r, num_levels, num_seeds), job in zip(asked, powers, strict=True):
            found, excluded = (rate(count, num_lines) for count in job.result())
            print(f"| {r} | {num_levels} | {num_seeds} | {found} | {excluded} |", flush=True)
        print("\n| margins, 6 x 8 | skill open | more than named | levels asked | above zero |")
        print("|---|---|---|---|---|")
        for kind, job in levels.items():
            asked_for = [(needed, shown) for needed, shown in job.result() if needed]
            unnamed = len(job.result()) - len(asked_for)
            cells = [len(job.result()), unnamed, "–", "–"]
            if asked_for:
                middle = np.percentile([needed for needed, _ in asked_for], (25, 50, 75))
                cells[2] = ", ".join(f"{value:.0f}" for value in middle)
                cells[3] = rate(sum(shown for _, shown in asked_for), len(asked_for))
            print(f"| {kind} | {' | '.join(map(str, cells))} |", flush=True)
    highest = max(verdicts[kind, size].result()[SUPPORTED] for kind in NULLS for size in SIZES)
    print(f"\nHighest rate of support without a relation: {rate(highest, num_lines)}%.")
    if highest > 0.05 * num_lines:
        raise SystemExit(1)


def _seeds_asked(correlation: float, num_levels: int) -> int:
    """Return the seeds per level that should find this correlation, or call it small."""
    if correlation <= SMALLEST_EFFECT:
        return seeds_for_smallest(num_levels)
    return seeds_for(correlation, num_levels, max_p_value(num_levels))


if __name__ == "__main__":
    main()
