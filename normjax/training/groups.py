"""Divide the networks into groups that fit the memory, and train one group after another."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import pandas as pd

from normjax.files import read_object, write_json
from normjax.results import metrics
from normjax.results.table import make_table
from normjax.training import checkpoints, memory, processes, saved
from normjax.training.checkpoints import RUN_FILE
from normjax.training.ensemble import Member, gather_members, shard_members, take_member
from normjax.training.interrupts import StoppedError
from normjax.training.phases import last_step, train_group
from normjax.training.plan import Sweep
from normjax.training.selection import evaluate_selection, selections


def plan_groups(sweep: Sweep, run_dir: Path) -> Sweep:
    """Return the sweep with its unfinished groups split until each fits the memory.

    --members_per_group decides instead if it is given. Groups of an earlier start are split, never
    merged.
    """
    groups = sweep.groups
    finished = [saved.rows_path(run_dir, group).exists() for group in range(len(groups))]
    done = processes.all_max(sum(finished))
    largest = max((len(group) for group in groups[done:]), default=0)
    if not largest:
        return sweep
    size = sweep.config.members_per_group
    if size is None:
        num_devices = jax.device_count()
        wanted = -(-largest // num_devices)
        fit = networks_that_fit(sweep, wanted)
        if fit == wanted:
            return sweep
        parts = -(-wanted // fit)
        size = -(-wanted // parts) * num_devices  # as even as the devices allow
        if processes.is_first():
            print(f"memory: {largest} networks do not fit, groups of {size}", file=sys.stderr)
    return split_groups(sweep, run_dir, done, size)


def networks_that_fit(sweep: Sweep, wanted: int) -> int:
    """Return how many networks fit on every device, at most `wanted`."""
    dataset = sweep.dataset
    test_shape = dataset.test.images.shape if sweep.config.test_every else None

    def group_memory(count: int) -> float | None:
        return memory.group_memory(
            sweep.ensemble, count, train_shape=dataset.train.images.shape, test_shape=test_shape
        )

    here = memory.networks_that_fit(group_memory, wanted, memory.available_memory())
    return -processes.all_max(-here)


def split_groups(sweep: Sweep, run_dir: Path, start: int, size: int) -> Sweep:
    """Return the sweep with the groups from `start` on cut into pieces of at most `size`.

    Group `start` may be in training: its pieces get its checkpoints. The groups after it were never
    started. run.json keeps the old groups until `write_groups`.
    """
    groups = sweep.groups
    pieces = [group[i : i + size] for group in groups[start:] for i in range(0, len(group), size)]
    if processes.is_first():
        parts = -(-len(groups[start]) // size)
        checkpoints.copy_progress(run_dir, start, range(start + 1, start + parts))
    processes.sync()  # until the copies are there
    return dataclasses.replace(sweep, groups=[*groups[:start], *pieces])


def write_groups(run_dir: Path, groups: Sequence[Sequence[Member]]) -> None:
    """Update the groups in run.json."""
    path = run_dir / RUN_FILE
    run = read_object(path, groups=list)
    indices = [[member.index for member in group] for group in groups]
    if run["groups"] != indices:
        write_json(path, {**run, "groups": indices})


def train_groups(sweep: Sweep, run_dir: Path) -> Sweep:
    """Train every group; return the sweep with the groups as they were trained.

    If the memory is too small for a group, this group and those after it are halved. Finished
    groups and the group's checkpoints are kept.

    Raises:
      StoppedError: a signal came.
      OutOfMemoryError: the memory is too small for one network on a device.
      SettingsError: the files of a finished group are damaged.
    """
    group = 0
    while group < len(sweep.groups):
        try:
            finish_group(sweep, run_dir, group)
            group += 1
            continue
        except processes.OutOfMemoryError:
            pass  # its traceback keeps the group's arrays alive until this block ends
        sweep = halve_groups(sweep, run_dir, group)
    return sweep


def read_table(sweep: Sweep, run_dir: Path) -> pd.DataFrame:
    """Return the rows of all groups, which are finished."""
    tables = [saved.read_rows(run_dir, group) for group in range(len(sweep.groups))]
    return pd.concat(tables, ignore_index=True)


def halve_groups(sweep: Sweep, run_dir: Path, group: int) -> Sweep:
    """Return the sweep with half as many networks on a device, from a group on that did not fit.

    Raises:
      OutOfMemoryError: a device has only one network.
    """
    num_devices = jax.device_count()
    per_device = -(-len(sweep.groups[group]) // num_devices)
    numbers = ", ".join(str(member.index) for member in sweep.groups[group])
    if per_device == 1:
        raise processes.OutOfMemoryError(
            f"out of memory with one network on a device (members {numbers}): fewer "
            "--train_size, a smaller --batch_size or a device with more memory is needed"
        )
    size = (per_device + 1) // 2 * num_devices
    if processes.is_first():
        print(
            f"out of memory with {len(sweep.groups[group])} networks (members {numbers}): "
            f"going on with groups of {size}",
            file=sys.stderr,
        )
    sweep = split_groups(sweep, run_dir, group, size)
    if processes.is_first():
        write_groups(run_dir, sweep.groups)
    return sweep


def finish_group(sweep: Sweep, run_dir: Path, group: int) -> None:
    """Train, evaluate and save a group; check its files if it is finished already.

    Raises:
      StoppedError: a signal came.
      OutOfMemoryError: the memory of a device was too small.
      SettingsError: the files of a finished group are damaged.
    """
    members = sweep.groups[group]
    if processes.all_max(saved.rows_path(run_dir, group).exists()):
        processes.in_step(lambda: _check_finished(sweep, run_dir, group))
        return
    progress = train_group(sweep, run_dir, group)
    rows = []
    for selection in selections(sweep.config, progress.state, progress.snapshots, len(members)):
        if signum := processes.all_max(sweep.signal()):
            raise StoppedError(signum, run_dir)
        variables = processes.attempt(lambda now=selection: shard_members(now.variables()))
        kept = gather_members(variables, len(members))
        if processes.is_first():
            for i, member in enumerate(members):
                if selection.exists[i]:
                    network = take_member(kept, i)
                    saved.save_network(run_dir, member.index, selection.name, network)
        rows += evaluate_selection(sweep, members, selection, variables)
    rows.sort(key=lambda row: row["member"])
    if processes.is_first():
        saved.save_rows(run_dir, group, make_table(rows))
        checkpoints.drop_progress(run_dir, group)


def _check_finished(sweep: Sweep, run_dir: Path, group: int) -> None:
    if processes.is_first():
        metrics.keep_metrics(run_dir, group, sweep.groups[group], last_step(sweep))
        saved.read_rows(run_dir, group)
