"""Load the networks and the data of a finished run."""

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import pandas as pd

from normjax.data import Dataset, standardize_images
from normjax.files import check_types, local_path, make_record, read_object
from normjax.networks.classifier import Classifier, Model, Variables
from normjax.results.table import RESULTS_FILE, on_own_labels, read_results
from normjax.training import processes
from normjax.training.checkpoints import RUN_FILE
from normjax.training.config import (
    HOW_NOT_WHAT,
    SweepConfig,
    check_list,
    check_workdir,
    to_text,
    validate,
)
from normjax.training.ensemble import Member
from normjax.training.evaluate import choose_evaluation_batch_size
from normjax.training.members import own_labels
from normjax.training.plan import Arrays, load_data
from normjax.training.record import (
    KEY_SETTINGS,
    check_random_settings,
    data_digest,
    located,
)
from normjax.training.saved import (
    CLASSIFIER_KINDS,
    classifier_of,
    identity,
    load_variables,
    network_path,
)
from normjax.types import ApplyFn

K = TypeVar("K", bound=Hashable)


def check_runs(folders: Sequence[str]) -> None:
    """Raise ValueError unless folders of runs are given, each once."""
    check_list("run")(tuple(Path(folder).resolve() for folder in folders))


def check_output(workdir: str) -> None:
    """Raise ValueError unless an analysis of several runs may write to the folder."""
    check_workdir(workdir)
    if (Path(workdir) / RUN_FILE).exists():
        raise ValueError("it holds a run; give another folder")


MOVED_HELP = {
    "dataset": "New folder:PATH or name of the runs' data, if moved; the data must be the same.",
    "data_dir": "New folder of the runs' data, if they moved.",
}


class OtherDataError(ValueError):
    """The data are not those that the run used."""


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
      run_dir: the folder.
      config: the settings.
      dataset: the images and the true labels.
      members: the members by index.
      table: the rows of results.csv that use the labels each network was trained on.
      classifier: the network.
      apply_fn: `classifier.apply`, compiled, at the highest matmul precision.
    """

    run_dir: Path
    config: SweepConfig
    dataset: Dataset
    members: Mapping[int, Member]
    table: pd.DataFrame
    classifier: Classifier
    apply_fn: ApplyFn


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network at one selection, as NumPy arrays.

    Attributes:
      member: the definition.
      variables: the trained variables.
      initial_variables: the variables before the first step.
      train_labels: int32 [N], the labels that the network was trained to fit.
      test_labels: int32, the corresponding labels of the test set.
    """

    member: Member
    variables: Variables
    initial_variables: Variables
    train_labels: np.ndarray
    test_labels: np.ndarray


def load_run(
    run_dir: str | Path,
    data_dir: str | None = None,
    *,
    model: Model | None = None,
    dataset: str | Dataset | tuple[Arrays, Arrays] | None = None,
) -> FinishedRun:
    """Read a finished run and its data.

    Args:
      run_dir: the folder of the run.
      data_dir: the new folder of the data, if they moved.
      model: your own network, if the run used it.
      dataset: the new name or folder:PATH of the data, if they moved; or your own data, if the run
        used them.

    Raises:
      FileNotFoundError: the run cannot be found.
      OtherDataError: the data are not those of the run.
      ValueError: the run is unfinished or has no networks, its data cannot be found, a file is
        damaged, or the network does not match the run.
    """
    run_dir = local_path(run_dir)
    path = run_dir / RUN_FILE
    config, members = read_definitions(path)
    run = read_object(path, data_digest=str, **CLASSIFIER_KINDS)
    check_random_settings(run, path, KEY_SETTINGS)  # initial variables are drawn again
    name, own = (dataset, None) if isinstance(dataset, str) else (None, dataset)
    if name is None and ("dataset" in run["given"]) != (own is not None):
        needed = "pass it again" if own is None else "do not pass another"
        raise ValueError(f"{path}: the run's dataset is {config.dataset}: {needed}")
    classifier = classifier_of(path, run, model)
    table = on_own_labels(read_results(run_dir))
    if unknown := set(table["member"]) - set(members):
        raise ValueError(
            f"{run_dir}: member {min(unknown)} of {RESULTS_FILE} is missing from {RUN_FILE}"
        )
    moved = {"dataset": name or config.dataset, "data_dir": data_dir or config.data_dir}
    where = located(dataclasses.replace(config, **moved), run, str(path))
    try:
        data = load_data(where, own)
    except ValueError as error:
        hint = "" if own else "; if the data moved, give their --dataset or --data_dir"
        raise ValueError(f"{error}{hint}") from None
    if data_digest(data) != run["data_digest"]:
        raise OtherDataError(f"{path}: the data {where.dataset} differ from those of the run")
    return FinishedRun(run_dir, config, data, members, table, classifier, make_apply(classifier))


