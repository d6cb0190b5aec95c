"""The experiments' flags, and the one frozen configuration that they become.

Only this package knows flags; everything below works on a `SweepConfig`.
"""

import dataclasses
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from absl import app, flags, logging

from normjax.data.labels import METHODS
from normjax.files import one_line
from normjax.networks.models import MODEL_NAMES
from normjax.training.config import SweepConfig, validate

T = TypeVar("T")


# Flags that say where and how a run is done, not what comes out of it.


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
    flags.DEFINE_bool("batch_norm", False, "Batch normalization (convnet5 only).")
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
    for field in dataclasses.fields(SweepConfig):  # --help lists the main module's flags only
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[field.name])


def run(experiment: Callable[[SweepConfig], None]) -> None:
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


def _parse(argv: Sequence[str]) -> SweepConfig:
    def make_config() -> SweepConfig:
        config = SweepConfig(**{f.name: _value(f.name) for f in dataclasses.fields(SweepConfig)})
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
