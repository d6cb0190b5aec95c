"""Is the line real? What of its fit is made by construction, and what is not.

To first order ln K - CE = mean(f_y - mean_k f_k): the normalized losses are mean centered margins
on the training and on the test set, both divided by the same product of norms. Networks with
unrelated margins would still line up with (ln K, ln K), if only their product norms differ enough.
"""

import os
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from normjax.controls.verdict import THRESHOLDS, judge
from normjax.results.rows import ResultRow, on_own_labels, read_results, select
from normjax.results.summary import finite_rows, groups, member_name, norm_name, selection_name
from normjax.statistics import regression
from normjax.statistics.error_prediction import ErrorRanking, rank_errors
from normjax.statistics.influence import (
    DemingFit,
    LeftOut,
    MarginPrediction,
    MarginRatio,
    cooks_distances,
    deming_line,
    leave_out,
    margin_ratio,
    predict_margins,
)
from normjax.statistics.regression import AnchoredFit, LineFit, fit_line, fit_through_anchor
from normjax.statistics.resampling import (
    LineBootstrap,
    MarginShuffle,
    NormPermutation,
    bootstrap_line,
    permute_norms,
    shuffle_margins,
)

MEASURE_NAMES = {
    "normalized_train_loss": "normalized training loss",
    "train_loss": "training loss as trained",
    "product_norm": "product of norms",
    "mean_train_margin": "mean training margin",
}


class NetworkControls(NamedTuple):
    """One network among the others; margins are raw, to first order.

    Attributes:
      name: its number, family, level and seed.
      level: its family and level, the networks of which are not independent.
      has_random_labels: it was trained, and is evaluated, on random labels.
      product_norm: rho.
      train_excess, test_excess: normalized loss - ln K, nats.
      train_margin, test_margin: -excess * rho.
      cooks_distance: in the line of normalized losses; None if that is not defined.
    """

    name: str
    level: str
    has_random_labels: bool
    product_norm: float
    train_excess: float
    test_excess: float
    train_margin: float
    test_margin: float
    cooks_distance: float | None


class Explanation(NamedTuple):
    """What a line of normalized losses is made of. None stands where `reasons` says why.

    Attributes:
      verdict: "artifact of the shared divisor", "supported" or "undecided" (`verdict.judge`).
      because: the numbers that decided it.
      text: all of it in one paragraph of plain words.
      selection, norm: which networks, and how they are normalized.
      num_networks: how many there are with finite losses, each on its own labels.
      num_random_labels: how many of these have random labels. Their test margins are near zero
        whatever they learned, and only what is marked "all networks" counts them in.
      num_diverged: how many were left out because a loss or norm is not finite.
      ln_num_classes: ln K, nats.
      fit: normalized test on normalized training loss, all networks, as in the paper's figures.
      raw_fit: the same of the losses as trained.
      fit_without_random_labels: the first without the networks of random labels.
      anchored_fit: the line forced through (ln K, ln K), in terms of the excess.
      divisor_fit: normalized test loss on 1 / rho alone, without any training loss.
      deming: the line with errors in both variables of equal variance.
      norm_permutation: R2 with the product norms shuffled, each network's margins kept.
      margin_shuffle: the line with training and test margins shuffled, norms kept.
      ratio: of raw test to training margin.
      prediction: raw test margins of levels left out, from the line and from the norms alone.
      left_out: {"network", "level", "family"}: prediction errors of the normalized test loss, all
        networks; that of families says whether random labels lie on the line of the true ones.
      bootstrap: intervals over networks.
      error_ranking: {measure: rank correlations with the test error}.
      networks: one entry for each of all networks.
      thresholds: what the verdict rests on, {name: (value, reason)}.
      reasons: {name of a field: why it is None}.
    """

    verdict: str
    because: str
    text: str
    selection: str
    norm: str
    num_networks: int
    num_random_labels: int
    num_diverged: int
    ln_num_classes: float
    fit: LineFit | None
    raw_fit: LineFit | None
    fit_without_random_labels: LineFit | None
    anchored_fit: AnchoredFit | None
    divisor_fit: LineFit | None
    deming: DemingFit | None
    norm_permutation: NormPermutation | None
    margin_shuffle: MarginShuffle | None
    ratio: MarginRatio | None
    prediction: MarginPrediction | None
    left_out: dict[str, LeftOut | None]
    bootstrap: LineBootstrap | None
    error_ranking: dict[str, ErrorRanking] | None
    networks: tuple[NetworkControls, ...]
    thresholds: dict[str, tuple[float, str]]
    reasons: dict[str, str]


