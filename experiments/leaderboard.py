"""Published measures of generalization on the networks of finished runs, ranked.

    python -m experiments.leaderboard --from=runs/quickstart
    python -m experiments.leaderboard --from=RUN1,RUN2 --selection=final --workdir=DIR

Each measure of `normjax.generalization` is computed for every network at one
selection, from its weights and its training set alone, and is asked how well it ranks the networks
by test error: Kendall's tau, granulated for each factor, and sign errors.
Networks of random labels are left out, because their test error is on random labels: it is that of
guessing, and ranks nothing. Several runs must be of one kind: same data, same network.

    DIR/measures.csv     a row for each network: what it is, its test error, its measures
    DIR/leaderboard.csv  a row for each measure, the best first
    DIR/leaderboard.md   the same as a page, with the method and what is left out
    DIR/figures/leaderboard.png and .pdf
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import flags as shared_flags
from experiments import leaderboard_page
from normjax.data import dataset_label, standardize_images
from normjax.files import one_line
from normjax.generalization import ranking
from normjax.generalization.measures import MEASURES, TrainedNetwork
from normjax.generalization.sharpness import SHARPNESS_MEASURES
from normjax.plots import leaderboard as ranking_plots
from normjax.plots.style import join_title, save_figure
from normjax.results.columns import write_table
from normjax.results.rows import ResultRow
from normjax.results.summary import finite_rows, member_name, selection_name
from normjax.training.checkpoints import RUN_FILE
from normjax.training.config import check_seed, check_workdir
from normjax.training.ensemble import map_members
from normjax.training.evaluate import choose_evaluation_batch_size
from normjax.training.finished_run import FinishedRun, Network, load_run, logits_of, networks_at
from normjax.training.processes import prepare_cpu

SAME_KIND = ("dataset", "train_size", "test_size", "model", "batch_norm")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a leaderboard; fields are the flags of the same name."""

    source: tuple[str, ...]  # --from
    selection: str | None
    data_dir: str | None
    workdir: str
    sharpness_images: int
    seed: int


class Ranked(NamedTuple):
    """The networks that are ranked.

    Attributes:
      run: the position of each one's run.
      rows: the rows of results.csv, all under one norm.
      networks: with their weights, in the same order.
      left_out: the others at this selection, each with its reason.
    """

    run: list[int]
    rows: list[ResultRow]
    networks: list[Network]
    left_out: list[str]


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines this command's flags."""
    own = {"flag_values": values}
    flags.DEFINE_list("from", "", "Folders of finished runs, of one kind.", **own)
    flags.DEFINE_string(
        "selection",
        None,
        "Which networks: final, loss=0.0044. The first target's if there is one.",
        **own,
    )
    flags.DEFINE_string("data_dir", None, "Where the data are now, if not where they were.", **own)
    flags.DEFINE_string("workdir", "runs/leaderboard", "Folder that is written to.", **own)
    flags.DEFINE_integer(
        "sharpness_images", 128, "Training images, drawn at random, for the flatness.", **own
    )
    flags.DEFINE_integer("seed", 0, "Seed of these images, of the noise, of the bootstrap.", **own)


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> Config:
    """The command line as a configuration; a mistake is one line on stderr and exit code 1."""

    def make_config() -> Config:
        source = tuple(name.strip() for name in values["from"].value if name.strip())
        names = [f.name for f in dataclasses.fields(Config) if f.name != "source"]
        config = Config(source=source, **{name: values[name].value for name in names})
        validate(config)
        return config

    return shared_flags.parse(argv, make_config, values)


def validate(config: Config) -> None:
    """Checks the values.

    Raises:
      ValueError: one line that names the flag, its value and what is allowed.
    """
    if not config.source:
        raise ValueError("--from=: the folder of a finished run is needed, or several with commas")
    if len(set(config.source)) < len(config.source):
        raise ValueError(f"--from={','.join(config.source)}: every run may stand there once")
    check_workdir(config.workdir)
    if (Path(config.workdir) / RUN_FILE).exists():
        raise ValueError(f"--workdir={config.workdir} holds a run: give another folder")
    if config.sharpness_images < 1:
        raise ValueError(f"--sharpness_images={config.sharpness_images}: must be at least 1")
    check_seed(config.seed)