def load_together(load: Callable[[], FinishedRun], model: Model | None) -> FinishedRun:
    """Return a run that process 0 loads; every process must call this.

    Args:
      load: loads the run.
      model: your own network, if the run used it.

    Raises:
      SettingsError: the run cannot be loaded.
    """
    if jax.process_count() == 1:
        return load()
    loaded = []

    def read() -> tuple[dict[str, Any], dict[str, Any]]:
        run = load()
        loaded.append(run)
        names = ("run_dir", "config", "dataset", "members", "table")
        return {name: getattr(run, name) for name in names}, read_object(run.run_dir / RUN_FILE)

    values, run = processes.from_first(read)
    if loaded:
        return loaded[0]
    classifier = classifier_of(values["run_dir"] / RUN_FILE, run, model)
    return FinishedRun(**values, classifier=classifier, apply_fn=make_apply(classifier))


def read_definitions(path: Path) -> tuple[SweepConfig, dict[int, Member]]:
    """Return the settings of a finished run and its members by index, from its run.json.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the run is unfinished or has no networks, or the file is damaged.
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


def different_settings(configs: Mapping[K, SweepConfig]) -> dict[str, dict[K, str]]:
    """Return {setting: {key: text}} for settings that change results and have several values."""
    found = {}
    for field in dataclasses.fields(SweepConfig):
        values = {key: to_text(getattr(config, field.name)) for key, config in configs.items()}
        if field.name not in HOW_NOT_WHAT and len(set(values.values())) > 1:
            found[field.name] = values
    return found


def make_apply(classifier: Classifier) -> ApplyFn:
    """Compile the forward pass of a network at the highest matmul precision."""

    @jax.jit
    def apply_fn(variables, x):
        with jax.default_matmul_precision("highest"):
            return classifier.apply(variables, x)

    return apply_fn


def networks_at(run: FinishedRun, selection: str) -> Iterator[Network]:
    """Yield a run's networks at a selection ("final", "loss=0.0044"), by index.

    Raises:
      ValueError: the selection has no networks (the message lists all), or a file is damaged.
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
        expected = identity(run.config.seed, member._asdict(), selection)
        path = network_path(run.run_dir, index, selection)
        yield Network(
            member,
            load_variables(path, expected, run.classifier),
            initial_variables(run, member),
            own_labels(run.config, run.dataset, member, "train"),
            own_labels(run.config, run.dataset, member, "test"),
        )


def initial_variables(run: FinishedRun, member: Member) -> Variables:
    """Return a member's variables before the first step."""
    variables = run.classifier.init(member.key(run.config.seed), member.init_std)
    return jax.tree.map(np.asarray, variables)


def logits_of(apply_fn: ApplyFn, variables: Variables, images: np.ndarray) -> np.ndarray:
    """Return the logits float32 [N, K] of uint8 images [N, H, W, C], computed in batches."""
    size = choose_evaluation_batch_size()
    fill = np.repeat(images[-1:], -len(images) % size, axis=0)
    batches = np.concatenate([images, fill]).reshape(-1, size, *images.shape[1:])
    logits: Any = _map_batches(apply_fn, variables, batches)
    return np.asarray(logits).reshape(-1, logits.shape[-1])[: len(images)]


@partial(jax.jit, static_argnums=0)
def _map_batches(apply_fn, variables, batches):
    return jax.lax.map(lambda x: apply_fn(variables, standardize_images(x)), batches)
