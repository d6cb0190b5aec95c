"""The networks of a finished run with their data, for what is computed after training."""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from normjax.batch_norm import absorb_batch_norm
from normjax.data import Dataset, standardize_images
from normjax.files import check_types, make_record, read_object
from normjax.networks.models import make_model
from normjax.results.table import RESULTS_FILE, on_own_labels, read_results
from normjax.training.checkpoints import RUN_FILE
from normjax.training.config import SweepConfig, validate
from normjax.training.ensemble import Member
from normjax.training.evaluate import choose_evaluation_batch_size
from normjax.training.members import own_labels
from normjax.training.plan import Arrays, load_data, without_batch_norm
from normjax.training.record import data_digest
from normjax.training.saved import load_member
from normjax.types import ApplyFn, Params


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
      run_dir: its folder.
      config: its settings.
      dataset: its images and their true labels.
      members: its networks' definitions by number.
      table: the rows of results.csv in which a network meets the labels that it was trained on.
      model: the network as it was trained.
      own_model: the same if the run was given it, else None.
      apply_fn: (params, standardized images float32 [N, H, W, C]) -> logits [N, K] of the network
        without batch normalization, compiled, at the highest matmul precision.
    """

    run_dir: Path
    config: SweepConfig
    dataset: Dataset
    members: Mapping[int, Member]
    table: pd.DataFrame
    model: nn.Module
    own_model: nn.Module | None
    apply_fn: ApplyFn


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network at one selection; arrays are numpy's, batch normalization is absorbed.

    Attributes:
      member: its definition.
      params: its parameters.
      initial_params: those before the first step.
      train_labels: int32 [N], the labels that it was trained to fit.
      test_labels: int32, the same for the test set.
    """

    member: Member
    params: Params
    initial_params: Params
    train_labels: np.ndarray
    test_labels: np.ndarray


def load_run(
    run_dir: str | Path,
    data_dir: str | None = None,
    *,
    model: nn.Module | None = None,
    dataset: Dataset | tuple[Arrays, Arrays] | None = None,
) -> FinishedRun:
    """Read a finished run and its data.

    Args:
      run_dir: its folder.
      data_dir: where the data are now, if they moved.
      model: the network, if the run was given the user's own.
      dataset: the data, if the run was given the user's own.

    Raises:
      FileNotFoundError: there is no run, or its data cannot be found.
      ValueError: the run is not finished or not one of networks, a file is damaged, or the data or
        the network are not the run's.
    """
    run_dir = Path(run_dir)
    path = run_dir / RUN_FILE
    config, members = read_definitions(path)
    run = read_object(path, given=list[str], data_digest=str)
    for name, own in (("model", model), ("dataset", dataset)):
        if (name in run["given"]) != (own is not None):
            needed = "give it again" if own is None else "it was not given one"
            raise ValueError(f"{path}: the run's {name} is {getattr(config, name)}: {needed}")
    table = on_own_labels(read_results(run_dir))
    if unknown := set(table["member"]) - set(members):
        raise ValueError(
            f"{run_dir}: {RUN_FILE} has no member {min(unknown)}, which {RESULTS_FILE} has"
        )
    if data_dir:
        config = dataclasses.replace(config, data_dir=data_dir)
    data = load_data(config, dataset)
    if data_digest(data) != run["data_digest"]:
        raise ValueError(f"{path}: the data {config.dataset} are not those of the run")
    trained = model or make_model(config.model, data.num_classes, batch_norm=config.batch_norm)
    apply_fn = make_apply(without_batch_norm(trained))
    return FinishedRun(run_dir, config, data, members, table, trained, model, apply_fn)


def read_definitions(path: Path) -> tuple[SweepConfig, dict[int, Member]]:
    """Return a finished run's settings and its networks by number, from its run.json.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the run is not finished or has no networks, or the file is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path.parent}: no run here ({RUN_FILE} is missing)")
    run = read_object(path, finished=bool, config=dict)
    if not run["finished"]:
        raise ValueError(f"{path.parent}: this run is not finished; --resume continues it")
    if "members" not in run:
        raise ValueError(f"{path.parent}: {RUN_FILE} names no members; it is not a run of networks")
    check_types(run, {"members": list[dict], "given": list[str]}, str(path))
    config = make_record(SweepConfig, run["config"], f"{path}, config")
    try:
        validate(config, run["given"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    members = [make_record(Member, values, f"{path}, members") for values in run["members"]]
    if [member.index for member in members] != list(range(len(members))):
        raise ValueError(f"{path}: its members are not numbered from 0")
    return config, dict(enumerate(members))


def make_apply(model: nn.Module) -> ApplyFn:
    """Return a network as a compiled function of its parameters, at the highest precision."""

    @jax.jit
    def apply_fn(params, x):
        with jax.default_matmul_precision("highest"):
            return model.apply({"params": params}, x)

    return apply_fn


def networks_at(run: FinishedRun, selection: str) -> Iterator[Network]:
    """Yield a run's networks at a selection ("final", "loss=0.0044"), in their order.

    Raises:
      ValueError: there is none (the message lists the selections), or a file is damaged.
    """
    table = run.table
    present = set(table["member"][table["selection"] == selection])
    if not present:
        known = ", ".join(table["selection"].unique())
        raise ValueError(
            f"{run.run_dir}: no networks at selection {selection!r}; there are: {known}"
        )
    for index in sorted(present):
        member = run.members[index]
        _, variables = load_member(run.run_dir, index, selection, model=run.own_model)
        yield Network(
            member,
            variables["params"],
            initial_params(run, member),
            own_labels(run.config, run.dataset, member, "train"),
            own_labels(run.config, run.dataset, member, "test"),
        )


def initial_params(run: FinishedRun, member: Member) -> Params:
    """Return a network's parameters before the first step, batch normalization absorbed."""
    model = run.model
    if member.init_std is not None:
        model = model.clone(init_std=member.init_std)
    key = member.key(run.config.seed)
    variables = model.init(key, jnp.zeros((1, *run.dataset.image_shape), jnp.float32))
    return jax.tree.map(np.asarray, absorb_batch_norm(variables))


def logits_of(apply_fn: ApplyFn, params: Params, images: np.ndarray) -> np.ndarray:
    """Return logits float32 [N, K] of uint8 images [N, H, W, C], computed in batches."""
    size = choose_evaluation_batch_size()
    fill = np.repeat(images[-1:], -len(images) % size, axis=0)
    batches = np.concatenate([images, fill]).reshape(-1, size, *images.shape[1:])
    logits: Any = _map_batches(apply_fn, params, batches)
    return np.asarray(logits).reshape(-1, logits.shape[-1])[: len(images)]


@partial(jax.jit, static_argnums=0)
def _map_batches(apply_fn, params, batches):
    return jax.lax.map(lambda x: apply_fn(params, standardize_images(x)), batches)
