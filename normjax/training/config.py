"""The configuration of a sweep, and what its values may be."""

import dataclasses
import math
import os
from typing import Any

from normjax.norms import parse_norm
from normjax.training import processes


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Everything that decides a run; every field is the flag of the same name."""

    workdir: str
    dataset: str
    data_dir: str | None
    train_size: int | None
    test_size: int | None
    model: str
    batch_norm: bool
    corruption_levels: tuple[float, ...]
    corruption: str
    init_stds: tuple[float, ...]
    num_seeds: int
    seed: int
    pretrain_epochs: int
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    target_losses: tuple[float, ...]
    norms: tuple[str, ...]
    test_every: int
    members_per_group: int | None
    checkpoint_every: int
    resume: bool
    distributed: str = "none"  # runs from before this flag have none


HOW_NOT_WHAT = (
    "workdir",
    "data_dir",
    "members_per_group",
    "checkpoint_every",
    "resume",
    "distributed",
)


def validate(config: SweepConfig) -> None:
    """Checks what can be checked without the data.

    Raises:
      ValueError: one line that names the flag, its value and what is allowed.
    """

    def check(ok: bool, name: str, allowed: str) -> None:
        if not ok:
            value = getattr(config, name)
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            raise ValueError(f"--{name}={text}: {allowed}")

    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, str) and not _fits_flagfile(value):
            raise ValueError(f"--{field.name}={value!r}: must be one line of Unicode text")
    levels = config.corruption_levels
    check(bool(levels), "corruption_levels", "at least one level is needed")
    check(all(0 <= x <= 1 for x in levels), "corruption_levels", "levels must lie in [0, 1]")
    check(len(set(levels)) == len(levels), "corruption_levels", "every level may stand there once")
    stds = config.init_stds
    check(all(0 < x < math.inf for x in stds), "init_stds", "standard deviations must be positive")
    check(len(set(stds)) == len(stds), "init_stds", "every one may stand there once")
    for name in ("num_seeds", "epochs", "batch_size", "checkpoint_every"):
        check(getattr(config, name) >= 1, name, "must be at least 1")
    for name in ("train_size", "test_size", "members_per_group"):
        check(getattr(config, name) is None or getattr(config, name) >= 1, name, "must be >= 1")
    for name in ("pretrain_epochs", "test_every"):
        check(getattr(config, name) >= 0, name, "must not be negative")
    check_seed(config.seed)
    check(0 < config.learning_rate < math.inf, "learning_rate", "must be positive")
    check(0 <= config.momentum < 1, "momentum", "must lie in [0, 1)")
    targets = config.target_losses
    check(all(0 < t < math.inf for t in targets), "target_losses", "losses must be positive")
    names = {format(t, "g") for t in targets}
    check(len(names) == len(targets), "target_losses", "losses must differ in their six digits")
    check(bool(config.norms), "norms", "at least one norm is needed")
    check(len(set(config.norms)) == len(config.norms), "norms", "every norm may stand there once")
    for name in config.norms:
        parse_norm(name)
    processes.parse(config.distributed)
    has_batch_norm = config.model == "convnet5"
    check(has_batch_norm or not config.batch_norm, "batch_norm", "only convnet5 has it")


def check_seed(seed: int) -> None:
    """Raises ValueError for a seed of more than 32 bits, of which JAX drops the further ones."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed={seed}: must lie in [0, 2^32)")


def check_workdir(workdir: str | os.PathLike) -> None:
    """Raises ValueError if there is a file in the place of the folder."""
    if os.path.exists(workdir) and not os.path.isdir(workdir):
        raise ValueError(f"--workdir={workdir} is a file; a folder is needed")


def _fits_flagfile(value: str) -> bool:
    """Whether a flag's value is one line in UTF-8; the name of a folder can be anything."""
    return not set(value) & set("\r\n") and value.encode(errors="replace").decode() == value


def to_flagfile(config: Any) -> str:
    """A command's configuration as a flagfile that gives the same run, on whatever machines."""
    lines = []
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, tuple):
            value = ",".join(map(str, value))
        if value is not None and name != "distributed":
            lines.append(f"--{name}={str(value).lower() if isinstance(value, bool) else value}\n")
    return "".join(lines)
