"""The configuration of a sweep, and helpers for the configuration of any command.

A configuration is a frozen dataclass with fields from `setting`. The metadata of a field hold its
help text and its allowed values for `validate` and the command line.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from normjax.data.dataset import FOLDER
from normjax.data.labels import METHODS
from normjax.files import check_address, expand_user, is_address
from normjax.formatting import plain
from normjax.networks.models import MODEL_NAMES
from normjax.norms import parse_norm
from normjax.results.tensorboard import check_installed
from normjax.training import processes
from normjax.training.strategies import STRATEGIES

Check = Callable[[Any], object]
"""A function that raises ValueError, stating the allowed values, if a value is invalid."""


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    allowed: tuple[str, ...] | None = None,
    check: Check | None = None,
    flag: str | None = None,
    is_path: bool = False,
) -> Any:
    """Return a dataclass field for one setting.

    Args:
      default: the default value; a setting without one is required.
      help: one sentence for `--help`.
      allowed: the allowed strings, if they can be listed.
      check: a further check, for values other than None.
      flag: the name of the flag if it differs from the field's, as for `--from`.
      is_path: whether the value is a path, folder:PATH or a tuple of them; see `expand_home`.
    """
    metadata = {"help": help, "allowed": allowed, "check": check, "flag": flag, "is_path": is_path}
    return dataclasses.field(default=default, metadata=metadata)


def flag_name(field: dataclasses.Field) -> str:
    """Return the name of a field's flag."""
    return field.metadata["flag"] or field.name


def expand_home(value: Any) -> Any:
    """Return a path, folder:PATH or a tuple of them with ~ and ~USER expanded as by a shell.

    Without a home folder, ~ stays, and `validate` refuses it.
    """
    if isinstance(value, tuple):
        return tuple(map(expand_home, value))
    if not isinstance(value, str):
        return value
    scheme = FOLDER if value.startswith(FOLDER) else ""
    return scheme + os.path.expanduser(value.removeprefix(scheme))


def validate(config: Any, given: Sequence[str] = ()) -> None:
    """Check each field against its type and metadata, then call `check_together`.

    `check_together` is an optional method that checks settings which restrict each other.

    Args:
      config: the configuration.
      given: fields that only name an object passed from Python; any single line is allowed.

    Raises:
      ValueError: one line with the flag, its value and the allowed values.
    """
    kinds = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), kinds[field.name]
        allowed, check = field.metadata["allowed"], field.metadata["check"]
        try:
            if not _is_of_type(value, kind):
                name = kind.__name__ if isinstance(kind, type) else kind
                raise ValueError(f"must be of type {name}, not {_type_name(value)}")
            if isinstance(value, str) and not _is_one_line(value):
                raise ValueError("must be one line of Unicode text")
            if field.metadata["is_path"] and _needs_home(value):
                raise ValueError("there is no home folder to expand ~")
            if allowed and value not in (None, *allowed):
                raise ValueError(f"allowed are {', '.join(allowed)}")
            if check and field.name not in given and value is not None:
                check(value)
        except ValueError as error:
            raise ValueError(f"--{flag_name(field)}={to_text(value)}: {error}") from None
    if hasattr(config, "check_together"):
        config.check_together()


def _needs_home(value: Any) -> bool:
    """Return whether a result of `expand_home` still has a bare ~."""
    values = value if isinstance(value, tuple) else (value,)
    return any(expand_user(str(each).removeprefix(FOLDER)) is None for each in values)


def check_that(is_allowed: Callable[[Any], bool], allowed: str) -> Check:
    """Return a check that raises ValueError(`allowed`) unless `is_allowed(value)`."""

    def check(value: Any) -> None:
        if not is_allowed(value):
            raise ValueError(allowed)

    return check


def at_least(least: int) -> Check:
    """Return a check that a number is at least `least`."""
    return check_that(lambda value: value >= least, f"must be at least {least}")


positive = check_that(lambda value: 0 < value < math.inf, "must be positive")
not_negative = check_that(lambda value: value >= 0, "must not be negative")
# JAX drops the upper bits of a larger seed.
check_seed = check_that(lambda seed: 0 <= seed < 2**32, "must lie in [0, 2^32)")


def check_workdir(path: str) -> None:
    """Raise ValueError unless it names a local folder or nothing yet."""
    if is_address(path):
        raise ValueError("a local folder is needed, not an address")
    if not path or (os.path.exists(path) and not os.path.isdir(path)):
        raise ValueError("a folder is needed, not a file or an empty name")


