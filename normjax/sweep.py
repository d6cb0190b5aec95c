"""Run a sweep, from its configuration to its report."""

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from normjax.controls.summary import SUMMARY_FILE, explain_all, write_summary
from normjax.data import Dataset, dataset_label
from normjax.files import is_address, read_object
from normjax.networks.classifier import Model, model_name
from normjax.plots import paper
from normjax.report import run_page
from normjax.results import metrics, tensorboard
from normjax.results.table import NETWORK, RESULTS_FILE, is_finite, write_results
from normjax.training import bucket, checkpoints, interrupts, processes, record
from normjax.training.checkpoints import RUN_FILE
from normjax.training.config import SweepConfig, is_reference, validate
from normjax.training.finished_run import FinishedRun, load_run, load_together
from normjax.training.groups import plan_groups, read_table, train_groups, write_groups
from normjax.training.members import make_members
from normjax.training.plan import Arrays, Sweep, as_dataset, load_data, make_sweep
from normjax.training.strategies import STRATEGIES


def run_sweep(
    config: SweepConfig,
    *,
    experiment: str = "random_pretrain",
    model: Model | None = None,
    dataset: Dataset | tuple[Arrays, Arrays] | None = None,
) -> FinishedRun:
    """Train the networks of an experiment and write its tables, figures and report.

    On SIGINT (Interrupt in a notebook) or SIGTERM, training stops after the current epoch with a
    checkpoint. The same call with `resume=True` in the configuration continues the run, or loads
    it if it is finished.

    Args:
      config: the settings.
      experiment: "random_pretrain", "init_scale", "default_init" or "random_labels".
      model: your own network instead of `config.model`: a Linen module, a function that returns
        one, or a function of `rngs` that returns an NNX module; see `make_classifier`. It maps
        standardized float images [N, H, W, C] to float32 logits [N, K]. Its structure is traced;
        with `tied="refuse"` in the configuration it must satisfy eq. 2 in every layer.
      dataset: your own data instead of `config.dataset`: a `Dataset`, or ((images, labels), (test
        images, test labels)) with uint8 [N, H, W, C] and integers [N] from 0.

    Returns:
      The finished run. With several processes, only process 0 can load its networks.

    Raises:
      ValueError: a setting, the data, the network or the folder cannot be used; nothing is trained.
      KeyboardInterrupt: a signal arrived.
      MemoryError: one network does not fit in memory.
      OSError: a file cannot be written.
    """
    run_dir = finish_sweep(config, experiment, model=model, dataset=dataset)
    own = config.dataset if dataset is None else dataset
    with processes.together():
        return load_together(
            lambda: load_run(run_dir, config.data_dir, model=model, dataset=own), model
        )


def finish_sweep(
    config: SweepConfig,
    experiment: str,
    *,
    model: Model | None = None,
    dataset: Dataset | tuple[Arrays, Arrays] | None = None,
) -> Path:
    """Run a sweep like `run_sweep`, without loading the finished run.

    Returns:
      The folder of the run in process 0; for a run in a bucket, the local folder.

    Raises:
      StoppedError: a signal arrived.
      SettingsError, OutOfMemoryError: the run cannot continue; all processes raise the error.
      OSError: a file cannot be written.
    """
    started = time.monotonic()
    given = [name for name, own in (("model", model), ("dataset", dataset)) if own is not None]
    if dataset is not None:
        dataset = as_dataset(dataset)
        config = dataclasses.replace(config, dataset=dataset.name)
    if model is not None:
        config = dataclasses.replace(config, model=model_name(model))
    validate(config, given)
    processes.connect(config.distributed)
    mirror: bucket.Mirror | None = None  # only in process 0, for a run in a bucket
    with processes.together(), contextlib.ExitStack() as stack:
        check_same_settings(config)

        def open_folder() -> tuple[Path, bool]:
            nonlocal mirror
            if not is_address(config.workdir):
                return Path(config.workdir), False
            mirror = stack.enter_context(bucket.mirrored(config.workdir, config.resume))
            return mirror.run_dir, True

        def push() -> None:
            processes.from_first(lambda: mirror and mirror.push())

        def signal() -> int:
            if mirror is not None:
                mirror.check()
            return received()

        run_dir, is_in_bucket = processes.from_first(open_folder)
        # A new folder is created and locked only after all settings and data are validated.
        is_new = processes.from_first(lambda: not (config.resume and (run_dir / RUN_FILE).exists()))

        def lock() -> None:
            stack.enter_context(record.locked(run_dir, is_new))

        def start() -> None:
            record.start_run(run_dir, sweep, given)
            write_groups(run_dir, sweep.groups)

        if not is_new:
            processes.from_first(lock)
        if processes.from_first(
            lambda: is_finished(run_dir, experiment, config, given, model, dataset)
        ):
            if config.tensorboard:
                processes.from_first(lambda: write_events(run_dir))
                push()
            processes.say(f"{run_dir}: this run is finished; nothing to do")
            return run_dir
        sweep = set_up(experiment, config, run_dir, model, dataset)
        if is_new:
            processes.from_first(lock)
        sweep = plan_groups(sweep, run_dir)
        processes.from_first(start)
        push()
        received = stack.enter_context(interrupts.delayed())
        sweep = dataclasses.replace(sweep, signal=signal, push=push if is_in_bucket else None)
        sweep = train_groups(sweep, run_dir)
        if processes.is_first():
            write_up(run_dir, sweep, started)
        push()  # all processes wait for it, so they end together
        if is_in_bucket:
            processes.say(f"{config.workdir}: all of it is there")
    return run_dir


