"""Is the line of a run real? All controls, a table, two figures and a verdict.

    python -m experiments.explain --from=DIR --selection=final --norm=2

DIR is the folder of a run or a results.csv. If the networks and data of a finished run are
available, the controls that need the logits of every example are added.

    WORKDIR/explain.json   all numbers: "line" (`controls.explain.Explanation`), and "logits"
                           (`controls.logits.LogitExplanation`) or null with "no_logits_because"
    WORKDIR/explain.md     the same as tables
    WORKDIR/figures/       explain.png and .pdf; explain_logits.png and .pdf
"""

import dataclasses
import sys
from pathlib import Path

from experiments import flags
from normjax.controls.explain import MEASURE_NAMES, Explanation, explain_line
from normjax.controls.logits import LogitExplanation
from normjax.controls.run_logits import explain_run
from normjax.controls.summary import write_plain_json
from normjax.data import dataset_label
from normjax.files import one_line, read_object
from normjax.plots.explain import DIVISOR_NAMES, plot_line, plot_logits
from normjax.plots.style import save_figure
from normjax.report.render import write_page
from normjax.training.checkpoints import RUN_FILE
from normjax.training.config import check_seed, check_that, check_workdir, setting
from normjax.training.finished_run import MOVED_HELP, OtherDataError

JSON_FILE, TABLE_FILE = "explain.json", "explain.md"


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the command."""

    source: str = setting(
        help="Folder of a run, or a results.csv.",
        flag="from",
        check=check_that(lambda path: path and Path(path).exists(), "no such file or folder"),
        is_path=True,
    )
    selection: str | None = setting(None, "final or loss=TARGET; default: final.")
    norm: str | None = setting(None, "Norm, as in the results: 2, 1/100, ...; default: 2.")
    dataset: str | None = setting(None, MOVED_HELP["dataset"], is_path=True)
    data_dir: str | None = setting(None, MOVED_HELP["data_dir"], is_path=True)
    workdir: str | None = setting(
        None, "Output folder; default: the folder of --from.", check=check_workdir, is_path=True
    )
    seed: int = setting(0, "Seed of the random permutations.", check=check_seed)

    @property
    def folder(self) -> Path:
        """Return the output folder."""
        source = Path(self.source)
        return Path(self.workdir or (source if source.is_dir() else source.parent))


def main(config: Config) -> None:
    """Run the controls and write the results."""
    logits, reason = None, ""
    try:
        line = explain_line(config.source, config.selection, config.norm, seed=config.seed)
        if not line.networks:
            raise ValueError(
                f"{config.source}: none of the {line.num_diverged} networks has finite losses"
            )
        try:
            moved = {"dataset": config.dataset, "data_dir": config.data_dir}
            logits = explain_run(config.source, line, **moved, seed=config.seed)
        except OtherDataError:
            raise
        except (ValueError, OSError) as error:
            if any(moved.values()):  # what was asked for is used or refused
                raise
            reason = one_line(error)
            print(f"{config.source}: no controls from logits: {reason}")
        write(config, line, logits, reason)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
    print(f"Verdict: {line.verdict}: {line.because}.")
    if line.missing:
        print(f"Missing: {line.missing}.")
    print(f"{config.folder / TABLE_FILE}; figures: {config.folder / 'figures'}")


def write(
    config: Config, line: Explanation, logits: LogitExplanation | None, no_logits_because: str
) -> None:
    """Draw the figures and write the tables."""
    folder, label = config.folder, dataset_name(Path(config.source))
    figures = {"explain": plot_line(line, label)}
    if logits is not None:
        figures["explain_logits"] = plot_logits(line, logits, label)
    for name, figure in figures.items():
        save_figure(figure, folder / "figures" / name)
    write_plain_json(
        folder / JSON_FILE,
        {"line": line, "logits": logits, "no_logits_because": no_logits_because or None},
    )
    write_page(
        folder / TABLE_FILE,
        "explain.md",
        found=line,
        logits=logits,
        no_logits_because=no_logits_because,
        divisor_names=DIVISOR_NAMES,
        measure_names=MEASURE_NAMES,
    )


def dataset_name(source: Path) -> str:
    """Return the label of a run's data set in figures, or "" if unknown."""
    path = source / RUN_FILE
    return dataset_label(read_object(path, dataset=str)["dataset"]) if path.exists() else ""


if __name__ == "__main__":
    flags.run(main, Config)
