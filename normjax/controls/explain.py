"""Is the line real? The analysis of one selection and norm of a run.

To first order, ln K - CE = mean(f_y - mean_k f_k): both normalized losses are mean centered
margins, divided by the same product of norms. Networks with unrelated margins therefore still lie
near a line through (ln K, ln K) if their product norms differ enough.
"""

import dataclasses
import math
import os
from functools import partial

import numpy as np
import pandas as pd

from normjax.controls.content import Content, measure_content
from normjax.controls.divisor import Divisor, measure_divisor
from normjax.controls.margins import MarginRatio, margin_ratio
from normjax.controls.shuffles import NormPermutation, permute_norms
from normjax.controls.thresholds import THRESHOLDS, Threshold
from normjax.controls.verdict import judge
from normjax.results.table import (
    NETWORK,
    check_table,
    groups,
    is_finite,
    level_names,
    member_names,
    num_classes,
    on_own_labels,
    read_results,
    select,
)
from normjax.statistics import regression
from normjax.statistics.influence import Influence, influence
from normjax.statistics.leave_out import PredictionErrors, leave_out
from normjax.statistics.rank_correlation import RankCorrelation, rank_correlation
from normjax.statistics.regression import (
    AnchoredFit,
    DemingFit,
    LineFit,
    deming_line,
    fit_line,
    fit_through_anchor,
)

MEASURE_NAMES = {
    "normalized_train_loss": "normalized training loss",
    "train_loss": "training loss as trained",
    "product_norm": "product of norms",
    "mean_train_margin": "mean training margin",
}


