"""Training at a fixed normalized margin (Farhang et al. 2022): does the margin matter by itself?

    python -m experiments.fixed_margin --flagfile=experiments/flagfiles/fixed_margin.flags

Every layer has Frobenius norm 1 after each step, so the margin is the normalized one, and a squared
loss pulls it toward a target. For each target, networks are trained on the true labels and on
random ones. If test errors follow the target with true labels, the margin has an effect that
neither the norm nor the number of images explains. If random labels reach the margins of true ones,
a margin alone does not show that a network generalizes.

    DIR/flags.txt  run.json
    DIR/results.csv   a row per network (`normjax.generalization.fixed_margin.measure`)
    DIR/summary.json  the rank correlations with intervals, and networks that missed their target
    DIR/figures/fixed_margin.png and .pdf

All networks are trained together, without checkpoints: this is for runs of minutes.
"""

import contextlib
import dataclasses
import math
import sys
import time
from pathlib import Path

import optax

from experiments import flags
from normjax.data import dataset_label, load_dataset
from normjax.files import one_line, write_json
from normjax.generalization import fixed_margin
from normjax.networks.classifier import make_classifier
from normjax.networks.models import MODEL_NAMES, make_model
from normjax.plots.fixed_margin import plot_fixed_margin
from normjax.plots.style import join_title, save_figure
from normjax.results.columns import write_columns
from normjax.results.table import RESULTS_FILE
from normjax.training import record
from normjax.training.checkpoints import RUN_FILE
from normjax.training.config import (
    DATA_DIR_HELP,
    DATASET_HELP,
    at_least,
    check_list,
    check_seed,
    check_workdir,
    positive,
    setting,
)
from normjax.training.processes import prepare_cpu

MIN_MARGIN = 1e-8
EXPERIMENT, SUMMARY_FILE = "fixed_margin", "summary.json"


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the experiment."""

    workdir: str = setting(
        f"runs/{EXPERIMENT}", "Folder for the output of the run.", check=check_workdir, is_path=True
    )
    dataset: str = setting("digits", DATASET_HELP, is_path=True)
    data_dir: str | None = setting(None, DATA_DIR_HELP, is_path=True)
    train_size: int | None = setting(
        None, "Number of training images; default: all.", check=at_least(1)
    )
    test_size: int | None = setting(None, "Number of test images; default: all.", check=at_least(1))
    model: str = setting("convnet3", "The network, without batch norm.", allowed=MODEL_NAMES)
    margins: tuple[float, ...] = setting(
        (0.003, 0.006, 0.012, 0.025, 0.05),
        "Target margins of the normalized network.",
        check=check_list(
            "margin",
            # Adam squares gradients, which scale as 1 / margin^2, in float32.
            is_allowed=lambda x: MIN_MARGIN <= x < math.inf,
            allowed=f"margins must be at least {MIN_MARGIN:g} and finite",
        ),
    )
    num_seeds: int = setting(3, "Networks per margin and kind of labels.", check=at_least(1))
    seed: int = setting(0, "Random seed of the run.", check=check_seed)
    epochs: int = setting(2000, "Epochs.", check=at_least(1))
    batch_size: int = setting(64, "Examples per step.", check=at_least(1))
    learning_rate: float = setting(
        0.001, "Initial learning rate of Adam, with cosine decay to 0.", check=positive
    )
    resume: bool = setting(False, "Restart the unfinished run in --workdir.")


def main(config: Config) -> None:
    """Run the experiment."""
    prepare_cpu()
    started = time.monotonic()
    run_dir = Path(config.workdir)
    is_new = not (run_dir / RUN_FILE).exists()
    with contextlib.ExitStack() as stack:
        try:
            if record.is_finished(run_dir, EXPERIMENT, config) or record.is_marked_finished(
                run_dir
            ):
                print(f"{run_dir}: this run is finished; nothing to do")
                return
            sizes = {"train_size": config.train_size, "test_size": config.test_size}
            dataset = load_dataset(config.dataset, data_dir=config.data_dir, **sizes)
            if config.batch_size > len(dataset.train.labels):
                raise ValueError(
                    f"--batch_size={config.batch_size}: must not exceed the "
                    f"{len(dataset.train.labels)} training images"
                )
            model = make_model(config.model, dataset.num_classes)
            classifier = make_classifier(model, dataset.image_shape, dataset.num_classes)
            stack.enter_context(record.locked(run_dir, is_new))
            record.start_plain_run(run_dir, EXPERIMENT, config)
        except (ValueError, OSError) as error:
            sys.exit(f"error: {one_line(error)}")
        num_steps = config.epochs * math.ceil(len(dataset.train.labels) / config.batch_size)
        members = fixed_margin.make_members(config.margins, config.num_seeds)
        variables = fixed_margin.train(
            classifier,
            optax.adam(optax.cosine_decay_schedule(config.learning_rate, num_steps)),
            dataset,
            members,
            epochs=config.epochs,
            batch_size=config.batch_size,
            seed=config.seed,
        )
        table = fixed_margin.measure(classifier, dataset, members, variables, config.seed)
        summary = {
            "experiment": EXPERIMENT,
            "train_images": len(dataset.train.labels),
            "test_images": len(dataset.test.labels),
            **fixed_margin.summarize(table, seed=config.seed),
        }
        write_columns(run_dir / RESULTS_FILE, table)
        write_json(run_dir / SUMMARY_FILE, summary)
        title = join_title(
            [
                dataset_label(config.dataset),
                config.model,
                f"{len(dataset.train.labels):,} training images",
                "every layer with Frobenius norm 1",
            ]
        )
        save_figure(plot_fixed_margin(table, summary, title), run_dir / "figures" / EXPERIMENT)
        record.finish_run(run_dir, time.monotonic() - started)
    print(f"{run_dir / RESULTS_FILE}: {len(table)} networks; figure: {run_dir / 'figures'}")
    if num_diverged := len(summary["diverged"]):
        which = "all" if num_diverged == len(table) else f"{num_diverged} of"
        print(f"warning: {which} {len(table)} networks diverged; try a smaller --learning_rate")


if __name__ == "__main__":
    flags.run(main, Config)
