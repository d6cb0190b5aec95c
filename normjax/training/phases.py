"""Train a group of networks through both phases, with metrics and checkpoints."""

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from normjax.results import metrics, tensorboard
from normjax.training import checkpoints, processes
from normjax.training.config import SweepConfig
from normjax.training.ensemble import (
    LossAndError,
    gather_members,
    make_order_key,
    pad_members,
    shard_members,
    share,
    with_sentinels,
)
from normjax.training.interrupts import StoppedError
from normjax.training.members import first_labels, own_labels
from normjax.training.plan import Sweep
from normjax.training.selection import evaluation_data
from normjax.training.snapshots import Snapshots
from normjax.training.step import TrainState
from normjax.types import Array


class Progress(NamedTuple):
    """The training state of this process's members, stacked."""

    state: TrainState
    snapshots: Snapshots
    diverged_at: Array  # int32 [M']: the first step with a non-finite loss, or 0


def train_group(sweep: Sweep, run_dir: Path, group: int) -> Progress:
    """Train a group through both phases.

    Returns:
      The trained members of this process, as chosen by `pad_members`.

    Raises:
      StoppedError: a signal arrived; the epoch was finished and a checkpoint written.
      OutOfMemoryError: a device ran out of memory.
    """
    config, ensemble, dataset = sweep.config, sweep.ensemble, sweep.dataset
    members = sweep.groups[group]
    numbers = [member.index for member in members]
    padded = pad_members(members, ensemble.places)
    first = np.stack([first_labels(config, dataset, member) for member in padded])
    second = np.stack([own_labels(config, dataset, member, "train") for member in padded])
    order_key = share(make_order_key(config.seed))
    place = partial(shard_members, mesh=ensemble.mesh)

    def start_networks():
        keys = jnp.stack([member.key(config.seed) for member in padded])
        stds = [member.init_std for member in padded]
        state = ensemble.init(*place((keys, None if None in stds else jnp.array(stds))))
        test = evaluation_data(sweep, padded, "test", own_labels) if config.test_every else ()
        diverged_at = place(np.zeros(len(padded), np.int32))
        with with_sentinels():
            snapshots = ensemble.init_snapshots(state)
        progress = Progress(state, snapshots, diverged_at)
        return progress, share(dataset.train.images), test

    progress, images, test = processes.attempt(start_networks)

    def train_epoch(step, progress, labels):
        """Start an epoch; return the progress and the metrics [M'] after it. Steps count from 0."""
        state, snapshots = progress.state, progress.snapshots
        epoch = epoch_of(sweep, step)
        if step == config.pretrain_epochs:
            state = ensemble.reset_optimizer(state)
        key = jax.random.fold_in(order_key, step)
        epoch_fn = ensemble.train_epoch
        if ensemble.pretrain_epoch is not None and step < config.pretrain_epochs:
            epoch_fn = ensemble.pretrain_epoch
        was_trained = True if state.stopped_at is None else state.stopped_at == 0
        state, running = epoch_fn(state, labels, images, key)
        values = {f"running_{name}": value for name, value in running._asdict().items()}
        is_finite = jnp.isfinite(running.loss)
        if step >= config.pretrain_epochs:
            now = (jnp.int32(epoch), jnp.bool(epoch == config.epochs))
            with with_sentinels():
                snapshots, measured = ensemble.track(
                    snapshots, state, labels, running, images, *now
                )
            values |= {f"train_{name}": value for name, value in measured._asdict().items()}
            state = stop_networks(config, state, snapshots, measured, epoch)
            if epoch == config.epochs:  # no running mean includes the last step's result
                is_finite &= jnp.isfinite(measured.loss)
        if config.test_every and (step + 1) % config.test_every == 0:
            measured = ensemble.evaluate_plainly(state.variables, *test)
            values |= {f"test_{name}": value for name, value in measured._asdict().items()}
        is_new = was_trained & ~is_finite & (progress.diverged_at == 0)
        diverged_at = jnp.where(is_new, step + 1, progress.diverged_at)
        if state.stopped_at is not None:
            with with_sentinels():
                values = {k: jnp.where(was_trained, v, jnp.nan) for k, v in values.items()}
            values["stopped_at"] = jnp.copy(state.stopped_at)  # the next epoch reuses the state
        values["diverged_at"] = diverged_at
        return Progress(state, snapshots, diverged_at), values

    def write_metrics(unwritten, num_left):
        """Wait for the metrics of epochs and write them; return whether all networks stopped."""
        stopped_at = np.zeros(1)
        while len(unwritten) > num_left:
            step, values = unwritten.pop(0)
            values = processes.attempt(partial(jax.device_get, values))
            values = gather_members(values, len(members))
            stopped_at = values.pop("stopped_at", stopped_at)
            if processes.is_first():
                phase = "pretrain" if step < config.pretrain_epochs else "train"
                common = {"group": group, "step": step + 1, "phase": phase}
                common["epoch"] = epoch_of(sweep, step)
                write_events(metrics.append_metrics(run_dir, members, common, values))
        return bool(np.all(stopped_at > 0))

    with (
        checkpoints.open_progress(run_dir, group) as checkpointer,
        tensorboard.event_files(run_dir, config.tensorboard) as write_events,
    ):
        progress, start = checkpoints.restore_progress(checkpointer, progress, numbers)
        if processes.is_first():
            write_events(metrics.keep_metrics(run_dir, members, start))
        labels = place(first if start < config.pretrain_epochs else second)
        unwritten = []  # metrics of epochs that may still be trained
        num_ahead = epochs_ahead()
        if all_have_stopped(progress.state, len(members)):
            return progress
        for step in epochs_progress(sweep, group, start):
            if step == config.pretrain_epochs:
                labels = place(second)
            progress, values = processes.attempt(partial(train_epoch, step, progress, labels))
            unwritten.append((step, values))
            all_stopped = write_metrics(unwritten, num_ahead)
            signum = processes.all_max(sweep.signal())
            if signum or is_checkpoint_due(sweep, step):
                all_stopped |= write_metrics(unwritten, 0)
                checkpoints.save_progress(checkpointer, step + 1, progress, numbers, sweep.push)
            if signum:
                raise StoppedError(signum, run_dir)
            if all_stopped:
                break
    return progress


