"""The leaderboard: choose and measure the networks of finished runs, and rank the measures."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from tqdm import tqdm

from normjax.generalization.absorbed import absorbed_layers, check_layers, with_layers
from normjax.generalization.measures import MEASURES
from normjax.generalization.ranking import MIN_NETWORKS, RankedMeasure, rank_measures
from normjax.generalization.sample import draw_sample
from normjax.generalization.sharpness import Sharpness, measure_sharpness
from normjax.generalization.trained_network import TrainedNetwork
from normjax.results.table import is_finite, level_names, member_names, select
from normjax.training.ensemble import map_members, with_sentinels
from normjax.training.evaluate import choose_evaluation_batch_size
from normjax.training.finished_run import FinishedRun, Network, logits_of, networks_at
from normjax.training.record import data_digest

SAME_KIND = ("train_size", "test_size", "model", "batch_norm", "tied")


@dataclasses.dataclass(frozen=True, eq=False)
class ChosenNetworks:
    """The networks to rank.

    Attributes:
      table: n rows of results.csv under one norm, with an added column `run`, the index of the run.
      networks: the n networks with weights, in the order of the table.
      left_out: descriptions of the excluded networks at this selection, with reasons.
    """

    table: pd.DataFrame
    networks: Sequence[Network]
    left_out: Sequence[str]


def check_same_kind(runs: Sequence[FinishedRun]) -> None:
    """Raise ValueError unless all runs have the same data and the same network."""
    for run in runs[1:]:
        for name in SAME_KIND:
            own, first = getattr(run.config, name), getattr(runs[0].config, name)
            if own != first:
                raise ValueError(
                    f"--from: runs must have the same data and model, but {run.run_dir} has "
                    f"--{name}={own} and {runs[0].run_dir} has --{name}={first}"
                )
        if data_digest(run.dataset) != data_digest(runs[0].dataset):
            raise ValueError(
                f"--from: runs must have the same data and model, but the images or labels of "
                f"{run.run_dir} and {runs[0].run_dir} differ"
            )


def first_selection(run: FinishedRun) -> str:
    """Return the first target loss, where networks are most comparable; else the last epoch."""
    return next((name for name in run.table["selection"] if name != "final"), "final")


def choose_networks(runs: Sequence[FinishedRun], selection: str) -> ChosenNetworks:
    """Choose the networks to rank.

    Networks with random labels are excluded, because their test error is meaningless. Diverged
    networks are excluded too. The rows use the Frobenius norm if the first run has it, else the
    first norm.

    Args:
      runs: finished runs with the same data and model.
      selection: "final" or "loss=0.0044".

    Raises:
      ValueError: fewer than 3 networks remain, or a run has none at this selection.
    """
    norms = runs[0].table["norm"].tolist()
    norm = "2" if "2" in norms else norms[0]
    tables, networks, left_out = [], [], []
    for position, run in enumerate(runs):
        loaded = list(networks_at(run, selection))
        table = select(run.table, selection=selection, norm=norm).set_index("member", drop=False)
        table = table.loc[[network.member.index for network in loaded]]
        is_random, finite = table["family"] == "random_labels", is_finite(table)
        for name, random, is_known in zip(member_names(table), is_random, finite, strict=True):
            if random:
                left_out.append(f"{run.run_dir}, {name}: its test error is on random labels")
            elif not is_known:
                left_out.append(f"{run.run_dir}, {name}: diverged, a loss or norm is not finite")
        is_kept = finite & ~is_random
        tables.append(table[is_kept].assign(run=position))
        networks += [one for one, kept in zip(loaded, is_kept, strict=True) if kept]
    if len(networks) < MIN_NETWORKS:
        raise ValueError(
            f"{len(networks)} networks to rank at selection {selection!r}; at least "
            f"{MIN_NETWORKS} are needed, not counting those with random labels"
        )
    return ChosenNetworks(pd.concat(tables, ignore_index=True), networks, left_out)


def factors_of(runs: Sequence[FinishedRun], table: pd.DataFrame) -> pd.DataFrame:
    """Return the factors that vary among the networks by design, one column of strings each.

    Args:
      runs: the runs.
      table: the table of `ChosenNetworks`.
    """
    level = table["level"].map("{:g}".format)
    factors = pd.DataFrame(
        {
            "run": [str(runs[position].run_dir) for position in table["run"]],
            "corruption": level.where(table["family"] == "pretrain", "0"),
            "std": level.where(table["family"] == "init_scale", "default"),
            "seed": table["seed"].map(str),
        }
    )
    return factors.loc[:, factors.nunique() > 1]


def columns_of(table: pd.DataFrame) -> dict[str, list[Any]]:
    """Return a table as lists by name."""
    return {str(name): column.tolist() for name, column in table.items()}


def measure_networks(
    runs: Sequence[FinishedRun],
    chosen: ChosenNetworks,
    *,
    sharpness_images: int,
    sample_images: int,
    seed: int,
) -> pd.DataFrame:
    """Compute all measures of all networks.

    Args:
      runs: the runs.
      chosen: the n networks.
      sharpness_images: maximum number of training images for the flatness measures.
      sample_images: maximum number of training images for measures of representations.
      seed: seed of these images and of the noise.

    Returns:
      A table with n rows in the order of `chosen` and a column per measure.

    Raises:
      ValueError: a network has anything besides kernels, biases and batch normalization.
    """
    for run in runs:
        check_layers(run.classifier.structure)
    rows: list[dict[str, float]] = []
    bar = tqdm(total=2 * len(chosen.networks), desc="measures", unit="step", disable=None)
    for position, run in enumerate(runs):
        is_own = (chosen.table["run"] == position).tolist()
        networks = [one for one, own in zip(chosen.networks, is_own, strict=True) if own]
        found = _measure_sharpness(run, networks, sharpness_images, seed, bar.update)
        for network, sharpness in zip(networks, found, strict=True):
            images, labels = run.dataset.train.images, network.train_labels
            trained = TrainedNetwork(
                params=network.variables,
                initial_params=network.initial_variables,
                logits=jnp.asarray(logits_of(run.apply_fn, network.variables, images)),
                labels=jnp.asarray(labels),
                apply_fn=run.apply_fn,
                input_shape=run.dataset.image_shape,
                structure=run.classifier.structure,
                sample=draw_sample(images, labels, sample_images, seed),
                sharpness=sharpness,
            )
            rows.append({name: own.function(trained) for name, own in MEASURES.items()})
            bar.update()
    bar.close()
    return pd.DataFrame(rows)


def rank_networks(
    runs: Sequence[FinishedRun], chosen: ChosenNetworks, measures: pd.DataFrame, *, seed: int
) -> list[RankedMeasure]:
    """Rank measures by how they order the networks (see `rank_measures`).

    Networks of the same run, family and level are not independent.
    """
    table = chosen.table
    return rank_measures(
        columns_of(measures),
        table["test_error"].to_numpy(),
        table["normalized_test_loss"].to_numpy(),
        columns_of(factors_of(runs, table)),
        list(zip(table["run"], level_names(table), strict=True)),
        num_test=len(runs[0].dataset.test.labels),
        seed=seed,
    )


def measures_table(
    runs: Sequence[FinishedRun], chosen: ChosenNetworks, measures: pd.DataFrame
) -> pd.DataFrame:
    """Return measures.csv: a row per network with factors, losses and measures."""
    table = chosen.table
    described = table[["member", "train_loss", "train_error", "test_error", "normalized_test_loss"]]
    in_nats = {name: f"{name}_nats" for name in ("train_loss", "normalized_test_loss")}
    return pd.concat([factors_of(runs, table), described.rename(columns=in_nats), measures], axis=1)


def source_of(name: str) -> str:
    """Return who published a measure, or that nobody did."""
    return MEASURES[name].source or "not published"


def leaderboard_table(ranked: Sequence[RankedMeasure]) -> pd.DataFrame:
    """Return leaderboard.csv: a row per measure, best first; NaN is unknown."""
    absent = (math.nan, math.nan)
    rows = []
    for row in ranked:
        found, errors, known = row.correlation, row.sign_errors, row.information
        low, high = (found and found.kendall_interval) or absent
        psi_low, psi_high = row.psi_interval or absent
        less_low, less_high = (row.difference and row.difference.interval) or absent
        rows.append(
            {
                "measure": row.name,
                "source": source_of(row.name),
                "tau": row.tau,
                "tau_low": low,
                "tau_high": high,
                "p_value": found.p_value if found else math.nan,
                "p_value_holm": row.adjusted_p_value,
                "less_than_best": row.difference.value if row.difference else math.nan,
                "less_than_best_low": less_low,
                "less_than_best_high": less_high,
                "less_than_best_p_value": row.difference.p_value if row.difference else math.nan,
                "tied_with": ", ".join(row.tied_with),
                "tau_normalized_test_loss": row.tau_normalized_test_loss,
                "mean_psi": row.mean_psi,
                "mean_psi_low": psi_low,
                "mean_psi_high": psi_high,
                **{f"psi_{factor}": value for factor, value in row.psi.items()},
                "information": known.value if known else math.nan,
                "information_by_chance": known.chance if known else math.nan,
                "information_p_value": known.p_value if known else math.nan,
                "information_given": ", ".join(known.given) if known else "",
                "worst_sign_error": errors.worst,
                "mean_sign_error": errors.mean,
                "num_environments": errors.num_environments,
                "worst_environment": errors.worst_environment,
            }
        )
    return pd.DataFrame(rows)


def _measure_sharpness(
    run: FinishedRun,
    networks: Sequence[Network],
    num_images: int,
    seed: int,
    progress: Callable[[int], Any],
) -> list[Sharpness]:
    """Perturb the weights, one network per device at a time.

    All networks use the same images and the same noise.
    """
    structure, batch_size = run.classifier.structure, choose_evaluation_batch_size()

    def of_network(variables, labels, x, key):
        def apply_layers(layers, x, /):
            return run.apply_fn(with_layers(variables, structure, layers), x)

        layers = absorbed_layers(variables, structure)
        return measure_sharpness(apply_layers, layers, x, labels, key, batch_size=batch_size)

    of_networks = map_members(of_network, num_shared=2)
    images, num_devices = run.dataset.train.images, len(jax.local_devices())
    found = []
    for start in range(0, len(networks), num_devices):
        part = list(networks[start : start + num_devices])
        filled = [*part, *[part[-1]] * (num_devices - len(part))]
        samples = [draw_sample(images, n.train_labels, num_images, seed) for n in filled]
        variables = jax.tree.map(lambda *x: np.stack(x), *[n.variables for n in filled])
        labels = np.stack([sample.labels for sample in samples])
        with with_sentinels():
            values = of_networks(variables, labels, samples[0].x, jax.random.key(seed))
        values = jax.device_get(values)
        found += [Sharpness(*(float(v[i]) for v in values)) for i in range(len(part))]
        progress(len(part))
    return found
