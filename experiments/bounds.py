"""Eq. 4 on the networks of a finished run: which terms of the bound are tight, and which are not.

    python -m experiments.bounds --from=DIR

With every layer of the run's networks normalized to Frobenius norm 1, the gaps between test and
training loss stand beside the confidence term, R_N estimated from below by random signs and by
networks trained on random labels, and R_N from above by four published bounds (docs/bounds.md
derives them). Only networks without later biases: the class of others has no finite R_N.

    WORKDIR/bounds.json   everything measured (`normjax.generalization.eq4.Eq4`)
    WORKDIR/bounds.md     the same in words and as a table
    WORKDIR/figures/bounds.png and .pdf

The climbs take the time: num_signs * (num_steps + 1) gradients over --num_examples images, divided
among the devices.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import flags as shared_flags
from normjax.files import one_line, write_json
from normjax.generalization import eq4
from normjax.plots.bounds import plot_bounds
from normjax.plots.style import save_figure
from normjax.report.render import render, write_page
from normjax.training.config import check_seed, check_workdir
from normjax.training.finished_run import load_run
from normjax.training.processes import prepare_cpu


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the command; fields are the flags of the same name."""

    source: str  # --from
    workdir: str
    data_dir: str | None
    selection: str
    delta: float
    num_signs: int
    num_steps: int
    num_examples: int
    seed: int


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define this command's flags."""
    own = {"flag_values": values}
    flags.DEFINE_string("from", None, "Folder of a finished run.", **own)
    flags.DEFINE_string("workdir", None, "Folder to write to; --from's if not given.", **own)
    flags.DEFINE_string("data_dir", None, "Where the run's data are now, if moved.", **own)
    flags.DEFINE_string("selection", "final", "final, or loss=TARGET.", **own)
    flags.DEFINE_float("delta", 0.05, "Probability that the bound fails.", **own)
    flags.DEFINE_integer("num_signs", 8, "Draws of random signs.", **own)
    flags.DEFINE_integer("num_steps", 12, "Steps of the climb to each draw's supremum.", **own)
    flags.DEFINE_integer(
        "num_examples", 5000, "Training images of the climbs; all, if there are fewer.", **own
    )
    flags.DEFINE_integer("seed", 0, "Seed of the signs.", **own)


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> Config:
    """Parse the command line; a mistake is one line on stderr and exit code 1."""

    def make_config() -> Config:
        given = {f.name: values[f.name].value for f in dataclasses.fields(Config)[1:]}
        source = values["from"].value
        if not source:
            raise ValueError("--from is needed: the folder of a finished run")
        config = Config(source=source, **{**given, "workdir": given["workdir"] or source})
        validate(config)
        return config

    return shared_flags.parse(argv, make_config, values)


def validate(config: Config) -> None:
    """Check the values.

    Raises:
      ValueError: one line that names the flag, its value and what is allowed.
    """
    if not 0 < config.delta < 1:
        raise ValueError(f"--delta={config.delta}: must lie between 0 and 1")
    for name in ("num_signs", "num_steps", "num_examples"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name}={getattr(config, name)}: must be at least 1")
    check_seed(config.seed)
    check_workdir(config.workdir)


def main(config: Config) -> None:
    """Measure, and write the terms, the page and the figure."""
    prepare_cpu()
    try:
        run = load_run(config.source, config.data_dir)
        table = eq4.frobenius_gaps(run, config.selection)
        networks = eq4.class_of(run)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
    num_images = min(config.num_examples, len(run.dataset.train.labels))
    print(f"{config.num_signs} climbs of {config.num_steps} steps over {num_images:,} images")
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
    workdir = Path(config.workdir)
    write_json(workdir / "bounds.json", dataclasses.asdict(found))
    write_page(workdir / "bounds.md", "bounds.md", found=found)
    save_figure(plot_bounds(found), workdir / "figures" / "bounds")
    print(render("bounds.md", found=found))
    print(f"{workdir / 'bounds.md'}; figure: {workdir / 'figures'}")


if __name__ == "__main__":
    define_flags()
    shared_flags.run_command(main, parse)