def stop_networks(
    config: SweepConfig, state: TrainState, snapshots: Snapshots, measured: LossAndError, epoch: int
) -> TrainState:
    """Stop the networks [M'] that have all their snapshots and passed all targets."""
    if state.stopped_at is None:
        return state
    has_all = jnp.all(jnp.isfinite(snapshots.loss), axis=-1)
    has_passed = (measured.loss <= min(config.target_losses)) & (measured.error == 0)
    stops = (state.stopped_at == 0) & has_all & has_passed
    return state._replace(stopped_at=jnp.where(stops, epoch, state.stopped_at))


def all_have_stopped(state: TrainState, num_members: int) -> bool:
    """Return whether no network of the group still trains; every process must call this."""
    if state.stopped_at is None:
        return False
    return bool(np.all(gather_members(state.stopped_at, num_members) > 0))


def epochs_ahead() -> int:
    """Return how many epochs start before the metrics of the last one are available.

    On a CPU an epoch can take minutes, and a signal must not wait for two.
    """
    return 0 if jax.default_backend() == "cpu" else 1


def last_step(sweep: Sweep) -> int:
    """Return the total number of epochs in both phases."""
    return sweep.config.pretrain_epochs + sweep.config.epochs


def is_checkpoint_due(sweep: Sweep, step: int) -> bool:
    """Return whether a checkpoint follows an epoch; `step` counts both phases, from 0."""
    ends = (sweep.config.pretrain_epochs, last_step(sweep))
    return step + 1 in ends or (step + 1) % sweep.config.checkpoint_every == 0


def epoch_of(sweep: Sweep, step: int) -> int:
    """Return an epoch's number within its phase, from 1; `step` counts both phases, from 0."""
    pretrain_epochs = sweep.config.pretrain_epochs
    return step + 1 - (pretrain_epochs if step >= pretrain_epochs else 0)


def epochs_progress(sweep: Sweep, group: int, start: int) -> Iterator[int]:
    """Yield the remaining epochs of both phases, and report progress from process 0.

    A terminal gets a progress bar; a log file gets a line per epoch.
    """
    total = last_step(sweep)
    if not processes.is_first():
        yield from range(start, total)
        return
    name = f"group {group + 1} of {len(sweep.groups)}, {len(sweep.groups[group])} networks"
    steps = tqdm(range(start, total), name, total, initial=start, unit="epoch", disable=None)
    if not steps.disable:
        yield from steps
        return
    started = time.monotonic()
    for step in range(start, total):
        yield step
        seconds = (time.monotonic() - started) / (step + 1 - start)
        left = tqdm.format_interval(seconds * (total - step - 1))
        print(f"{name}: epoch {step + 1} of {total}, {left} left", file=sys.stderr, flush=True)
