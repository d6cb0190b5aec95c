"""metrics.jsonl, with one line per network and epoch, and the epochs at which to stop training.

The paper recommends monitoring the training loss of the normalized network. The stopping epochs
test this recommendation with metrics.jsonl alone.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normjax.files import check_types, naming, parse_object, read_text, replacing

METRICS_FILE = "metrics.jsonl"
_NEEDED = {"member": int, "family": str, "level": float, "seed": int, "step": int, "phase": str}
_NEEDED |= {"running_loss": float | None, "running_normalized_excess": float | None}
_MEASURED = {"test_loss": float | None, "test_error": float | None}  # every --test_every epochs


@dataclasses.dataclass(frozen=True)
class Stop:
    """The epochs at which three losses would stop one network, among epochs with true labels.

    Epochs count from 1 over both phases. Ties go to the earliest epoch.

    Attributes:
      member: the number of the network.
      level: the level.
      best_epoch: epoch of the lowest test loss.
      raw_epoch: epoch of the lowest training loss, as trained.
      normalized_epoch: epoch of the lowest normalized training loss.
      test_loss_at_best: test loss at `best_epoch`, nats.
      test_loss_at_first: test loss at the first of these epochs that was measured.
      test_loss_at_raw: test loss at `raw_epoch`.
      test_loss_at_normalized: test loss at `normalized_epoch`.
      test_error_at_raw: test error at `raw_epoch`, a fraction.
      test_error_at_normalized: test error at `normalized_epoch`.
    """

    member: int
    level: float
    best_epoch: int
    raw_epoch: int
    normalized_epoch: int
    test_loss_at_best: float
    test_loss_at_first: float
    test_loss_at_raw: float
    test_loss_at_normalized: float
    test_error_at_raw: float
    test_error_at_normalized: float


@dataclasses.dataclass(frozen=True)
class LevelStops:
    """The stopping epochs of a level's networks; losses and errors are means over networks.

    Attributes:
      level: the level.
      num_networks: number of networks.
      is_better: whether `test_loss_at_normalized` is below `test_loss_at_raw`.
      num_lower: number of networks whose `test_loss_at_normalized` is lower.
      num_higher: number of networks whose `test_loss_at_normalized` is higher.
      test_loss_at_best: as in `Stop`, like the remaining fields.
    """

    level: float
    num_networks: int
    is_better: bool
    num_lower: int
    num_higher: int
    test_loss_at_best: float
    test_loss_at_first: float
    test_loss_at_raw: float
    test_loss_at_normalized: float
    test_error_at_raw: float
    test_error_at_normalized: float


def append_metrics(
    run_dir: str | os.PathLike,
    members: Sequence[Any],
    common: Mapping[str, Any],
    values: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Append one line per member for one epoch, and return the lines.

    Numbers that are not finite become null.

    Args:
      run_dir: the folder of the run.
      members: M definitions (index, family, level, seed).
      common: the values that all lines share: group, step (epochs of both phases), phase, epoch.
      values: arrays [M] by name, including diverged_at: the first step with a loss that is not
        finite, or 0 (null in the file).
    """
    lines = []
    for i, member in enumerate(members):
        who = {"member": member.index, "family": member.family}
        who |= {"level": member.level, "seed": member.seed}
        own = {k: v[i].item() if np.isfinite(v[i]) else None for k, v in values.items()}
        own["diverged_at"] = own["diverged_at"] or None
        lines.append({**who, **common, **own})
    path = Path(run_dir) / METRICS_FILE
    with naming(path), open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return lines


def keep_metrics(
    run_dir: str | os.PathLike, members: Sequence[Any], step: int
) -> list[dict[str, Any]]:
    """Drop incomplete lines, and the members' lines after `step`, whose epochs are trained again.

    Print a warning if lines of earlier epochs are missing: those epochs are not trained again.

    Returns:
      The lines of the members that stay.
    """
    path = Path(run_dir) / METRICS_FILE
    before = path.read_bytes() if path.exists() else b""
    kept, own = [], []
    numbers = {member.index for member in members}
    missing = {(number, epoch) for number in numbers for epoch in range(1, step + 1)}
    for line in before.splitlines():
        try:
            record = json.loads(line)
            if record["member"] not in numbers or record["step"] <= step:
                kept.append(line + b"\n")
                if (key := (record["member"], record["step"])) in missing:
                    missing.remove(key)
                    own.append(record)
        except (ValueError, TypeError, KeyError):
            continue
    if missing:
        print(f"{path}: {len(missing)} lines are lost for good", file=sys.stderr)
    after = b"".join(kept)
    if after != before:
        with replacing(path) as temporary:
            temporary.write_bytes(after)
    return own


