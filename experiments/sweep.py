"""One sweep: train the members, keep the snapshots, evaluate, write tables, figures and the page.

The one code path of every experiment; an experiment's own file says only which members there are.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from experiments import records
from experiments.flags import Config, one_line, prepare_cpu
from experiments.members import first_labels, numbered, own_labels
from normjax import checkpoints, plotting, report, results, summary
from normjax.data import Dataset, load_dataset
from normjax.ensemble import (
    Ensemble,
    Member,
    make_ensemble,
    make_order_key,
    pad_members,
    shard_members,
    share,
    take_member,
)
from normjax.evaluate import Evaluation, dataset_means, parse_norm
from normjax.models import make_model
from normjax.results import ResultRow, write_results

Labels = Callable[[Config, Dataset, Member, str], np.ndarray]  # a member's labels for a split


class Sweep(NamedTuple):
    """What the stages of one run share."""

    experiment: str
    config: Config
    dataset: Dataset
    ensemble: Ensemble
    groups: list[list[Member]]


def run_sweep(experiment: str, config: Config, members: Sequence[Member]) -> None:
    """Runs an experiment from its configuration to its report; it numbers the members.

    A mistake in the configuration or the data ends the program with one line before any training.
    """
    started = time.monotonic()
    prepare_cpu()
    run_dir = Path(config.workdir)
    try:
        if records.is_finished(run_dir, config):
            print(f"{run_dir}: this run is finished, there is nothing to do")
            return
        dataset = load_data(config)
        sweep = make_sweep(experiment, config, dataset, numbered(members))
        records.start_run(run_dir, experiment, config, dataset, sweep.groups)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")

    rows = []
    for group in range(len(sweep.groups)):
        rows += finish_group(sweep, run_dir, group)
    write_results(run_dir / results.RESULTS_FILE, rows)
    summary.write_summary(run_dir / summary.SUMMARY_FILE, summary.summarize(rows))
    plotting.draw_figures(rows, run_dir / "figures", dataset_label(config.dataset))
    records.finish_run(run_dir, time.monotonic() - started)
    report.write_report(run_dir)
    print(f"{run_dir / results.RESULTS_FILE}: {len(rows)} rows; page: {run_dir / 'report.html'}")


def dataset_label(name: str) -> str:
    """What the figures call the data set: its name, a folder's own name for a folder."""
    return Path(name.removeprefix("folder:")).name if name.startswith("folder:") else name


def load_data(config: Config) -> Dataset:
    """The data set of the configuration, checked against the batch size."""
    dataset = load_dataset(
        config.dataset,
        data_dir=config.data_dir,
        train_size=config.train_size,
        test_size=config.test_size,
    )
    num_examples = len(dataset.train.labels)
    if config.batch_size > num_examples:
        raise ValueError(
            f"--batch_size={config.batch_size}: must not exceed the {num_examples} training images"
        )
    return dataset


def make_sweep(
    experiment: str, config: Config, dataset: Dataset, members: Sequence[Member]
) -> Sweep:
    """The functions, not yet compiled, and the members in the groups that are trained at once.

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
    groups = [list(members[i : i + size]) for i in range(0, len(members), size)]
    return Sweep(experiment, config, dataset, ensemble, groups)


def finish_group(sweep: Sweep, run_dir: Path, group: int) -> list[ResultRow]:
    """The rows of a group's members: read if the group is finished, else trained for."""
    path = checkpoints.group_folder(run_dir, group) / results.RESULTS_FILE
    if path.exists():
        return results.read_results(path)
    members = sweep.groups[group]
    state, snapshots = train_group(sweep, run_dir, group)
    rows = []
    for selection, variables, epochs, valid in selections(sweep.config, state, snapshots):
        kept = jax.tree.map(lambda x: np.asarray(x)[: len(members)], variables)
        checkpoints.save_members(run_dir, group, selection, kept)
        rows += evaluate_selection(sweep, members, selection, variables, epochs, valid)
    rows.sort(key=lambda row: row.member)
    write_results(path, rows)
    checkpoints.drop_progress(run_dir, group)
    return rows


