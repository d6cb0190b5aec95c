"""The experiments' flags, and the one frozen configuration that they become.

Only this package knows flags; everything below works on a `Config`.
"""

import dataclasses
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from absl import app, flags, logging

from normjax.training import processes as distributed
from normjax.data.labels import METHODS
from normjax.training.evaluate import parse_norm
from normjax.networks.models import MODEL_NAMES

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Config:
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


# Flags that say where and how a run is done, not what comes out of it.
HOW_NOT_WHAT = (
    "workdir",
    "data_dir",
    "members_per_group",
    "checkpoint_every",
    "resume",
    "distributed",
)


def define_flags(experiment: str, **defaults: object) -> None:
    """Defines the shared flags; an experiment may give other defaults by keyword."""
    default = {
        "workdir": f"runs/{experiment}",
        "corruption_levels": "0,0.1,0.25,0.5,0.75,1",
        "init_stds": "",
        "num_seeds": 1,
        "pretrain_epochs": 30,
        **defaults,
    }
    flags.DEFINE_string("workdir", default["workdir"], "Folder that the run is written to.")
    flags.DEFINE_string(
        "dataset", "digits", "digits, cifar10, cifar100, folder:PATH or a TFDS image set."
    )
    flags.DEFINE_string("data_dir", None, "Folder with the CIFAR archives, or TFDS's data_dir.")
    flags.DEFINE_integer("train_size", None, "Training images to use; all if not given.")
    flags.DEFINE_integer("test_size", None, "Test images to use; all if not given.")
    flags.DEFINE_enum("model", "convnet3", MODEL_NAMES, "The network.")
    flags.DEFINE_bool("batch_norm", False, "Batch normalisation (convnet5 only).")
    flags.DEFINE_list(
        "corruption_levels", default["corruption_levels"], "Fractions of corrupted labels."
    )
    flags.DEFINE_enum("corruption", "swap", METHODS, "How labels are corrupted.")
    flags.DEFINE_list("init_stds", default["init_stds"], "Initial standard deviations.")
    flags.DEFINE_integer("num_seeds", default["num_seeds"], "Networks for each level.")
    flags.DEFINE_integer("seed", 0, "Seed of the whole run.")
    flags.DEFINE_integer(
        "pretrain_epochs", default["pretrain_epochs"], "Epochs on the corrupted labels."
    )
    flags.DEFINE_integer("epochs", 80, "Epochs on the true labels.")
    flags.DEFINE_integer("batch_size", 128, "Examples in a step, in both phases.")
    flags.DEFINE_float("learning_rate", 0.01, "SGD's constant learning rate.")
    flags.DEFINE_float("momentum", 0.9, "SGD's momentum.")
    flags.DEFINE_list(
        "target_losses", "", "Training losses (nats) to keep the nearest snapshot of."
    )
    flags.DEFINE_list("norms", "2,1/100", "Norms: spectral, fro, inf, any p >= 1; /SCALE divides.")
    flags.DEFINE_integer("test_every", 0, "Epochs between test losses in metrics.jsonl; 0: none.")
    flags.DEFINE_integer(
        "members_per_group", None, "Networks trained at once; as many as fit if not given."
    )
    flags.DEFINE_integer("checkpoint_every", 10, "Epochs between two checkpoints.")
    flags.DEFINE_bool("resume", False, "Go on with the run in --workdir.")
    flags.DEFINE_string(
        "distributed", "none", "Processes to share the networks: none, auto or host:port,n,i."
    )
    for field in dataclasses.fields(Config):  # --help lists the main module's flags only
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[field.name])


def run(experiment: Callable[[Config], None]) -> None:
    """Parses the command line and runs; a mistake is one line on stderr and exit code 1."""
    run_command(experiment, _parse)


def run_command(main: Callable[[Any], None], parse: Callable[[Sequence[str]], Any]) -> None:
    """Runs a command's `main` on what its `parse` makes of the command line.

    Where nothing else is made of them, Ctrl-C ends it with exit code 130 and an OSError, as of a
    full disk, with one line and exit code 1, both without a traceback.
    """
    logging.set_verbosity(logging.WARNING)  # orbax and matplotlib tell every step they take
    warnings.formatwarning = lambda message, *_: f"warning: {one_line(message)}\n"
    try:
        app.run(main, flags_parser=parse)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        sys.exit(f"error: {one_line(error)}")


def parse(
    argv: Sequence[str], make_config: Callable[[], T], values: flags.FlagValues = flags.FLAGS
) -> T:
    """Reads the command line into `values`, then the configuration that `make_config` gives.

    A mistake is one line on stderr and exit code 1: an unknown or malformed flag, a stray
    argument, or a ValueError of `make_config`.
    """
    try:
        stray = values(argv)[1:]
        if stray:
            raise ValueError(f"unexpected argument {stray[0]!r}; options are --name=value")
        return make_config()
    except (flags.Error, ValueError) as error:
        sys.exit(f"error: {one_line(error)}")


def one_line(error: Exception) -> str:
    """What the user is told of an error or a warning."""
    return " ".join(str(error).split())


def _parse(argv: Sequence[str]) -> Config:
    def make_config() -> Config:
        config = Config(**{f.name: _value(f.name) for f in dataclasses.fields(Config)})
        validate(config)
        return config

    return parse(argv, make_config)


def _value(name: str) -> object:
    """A flag's value, lists as tuples of floats (norms: of names)."""
    value = flags.FLAGS[name].value
    if not isinstance(value, list):
        return value
    items = tuple(item.strip() for item in value if item.strip())
    if name == "norms":
        return items
    try:
        return tuple(float(item) for item in items)
    except ValueError:
        raise ValueError(f"--{name}={','.join(items)}: numbers with commas are allowed") from None


def validate(config: Config) -> None:
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
    distributed.parse(config.distributed)
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


def prepare_cpu() -> None:
    """One CPU device for each core: members then train side by side, a core each.

    Must be called before JAX starts its backend. Without effect on GPUs and TPUs, and where
    XLA_FLAGS already says how many CPU devices there are.
    """
    xla_flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" in xla_flags:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ["XLA_FLAGS"] = (
        f"{xla_flags} --xla_force_host_platform_device_count={cores}"
        " --xla_cpu_multi_thread_eigen=false"
    ).strip()