def main(config: Config) -> None:
    """Computes, ranks, writes and draws."""
    prepare_cpu()
    try:
        runs = load_runs(config)
        selection = config.selection or first_selection(runs[0])
        chosen = choose_networks(runs, selection)
        columns = measure(config, runs, chosen)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
    test_error = np.array([row.test_error for row in chosen.rows])
    test_loss = np.array([row.normalized_test_loss for row in chosen.rows])
    factors = factors_of(runs, chosen)
    num_test = len(runs[0].dataset.test.labels)
    ranked = ranking.rank_measures(
        columns, test_error, test_loss, factors, num_test=num_test, seed=config.seed
    )
    workdir = Path(config.workdir)
    described = {
        **factors,
        "member": [row.member for row in chosen.rows],
        "train_loss_nats": [row.train_loss for row in chosen.rows],
        "train_error": [row.train_error for row in chosen.rows],
        "test_error": test_error,
        "normalized_test_loss_nats": test_loss,
    }
    write_table(workdir / "measures.csv", {**described, **columns})
    write_table(workdir / "leaderboard.csv", leaderboard_page.table_of(ranked))
    title = title_of(runs, chosen, selection)
    leaderboard_page.write_page(
        workdir / "leaderboard.md",
        title,
        ranked,
        num_test=num_test,
        sharpness_images=num_sharpness_images(config, runs[0]),
        left_out=chosen.left_out,
        not_fitted=[member_name(row) for row in chosen.rows if row.train_error > 0],
    )
    figure = ranking_plots.plot_leaderboard(ranked, title)
    save_figure(figure, workdir / "figures" / "leaderboard")
    print("\n".join(leaderboard_page.table_lines(ranked)))
    print(f"{workdir / 'leaderboard.md'}: {len(ranked)} measures, {len(chosen.rows)} networks")


def load_runs(config: Config) -> list[FinishedRun]:
    """The runs, read back.

    Raises:
      FileNotFoundError: a run or its data are not to be found.
      ValueError: a run is not finished, or runs differ in kind.
    """
    runs = [load_run(folder, config.data_dir) for folder in config.source]
    for run in runs[1:]:
        for name in SAME_KIND:
            mine, first = getattr(run.config, name), getattr(runs[0].config, name)
            if mine != first:
                raise ValueError(
                    f"--from: networks of one kind are ranked, but {run.run_dir} has "
                    f"--{name}={mine} and {runs[0].run_dir} --{name}={first}"
                )
    return runs


def first_selection(run: FinishedRun) -> str:
    """The first target loss, at which networks compare best; the last epoch if there is none."""
    names = [row.selection for row in run.rows if row.selection != "final"]
    return names[0] if names else "final"


def choose_networks(runs: Sequence[FinishedRun], selection: str) -> Ranked:
    """The networks to be ranked at a selection.

    Raises:
      ValueError: there are fewer than 3, or a run has none at this selection.
    """
    position, rows, networks, left_out = [], [], [], []
    for index, run in enumerate(runs):
        norms = list(dict.fromkeys(row.norm for row in run.rows))
        norm = next((name for name in norms if name in ("2", "fro")), norms[0])
        own = {r.member: r for r in run.rows if r.selection == selection and r.norm == norm}
        for network in networks_at(run, selection):
            row = own[network.member.index]
            reason = ""
            if row.family == "random_labels":
                reason = "its test error is on random labels"
            elif not finite_rows([row]):
                reason = "diverged: a loss or a norm is not finite"
            if reason:
                left_out.append(f"{run.run_dir}, {member_name(row)}: {reason}")
                continue
            position.append(index)
            rows.append(row)
            networks.append(network)
    if len(rows) < ranking.MIN_NETWORKS:
        raise ValueError(
            f"{len(rows)} networks to rank at selection {selection!r}; at least "
            f"{ranking.MIN_NETWORKS} are needed, and those of random labels do not count"
        )
    return Ranked(position, rows, networks, left_out)


