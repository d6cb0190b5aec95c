"""The networks of a finished run with their data, for what is computed after training."""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from normjax.batch_norm import absorb_batch_norm
from normjax.data import Dataset, standardize_images
from normjax.files import check_types, make_record, read_object
from normjax.networks.models import make_model
from normjax.results.rows import RESULTS_FILE, ResultRow, on_own_labels, read_results
from normjax.results.table import make_table
from normjax.training.checkpoints import RUN_FILE, load_member
from normjax.training.config import SweepConfig, validate
from normjax.training.ensemble import Member
from normjax.training.evaluate import choose_evaluation_batch_size
from normjax.training.members import load_data, own_labels
from normjax.types import ApplyFn, Params


class FinishedRun(NamedTuple):
    """A finished run, read back.

    Attributes:
      run_dir: its folder.
      config: what it was run with.
      dataset: its images, and their true labels.
      members: its networks' definitions, by number.
      rows: the rows of results.csv in which a network meets the labels that it was trained on.
      apply_fn: (params, standardized images float32 [N, H, W, C]) -> logits [N, K] of the network
        without batch normalization, compiled, at the highest matmul precision.
    """

    run_dir: Path
    config: SweepConfig
    dataset: Dataset
    members: Mapping[int, Member]
    rows: list[ResultRow]
    apply_fn: ApplyFn

    @property
    def table(self):
        """Return `rows` as a table."""
        return make_table(row._asdict() for row in self.rows)


class Network(NamedTuple):
    """One trained network at one selection; arrays are numpy's, batch normalization is absorbed."""

    member: Member
    params: Params
    initial_params: Params  # before the first step, with the initial statistics absorbed
    train_labels: np.ndarray  # int32 [N]: those that it was trained to fit
    test_labels: np.ndarray  # int32


def load_run(run_dir: str | Path, data_dir: str | None = None) -> FinishedRun:
    """Reads a finished run, and its data.

    Args:
      run_dir: its folder, which the experiments of `sweep.run_sweep` wrote.
      data_dir: where the data are now, if not where they were.

    Raises:
      FileNotFoundError: there is no run, or its data are not to be found.
      ValueError: the run is not finished, or has no networks to be loaded.
    """
    run_dir = Path(run_dir)
    config, members = read_definitions(run_dir / RUN_FILE)
    rows = on_own_labels(read_results(run_dir))
    if unknown := {row.member for row in rows} - set(members):
        raise ValueError(
            f"{run_dir}: {RUN_FILE} has no member {min(unknown)}, which {RESULTS_FILE} has"
        )
    if data_dir:
        config = dataclasses.replace(config, data_dir=data_dir)
    dataset = load_data(config)
    return FinishedRun(
        run_dir, config, dataset, members, rows, make_apply(config.model, dataset.num_classes)
    )


def read_definitions(path: Path) -> tuple[SweepConfig, dict[int, Member]]:
    """What a finished run was run with, and its networks by number, from its run.json.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the run is not finished, has no networks, or the file is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path.parent}: no run here ({RUN_FILE} is missing)")
    run = read_object(path, finished=bool, config=dict)
    if not run["finished"]:
        raise ValueError(f"{path.parent}: this run is not finished; go on with it by --resume")
    if "members" not in run:
        raise ValueError(f"{path.parent}: {RUN_FILE} names no members; it is not a run of networks")
    check_types(run, {"members": list[dict]}, str(path))
    config = make_record(SweepConfig, run["config"], f"{path}, config")
    try:
        validate(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    members = [make_record(Member, values, f"{path}, members") for values in run["members"]]
    if [member.index for member in members] != list(range(len(members))):
        raise ValueError(f"{path}: its members are not numbered from 0")
    return config, dict(enumerate(members))


def make_apply(name: str, num_classes: int) -> ApplyFn:
    """A network as a compiled function of its parameters, at the highest matmul precision."""
    model = make_model(name, num_classes)

    @jax.jit
    def apply_fn(params, x):
        with jax.default_matmul_precision("highest"):
            return model.apply({"params": params}, x)

    return apply_fn


def networks_at(run: FinishedRun, selection: str) -> Iterator[Network]:
    """The networks that there are at a selection ("final", "loss=0.0044"), in their order.

    Raises:
      ValueError: there is none; the message lists the selections.
    """
    present = {row.member for row in run.rows if row.selection == selection}
    if not present:
        known = ", ".join(dict.fromkeys(row.selection for row in run.rows))
        raise ValueError(
            f"{run.run_dir}: no networks at selection {selection!r}; there are: {known}"
        )
    for index in sorted(present):
        member = run.members[index]
        _, variables = load_member(run.run_dir, index, selection)
        yield Network(
            member,
            variables["params"],
            initial_params(run, member),
            own_labels(run.config, run.dataset, member, "train"),
            own_labels(run.config, run.dataset, member, "test"),
        )


def initial_params(run: FinishedRun, member: Member) -> Params:
    """A network's parameters before the first step, batch normalization absorbed."""
    config = run.config
    model = make_model(config.model, run.dataset.num_classes, batch_norm=config.batch_norm)
    if member.init_std is not None:
        model = model.clone(init_std=member.init_std)
    variables = model.init(member.key(config.seed), jnp.zeros((1, *run.dataset.image_shape)))
    return jax.tree.map(np.asarray, absorb_batch_norm(variables))


def logits_of(apply_fn: ApplyFn, params: Params, images: np.ndarray) -> np.ndarray:
    """Logits float32 [N, K] of uint8 images [N, H, W, C], a batch at a time."""
    size = choose_evaluation_batch_size()
    fill = np.repeat(images[-1:], -len(images) % size, axis=0)
    batches = np.concatenate([images, fill]).reshape(-1, size, *images.shape[1:])
    logits = _map_batches(apply_fn, params, batches)
    return np.asarray(logits).reshape(-1, logits.shape[-1])[: len(images)]


@partial(jax.jit, static_argnums=0)
def _map_batches(apply_fn, params, batches):
    return jax.lax.map(lambda x: apply_fn(params, standardize_images(x)), batches)
