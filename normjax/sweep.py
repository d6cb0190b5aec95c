"""One sweep: train the members, keep the snapshots, evaluate, write tables, figures and the page.

The one code path of every experiment; an experiment's own file says only which members there are.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax

from normjax.data import Dataset, dataset_label
from normjax.files import one_line, read_object, write_json
from normjax.networks.models import make_model
from normjax.norms import parse_norm
from normjax.plots import paper as plotting
from normjax.report import run_page as report
from normjax.results import rows as results
from normjax.results import summary
from normjax.results.rows import ResultRow, write_results
from normjax.training import checkpoints, interrupts, memory
from normjax.training import processes as distributed
from normjax.training import record as records
from normjax.training.checkpoints import RUN_FILE
from normjax.training.config import SweepConfig
from normjax.training.ensemble import Member, gather_members, make_ensemble, shard_members
from normjax.training.group import last_step, train_group
from normjax.training.interrupts import StoppedError
from normjax.training.members import Sweep, load_data, numbered
from normjax.training.processes import prepare_cpu
from normjax.training.selection import evaluate_selection, selections

T = TypeVar("T")


def run_sweep(experiment: str, config: SweepConfig, members: Sequence[Member]) -> None:
    """Runs an experiment from its configuration to its report; it numbers the members.

    A mistake in the configuration or the data ends the program with one line before any training.
    SIGTERM and Ctrl-C end it after the epoch, with a checkpoint and the command to go on by; the
    exit code is then 143 or 130.
    """
    started = time.monotonic()
    prepare_cpu()
    run_dir = Path(config.workdir)
    try:
        distributed.connect(config.distributed)
    except ValueError as error:
        sys.exit(f"error: {one_line(error)}")
    with distributed.together(), contextlib.ExitStack() as stack:
        # A folder that there is not yet is made when all is known to be well, not before.
        is_new = not (config.resume and (run_dir / RUN_FILE).exists())
        _in_step(lambda: is_new or _lock(stack, run_dir, is_new))
        if distributed.worst(_in_step(lambda: _is_finished(run_dir, config))):
            if distributed.is_first():
                print(f"{run_dir}: this run is finished, there is nothing to do")
            return
        sweep = _in_step(lambda: _set_up(experiment, config, run_dir, members))
        _in_step(lambda: is_new and _lock(stack, run_dir, is_new))
        sweep = sweep._replace(groups=plan_groups(sweep, run_dir))
        _in_step(lambda: _start(sweep, run_dir))
        sweep = sweep._replace(signal=stack.enter_context(interrupts.delayed()))
        try:
            rows = finish_groups(sweep, run_dir)
        except StoppedError as error:
            if distributed.is_first():
                command = interrupts.resume_command()
                print(f"{run_dir}: {error}; go on with: {command}", file=sys.stderr)
            sys.exit(interrupts.exit_code(error))
        if distributed.is_first():
            _write_all(run_dir, config, rows, started)
        distributed.worst(0)  # the others wait, so that all end together


def _in_step(work: Callable[[], T]) -> T:
    """What `work` gives; a mistake in any process ends all of them, each with a line."""
    result, message = None, ""
    try:
        result = work()
    except (ValueError, OSError) as error:
        message = one_line(error) or type(error).__name__
    if distributed.worst(bool(message)):
        sys.exit(f"error: {message or 'another process can not go on, and says why'}")
    return result


def _lock(stack, run_dir, is_new) -> None:
    if distributed.is_first():
        stack.enter_context(records.locked(run_dir, is_new))


def _is_finished(run_dir, config) -> bool:
    return distributed.is_first() and records.is_finished(run_dir, config)


def _set_up(experiment, config, run_dir, members) -> Sweep:
    """The sweep, its members in the groups of an earlier start or else in one."""
    dataset = load_data(config)
    members = numbered(members)
    path = run_dir / RUN_FILE
    sweep = make_sweep(experiment, config, dataset, members)
    if path.exists():
        run = read_object(path, groups=list[list[int]])
        # Runs from before this was recorded have none.
        if run.get("data_digest") not in (None, records.data_digest(dataset)):
            raise ValueError(f"--resume: the data are not those of the run in {run_dir}")
        if sorted(i for group in run["groups"] for i in group) != list(range(len(members))):
            raise ValueError(f"{path}: its groups are not of members 0 to {len(members) - 1}")
        sweep = sweep._replace(groups=[[members[i] for i in group] for group in run["groups"]])
        if distributed.is_first() and not checkpoints.has_progress(run_dir):
            print(f"{run_dir}: no checkpoint yet, starting from the beginning", flush=True)
    return sweep


def _start(sweep, run_dir) -> None:
    if distributed.is_first():
        records.start_run(run_dir, sweep.experiment, sweep.config, sweep.dataset, sweep.groups)
        write_groups(run_dir, sweep.groups)


def _write_all(run_dir, config, rows, started) -> None:
    """What there is when all members are trained."""
    write_results(run_dir / results.RESULTS_FILE, rows)
    summary.write_summary(run_dir / summary.SUMMARY_FILE, summary.summarize(rows))
    plotting.draw_figures(rows, run_dir / "figures", dataset_label(config.dataset))
    records.finish_run(run_dir, time.monotonic() - started)
    report.write_report(run_dir)
    print(f"{run_dir / results.RESULTS_FILE}: {len(rows)} rows; page: {run_dir / 'report.html'}")


def make_sweep(
    experiment: str, config: SweepConfig, dataset: Dataset, members: Sequence[Member]
) -> Sweep:
    """The functions, not yet compiled, and the members in the groups that are trained at once.

    Without --members_per_group, that is one group; `plan_groups` splits it if it doesn't fit.

    Raises:
      ValueError: the network cannot take images of this shape.
    """
    model = make_model(config.model, dataset.num_classes, batch_norm=config.batch_norm)
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *dataset.image_shape)))
    ensemble = make_ensemble(
        model,
        make_model(config.model, dataset.num_classes),
        optax.sgd(config.learning_rate, momentum=config.momentum),
        image_shape=dataset.image_shape,
        batch_size=config.batch_size,
        target_losses=config.target_losses,
        norms=[parse_norm(name) for name in config.norms],
    )
    size = config.members_per_group or len(members)
    return Sweep(experiment, config, dataset, ensemble, split_groups([members], 0, size))


def plan_groups(sweep: Sweep, run_dir: Path) -> list[list[Member]]:
    """The groups, those that are not finished small enough for the memory.

    --members_per_group decides if it is given. Groups of an earlier start are split, never merged.
    """
    groups = sweep.groups
    done = distributed.worst(sum(_results_of(run_dir, g).exists() for g in range(len(groups))))
    largest = max((len(group) for group in groups[done:]), default=0)
    num_devices = jax.device_count()
    size = sweep.config.members_per_group
    if size is None:
        if not largest:
            return groups
        wished = -(-largest // num_devices)
        here = memory.networks_that_fit(
            lambda count: memory.group_memory(
                sweep.ensemble,
                count,
                train_shape=sweep.dataset.train.images.shape,
                test_shape=sweep.dataset.test.images.shape if sweep.config.test_every else None,
            ),
            wished,
            memory.available_memory(),
        )
        fit = -distributed.worst(-here)
        if fit == wished:
            return groups
        parts = -(-wished // fit)
        size = -(-wished // parts) * num_devices  # as even as the devices allow
        if distributed.is_first():
            print(f"memory: {largest} networks do not fit, groups of {size}", file=sys.stderr)
    return regroup(sweep, run_dir, done, size)


def regroup(sweep: Sweep, run_dir: Path, start: int, size: int) -> list[list[Member]]:
    """The groups with those from `start` on split; the parts of that one keep its checkpoints.

    Those after it were never started. run.json still has the old groups after this.
    """
    groups = split_groups(sweep.groups, start, size)
    if start < len(sweep.groups) and distributed.is_first():
        parts = -(-len(sweep.groups[start]) // size)
        checkpoints.copy_progress(run_dir, start, range(start + 1, start + parts))
    distributed.worst(0)  # the others wait until the copies are there
    return groups


def split_groups(groups: Sequence[Sequence[Member]], start: int, size: int) -> list[list[Member]]:
    """The groups with those from `start` on cut into pieces of at most `size`."""
    pieces = [group[i : i + size] for group in groups[start:] for i in range(0, len(group), size)]
    return [list(group) for group in [*groups[:start], *pieces]]


def write_groups(run_dir: Path, groups: Sequence[Sequence[Member]]) -> None:
    """Puts the groups into run.json if it has others."""
    path = run_dir / RUN_FILE
    run = read_object(path, groups=list)
    indices = [[member.index for member in group] for group in groups]
    if run["groups"] != indices:
        write_json(path, {**run, "groups": indices})


def finish_groups(sweep: Sweep, run_dir: Path) -> list[ResultRow]:
    """The rows of all members, group after group; on process 0, none elsewhere.

    Where the memory is too small for a group, it and those after it are halved. What is finished,
    and the group's checkpoints, are kept.
    """
    rows = []
    group = 0
    while group < len(sweep.groups):
        try:
            rows += finish_group(sweep, run_dir, group)
            group += 1
            continue
        except distributed.OutOfMemoryError:
            pass  # its traceback holds the group's arrays: they are freed when this block is left
        sweep = sweep._replace(groups=halve_groups(sweep, run_dir, group))
    return rows


def halve_groups(sweep: Sweep, run_dir: Path, group: int) -> list[list[Member]]:
    """The groups with half as many networks on a device, from one on that did not fit.

    A device's only network cannot be halved: that ends the program with one line.
    """
    num_devices = jax.device_count()
    per_device = -(-len(sweep.groups[group]) // num_devices)
    numbers = ", ".join(str(member.index) for member in sweep.groups[group])
    if per_device == 1:
        sys.exit(
            f"error: out of memory with one network on a device (members {numbers}): fewer "
            "--train_size, a smaller --batch_size or a device with more memory is needed"
        )
    size = (per_device + 1) // 2 * num_devices
    if distributed.is_first():
        print(
            f"out of memory with {len(sweep.groups[group])} networks (members {numbers}): "
            f"going on with groups of {size}",
            file=sys.stderr,
        )
    groups = regroup(sweep, run_dir, group, size)
    if distributed.is_first():
        write_groups(run_dir, groups)
    return groups


def finish_group(sweep: Sweep, run_dir: Path, group: int) -> list[ResultRow]:
    """The rows of a group's members on process 0: read if the group is finished, else trained for.

    Raises:
      StoppedError: a signal came.
      OutOfMemoryError: the memory of a device was too small.
    """
    members = sweep.groups[group]
    if distributed.worst(_results_of(run_dir, group).exists()):
        return _in_step(lambda: _rows_of(sweep, run_dir, group)) or []
    state, snapshots = train_group(sweep, run_dir, group)
    rows = []
    for selection, make, epochs, valid in selections(sweep.config, state, snapshots, len(members)):
        if signum := distributed.worst(sweep.signal()):
            raise StoppedError(signum)
        variables = distributed.attempt(lambda make=make: shard_members(make()))
        kept = gather_members(variables, len(members))
        checkpoints.save_members(run_dir, group, selection, kept)
        rows += evaluate_selection(sweep, members, selection, variables, epochs, valid)
    rows.sort(key=lambda row: row.member)
    if distributed.is_first():
        checkpoints.save_rows(run_dir, group, rows)
        checkpoints.drop_progress(run_dir, group)
    return rows


def _rows_of(sweep, run_dir, group) -> list[ResultRow] | None:
    if not distributed.is_first():
        return None
    records.keep_metrics(run_dir, group, sweep.groups[group], last_step(sweep))
    return checkpoints.read_rows(run_dir, group)


def _results_of(run_dir, group) -> Path:
    return checkpoints.group_folder(run_dir, group) / results.RESULTS_FILE
