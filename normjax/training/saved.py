"""Save and load finished networks: their variables and their rows of results.csv.

DIR/checkpoints/members/003_final.npz   one network at one selection, one array per variable
DIR/checkpoints/groups/000.csv          the rows of a finished group
DIR/checkpoints/groups/000.csv.sha256   the digest of the rows, in the format of sha256sum
"""

import contextlib
import hashlib
import io
import json
import operator
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from normjax.files import local_path, make_record, one_line, read_object, replacing
from normjax.networks.classifier import Classifier, Model, Variables, leaf_names, leaf_shapes
from normjax.results.table import RESULTS_FILE, check_table, read_results, write_results
from normjax.training import processes
from normjax.training.checkpoints import RUN_FILE, digest
from normjax.training.config import SweepConfig
from normjax.training.ensemble import Member
from normjax.training.plan import choose_classifier

CLASSIFIER_KINDS = {"model": str, "num_classes": int, "image_shape": list[int]}
CLASSIFIER_KINDS |= {"given": list[str], "parameters": dict, "config": dict}
"""Fields of run.json that `classifier_of` needs, and their types."""


def save_network(
    run_dir: str | os.PathLike, run_seed: int, member: Member, selection: str, variables: Variables
) -> None:
    """Save a network at one selection, and read it back.

    The comment of the zip archive identifies the network, so that a renamed file is refused.

    Args:
      run_dir: the folder of the run.
      run_seed: the seed of the run.
      member: the definition of the network.
      selection: "final" or "loss=0.0044".
      variables: the trained variables, NumPy arrays.

    Raises:
      OSError: the file cannot be written, or reads back differently.
    """
    path, own = network_path(run_dir, member.index, selection), member._asdict()
    leaves = map(np.asarray, jax.tree.leaves(variables))
    arrays = dict(zip(leaf_names(variables), leaves, strict=True))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.comment = identity(run_seed, own, selection)
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())
    with reading_back(path):
        found = read_arrays(path, identity(run_seed, own, selection))
        if digest(found) != digest(arrays):
            raise ValueError("its arrays are not those of the network")


@contextlib.contextmanager
def reading_back(path: Path) -> Iterator[None]:
    """Turn every error of reading what was just written into an OSError."""
    try:
        yield
    except (ValueError, OSError) as error:
        text = one_line(error)
        raise OSError(f"{path}: what was written cannot be read back: {text}") from error


def network_path(run_dir: str | os.PathLike, number: int, selection: str) -> Path:
    """Return the file of a network."""
    return Path(run_dir) / "checkpoints" / "members" / f"{number:03d}_{selection}.npz"


def identity(run_seed: int, member: Mapping[str, Any], selection: str) -> bytes:
    """Return the comment in a network's file, JSON; `member` is as in run.json."""
    return json.dumps({"run_seed": run_seed, **member, "selection": selection}).encode()


def read_arrays(path: Path, expected: bytes) -> dict[str, np.ndarray]:
    """Return the arrays in a network's file by name.

    Args:
      path: the file.
      expected: the `identity` of the network.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is damaged (each array has a checksum) or holds another network.
    """
    content = io.BytesIO(path.read_bytes())
    try:
        with zipfile.ZipFile(content) as archive:
            arrays = {
                name.removesuffix(".npy"): np.lib.format.read_array(
                    io.BytesIO(archive.read(name)), allow_pickle=False
                )
                for name in archive.namelist()
            }
    except Exception as error:  # zipfile and numpy raise many types
        raise ValueError(f"{path}: damaged, it cannot be read: {one_line(error)}") from error
    if archive.comment != expected:
        found = archive.comment.decode(errors="replace")
        raise ValueError(
            f"{path}: damaged or renamed, it holds {one_line(found)!r}, not {expected.decode()!r}"
        )
    return arrays


def load_member(
    run_dir: str | os.PathLike,
    member: int,
    selection: str = "final",
    *,
    model: Model | None = None,
) -> tuple[Classifier, Variables]:
    """Load a trained network of a run.

    Args:
      run_dir: the folder of the run.
      member: the number in results.csv.
      selection: "final" or "loss=0.0044", as in results.csv.
      model: your own network, if the run used it.

    Returns:
      (model, variables) for `model.apply(variables, images)` with standardized float images
      [N, H, W, C]. The variables are NumPy arrays; batch normalization is in evaluation mode.
      `model.structure` is that of the variables.

    Raises:
      FileNotFoundError: the folder has no run, the network is not trained yet, or its file is
        missing.
      TypeError: `member` is not an integer.
      ValueError: the member or selection does not exist (the message lists the valid ones), the
        file is damaged or of another network, or the run used your own network and `model` is
        missing.
    """
    member = operator.index(member)
    path = local_path(run_dir) / RUN_FILE
    if not path.exists():
        raise FileNotFoundError(f"{run_dir}: no run here ({RUN_FILE} is missing)")
    kinds = {"groups": list[list[int]], "members": list[dict], "seed": int, "finished": bool}
    run = read_object(path, **kinds, **CLASSIFIER_KINDS)
    num_members = len(run["members"])
    if member not in range(num_members):
        raise ValueError(f"{run_dir}: no member {member}; there are 0 to {num_members - 1}")
    file = network_path(run_dir, member, selection)
    if not file.exists():
        raise _why_missing(file, run_dir, run, member, selection)
    classifier = classifier_of(path, run, model)
    expected = identity(run["seed"], run["members"][member], selection)
    return classifier, load_variables(file, expected, classifier)


