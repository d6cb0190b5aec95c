"""Eq. 4 on the networks of a finished run: how large are its terms?

    python -m experiments.bounds --from=DIR

Every layer of the run's networks is normalized to Frobenius norm 1. The gaps between test and
training loss are compared with the confidence term, with lower estimates of R_N (from random signs
and from networks trained on random labels) and with four upper bounds on R_N, which docs/bounds.md
derives. Networks with biases in later layers are refused: the R_N of their class is infinite.

    WORKDIR/bounds.json   all values (`normjax.generalization.eq4.Eq4`)
    WORKDIR/bounds.md     the same as text and as a table
    WORKDIR/figures/bounds.png and .pdf

The cost is num_signs * (num_steps + 1) gradients over --num_examples images, divided among the
devices.
"""

import dataclasses
import sys
from pathlib import Path

from experiments import flags
from normjax.files import one_line, write_json
from normjax.generalization import eq4
from normjax.plots.bounds import plot_bounds
from normjax.plots.style import save_figure
from normjax.report.render import render, write_page
from normjax.training.config import at_least, check_seed, check_that, check_workdir, setting
from normjax.training.finished_run import MOVED_HELP, load_run
from normjax.training.processes import prepare_cpu


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the command."""

    source: str = setting(
        help="Folder of a finished run.", flag="from", check=check_workdir, is_path=True
    )
    workdir: str | None = setting(
        None, "Output folder; default: the folder of --from.", check=check_workdir, is_path=True
    )
    dataset: str | None = setting(None, MOVED_HELP["dataset"], is_path=True)
    data_dir: str | None = setting(None, MOVED_HELP["data_dir"], is_path=True)
    selection: str = setting("final", "final or loss=TARGET.")
    delta: float = setting(
        0.05,
        "Probability that the bound fails.",
        check=check_that(lambda delta: 0 < delta < 1, "must lie between 0 and 1"),
    )
    num_signs: int = setting(8, "Draws of random signs.", check=at_least(1))
    num_steps: int = setting(12, "Ascent steps per draw.", check=at_least(1))
    num_examples: int = setting(
        5000, "Maximum number of training images for the ascent.", check=at_least(1)
    )
    seed: int = setting(0, "Seed of the signs.", check=check_seed)


def main(config: Config) -> None:
    """Compute and write the terms, the page and the figure."""
    prepare_cpu()
    try:
        run = load_run(config.source, config.data_dir, dataset=config.dataset)
        table = eq4.frobenius_gaps(run, config.selection)
        networks = eq4.class_of(run)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
    num_images = min(config.num_examples, len(run.dataset.train.labels))
    print(f"{config.num_signs} ascents of {config.num_steps} steps over {num_images:,} images")
    found = eq4.measure(
        run,
        table,
        networks,
        delta=config.delta,
        num_signs=config.num_signs,
        num_steps=config.num_steps,
        num_examples=num_images,
        seed=config.seed,
    )
    workdir = Path(config.workdir or config.source)
    write_json(workdir / "bounds.json", dataclasses.asdict(found))
    write_page(workdir / "bounds.md", "bounds.md", found=found)
    save_figure(plot_bounds(found), workdir / "figures" / "bounds")
    print(render("bounds.md", found=found))
    print(f"{workdir / 'bounds.md'}; figure: {workdir / 'figures'}")


if __name__ == "__main__":
    flags.run(main, Config)
