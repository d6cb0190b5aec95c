"""Is the line of a run real? All controls, one table, two figures, one verdict.

    python -m experiments.explain --from=DIR --selection=final --norm=2

DIR is the folder of a run, or any results.csv with the contract's columns. Where it is a finished
run whose networks and data can be read, controls that need every example's logits are added.

    WORKDIR/explain.json   all numbers: "line" (`controls.Explanation`), and "logits"
                           (`logit_controls.LogitExplanation`) or null with "no_logits_because"
    WORKDIR/explain.md     the same as tables, control by control
    WORKDIR/figures/       explain.png and .pdf; explain_logits.png and .pdf
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from tqdm import tqdm

from experiments import explain_tables
from experiments import flags as shared_flags
from normjax.balance import balance_params
from normjax.controls.explain import Explanation, choose_rows, explain_line
from normjax.controls.logits import (
    LogitExplanation,
    NetworkLogits,
    explain_logits,
    measure_network,
)
from normjax.data import dataset_label
from normjax.files import one_line, read_object, replacing
from normjax.normalize import param_norms
from normjax.norms import parse_norm
from normjax.plots import explain as explain_plots
from normjax.plots import paper as plotting
from normjax.results.summary import finite_rows
from normjax.training import finished_run as trained
from normjax.training.checkpoints import RUN_FILE
from normjax.training.config import check_seed, check_workdir
from normjax.types import Norm, Params

JSON_FILE, TABLE_FILE = "explain.json", "explain.md"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is explained; fields are the flags of the same name."""

    source: str  # --from
    selection: str | None
    norm: str | None
    data_dir: str | None
    workdir: str
    seed: int


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines this command's flags."""
    own = {"flag_values": values}
    flags.DEFINE_string("from", None, "Folder of a run, or a results.csv.", **own)
    flags.DEFINE_string(
        "selection", None, "final or loss=TARGET; the last epoch if not given.", **own
    )
    flags.DEFINE_string(
        "norm", None, "As in the results: 2, 1/100, ...; 2, if there, if not given.", **own
    )
    flags.DEFINE_string("data_dir", None, "Where the run's data are now, if elsewhere.", **own)
    flags.DEFINE_string("workdir", None, "Folder to write to; that of --from if not given.", **own)
    flags.DEFINE_integer("seed", 0, "Seed of shuffles and bootstraps.", **own)


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> Config:
    """The command line as a configuration; a mistake is one line on stderr and exit code 1."""

    def make_config() -> Config:
        given = {name: values[name].value for name in ("selection", "norm", "data_dir", "seed")}
        source, workdir = values["from"].value, values["workdir"].value
        if source is None:
            raise ValueError("--from is needed: the folder of a run, or a results.csv")
        if not Path(source).exists():
            raise ValueError(f"--from={source}: there is no such file or folder")
        folder = Path(source) if Path(source).is_dir() else Path(source).parent
        config = Config(source=source, workdir=workdir or str(folder), **given)
        check_seed(config.seed)
        check_workdir(config.workdir)
        return config

    return shared_flags.parse(argv, make_config, values)


def main(config: Config) -> None:
    """Explains, draws, writes."""
    try:
        line = explain_line(config.source, config.selection, config.norm, seed=config.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
    logits, reason = None, ""
    try:
        logits = explain_run(config, line)
    except (ValueError, OSError) as error:
        reason = one_line(error)
        print(f"from {config.source} only, without the networks' logits: {reason}")

    try:
        write(config, line, logits, reason)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
    print(f"{line.text}\n{Path(config.workdir) / TABLE_FILE}; figures: {config.workdir}/figures")


def write(
    config: Config, line: Explanation, logits: LogitExplanation | None, no_logits_because: str
) -> None:
    """Draws the figures and writes the tables."""
    workdir, label = Path(config.workdir), dataset_name(Path(config.source))
    figures = {"explain": explain_plots.plot_line(line, label)}
    if logits is not None:
        figures["explain_logits"] = explain_plots.plot_logits(line, logits, label)
    for name, figure in figures.items():
        plotting.save_figure(figure, workdir / "figures" / name)
    found = {
        "line": plain(line),
        "logits": plain(logits),
        "no_logits_because": no_logits_because or None,
    }
    texts = {
        JSON_FILE: json.dumps(found, indent=2, allow_nan=False, ensure_ascii=False) + "\n",
        TABLE_FILE: explain_tables.to_markdown(line, logits, no_logits_because),
    }
    for name, text in texts.items():
        with replacing(workdir / name) as path:
            path.write_text(text, encoding="utf-8")


def explain_run(config: Config, line: Explanation) -> LogitExplanation:
    """The controls from the logits of a finished run's networks of true labels.

    Raises:
      FileNotFoundError: there is no run, or its data are not to be found.
      ValueError: see `trained.load_run`.
    """
    run = trained.load_run(config.source, config.data_dir)
    rows = finite_rows(choose_rows(run.rows, line.selection, line.norm))
    rows = [row for row in rows if row.family != "random_labels"]
    members, product_norms = [row.member for row in rows], [row.product_norm for row in rows]
    norm = parse_norm(line.norm)
    compiled = jax.jit(lambda params: param_norms(params, norm.norm, scale=norm.scale))

    def norms_of(params: Params) -> list[float]:
        return [float(value) for value in compiled(params).values()]

    measures = []
    networks = [n for n in trained.networks_at(run, line.selection) if n.member.index in members]
    for network in tqdm(networks, "logits", unit="network", disable=None):
        logits = logits_of(run, network, norms_of, norm.norm)
        measures.append(measure_network(logits, product_norms))
    return explain_logits(
        measures,
        product_norms,
        [network.level for network in line.networks if not network.has_random_labels],
        run.dataset.num_classes,
        seed=config.seed,
    )


def logits_of(
    run: trained.FinishedRun, network: trained.Network, norms_of: Callable, norm: Norm
) -> NetworkLogits:
    """A network's logits on both splits, and its norms before and after balancing."""
    norms = norms_of(network.params)
    try:
        balanced_norm = math.prod(norms_of(balance_params(network.params, norm)))
    except ValueError:  # not an entrywise norm
        balanced_norm = None
    train, test = (
        trained.logits_of(run.apply_fn, network.params, getattr(run.dataset, split).images)
        for split in ("train", "test")
    )
    return NetworkLogits(
        *(train, network.train_labels),
        *(test, network.test_labels),
        product_norm=math.prod(norms),
        last_norm=norms[-1],
        balanced_product_norm=balanced_norm,
    )


def dataset_name(source: Path) -> str:
    """What the figures call a run's data set, "" where that is not known."""
    path = source / RUN_FILE
    if not path.exists():
        return ""
    return dataset_label(read_object(path, dataset=str)["dataset"])


def plain(value: Any) -> Any:
    """Named tuples and dataclasses as dictionaries, None for what is no number, for JSON."""
    if dataclasses.is_dataclass(value):
        return plain(vars(value))
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    define_flags()
    shared_flags.run_command(main, parse)
