"""Split the networks into groups that fit in memory, and train the groups in turn."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import pandas as pd

from normjax.files import read_object, write_json
from normjax.results import metrics, tensorboard
from normjax.results.table import make_table
from normjax.training import checkpoints, memory, processes, saved
from normjax.training.checkpoints import RUN_FILE
from normjax.training.ensemble import Member, gather_members, shard_members, take_member
from normjax.training.interrupts import StoppedError
from normjax.training.phases import train_group
from normjax.training.plan import Sweep
from normjax.training.selection import evaluate_selection, selections


def plan_groups(sweep: Sweep, run_dir: Path) -> Sweep:
    """Split the unfinished groups until each fits in memory, or by `--members_per_group`.

    Groups of an earlier start are split, never merged.
    """
    groups = sweep.groups
    paths = [saved.rows_path(run_dir, group) for group in range(len(groups))]
    done = processes.from_first(lambda: sum(path.exists() for path in paths))
    largest = max((len(group) for group in groups[done:]), default=0)
    if not largest:
        return sweep
    size = sweep.config.members_per_group
    if size is None:
        places = jax.process_count() * sweep.ensemble.places
        wanted = -(-largest // places)
        fit = networks_that_fit(sweep, wanted)
        if fit == wanted:
            return sweep
        parts = -(-wanted // fit)
        size = -(-wanted // parts) * places  # as evenly as the devices allow
        if processes.is_first():
            print(f"memory: {largest} networks do not fit, using groups of {size}", file=sys.stderr)
    return split_groups(sweep, run_dir, done, size)


def networks_that_fit(sweep: Sweep, wanted: int) -> int:
    """Return how many networks fit on each device, at most `wanted`."""
    dataset = sweep.dataset
    test_shape = dataset.test.images.shape if sweep.config.test_every else None

    def group_memory(count: int) -> float | None:
        return memory.group_memory(
            sweep.ensemble, count, train_shape=dataset.train.images.shape, test_shape=test_shape
        )

    here = memory.networks_that_fit(group_memory, wanted, memory.available_memory())
    return -processes.all_max(-here)


def split_groups(sweep: Sweep, run_dir: Path, start: int, size: int) -> Sweep:
    """Split group `start` and the groups after it into pieces of at most `size`.

    Group `start` may have been started: its pieces get its checkpoints. The later groups have
    none. run.json keeps the old groups until `write_groups`.
    """
    groups = sweep.groups
    pieces = [group[i : i + size] for group in groups[start:] for i in range(0, len(group), size)]
    if processes.is_first():
        parts = -(-len(groups[start]) // size)
        checkpoints.copy_progress(run_dir, start, range(start + 1, start + parts))
    processes.sync()  # wait for the copies
    return dataclasses.replace(sweep, groups=[*groups[:start], *pieces])


def write_groups(run_dir: Path, groups: Sequence[Sequence[Member]]) -> None:
    """Update the groups in run.json."""
    path = run_dir / RUN_FILE
    run = read_object(path, groups=list)
    indices = [[member.index for member in group] for group in groups]
    if run["groups"] != indices:
        write_json(path, {**run, "groups": indices})


def train_groups(sweep: Sweep, run_dir: Path) -> Sweep:
    """Train every group; return the sweep with the groups that were trained.

    If a group does not fit in memory, it and all later groups are halved. Finished groups and
    checkpoints are kept.

    Raises:
      StoppedError: a signal arrived.
      OutOfMemoryError: one network does not fit on a device.
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
    """Return the rows of all groups, which must be finished."""
    tables = [saved.read_rows(run_dir, group) for group in range(len(sweep.groups))]
    return pd.concat(tables, ignore_index=True)


def halve_groups(sweep: Sweep, run_dir: Path, group: int) -> Sweep:
    """Halve the networks per device in a group that did not fit and in all later groups.

    Raises:
      OutOfMemoryError: the group has only one network per device.
    """
    places = jax.process_count() * sweep.ensemble.places
    per_device = -(-len(sweep.groups[group]) // places)
    numbers = ", ".join(str(member.index) for member in sweep.groups[group])
    if per_device == 1:
        raise processes.OutOfMemoryError(
            f"out of memory with one network on a device (members {numbers}): reduce "
            "--train_size or --batch_size, or use a device with more memory"
        )
    size = (per_device + 1) // 2 * places
    if processes.is_first():
        print(
            f"out of memory with {len(sweep.groups[group])} networks (members {numbers}): "
            f"continuing with groups of {size}",
            file=sys.stderr,
        )
    sweep = split_groups(sweep, run_dir, group, size)
    if processes.is_first():
        write_groups(run_dir, sweep.groups)
    if sweep.push:
        sweep.push()
    return sweep


def finish_group(sweep: Sweep, run_dir: Path, group: int) -> None:
    """Train, evaluate and save a group; if it is already finished, check its files.

    Raises:
      StoppedError: a signal arrived.
      OutOfMemoryError: a device ran out of memory.
      SettingsError: the files of a finished group are damaged.
    """
    members = sweep.groups[group]
    if processes.from_first(saved.rows_path(run_dir, group).exists):
        processes.from_first(lambda: _check_finished(sweep, run_dir, group))
        return
    progress = train_group(sweep, run_dir, group)
    rows = []
    for selection in selections(sweep.config, progress.state, progress.snapshots, len(members)):
        if signum := processes.all_max(sweep.signal()):
            raise StoppedError(signum, run_dir)
        variables = processes.attempt(
            lambda now=selection: shard_members(now.variables(), sweep.ensemble.mesh)
        )
        kept = gather_members(variables, len(members))
        if processes.is_first():
            for i, member in enumerate(members):
                if selection.exists[i]:
                    network = take_member(kept, i)
                    seed = sweep.config.seed
                    saved.save_network(run_dir, seed, member, selection.name, network)
        rows += evaluate_selection(sweep, members, selection, variables)
    rows.sort(key=lambda row: row["member"])
    if processes.is_first():
        saved.save_rows(run_dir, group, make_table(rows))
        checkpoints.drop_progress(run_dir, group)
    if sweep.push:
        sweep.push()


def _check_finished(sweep: Sweep, run_dir: Path, group: int) -> None:
    rows, members = saved.read_rows(run_dir, group), sweep.groups[group]
    if set(rows["member"]) != {member.index for member in members}:
        path = saved.rows_path(run_dir, group)
        raise ValueError(f"{path}: its networks are not those of group {group} in {RUN_FILE}")
    # Fewer than all epochs if all networks were stopped.
    last = sweep.config.pretrain_epochs + int(rows["epoch"].max())
    lines = metrics.keep_metrics(run_dir, members, last)
    with tensorboard.event_files(run_dir, sweep.config.tensorboard) as write_events:
        write_events(lines)
