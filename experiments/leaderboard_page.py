"""The leaderboard as a table and as a page."""

import math
import os
from collections.abc import Sequence

from normjax.files import replacing
from normjax.generalization.ranking import NUM_RESAMPLES, RankedMeasure
from normjax.generalization.sharpness import ERROR_RISE, NUM_DRAWS


def table_of(ranked: Sequence[RankedMeasure]) -> dict[str, Sequence]:
    """The columns of leaderboard.csv; nan where there is no value."""
    columns = {
        "measure": [row.name for row in ranked],
        "tau": [row.tau for row in ranked],
        "tau_low": [row.tau_interval[0] for row in ranked],
        "tau_high": [row.tau_interval[1] for row in ranked],
        "tau_normalized_test_loss": [row.tau_normalized_test_loss for row in ranked],
        "mean_psi": [row.mean_psi for row in ranked],
        "mean_psi_low": [row.psi_interval[0] for row in ranked],
        "mean_psi_high": [row.psi_interval[1] for row in ranked],
    }
    for factor in ranked[0].psi:
        columns[f"psi_{factor}"] = [row.psi[factor] for row in ranked]
    return columns | {
        "worst_sign_error": [row.sign_errors.worst for row in ranked],
        "mean_sign_error": [row.sign_errors.mean for row in ranked],
        "num_environments": [row.sign_errors.num_environments for row in ranked],
        "worst_environment": [row.sign_errors.worst_environment for row in ranked],
    }


def table_lines(ranked: Sequence[RankedMeasure]) -> list[str]:
    """The table of the page, in Markdown."""
    factors = list(ranked[0].psi)
    header = ["measure", "τ", "95% interval", "τ, normalized test loss", "Ψ", "95% interval"]
    header += [*[f"ψ {name}" for name in factors], "worst sign error", "mean sign error"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in ranked:
        cells = [f"`{row.name}`", _number(row.tau), _interval(row.tau_interval)]
        cells += [_number(row.tau_normalized_test_loss), _number(row.mean_psi)]
        cells += [_interval(row.psi_interval), *[_number(row.psi[name]) for name in factors]]
        cells += [_number(row.sign_errors.worst), _number(row.sign_errors.mean)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def write_page(
    path: str | os.PathLike,
    title: str,
    ranked: Sequence[RankedMeasure],
    *,
    num_test: int,
    sharpness_images: int,
    left_out: Sequence[str],
    not_fitted: Sequence[str],
) -> None:
    """Writes the leaderboard as a page: the table, how it was made, what is left out.

    Args:
      path: of the file.
      title: which networks are ranked.
      ranked: the measures, the best first.
      num_test: test examples behind each error.
      sharpness_images: training images that the flatness is measured on.
      left_out: networks that are not ranked, each with its reason.
      not_fitted: ranked networks whose training error is not zero.
    """
    factors = ", ".join(ranked[0].psi) or "nothing"
    num_environments = ranked[0].sign_errors.num_environments
    method = [
        "Every measure is oriented so that a larger value should mean a larger test error: τ = 1 "
        "ranks all networks rightly, τ = -1 all wrongly. Their definitions and sources are in the "
        "docstrings of `normjax.generalization.measures` and `normjax.generalization.sharpness`.",
        "τ is Kendall's tau-b. Intervals are 95% percentile bootstrap intervals "
        f"({NUM_RESAMPLES} resamples of networks).",
        "Whatever contains the product of norms shares it with the normalized test loss; its τ in "
        "that column is high by construction.",
        f"ψ is the mean τ-b over groups of networks in which only one factor varies, Ψ the mean of "
        f"ψ (Jiang et al. 2020). The networks differ in: {factors}.",
        "A sign error is the weighted fraction of pairs that a measure orders wrongly when one "
        "factor changes from one value to another (Dziugaite et al. 2020), 0.5 being a coin's. "
        f"Weights are those of Hoeffding's inequality for {num_test} test examples; "
        f"{num_environments} comparisons have a pair whose errors differ beyond that noise.",
        f"Flatness: the noise that raises the training error by {ERROR_RISE:g}, on "
        f"{sharpness_images} training images, {NUM_DRAWS} draws.",
    ]
    parts = [f"# Leaderboard: {title}", "\n".join(table_lines(ranked))]
    parts += ["## Method", _bullets(method)]
    if left_out:
        parts += ["## Networks left out", _bullets(left_out)]
    if not_fitted:
        parts += ["## Ranked, though their training error is not zero", _bullets(not_fitted)]
    with replacing(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _number(value: float) -> str:
    """Two decimals; a dash where there is no value."""
    return "–" if math.isnan(value) else f"{value:.2f}"


def _interval(interval: tuple[float, float]) -> str:
    """Both ends."""
    return " to ".join(map(_number, interval))


def _bullets(lines: Sequence[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)