def check_same_settings(config: SweepConfig) -> None:
    """Refuse processes with different settings; only process 0 decides where files are.

    Raises:
      SettingsError: a setting differs.
    """
    own = {f"--{name}": value for name, value in dataclasses.asdict(config).items()}
    own |= {name.upper(): value for name, value in record.random_settings().items()}
    first = processes.from_first(lambda: own)
    local = {f"--{name}" for name in ("workdir", *record.DATA_PATHS, "distributed")}
    other = [name for name in own if name not in local and own[name] != first[name]]

    def check() -> None:
        if other:
            raise ValueError(f"process 0 has a different {', '.join(other)}")

    processes.in_step(check)


def set_up(
    experiment: str,
    config: SweepConfig,
    run_dir: Path,
    model: Model | None,
    dataset: Dataset | None,
) -> Sweep:
    """Return the sweep, with the groups of an earlier start if there was one.

    Raises:
      SettingsError: settings, data or network cannot be used, or differ from the earlier start.
    """
    path = run_dir / RUN_FILE

    def read() -> tuple[dict[str, Any] | None, Dataset]:
        if not path.exists():
            return None, load_data(config, dataset)
        kinds = {"groups": list[list[int]], "data_digest": str, "parameters": dict, "conv": str}
        run = read_object(path, **kinds)
        if run["conv"] not in STRATEGIES:
            raise ValueError(
                f"{path}: conv is {run['conv']!r}; allowed are {', '.join(STRATEGIES)}"
            )
        record.check_random_settings(run, path)
        data = load_data(record.located(config, run, str(path)), dataset)
        if run["data_digest"] != record.data_digest(data):
            raise ValueError(f"--resume: the data differ from those of the run in {run_dir}")
        if not checkpoints.has_progress(run_dir):
            processes.say(f"{run_dir}: no checkpoint yet, starting from the beginning")
        return run, data

    run, data = processes.from_first(read)

    def make() -> Sweep:
        members = make_members(experiment, config)
        conv = run["conv"] if run else None
        sweep = make_sweep(experiment, config, data, members, model, conv)
        if run is None:
            return sweep
        if run["parameters"] != sweep.parameters:
            raise ValueError(f"--resume: the network differs from that of the run in {run_dir}")
        if sorted(i for group in run["groups"] for i in group) != list(range(len(members))):
            raise ValueError(f"{path}: its groups do not hold members 0 to {len(members) - 1}")
        groups = [[members[i] for i in group] for group in run["groups"]]
        return dataclasses.replace(sweep, groups=groups)

    return processes.in_step(make)


def is_finished(
    run_dir: Path,
    experiment: str,
    config: SweepConfig,
    given: Sequence[str],
    model: Model | None,
    dataset: Dataset | None,
) -> bool:
    """Return whether the folder holds this run, finished; refuse a different network or data.

    Raises:
      ValueError, OSError: see `record.is_finished` and `load_run`.
    """
    if not record.is_finished(run_dir, experiment, config, is_data_checked=dataset is None):
        return False
    name = read_object(run_dir / RUN_FILE, dataset=str)["dataset"]
    if given or is_reference(config.model) or config.dataset != name:
        own = config.dataset if dataset is None else dataset
        load_run(run_dir, config.data_dir, model=model, dataset=own)
    return True


def write_events(run_dir: Path) -> None:
    """Write the TensorBoard files of a finished run from its metrics.jsonl."""
    with tensorboard.event_files(run_dir, True) as write:
        write(metrics.read_lines(run_dir))


def write_up(run_dir: Path, sweep: Sweep, started: float) -> None:
    """Write the tables, the figures and the page of a trained sweep; print where they are."""
    table = read_table(sweep, run_dir)
    name = read_object(run_dir / RUN_FILE, dataset=str)["dataset"]
    write_outputs(run_dir, table, dataset_label(name))
    record.finish_run(run_dir, time.monotonic() - started)
    page = run_page.write_report(run_dir)
    processes.say(f"{run_dir / RESULTS_FILE}: {len(table)} rows; page: {page}")
    num_networks, num_diverged = (
        len(rows[NETWORK].drop_duplicates()) for rows in (table, table[~is_finite(table)])
    )
    if num_diverged:
        which = "all" if num_diverged == num_networks else f"{num_diverged} of"
        processes.say(f"warning: {which} {num_networks} networks diverged: losses are not finite")


def write_outputs(run_dir: Path, table: pd.DataFrame, label: str) -> None:
    """Write results.csv, summary.json and the figures; `label` names the data in them."""
    write_results(run_dir / RESULTS_FILE, table)
    explanations = explain_all(table)
    write_summary(run_dir / SUMMARY_FILE, explanations)
    paper.draw_figures(table, explanations, run_dir / "figures", label)