@dataclasses.dataclass(frozen=True)
class NetworkControls:
    """The values of one network; margins are raw, to first order.

    Attributes:
      name: number, family, level and seed.
      family: "pretrain", "init_scale", "default_init" or "random_labels".
      level: corruption fraction or initial standard deviation.
      has_random_labels: whether it was trained and is evaluated on random labels.
      product_norm: rho.
      train_excess: normalized training loss minus ln K, nats.
      test_excess: normalized test loss minus ln K, nats.
      train_margin: -train_excess * rho.
      test_margin: -test_excess * rho.
      margin_ratio: test_margin / train_margin; None if the training margin is zero.
      cooks_distance: influence on the line of normalized losses; None if undefined.
    """

    name: str
    family: str
    level: float
    has_random_labels: bool
    product_norm: float
    train_excess: float
    test_excess: float
    train_margin: float
    test_margin: float
    margin_ratio: float | None
    cooks_distance: float | None


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The analysis of a line of normalized losses. `reasons` explains each field that is None.

    Networks with random labels have test margins near zero regardless of what they learned. Only
    the fields marked "all networks" include them.

    Attributes:
      verdict: "artifact of the shared divisor", "supported" or "undecided" (`verdict.judge`).
      because: the numbers behind the verdict.
      missing: what would decide an undecided line; else "".
      selection: the selection, as in results.csv.
      norm: the norm, as in results.csv.
      num_networks: number of networks with finite losses, each on its own labels.
      num_random_labels: how many of these have random labels.
      num_diverged: number of networks with a loss or norm that is not finite.
      left_out: {network of the run that is not analyzed: reason}.
      not_interpolating: analyzed networks with a training error above zero.
      num_classes: K; None without networks.
      ln_num_classes: ln K, nats.
      prediction: {"network", "level"}: errors of the normalized test loss of left-out networks and
        levels, predicted by the line. The first question.
      divisor: left-out raw test margins, by the line and by the norms alone. The second question.
      content: training and test margins at equal level and norm. The third question.
      fit: normalized test loss on normalized training loss, all networks, as in the paper.
      raw_fit: the same for the losses as trained.
      fit_without_random_labels: like `fit`, for true labels only.
      raw_fit_without_random_labels: like `raw_fit`, for true labels only.
      anchored_fit: the line through (ln K, ln K), in terms of the excess.
      divisor_fit: normalized test loss on 1 / rho, without the training loss.
      margin_fit: raw test margin on raw training margin, without the norms.
      deming: the line with errors of equal variance in both variables.
      norm_permutation: R2 with product norms shuffled and margins kept.
      ratio: the ratio of raw test to training margin.
      leave_out: {"network", "level", "family"}: like `prediction`, all networks; "family" shows
        whether random labels lie on the line of the true labels.
      influence: Cook's distances on `fit` of networks, and of levels and random labels as groups.
      error_ranking: {measure: rank correlation with the test error}.
      networks: all networks.
      thresholds: the thresholds of the verdict.
      reasons: {name of a field: why it is None}.
    """

    verdict: str
    because: str
    missing: str
    selection: str
    norm: str
    num_networks: int
    num_random_labels: int
    num_diverged: int
    left_out: dict[str, str]
    not_interpolating: tuple[str, ...]
    num_classes: int | None
    ln_num_classes: float | None
    prediction: dict[str, PredictionErrors | None]
    divisor: Divisor | None
    content: Content | None
    fit: LineFit | None
    raw_fit: LineFit | None
    fit_without_random_labels: LineFit | None
    raw_fit_without_random_labels: LineFit | None
    anchored_fit: AnchoredFit | None
    divisor_fit: LineFit | None
    margin_fit: LineFit | None
    deming: DemingFit | None
    norm_permutation: NormPermutation | None
    ratio: MarginRatio | None
    leave_out: dict[str, PredictionErrors | None]
    influence: Influence | None
    error_ranking: dict[str, RankCorrelation] | None
    networks: tuple[NetworkControls, ...]
    thresholds: dict[str, Threshold]
    reasons: dict[str, str]


def explain_line(
    results: pd.DataFrame | str | os.PathLike,
    selection: str | None = None,
    norm: str | float | None = None,
    *,
    num_draws: int = 10_000,
    seed: int = 0,
) -> Explanation:
    """Explain the line of normalized losses with all controls that need only results.csv.

    Args:
      results: a results table, a results.csv, or the folder of a run.
      selection: as in results.csv; by default "final", or the first selection.
      norm: as in results.csv or a number; by default "2", or the first norm.
      num_draws: orders per permutation test.
      seed: seed of the random orders. The order of the rows does not matter.

    Raises:
      FileNotFoundError: results.csv does not exist.
      ValueError: the file or table is damaged (see `check_table`), empty or lacks the selection or
        norm; num_draws < 1 or seed < 0.
    """
    if num_draws < 1 or seed < 0:
        raise ValueError(f"num_draws is {num_draws} and seed {seed}; at least 1 and 0 are needed")
    is_table = isinstance(results, pd.DataFrame)
    table = on_own_labels(check_table(results) if is_table else read_results(results))
    table = table.assign(name=member_names(table)).sort_values(NETWORK)
    group = choose_rows(table, selection, norm)
    every = _with_margins(group[is_finite(group)])
    true = every[~every["has_random_labels"]]
    classes = num_classes(every)
    levels, draws = true["level_name"].tolist(), {"num_draws": num_draws, "seed": seed}
    excess = true["train_excess"], true["test_excess"]
    margins = true["train_margin"], true["test_margin"]
    rho = true["product_norm"]
    reasons: dict[str, str] = {}
    attempt = partial(regression.attempt, reasons)

    def fit(rows: pd.DataFrame, kind: str = "") -> LineFit:
        names = rows["level_name"].tolist()
        return fit_line(rows[f"{kind}train_loss"], rows[f"{kind}test_loss"], names)

    def without(rows: pd.DataFrame, column: str) -> PredictionErrors:
        return leave_out(*_excess_of(rows), rows[column].tolist(), rows["name"].tolist())

    def ranking() -> dict[str, RankCorrelation]:
        measures = true.assign(mean_train_margin=true["train_margin"])
        return {
            name: rank_correlation(measures[name], true["test_error"], levels, **draws)
            for name in MEASURE_NAMES
        }

    def divisor_fit() -> LineFit:
        with np.errstate(divide="ignore"):
            return fit_line(1 / rho, true["normalized_test_loss"], levels)

    content = attempt("content", lambda: measure_content(*margins, rho, levels, **draws))
    divisor = attempt("divisor", lambda: measure_divisor(*margins, rho, levels))
    sizes = true["level_name"].value_counts().tolist()
    verdict = judge(content, divisor, sizes, reasons)
    influences = attempt(
        "influence", lambda: influence(*_excess_of(every), every["level_name"].tolist())
    )
    parts = {"network": "name", "level": "level_name", "family": "family"}
    return Explanation(
        verdict=verdict.verdict,
        because=verdict.because,
        missing=verdict.missing,
        selection=group["selection"].iloc[0],
        norm=group["norm"].iloc[0],
        num_networks=len(every),
        num_random_labels=len(every) - len(true),
        num_diverged=len(group) - len(every),
        left_out=_left_out(table, group, every),
        not_interpolating=tuple(every["name"][every["train_error"] > 0]),
        num_classes=classes,
        ln_num_classes=math.log(classes) if classes else None,
        prediction={
            part: attempt(f"prediction.{part}", partial(without, true, parts[part]))
            for part in ("network", "level")
        },
        divisor=divisor,
        content=content,
        fit=attempt("fit", lambda: fit(every, "normalized_")),
        raw_fit=attempt("raw_fit", lambda: fit(every)),
        fit_without_random_labels=attempt(
            "fit_without_random_labels", lambda: fit(true, "normalized_")
        ),
        raw_fit_without_random_labels=attempt("raw_fit_without_random_labels", lambda: fit(true)),
        anchored_fit=attempt("anchored_fit", lambda: fit_through_anchor(*excess, 0.0)),
        divisor_fit=attempt("divisor_fit", divisor_fit),
        margin_fit=attempt("margin_fit", lambda: fit_line(*margins, levels)),
        deming=attempt(
            "deming",
            lambda: deming_line(true["normalized_train_loss"], true["normalized_test_loss"]),
        ),
        norm_permutation=attempt("norm_permutation", lambda: permute_norms(*excess, rho, **draws)),
        ratio=attempt("ratio", lambda: margin_ratio(*margins, rho)),
        leave_out={
            part: attempt(f"leave_out.{part}", partial(without, every, column))
            for part, column in parts.items()
        },
        influence=influences,
        error_ranking=attempt("error_ranking", ranking),
        networks=_networks(every, influences),
        thresholds=THRESHOLDS,
        reasons=reasons,
    )


def choose_rows(
    table: pd.DataFrame, selection: str | None = None, norm: str | float | None = None
) -> pd.DataFrame:
    """Return the rows of one selection and norm, each network on the labels it was trained on.

    The defaults are the last epoch and the Frobenius norm, as at the top of a report.

    Raises:
      ValueError: the table is empty, or lacks the selection or norm; the message lists the valid
        ones.
    """
    table = on_own_labels(table)
    if table.empty:
        raise ValueError("no results to explain")
    known = select(table, selection=selection, norm=norm)
    selection, norm = max(groups(known), key=lambda pair: (pair[0] == "final", pair[1] == "2"))
    return select(table, selection=selection, norm=norm)


def _with_margins(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the columns that the controls need to the rows of results.csv."""
    excess = rows["normalized_train_excess"], rows["normalized_test_excess"]
    return rows.assign(
        level_name=level_names(rows),
        has_random_labels=rows["family"] == "random_labels",
        train_excess=excess[0],
        test_excess=excess[1],
        train_margin=-excess[0] * rows["product_norm"],
        test_margin=-excess[1] * rows["product_norm"],
    )


def _excess_of(rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    return rows["train_excess"], rows["test_excess"]


def _left_out(table: pd.DataFrame, group: pd.DataFrame, every: pd.DataFrame) -> dict[str, str]:
    """Return {network of the run that is not analyzed: reason}."""
    absent = f"no snapshot at zero training error for selection {group['selection'].iloc[0]}"
    present, explained = set(group["name"]), set(every["name"])
    return {
        name: "diverged: a loss or a norm is not finite" if name in present else absent
        for name in table["name"].unique()
        if name not in explained
    }


def _networks(every: pd.DataFrame, found: Influence | None) -> tuple[NetworkControls, ...]:
    """Return the controls of each network."""
    distances = [math.nan] * len(every) if found is None else found.single
    names = [field.name for field in dataclasses.fields(NetworkControls)][:-2]
    rows = every.to_dict("records")
    return tuple(
        NetworkControls(
            **{name: row[name] for name in names},
            margin_ratio=row["test_margin"] / row["train_margin"] if row["train_margin"] else None,
            cooks_distance=distance if math.isfinite(distance) else None,
        )
        for row, distance in zip(rows, distances, strict=True)
    )