def check_list(
    name: str,
    *,
    may_be_empty: bool = False,
    is_allowed: Callable[[Any], bool] = lambda _: True,
    allowed: str = "",
) -> Check:
    """Return a check that a list is not empty, repeats no entry and has only allowed entries.

    Args:
      name: the word for an entry in messages, such as "level".
      may_be_empty: whether an empty list is allowed.
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


def _check_model(name: str) -> None:
    if name not in MODEL_NAMES and not is_reference(name):
        raise ValueError(f"allowed are {', '.join(MODEL_NAMES)} and package.module:function")


def is_reference(name: str) -> bool:
    """Return whether the name of a network is `package.module:function`."""
    module, _, attribute = name.partition(":")
    return all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))


def _check_targets(targets: tuple[float, ...]) -> None:
    if not all(0 < target < math.inf for target in targets):
        raise ValueError("losses must be positive")
    if len({format(target, "g") for target in targets}) < len(targets):
        raise ValueError("losses must differ in their first six significant digits")


def _check_norms(names: tuple[str, ...]) -> None:
    if not names:
        raise ValueError("at least one norm is needed")
    canonical = [parse_norm(name).name for name in names]
    if len(set(canonical)) < len(names):
        pairs = zip(names, canonical, strict=True)
        synonyms = [f"; {name} is {other}" for name, other in pairs if name != other]
        raise ValueError("no norm may be repeated" + "".join(synonyms))


DATASET_HELP = "digits, cifar10, cifar100, fashion_mnist, folder:PATH or a TFDS image set."
DATA_DIR_HELP = "Folder of the CIFAR archives or of Fashion-MNIST, or the data_dir of TFDS."


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """All settings of a sweep; each field has a flag of the same name.

    Only `workdir` is required. Paths are converted to strings with ~ expanded, lists and arrays to
    tuples, NumPy scalars to Python's, and norms to their canonical names.
    """

    workdir: str = setting(
        help="Folder for the output of the run; also gs://BUCKET/FOLDER, s3://BUCKET/FOLDER.",
        check=lambda path: (check_address if is_address(path) else check_workdir)(path),
        is_path=True,
    )
    dataset: str = setting("digits", DATASET_HELP, is_path=True)
    data_dir: str | None = setting(None, DATA_DIR_HELP, is_path=True)
    train_size: int | None = setting(
        None, "Number of training images; default: all.", check=at_least(1)
    )
    test_size: int | None = setting(None, "Number of test images; default: all.", check=at_least(1))
    model: str = setting(
        "convnet3",
        f"{', '.join(MODEL_NAMES)}, or package.module:function that returns a network.",
        check=_check_model,
    )
    batch_norm: bool = setting(False, "Batch normalization (convnet5 only).")
    tied: str = setting(
        "refuse",
        "Layers that cannot be normalized alone: refuse the network, or keep them as they are.",
        allowed=("refuse", "keep"),
    )
    corruption_levels: tuple[float, ...] = setting(
        (0.0, 0.1, 0.25, 0.5, 0.75, 1.0),
        "Fractions of corrupted labels.",
        check=check_list(
            "level", is_allowed=lambda x: 0 <= x <= 1, allowed="levels must lie in [0, 1]"
        ),
    )
    corruption: str = setting("swap", "How to corrupt labels.", allowed=METHODS)
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
    num_seeds: int = setting(1, "Networks per level.", check=at_least(1))
    seed: int = setting(0, "Random seed of the run.", check=check_seed)
    pretrain_epochs: int = setting(30, "Epochs on the corrupted labels.", check=not_negative)
    epochs: int = setting(80, "Epochs on the true labels.", check=at_least(1))
    batch_size: int = setting(128, "Examples per step, in both phases.", check=at_least(1))
    learning_rate: float = setting(0.01, "Constant learning rate of SGD.", check=positive)
    momentum: float = setting(
        0.9, "Momentum of SGD.", check=check_that(lambda x: 0 <= x < 1, "must lie in [0, 1)")
    )
    weight_decay: float = setting(
        0.0,
        "Weight decay of all parameters as in torch.optim.SGD, before momentum; second phase only.",
        check=check_that(lambda x: 0 <= x < math.inf, "must be at least 0 and finite"),
    )
    augment: bool = setting(
        False,
        "Flip and shift the training images at random, each by up to an eighth of its side (4 of "
        "32 pixels), filled with black; second phase only, not where losses are measured.",
    )
    target_losses: tuple[float, ...] = setting(
        (), "Training losses (nats) at which to keep the nearest snapshot.", check=_check_targets
    )
    stop_at_targets: bool = setting(
        False,
        "End each network's training once it has passed all target losses with zero error.",
    )
    norms: tuple[str, ...] = setting(
        ("2", "1/100"),
        "Norms: spectral, fro, inf, any p >= 1; NORM/SCALE divides it by SCALE.",
        check=_check_norms,
    )
    test_every: int = setting(
        0, "Epochs between test losses in metrics.jsonl; 0: never.", check=not_negative
    )
    tensorboard: bool = setting(
        False,
        "Also write the metrics for TensorBoard, to WORKDIR/tensorboard.",
        check=check_installed,
    )
    members_per_group: int | None = setting(
        None, "Networks trained at once; default: as many as fit.", check=at_least(1)
    )
    checkpoint_every: int = setting(10, "Epochs between checkpoints.", check=at_least(1))
    conv: str = setting(
        "auto",
        "How a GPU or TPU trains many networks; auto: the fastest, found by timing.",
        allowed=("auto", *STRATEGIES),
    )
    devices_per_network: int = setting(
        1, "Devices (CPU: cores) that share each batch of a network.", check=at_least(1)
    )
    matmul_precision: str = setting(
        "default",
        "Precision of convolutions in training. default: TF32 on NVIDIA, as in PyTorch, bfloat16 "
        "on TPU; highest: float32, as in evaluation.",
        allowed=("default", "high", "highest"),
    )
    resume: bool = setting(False, "Continue the run in --workdir.")
    distributed: str = setting(
        "none",
        "Processes that share the networks: none, auto or host:port,n,i.",
        check=processes.parse,
    )

    def __post_init__(self) -> None:
        """Convert values to the types of their fields; `validate` refuses what remains."""
        kinds = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _convert(getattr(self, field.name), kinds[field.name])
            value = expand_home(value) if field.metadata["is_path"] else value
            object.__setattr__(self, field.name, value)
        if isinstance(self.norms, tuple):
            names = tuple(str(x) if type(x) in (int, float) else x for x in self.norms)
            with contextlib.suppress(ValueError, AttributeError):
                _check_norms(names)
                names = tuple(parse_norm(name).name for name in names)
            object.__setattr__(self, "norms", names)

    def check_together(self) -> None:
        """Raise ValueError if two settings contradict each other."""
        if self.batch_norm and self.model != "convnet5":
            raise ValueError("--batch_norm=true: only convnet5 has it")
        if self.stop_at_targets and not self.target_losses:
            raise ValueError("--stop_at_targets=true: --target_losses is needed")


HOW_NOT_WHAT = (
    "workdir",
    "data_dir",
    "tensorboard",
    "members_per_group",
    "checkpoint_every",
    "resume",
    "distributed",
)
"""Settings of where and how a sweep runs; they do not change its results."""


def to_flagfile(config: Any) -> str:
    """Return the flagfile that repeats a run on any number of machines."""
    lines = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is not None and field.name != "distributed":
            lines.append(f"--{flag_name(field)}={to_text(value)}\n")
    return "".join(lines)


def _convert(value: Any, kind: Any) -> Any:
    """Convert a value to the type of its field if that loses nothing."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_convert(entry, get_args(kind)[0]) for entry in value)
    is_exact = kind is float and type(value) is int and abs(value) <= 2**53
    return float(value) if is_exact else value


def _is_of_type(value: Any, kind: Any) -> bool:
    """Return whether a value has a type; a bool is not a number."""
    if get_origin(kind) is UnionType:
        return any(_is_of_type(value, argument) for argument in get_args(kind))
    if get_origin(kind) is tuple:
        entry = get_args(kind)[0]
        return isinstance(value, tuple) and all(_is_of_type(item, entry) for item in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind)


def _type_name(value: Any) -> str:
    """Return the name of a value's type, with the types of a tuple's entries."""
    if isinstance(value, tuple):
        return f"tuple of {', '.join(sorted({_type_name(entry) for entry in value}))}"
    return type(value).__name__


def _is_one_line(text: str) -> bool:
    """Return whether a text is one line that UTF-8 can encode, as a flagfile needs."""
    return not set(text) & set("\r\n") and text.encode(errors="replace").decode() == text


def to_text(value: Any) -> str:
    """Return a value as written on the command line; the `repr` of multi-line text."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 10_000:  # Python refuses to print these
        return f"an integer of {value.bit_length()} bits"
    return value if isinstance(value, str) and _is_one_line(value) else plain(value)