def load_variables(path: Path, expected: bytes, classifier: Classifier) -> Variables:
    """Return the variables in a network's file.

    Args:
      path: the file.
      expected: the `identity` of the network.
      classifier: the network.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is damaged or holds another network.
    """
    arrays = read_arrays(path, expected)
    leaves, treedef = jax.tree.flatten(classifier.shapes)
    names = leaf_names(classifier.shapes)
    wanted = {name: (x.shape, x.dtype) for name, x in zip(names, leaves, strict=True)}
    if {name: (array.shape, array.dtype) for name, array in arrays.items()} != wanted:
        raise ValueError(f"{path}: damaged, its arrays are not the network's variables")
    return jax.tree.unflatten(treedef, [arrays[name] for name in names])


def classifier_of(path: Path, run: dict[str, Any], own: Model | None) -> Classifier:
    """Return the network of a run.

    Args:
      path: the file run.json, for messages.
      run: the content of that file.
      own: the user's own network, required if the run used one.

    Raises:
      ValueError: `own` is missing or does not match the run.
    """
    if own is None and "model" in run["given"]:
        raise ValueError(f"{path}: the run used your network {run['model']}: pass it again")
    if own is not None and "model" not in run["given"]:
        raise ValueError(f"{path}: the run's network is {run['model']}: do not pass another")
    try:
        config = make_record(SweepConfig, run["config"], "config")
        classifier = choose_classifier(config, run["image_shape"], run["num_classes"], own)
    except Exception as error:  # a user's network or a damaged record
        reason = processes.why_no_devices() or one_line(error)
        raise ValueError(f"{path}: the network cannot be made: {reason}") from error
    if leaf_shapes(classifier) != run["parameters"]:
        raise ValueError(f"{path}: the network's variables differ from the run's")
    return classifier


def save_rows(run_dir: str | os.PathLike, group: int, table: pd.DataFrame) -> None:
    """Save the rows of a group once they read back correctly; the group is then finished.

    Raises:
      OSError: a file cannot be written, or reads back differently.
    """
    path = rows_path(run_dir, group)
    with replacing(path) as temporary:
        write_results(temporary, table)
        with reading_back(path):
            if not read_results(temporary).equals(check_table(table)):
                raise ValueError("its rows are not those of the group")
        with replacing(_digest_path(path)) as line:
            line.write_text(_digest_line(temporary, path.name), encoding="ascii")


def read_rows(run_dir: str | os.PathLike, group: int) -> pd.DataFrame:
    """Read the rows of a finished group.

    Raises:
      OSError: a file cannot be read.
      ValueError: the rows are damaged.
    """
    path = rows_path(run_dir, group)
    text = _digest_path(path).read_text(encoding="ascii", errors="replace")
    if text != _digest_line(path, path.name):
        raise ValueError(
            f"{path}: damaged, its SHA-256 has changed; remove this file and those of later "
            "groups, and --resume trains them again"
        )
    return read_results(path)


def rows_path(run_dir: str | os.PathLike, group: int) -> Path:
    """Return the file with a group's rows."""
    return Path(run_dir) / "checkpoints" / "groups" / f"{group:03d}.csv"


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digest_line(path: Path, name: str) -> str:
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n"


def _why_missing(
    file: Path, run_dir: str | os.PathLike, run: dict[str, Any], member: int, selection: str
) -> Exception:
    """Return the error for a network without a file."""
    rows = Path(run_dir) / RESULTS_FILE
    if not run["finished"]:
        group = next((i for i, group in enumerate(run["groups"]) if member in group), 0)
        rows = rows_path(run_dir, group)
        if not rows.exists():
            return FileNotFoundError(f"{run_dir}: member {member} is not fully trained yet")
    table = read_results(rows)
    known = sorted(set(table["selection"][table["member"] == member]))
    if selection in known:
        return FileNotFoundError(f"{file}: the file of a trained network is missing")
    return ValueError(
        f"{run_dir}: member {member} has no network {selection!r}; it has: {', '.join(known)}"
    )