def read_metrics(run_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl, without those of networks with random labels.

    Random labels do not generalize, so these networks are irrelevant for stopping.

    Raises:
      FileNotFoundError, ValueError: see `read_lines`.
    """
    return _of_true_labels(read_lines(run_dir))


def read_lines(run_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """Return all lines of a run's metrics.jsonl.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: a line is incomplete, is not a JSON object with the required values, is repeated
        or contradicts an earlier one; the message names file and line.
    """
    path = Path(run_dir) / METRICS_FILE
    lines: dict[tuple[int, int], dict[str, Any]] = {}
    networks: dict[int, tuple] = {}
    for number, text in enumerate(read_text(path).rstrip().split("\n"), 1):
        place = f"{path}, line {number}: not a line of metrics"
        line = parse_object(text, place, **_NEEDED)
        if set(_MEASURED) & set(line):
            check_types(line, _MEASURED, place)
        if line["phase"] not in ("pretrain", "train"):
            raise ValueError(f"{place}: phase is neither pretrain nor train")
        key = line["member"], line["step"]
        if key in lines:
            raise ValueError(f"{place}: epoch {key[1]} of member {key[0]} is repeated")
        lines[key] = line
        network = line["family"], line["level"], line["seed"]
        if networks.setdefault(line["member"], network) != network:
            raise ValueError(f"{place}: member {line['member']} was another network before")
    return list(lines.values())


def stopping_epochs(metrics: Sequence[Mapping[str, Any]]) -> list[Stop]:
    """Return the stopping epochs of each network, among epochs with true labels and a test loss.

    Epochs with true labels are those of the second phase, and of the first if no labels were
    corrupted. Training losses are running means over an epoch.

    Args:
      metrics: the lines of metrics.jsonl. Epochs with a null loss are ignored.

    Returns:
      A `Stop` for each network that has a test loss, sorted by level and member.

    Raises:
      ValueError: no lines, or a line without a required value, which the message names.
    """
    stops = []
    for member, lines in lines_by_member(metrics).items():
        late = [line for line in lines if has_true_labels(line)]
        epochs, errors, test, raw, normalized = (
            column(late, name)
            for name in (
                *("step", "test_error", "test_loss"),
                *("running_loss", "running_normalized_excess"),
            )
        )
        known = np.flatnonzero(np.isfinite([epochs, errors, test, raw, normalized]).all(axis=0))
        if not known.size:
            continue
        at_best, at_raw, at_normalized = (
            known[losses[known].argmin()] for losses in (test, raw, normalized)
        )
        stops.append(
            Stop(
                member=member,
                level=lines[0]["level"],
                best_epoch=int(epochs[at_best]),
                raw_epoch=int(epochs[at_raw]),
                normalized_epoch=int(epochs[at_normalized]),
                test_loss_at_best=float(test[at_best]),
                test_loss_at_first=float(test[known[0]]),
                test_loss_at_raw=float(test[at_raw]),
                test_loss_at_normalized=float(test[at_normalized]),
                test_error_at_raw=float(errors[at_raw]),
                test_error_at_normalized=float(errors[at_normalized]),
            )
        )
    return sorted(stops, key=lambda stop: (stop.level, stop.member))


def stopping_by_level(stops: Sequence[Stop]) -> list[LevelStops]:
    """Compare the epochs chosen by the normalized and the raw loss at each level."""
    levels = []
    for level in sorted({stop.level for stop in stops}):
        own = [stop for stop in stops if stop.level == level]
        means = {
            name: float(np.mean([getattr(stop, name) for stop in own]))
            for name in (field.name for field in dataclasses.fields(Stop))
            if name.startswith("test_")
        }
        gains = [stop.test_loss_at_raw - stop.test_loss_at_normalized for stop in own]
        levels.append(
            LevelStops(
                level=level,
                num_networks=len(own),
                is_better=means["test_loss_at_normalized"] < means["test_loss_at_raw"],
                num_lower=sum(gain > 0 for gain in gains),
                num_higher=sum(gain < 0 for gain in gains),
                **means,
            )
        )
    return levels


def read_stops(run_dir: str | os.PathLike) -> list[LevelStops]:
    """Return `level_stops` of a run's metrics.jsonl.

    Raises:
      FileNotFoundError, ValueError: see `read_lines`.
    """
    return level_stops(read_lines(run_dir))


def level_stops(lines: Sequence[Mapping[str, Any]]) -> list[LevelStops]:
    """Return the stopping epochs of the networks with true labels, by level.

    Returns:
      An empty list if there are no such networks, or no test loss was measured.
    """
    metrics = _of_true_labels(lines)
    return stopping_by_level(stopping_epochs(metrics)) if metrics else []


def has_true_labels(line: Mapping[str, Any]) -> bool:
    """Return whether the epoch used uncorrupted labels."""
    return line["phase"] == "train" or line["family"] != "pretrain" or line["level"] == 0


def lines_by_member(metrics: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    """Return the lines of each network in the order of epochs.

    Raises:
      ValueError: no lines, or a line without a required value, which the message names.
    """
    if not metrics:
        raise ValueError("no lines of metrics")
    members: dict[int, list[Mapping[str, Any]]] = {}
    for number, line in enumerate(metrics, 1):
        missing = [name for name in _NEEDED if name not in line]
        if missing:
            raise ValueError(f"line {number} of the metrics has no {', '.join(missing)}")
        members.setdefault(line["member"], []).append(line)
    return {m: sorted(lines, key=lambda line: line["step"]) for m, lines in members.items()}


def column(lines: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Return one value per line, float64; NaN if it is null or absent."""
    return np.array([line.get(name) for line in lines], np.float64)


def _of_true_labels(lines: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [line for line in lines if line["family"] != "random_labels"]