def train_group(sweep: Sweep, run_dir: Path, group: int) -> tuple[Any, Any]:
    """Trains a group through both phases; returns its final state and its snapshots."""
    config, ensemble, dataset = sweep.config, sweep.ensemble, sweep.dataset
    members = sweep.groups[group]
    padded = pad_members(members)
    keys = jnp.stack([member.key(config.seed) for member in padded])
    stds = [member.init_std for member in padded]
    first = np.stack([first_labels(config, dataset, member) for member in padded])
    second = np.stack([own_labels(config, dataset, member, "train") for member in padded])
    images = share(dataset.train.images)
    test = evaluation_data(sweep, padded, "test", own_labels) if config.test_every else ()
    order_key = share(make_order_key(config.seed))

    state = ensemble.init(*shard_members((keys, None if None in stds else jnp.array(stds))))
    snapshots = ensemble.init_snapshots(state)
    with checkpoints.open_progress(run_dir, group, config.checkpoint_every) as checkpointer:
        (state, snapshots), start = checkpoints.restore_progress(
            checkpointer, (state, snapshots), len(members)
        )
        records.keep_metrics(run_dir, group, start)
        labels = shard_members(first if start < config.pretrain_epochs else second)
        for step in epochs_progress(sweep, group, start):
            is_pretraining = step < config.pretrain_epochs
            if step == config.pretrain_epochs:
                labels = shard_members(second)
                state = ensemble.reset_optimizer(state)
            key = jax.random.fold_in(order_key, step)
            state, metrics = ensemble.train_epoch(state, labels, images, key)
            values = {f"running_{name}": value for name, value in metrics._asdict().items()}
            epoch = step + 1 - (0 if is_pretraining else config.pretrain_epochs)
            if not is_pretraining:
                now = (jnp.int32(epoch), jnp.bool(epoch == config.epochs))
                snapshots, measured = ensemble.track(
                    snapshots, state, labels, metrics, images, *now
                )
                values |= {f"train_{name}": value for name, value in measured._asdict().items()}
            if config.test_every and (step + 1) % config.test_every == 0:
                measured = ensemble.evaluate_plainly(state.variables, *test)
                values |= {f"test_{name}": value for name, value in measured._asdict().items()}
            phase = "pretrain" if is_pretraining else "train"
            common = {"group": group, "step": step + 1, "phase": phase, "epoch": epoch}
            records.append_metrics(run_dir, members, common, jax.device_get(values))
            checkpoints.save_progress(checkpointer, step + 1, (state, snapshots), len(members))
    return state, snapshots


def epochs_progress(sweep: Sweep, group: int, start: int) -> Iterator[int]:
    """The epochs of both phases that are still to be trained.

    With a bar on a terminal; elsewhere, as into a log file, with a line after each.
    """
    total = sweep.config.pretrain_epochs + sweep.config.epochs
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


def selections(config: Config, state: Any, snapshots: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """(name, variables [M, ...], epochs [M], valid [M]) of the final networks and each target."""
    count = len(jax.tree.leaves(state.variables)[0])
    yield "final", state.variables, np.full(count, config.epochs), np.full(count, True)
    for i, target in enumerate(config.target_losses):
        variables = jax.tree.map(lambda x, i=i: x[:, i], snapshots.variables)
        reached = np.isfinite(np.asarray(snapshots.loss[:, i]))
        yield f"loss={target:g}", variables, np.asarray(snapshots.epoch[:, i]), reached


def evaluate_selection(
    sweep: Sweep,
    members: Sequence[Member],
    selection: str,
    variables: Any,
    epochs: np.ndarray,
    valid: np.ndarray,
) -> list[ResultRow]:
    """Rows for each member with a network here, one for each kind of labels and norm."""
    padded = pad_members(members)
    variables = shard_members(variables)
    rows = []
    for labels, labels_of in (("natural", natural_labels), ("random", own_labels)):
        chosen = [i for i, m in enumerate(members) if valid[i] and labels in label_kinds(m)]
        if not chosen:
            continue
        splits = [
            sweep.ensemble.evaluate(variables, *evaluation_data(sweep, padded, split, labels_of))
            for split in ("train", "test")
        ]
        splits = jax.device_get(splits)
        for i in chosen:
            own = [take_member(sums, i) for sums in splits]
            rows += member_rows(sweep, members[i], labels, selection, int(epochs[i]), *own)
    return rows


def label_kinds(member: Member) -> tuple[str, ...]:
    """The labels that a network is evaluated on."""
    return ("natural", "random") if member.family == "random_labels" else ("natural",)


def natural_labels(_config: Config, dataset: Dataset, _member: Member, split: str) -> np.ndarray:
    """The true labels, whatever a network was trained on."""
    return getattr(dataset, split).labels


def evaluation_data(
    sweep: Sweep, padded: Sequence[Member], split: str, labels_of: Labels
) -> tuple[Any, Any]:
    """The members' labels [M, N] and the images of a split, on the devices."""
    labels = np.stack([labels_of(sweep.config, sweep.dataset, m, split) for m in padded])
    return shard_members(labels), share(getattr(sweep.dataset, split).images)


def member_rows(
    sweep: Sweep,
    member: Member,
    labels: str,
    selection: str,
    epoch: int,
    train: Evaluation,
    test: Evaluation,
) -> list[ResultRow]:
    """A member's rows at one selection; means and ln K are taken in float64."""
    means = {}
    for name, sums, split in (
        ("train", train, sweep.dataset.train),
        ("test", test, sweep.dataset.test),
    ):
        means[name] = Evaluation(*[dataset_means(x, len(split.labels)) for x in sums])
    ln_num_classes = np.log(sweep.dataset.num_classes)
    return [
        ResultRow(
            experiment=sweep.experiment,
            member=member.index,
            seed=member.seed,
            family=member.family,
            level=member.level,
            labels=labels,
            selection=selection,
            epoch=epoch,
            norm=norm,
            product_norm=train.product_norms[k],
            train_loss=means["train"].loss,
            train_error=means["train"].error,
            test_loss=means["test"].loss,
            test_error=means["test"].error,
            normalized_train_loss=ln_num_classes + means["train"].normalized_excess[k],
            normalized_test_loss=ln_num_classes + means["test"].normalized_excess[k],
            normalized_train_error=means["train"].normalized_error[k],
            normalized_test_error=means["test"].normalized_error[k],
            normalized_train_excess=means["train"].normalized_excess[k],
            normalized_test_excess=means["test"].normalized_excess[k],
        )
        for k, norm in enumerate(sweep.config.norms)
    ]
