"""The configuration of a sweep, and what any command's configuration is made of.

A configuration is a frozen dataclass whose fields are made by `setting`: a field's help text and
its allowed values are in its metadata, where `validate` and the command line find them.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from normjax.data.labels import METHODS
from normjax.networks.models import MODEL_NAMES
from normjax.norms import parse_norm
from normjax.training import processes

Check = Callable[[Any], object]
"""A check of a value: it raises ValueError with a text that says what is allowed."""


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    allowed: tuple[str, ...] | None = None,
    check: Check | None = None,
    flag: str | None = None,
) -> Any:
    """Return a dataclass field for one setting.

    Args:
      default: the value if none is given; a setting without a default is required.
      help: a sentence for `--help`.
      allowed: the texts that the value may be, if these are few.
      check: a check of the value, unless it is None.
      flag: the flag's name if it is not the field's, as for `--from`.
    """
    metadata = {"help": help, "allowed": allowed, "check": check, "flag": flag}
    return dataclasses.field(default=default, metadata=metadata)


def flag_name(field: dataclasses.Field) -> str:
    """Return the name of a field's flag."""
    return field.metadata["flag"] or field.name


def validate(config: Any, given: Sequence[str] = ()) -> None:
    """Check every field by its type and its metadata, then the whole by `check_together`.

    `check_together` is a method that a configuration has if one value restricts another.

    Args:
      config: the configuration.
      given: fields that only name what was given from Python: any one line of text is allowed.

    Raises:
      ValueError: one line with the flag, its value and what is allowed.
    """
    kinds = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), kinds[field.name]
        allowed, check = field.metadata["allowed"], field.metadata["check"]
        try:
            if not _is_of_type(value, kind):
                name = kind.__name__ if isinstance(kind, type) else kind
                raise ValueError(f"must be of type {name}")
            if isinstance(value, str) and not _is_one_line(value):
                raise ValueError("must be one line of Unicode text")
            if allowed and field.name not in given and value not in (None, *allowed):
                raise ValueError(f"allowed are {', '.join(allowed)}")
            if check and value is not None:
                check(value)
        except ValueError as error:
            raise ValueError(f"--{flag_name(field)}={_to_text(value)}: {error}") from None
    if hasattr(config, "check_together"):
        config.check_together()


def check_that(is_allowed: Callable[[Any], bool], allowed: str) -> Check:
    """Return the check that raises ValueError with the text `allowed` unless a value is allowed."""

    def check(value: Any) -> None:
        if not is_allowed(value):
            raise ValueError(allowed)

    return check


def at_least(least: int) -> Check:
    """Return the check that a number is at least `least`."""
    return check_that(lambda value: value >= least, f"must be at least {least}")


positive = check_that(lambda value: 0 < value < math.inf, "must be positive")
not_negative = check_that(lambda value: value >= 0, "must not be negative")
# JAX drops the further bits of a larger seed.
check_seed = check_that(lambda seed: 0 <= seed < 2**32, "must lie in [0, 2^32)")
check_workdir = check_that(
    lambda path: not os.path.exists(path) or os.path.isdir(path), "a folder is needed, not a file"
)


def check_list(
    name: str,
    *,
    may_be_empty: bool = False,
    is_allowed: Callable[[Any], bool] = lambda _: True,
    allowed: str = "",
) -> Check:
    """Return the check of a list: not empty, no entry repeated, each entry allowed.

    Args:
      name: what an entry is called in the messages, such as "level".
      may_be_empty: whether there may be none.
      is_allowed: whether an entry is allowed.
      allowed: the message if it is not.
    """

    def check(values: tuple) -> None:
        if not values and not may_be_empty:
            raise ValueError(f"at least one {name} is needed")
        if not all(map(is_allowed, values)):
            raise ValueError(allowed)
        if len(set(values)) < len(values):
            raise ValueError(f"no {name} may be repeated")

    return check


def _check_targets(targets: tuple[float, ...]) -> None:
    if not all(0 < target < math.inf for target in targets):
        raise ValueError("losses must be positive")
    if len({format(target, "g") for target in targets}) < len(targets):
        raise ValueError("losses must differ in their six digits")


