"""How the line and the generalization gap change with the number of training images.

Nagarajan and Kolter (2019) found that norm-based bounds can grow with the training set, because the
norms grow faster than the square root of its size. Runs of several sizes are compared here at one
selection and norm.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from normjax.controls.explain import choose_rows, explain_line
from normjax.results.table import is_finite, level_names

QUANTITIES = {
    "slope": "Slope of the line, without random labels",
    "slope_with_random_labels": "Slope of the line, with random labels",
    "train_loss": "Training loss, as trained (nats)",
    "margin_ratio": "Test margin / training margin",
    "test_error": "Test error",
    "gap": "Normalized test loss - training loss (nats)",
    "product_norm": "Product of norms",
    "norm_over_margin": "Product of norms / training margin",
    "norm_bound": "Product of norms / (training margin * sqrt(N))",
}
"""{quantity: name}; a quantity that is not a slope is a mean over levels of means over seeds."""

PER_NETWORK = tuple(name for name in QUANTITIES if not name.startswith("slope"))


@dataclasses.dataclass(frozen=True)
class SizeRow:
    """One quantity at one size; the fields are the columns of sizes.csv.

    Attributes:
      train_images: N.
      quantity: a key of `QUANTITIES`.
      value: the slope, or the mean; None if there is none.
      low: lower end of the slope's 95% interval, or the smallest level mean.
      high: upper end, or the largest level mean.
      levels: number of levels.
      networks: number of networks.
      reason: why the value or the slope's interval is missing, or "".
    """

    train_images: int
    quantity: str
    value: float | None
    low: float | None
    high: float | None
    levels: int
    networks: int
    reason: str = ""


def measure_networks(
    results: pd.DataFrame, train_images: int, selection: str | None, norm: str | None
) -> pd.DataFrame:
    """Return the networks with true labels and finite losses, with the columns `PER_NETWORK`.

    Ratios of margins are ratios of normalized losses below ln K: the norms cancel.

    Args:
      results: the results of a run.
      train_images: its number of training images.
      selection: as in results.csv; None: the last epoch.
      norm: as in results.csv; None: the Frobenius norm.

    Raises:
      ValueError: the selection or norm is missing, or no network is left.
    """
    rows = choose_rows(results, selection, norm)
    rows = rows[is_finite(rows) & (rows["family"] != "random_labels")]
    if rows.empty:
        raise ValueError("no network with true labels and finite losses")
    below = -rows["normalized_train_excess"].where(rows["normalized_train_excess"] != 0)
    return rows.assign(
        train_images=train_images,
        level_name=level_names(rows),
        margin_ratio=rows["normalized_test_excess"] / -below,
        gap=rows["normalized_test_excess"] - rows["normalized_train_excess"],
        norm_over_margin=1 / below,
        norm_bound=1 / (below * math.sqrt(train_images)),
    )


def compare_sizes(
    runs: Mapping[int, pd.DataFrame], selection: str | None = None, norm: str | None = None
) -> tuple[list[SizeRow], pd.DataFrame]:
    """Compare runs that differ in the number of training images.

    Args:
      runs: {number of training images: results of the run}.
      selection: as in results.csv; None: the last epoch.
      norm: as in results.csv; None: the Frobenius norm.

    Returns:
      The rows by size and quantity, and the networks of `measure_networks` of all sizes.

    Raises:
      ValueError: fewer than two sizes, runs of different levels, or a run without networks at the
        selection and norm; the message names the size.
    """
    if len(runs) < 2:
        raise ValueError("runs with two or more numbers of training images are needed")
    rows, networks = [], []
    for size, results in sorted(runs.items()):
        try:
            own = measure_networks(results, size, selection, norm)
        except ValueError as error:
            raise ValueError(f"{size:,} training images: {error}") from None
        networks.append(own)
        rows += [*_slope_rows(results, own, size), *_mean_rows(own, size)]
    first, *others = networks
    for other in others:
        if set(other["level_name"]) != set(first["level_name"]):
            raise ValueError(
                "runs with equal levels are needed, or means over levels mean nothing: "
                + "; ".join(
                    f"{own['train_images'].iloc[0]:,} training images: "
                    + ", ".join(sorted(set(own["level_name"])))
                    for own in (first, other)
                )
            )
    return rows, pd.concat(networks, ignore_index=True)


def _slope_rows(results: pd.DataFrame, own: pd.DataFrame, size: int) -> list[SizeRow]:
    """Return the slopes without and, if there are random labels, with them."""
    found = explain_line(results, own["selection"].iloc[0], own["norm"].iloc[0], num_draws=1)
    rows = []
    for name, field in (("slope", "fit_without_random_labels"), (_WITH_RANDOM, "fit")):
        if name == _WITH_RANDOM and not found.num_random_labels:
            continue
        fit = getattr(found, field)
        networks = len(own) + (found.num_random_labels if name == _WITH_RANDOM else 0)
        levels = own["level_name"].nunique() + (name == _WITH_RANDOM)
        row = SizeRow(size, name, None, None, None, levels, networks)
        if fit is None:
            row = dataclasses.replace(row, reason=found.reasons[field])
        elif fit.intervals is None:
            row = dataclasses.replace(row, value=fit.slope, reason=fit.no_intervals)
        else:
            low, high = fit.intervals.slope
            row = dataclasses.replace(row, value=fit.slope, low=low, high=high)
        rows.append(row)
    return rows


_WITH_RANDOM = "slope_with_random_labels"


def _mean_rows(own: pd.DataFrame, size: int) -> list[SizeRow]:
    """Return means over levels, each level counting equally, and the range of level means."""
    # NumPy's mean, because pandas would skip undefined values.
    means = own.groupby("level_name")[list(PER_NETWORK)].agg(lambda column: np.mean(column.values))
    rows = []
    for name in PER_NETWORK:
        values = means[name].to_numpy(np.float64)
        row = SizeRow(size, name, None, None, None, len(values), len(own))
        if np.isfinite(values).all():
            value, low, high = map(float, (values.mean(), values.min(), values.max()))
            row = dataclasses.replace(row, value=value, low=low, high=high)
        else:
            row = dataclasses.replace(row, reason="a training margin is zero")
        rows.append(row)
    return rows
