"""Rank published measures of generalization on the networks of finished runs.

    python -m experiments.leaderboard --from=runs/quickstart
    python -m experiments.leaderboard --from=RUN1,RUN2 --selection=final --workdir=DIR

Each measure of `normjax.generalization` is computed for every network at one selection, from the
weights and the training set alone (docs/measures.md lists them). It is scored by how it ranks the
networks by test error: Kendall's tau, overall and granulated by factor, conditional mutual
information, and sign errors; and by whether it ranks worse than the best measure. Networks with
random labels are excluded, because their test error is meaningless. All runs must have the same
data and model.

    DIR/measures.csv     a row per network: factors, losses, test error, measures
    DIR/leaderboard.csv  a row per measure, best first
    DIR/leaderboard.md   the same as a page, with the method and the excluded networks
    DIR/figures/leaderboard.png and .pdf
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import flags
from normjax.data import dataset_label
from normjax.files import one_line
from normjax.generalization import leaderboard, paired_differences
from normjax.generalization.conditional_information import NUM_DRAWS as NUM_ORDERS
from normjax.generalization.factors import check_factors
from normjax.generalization.measures import MEASURES
from normjax.generalization.ranking import RankedMeasure
from normjax.generalization.sharpness import ERROR_RISE, NUM_DRAWS
from normjax.plots.leaderboard import plot_leaderboard
from normjax.plots.style import join_title, save_figure
from normjax.report.render import render, write_page
from normjax.results.columns import write_columns
from normjax.results.table import member_names, selection_name
from normjax.training.config import at_least, check_seed, setting
from normjax.training.finished_run import (
    MOVED_HELP,
    FinishedRun,
    check_output,
    check_runs,
    load_run,
)
from normjax.training.processes import prepare_cpu


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the command."""

    source: tuple[str, ...] = setting(
        help="Folders of finished runs with the same data and model.",
        flag="from",
        check=check_runs,
        is_path=True,
    )
    selection: str | None = setting(
        None, "final or loss=TARGET; default: the first target, if any."
    )
    dataset: str | None = setting(None, MOVED_HELP["dataset"], is_path=True)
    data_dir: str | None = setting(None, MOVED_HELP["data_dir"], is_path=True)
    workdir: str = setting("runs/leaderboard", "Output folder.", check=check_output, is_path=True)
    sharpness_images: int = setting(
        128, "Random training images for the flatness measures.", check=at_least(1)
    )
    sample_images: int = setting(
        1000, "Random training images for measures of hidden layers.", check=at_least(1)
    )
    seed: int = setting(0, "Seed of images, noise and bootstrap.", check=check_seed)


def main(config: Config) -> None:
    """Compute and rank the measures, and write the results."""
    prepare_cpu()
    try:
        runs = [
            load_run(folder, config.data_dir, dataset=config.dataset) for folder in config.source
        ]
        leaderboard.check_same_kind(runs)
        selection = config.selection or leaderboard.first_selection(runs[0])
        chosen = leaderboard.choose_networks(runs, selection)
        check_factors(leaderboard.columns_of(leaderboard.factors_of(runs, chosen.table)))
        measures = leaderboard.measure_networks(
            runs,
            chosen,
            sharpness_images=config.sharpness_images,
            sample_images=config.sample_images,
            seed=config.seed,
        )
        ranked = leaderboard.rank_networks(runs, chosen, measures, seed=config.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
    workdir, title = Path(config.workdir), title_of(runs[0], selection, len(chosen.table))
    described = leaderboard.measures_table(runs, chosen, measures)
    write_columns(workdir / "measures.csv", described)
    write_columns(workdir / "leaderboard.csv", leaderboard.leaderboard_table(ranked))
    page = {**context_of(ranked), "title": title}
    num_train = len(runs[0].dataset.train.labels)
    write_page(
        workdir / "leaderboard.md",
        "leaderboard.md",
        **page,
        norm=chosen.table["norm"].iloc[0],
        num_test=len(runs[0].dataset.test.labels),
        sharpness_images=min(config.sharpness_images, num_train),
        sample_images=min(config.sample_images, num_train),
        left_out=chosen.left_out,
        not_fitted=member_names(chosen.table[chosen.table["train_error"] > 0]),
    )
    save_figure(plot_leaderboard(ranked, title), workdir / "figures" / "leaderboard")
    print(render("leaderboard_table.md", **page), end="")
    print(f"{workdir / 'leaderboard.md'}: {len(ranked)} measures, {len(described)} networks")


def context_of(ranked: Sequence[RankedMeasure]) -> dict[str, object]:
    """Return the values of the page about the ranked measures and the method."""
    known = [row for row in ranked if row.correlation is not None]
    found = known[0].correlation if known else None
    differences = [row.difference for row in known if row.difference]
    ties = dict.fromkeys(tuple(sorted([row.name, *row.tied_with])) for row in known)
    return {
        "ranked": ranked,
        "sources": {row.name: leaderboard.source_of(row.name) for row in ranked},
        "not_published": [row.name for row in ranked if not MEASURES[row.name].source],
        "ties": [names for names in ties if len(names) > 1],
        "num_compared": len(differences),
        "num_worse": sum(difference.is_real for difference in differences),
        "no_comparison": differences[0].reason if differences else "",
        "num_orders": NUM_ORDERS,
        "factors": list(ranked[0].psi),
        "unit": found.unit if found else "",
        "no_interval": found.reason if found else "",
        "num_draws": paired_differences.NUM_DRAWS,
        "num_environments": ranked[0].sign_errors.num_environments,
        "error_rise": ERROR_RISE,
        "num_noises": NUM_DRAWS,
        "not_ranked": [row for row in ranked if row.correlation is None],
    }


def title_of(run: FinishedRun, selection: str, num_networks: int) -> str:
    """Return the title, which describes the ranked networks."""
    config = run.config
    return join_title(
        [
            dataset_label(config.dataset),
            config.model + (" with batch normalization" if config.batch_norm else ""),
            f"{num_networks} networks",
            selection_name(selection),
        ]
    )


if __name__ == "__main__":
    flags.run(main, Config)
