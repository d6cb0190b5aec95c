"""The ways to train many networks on a device, by name; `tuning.py` times them."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

from normjax.networks.classifier import Classifier, with_fields
from normjax.networks.models import ConvNet3, ConvNet5

ALL = sys.maxsize  # networks


class Strategy(NamedTuple):
    """A way to train many networks on a device.

    Attributes:
      algorithm: that of the convolutions, a name in `normjax.networks.algorithms.ALGORITHMS`.
      at_once: networks that a device trains side by side, see `map_members`.
    """

    algorithm: str
    at_once: int


STRATEGIES = {
    "one_by_one": Strategy("platform", 1),
    "groups_of_8": Strategy("platform", 8),
    "grouped": Strategy("platform", ALL),
    "loop": Strategy("xla_loop", ALL),
    "loop_dkernel": Strategy("xla_loop_dkernel", ALL),
    "patches": Strategy("patches", ALL),
    "tiles_2x2": Strategy("tiles_2x2", ALL),
    "tiles_4x4": Strategy("tiles_4x4", ALL),
    "toom_cook": Strategy("cpu", ALL),
}


def use_strategy(classifier: Classifier, image_shape: Sequence[int], name: str) -> Classifier:
    """Return the network with the convolution of a strategy."""
    algorithm = STRATEGIES[name].algorithm
    if algorithm == "platform":
        return classifier
    return with_fields(classifier, image_shape, algorithm=algorithm)


def strategies_of(classifier: Classifier) -> list[str]:
    """Return the strategies for a network; most are for the paper's convolutional ones."""
    is_ours = isinstance(classifier.module, ConvNet3 | ConvNet5)
    return [n for n, (algorithm, _) in STRATEGIES.items() if is_ours or algorithm == "platform"]