class _Columns(NamedTuple):
    """Networks in columns of float64 [n]; margins (training, test) are raw, to first order."""

    names: list[str]
    families: list[str]
    levels: list[str]
    x: np.ndarray  # normalized losses - ln K
    y: np.ndarray
    rho: np.ndarray
    train: np.ndarray  # normalized losses
    test: np.ndarray
    raw_train: np.ndarray
    raw_test: np.ndarray
    error: np.ndarray
    margins: tuple[np.ndarray, np.ndarray]


def explain_line(
    results: Sequence[ResultRow] | str | os.PathLike,
    selection: str | None = None,
    norm: str | None = None,
    *,
    num_draws: int = 10_000,
    seed: int = 0,
) -> Explanation:
    """What the line of normalized losses is made of: all controls that need results.csv only.

    Args:
      results: rows, a results.csv, or the folder of a run.
      selection, norm: as in results.csv; by default "final" and "2", or the first that there is.
      num_draws: shuffles in each of the permutation tests.
      seed: seed of the shuffles and bootstraps.

    Raises:
      FileNotFoundError: there is no results.csv.
      ValueError: a file that is not one, no such selection or norm, no network that converged, or
        a product norm that is not positive.
    """
    rows = read_results(results) if isinstance(results, str | os.PathLike) else results
    group = choose_rows(rows, selection, norm)
    points = finite_rows(group)
    if not points:
        raise ValueError(f"none of the {len(group)} networks has finite losses and norms")
    every = _columns(points)
    true = _columns([row for row in points if row.family != "random_labels"])
    if (every.rho <= 0).any():
        raise ValueError(f"product norm {every.rho.min()}; every product norm must be positive")
    ln_num_classes = float(np.mean(every.train - every.x))
    reasons: dict[str, str] = {}

    attempt = partial(regression.attempt, reasons)

    draws = {"num_draws": num_draws, "seed": seed}
    shuffle = attempt(
        "margin_shuffle", lambda: shuffle_margins(true.x, true.y, true.rho, true.levels, **draws)
    )
    prediction = attempt(
        "prediction", lambda: predict_margins(*true.margins, true.rho, true.levels)
    )
    verdict = judge(len(true.names), shuffle, prediction)
    measures = dict(
        zip(MEASURE_NAMES, (true.x, true.raw_train, true.rho, true.margins[0]), strict=True)
    )
    parts = {"network": every.names, "level": every.levels, "family": every.families}
    found = Explanation(
        verdict=verdict.verdict,
        because=verdict.because,
        text="",
        selection=points[0].selection,
        norm=points[0].norm,
        num_networks=len(points),
        num_random_labels=len(points) - len(true.names),
        num_diverged=len(group) - len(points),
        ln_num_classes=ln_num_classes,
        fit=attempt("fit", lambda: fit_line(every.train, every.test)),
        raw_fit=attempt("raw_fit", lambda: fit_line(true.raw_train, true.raw_test)),
        fit_without_random_labels=attempt(
            "fit_without_random_labels", lambda: fit_line(true.train, true.test)
        ),
        anchored_fit=attempt("anchored_fit", lambda: fit_through_anchor(true.x, true.y, 0.0)),
        divisor_fit=attempt("divisor_fit", lambda: fit_line(1 / true.rho, true.test)),
        deming=attempt("deming", lambda: deming_line(true.train, true.test)),
        norm_permutation=attempt(
            "norm_permutation", lambda: permute_norms(true.x, true.y, true.rho, **draws)
        ),
        margin_shuffle=shuffle,
        ratio=attempt("ratio", lambda: margin_ratio(*true.margins, true.rho)),
        prediction=prediction,
        left_out={
            name: attempt(
                f"left_out.{name}",
                lambda labels=labels: leave_out(every.x, every.y, labels, every.names),
            )
            for name, labels in parts.items()
        },
        bootstrap=attempt(
            "bootstrap",
            lambda: bootstrap_line(true.x, true.y, true.levels, ln_num_classes, seed=seed),
        ),
        error_ranking=attempt(
            "error_ranking", lambda: rank_errors(measures, true.error, true.levels, seed=seed)
        ),
        networks=_networks(
            every, attempt("cooks_distance", lambda: cooks_distances(every.x, every.y))
        ),
        thresholds=THRESHOLDS,
        reasons=reasons,
    )
    return found._replace(text=_describe(found))