def _check_norms(names: tuple[str, ...]) -> None:
    if not names:
        raise ValueError("at least one norm is needed")
    if len({parse_norm(name).name for name in names}) < len(names):
        raise ValueError("no norm may be repeated")


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Everything that decides a sweep; each field is the flag of the same name.

    Only `workdir` is required. Lists may be given for tuples, and paths for their names.
    """

    workdir: str = setting(help="Folder that the run is written to.", check=check_workdir)
    dataset: str = setting("digits", "digits, cifar10, cifar100, folder:PATH or a TFDS image set.")
    data_dir: str | None = setting(None, "Folder with the CIFAR archives, or TFDS's data_dir.")
    train_size: int | None = setting(
        None, "Training images to use; all if not given.", check=at_least(1)
    )
    test_size: int | None = setting(
        None, "Test images to use; all if not given.", check=at_least(1)
    )
    model: str = setting("convnet3", "The network.", allowed=MODEL_NAMES)
    batch_norm: bool = setting(False, "Batch normalization (convnet5 only).")
    corruption_levels: tuple[float, ...] = setting(
        (0.0, 0.1, 0.25, 0.5, 0.75, 1.0),
        "Fractions of corrupted labels.",
        check=check_list(
            "level", is_allowed=lambda x: 0 <= x <= 1, allowed="levels must lie in [0, 1]"
        ),
    )
    corruption: str = setting("swap", "How labels are corrupted.", allowed=METHODS)
    init_stds: tuple[float, ...] = setting(
        (),
        "Initial standard deviations.",
        check=check_list(
            "standard deviation",
            may_be_empty=True,
            is_allowed=lambda x: 0 < x < math.inf,
            allowed="standard deviations must be positive",
        ),
    )
    num_seeds: int = setting(1, "Networks for each level.", check=at_least(1))
    seed: int = setting(0, "Seed of the whole run.", check=check_seed)
    pretrain_epochs: int = setting(30, "Epochs on the corrupted labels.", check=not_negative)
    epochs: int = setting(80, "Epochs on the true labels.", check=at_least(1))
    batch_size: int = setting(128, "Examples in a step, in both phases.", check=at_least(1))
    learning_rate: float = setting(0.01, "SGD's constant learning rate.", check=positive)
    momentum: float = setting(
        0.9, "SGD's momentum.", check=check_that(lambda x: 0 <= x < 1, "must lie in [0, 1)")
    )
    target_losses: tuple[float, ...] = setting(
        (), "Training losses (nats) to keep the nearest snapshot of.", check=_check_targets
    )
    norms: tuple[str, ...] = setting(
        ("2", "1/100"),
        "Norms: spectral, fro, inf, any p >= 1; /SCALE divides.",
        check=_check_norms,
    )
    test_every: int = setting(
        0, "Epochs between test losses in metrics.jsonl; 0: none.", check=not_negative
    )
    members_per_group: int | None = setting(
        None, "Networks trained at once; as many as fit if not given.", check=at_least(1)
    )
    checkpoint_every: int = setting(10, "Epochs between two checkpoints.", check=at_least(1))
    resume: bool = setting(False, "Go on with the run in --workdir.")
    distributed: str = setting(
        "none",
        "Processes to share the networks: none, auto or host:port,n,i.",
        check=processes.parse,
    )

    def __post_init__(self) -> None:
        """Turn paths into text, lists into tuples, and whole numbers into floats where due."""
        for name, kind in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _convert(getattr(self, name), kind))

    def check_together(self) -> None:
        """Raise ValueError if one value forbids another."""
        if self.batch_norm and self.model in ("convnet3", "linear"):
            raise ValueError("--batch_norm=true: only convnet5 has it")


HOW_NOT_WHAT = (
    "workdir",
    "data_dir",
    "members_per_group",
    "checkpoint_every",
    "resume",
    "distributed",
)
"""Settings that say where and how a sweep is run: they leave its results as they are."""


def to_flagfile(config: Any) -> str:
    """Return a configuration as a flagfile that repeats the run on any machines."""
    lines = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is not None and field.name != "distributed":
            lines.append(f"--{flag_name(field)}={_to_text(value)}\n")
    return "".join(lines)


def _convert(value: Any, kind: Any) -> Any:
    """Return a value as its type has it, if nothing is lost; other values as they are."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_convert(entry, get_args(kind)[0]) for entry in value)
    return float(value) if kind is float and type(value) is int else value


def _is_of_type(value: Any, kind: Any) -> bool:
    """Return whether a value is of a type; an int is a float, but a bool is no number."""
    if get_origin(kind) is UnionType:
        return any(_is_of_type(value, argument) for argument in get_args(kind))
    if get_origin(kind) is tuple:
        entry = get_args(kind)[0]
        return isinstance(value, tuple) and all(_is_of_type(item, entry) for item in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _is_one_line(text: str) -> bool:
    """Return whether a flagfile can hold a text: one line that UTF-8 can encode."""
    return not set(text) & set("\r\n") and text.encode(errors="replace").decode() == text


def _to_text(value: Any) -> str:
    """Return a value as a command line has it; a text of several lines as Python has it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, str) and not _is_one_line(value) else str(value)