def factors_of(runs: Sequence[FinishedRun], chosen: Ranked) -> dict[str, list[str]]:
    """What the networks differ in by intention: values by factor, of those that vary."""

    def value(family: str, row: ResultRow, otherwise: str) -> str:
        return f"{row.level:g}" if row.family == family else otherwise

    factors = {
        "run": [str(runs[index].run_dir) for index in chosen.run],
        "corruption": [value("pretrain", row, "0") for row in chosen.rows],
        "std": [value("init_scale", row, "default") for row in chosen.rows],
        "seed": [str(row.seed) for row in chosen.rows],
    }
    return {name: values for name, values in factors.items() if len(set(values)) > 1}


def measure(config: Config, runs: Sequence[FinishedRun], chosen: Ranked) -> dict[str, list[float]]:
    """Every measure of every network: {name: a number for each network}."""
    columns: dict[str, list[float]] = {name: [] for name in (*MEASURES, *SHARPNESS_MEASURES)}
    bar = tqdm(total=2 * len(chosen.networks), desc="measures", unit="step", disable=None)
    for index, run in enumerate(runs):
        networks = [n for i, n in zip(chosen.run, chosen.networks, strict=True) if i == index]
        for network in networks:
            images = run.dataset.train.images
            trained = TrainedNetwork(
                params=network.params,
                initial_params=network.initial_params,
                logits=logits_of(run.apply_fn, network.params, images),
                labels=network.train_labels,
                apply_fn=run.apply_fn,
                input_shape=run.dataset.image_shape,
            )
            for name, function in MEASURES.items():
                columns[name].append(function(trained))
            bar.update()
        for found in measure_sharpness(config, run, networks, bar.update):
            for name, value in found.items():
                columns[name].append(value)
    bar.close()
    return columns


def measure_sharpness(
    config: Config,
    run: FinishedRun,
    networks: Sequence[Network],
    progress: Callable[[int], Any],
) -> list[dict[str, float]]:
    """The measures that disturb the weights, a network on each device at a time.

    All networks meet the same images and the same noise.
    """
    num_images = len(run.dataset.train.labels)
    rng = np.random.default_rng(config.seed)
    subset = rng.choice(num_images, num_sharpness_images(config, run), replace=False)
    x = np.asarray(standardize_images(run.dataset.train.images[subset]))
    batch_size = choose_evaluation_batch_size()

    def of_network(params, labels, x, key):
        return {
            name: function(run.apply_fn, params, x, labels, key, batch_size=batch_size)
            for name, function in SHARPNESS_MEASURES.items()
        }

    of_networks = map_members(of_network, num_shared=2)
    num_devices = len(jax.local_devices())
    found = []
    for start in range(0, len(networks), num_devices):
        part = list(networks[start : start + num_devices])
        filled = [*part, *[part[-1]] * (num_devices - len(part))]
        params = jax.tree.map(lambda *leaves: np.stack(leaves), *[n.params for n in filled])
        labels = np.stack([n.train_labels[subset] for n in filled])
        values = jax.device_get(of_networks(params, labels, x, jax.random.key(config.seed)))
        found += [{name: float(v[i]) for name, v in values.items()} for i in range(len(part))]
        progress(len(part))
    return found


def num_sharpness_images(config: Config, run: FinishedRun) -> int:
    """How many training images the flatness is measured on."""
    return min(config.sharpness_images, len(run.dataset.train.labels))


def title_of(runs: Sequence[FinishedRun], chosen: Ranked, selection: str) -> str:
    """Which networks are ranked."""
    config = runs[0].config
    return join_title(
        [
            dataset_label(config.dataset),
            config.model + (" with batch normalization" if config.batch_norm else ""),
            f"{len(chosen.rows)} networks",
            selection_name(selection),
        ]
    )


if __name__ == "__main__":
    define_flags()
    shared_flags.run_command(main, parse)