def choose_rows(
    rows: Sequence[ResultRow], selection: str | None = None, norm: str | None = None
) -> list[ResultRow]:
    """The rows of one selection and norm, each network on the labels that it was trained on.

    By default those that a report opens with: the last epoch and the Frobenius norm.

    Raises:
      ValueError: no rows, or none of that selection or norm; the message lists those there are.
    """
    rows = on_own_labels(rows)
    if not rows:
        raise ValueError("no results to explain")
    known = select(rows, selection=selection, norm=norm)
    pair = max(groups(known), key=lambda pair: (pair[0] == "final", pair[1] == "2"))
    return select(rows, selection=pair[0], norm=pair[1])


def _describe(found: Explanation) -> str:
    """One paragraph of plain words."""
    where = f"{found.num_networks} networks ({selection_name(found.selection)}, "
    where += f"{norm_name(found.norm)})"
    if found.fit is None:
        return f"No line through {where}: {found.reasons['fit']}. Verdict: {found.verdict}."
    parts = [
        f"The normalized test loss of {where} is a line in the normalized training loss with R² = "
        f"{found.fit.r2:.5f} and an RMSE of {found.fit.rmse:.2g} nats."
    ]
    if found.num_random_labels and found.fit_without_random_labels:
        parts.append(
            f"Without the {found.num_random_labels} networks of random labels, whom what follows "
            f"leaves out, R² = {found.fit_without_random_labels.r2:.5f} and the RMSE "
            f"{found.fit_without_random_labels.rmse:.2g}."
        )
    if found.divisor_fit:
        parts.append(
            f"A line in 1 / product norm, which knows no training loss, has R² = "
            f"{found.divisor_fit.r2:.5f}."
        )
    if found.margin_shuffle:
        low, middle, high = found.margin_shuffle.r2_quantiles
        parts.append(
            "Unrelated margins over the same norms, which is what shuffling them makes, have R² = "
            f"{middle:.3f} (5% to 95%: {low:.3f} to {high:.3f})."
        )
    if found.norm_permutation:
        low, middle, high = found.norm_permutation.r2_quantiles
        parts.append(
            "With the norms shuffled instead, and every network keeping both its margins, R² = "
            f"{middle:.5f} ({low:.5f} to {high:.5f}); "
            f"{found.norm_permutation.fraction_at_least:.2%} of the orders reach the real R²."
        )
    if found.ratio:
        ratio = found.ratio
        parts.append(
            f"Freed of the norms, test margin / training margin goes from {ratio.low:.3f} to "
            f"{ratio.high:.3f}, a spread of {ratio.spread:.1%} where unrelated margins would have "
            f"{ratio.spread_if_unrelated:.1%}; its rank correlation with the product norm is "
            f"{ratio.correlation_with_norm:.2f}."
        )
    if found.error_ranking:
        taus = (
            f"{MEASURE_NAMES[name]} {ranking.kendall:.2f}"
            for name, ranking in found.error_ranking.items()
        )
        parts.append(f"Kendall's tau-b with the test error: {', '.join(taus)}.")
    parts.append(f"Verdict: {found.verdict}: {found.because}.")
    return " ".join(parts)


def _columns(points: Sequence[ResultRow]) -> _Columns:
    """The columns of rows of one selection and norm."""
    numbers = {
        key: np.array([getattr(row, name) for row in points], np.float64)
        for key, name in (
            ("x", "normalized_train_excess"),
            ("y", "normalized_test_excess"),
            ("rho", "product_norm"),
            ("train", "normalized_train_loss"),
            ("test", "normalized_test_loss"),
            ("raw_train", "train_loss"),
            ("raw_test", "test_loss"),
            ("error", "test_error"),
        )
    }
    return _Columns(
        names=[member_name(row) for row in points],
        families=[row.family for row in points],
        levels=[f"{row.family} {row.level:g}" for row in points],
        margins=(-numbers["x"] * numbers["rho"], -numbers["y"] * numbers["rho"]),
        **numbers,
    )


def _networks(every: _Columns, distances: np.ndarray | None) -> tuple[NetworkControls, ...]:
    """The networks one by one; a Cook's distance that is no number is None."""
    known = np.full(len(every.names), np.nan) if distances is None else distances
    columns = (every.rho, every.x, every.y, *every.margins)
    return tuple(
        NetworkControls(name, level, family == "random_labels", *numbers, distance)
        for name, level, family, *numbers, distance in zip(
            every.names,
            every.levels,
            every.families,
            *(values.tolist() for values in columns),
            [float(value) if np.isfinite(value) else None for value in known],
            strict=True,
        )
    )
