"""Set up a sweep: the data, the network and the compiled functions."""

import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from normjax.data import Dataset, Split, load_dataset
from normjax.data.dataset import check_classes, take_subset
from normjax.networks.classifier import (
    Classifier,
    Model,
    import_model,
    leaf_shapes,
    make_classifier,
    with_fields,
)
from normjax.networks.models import MODEL_NAMES, ConvNet3, ConvNet5, Linear, make_model
from normjax.norms import parse_norm
from normjax.training import processes
from normjax.training.augment import SHARE
from normjax.training.config import SweepConfig, is_reference
from normjax.training.ensemble import PART, Ensemble, Member, make_ensemble
from normjax.training.step import CPU_MICROBATCH
from normjax.training.strategies import STRATEGIES, strategies_of, use_strategy
from normjax.training.tuning import find_fastest

Arrays = tuple[np.ndarray, np.ndarray]
"""Images uint8 [N, H, W, C] and labels int [N]."""

# In StableHLO: a convolution that `conv_general_dilated` makes fast.
_SLOW = (
    r"\[b, 0, 1, f\]x\[0, 1, i, o\]->\[b, 0, 1, f\], window = \{"
    r"(?![^}]*-)(?![^}]*dilate = \[(?!1, 1\])).*feature_group_count = 1 "
    r".*precision DEFAULT>, #stablehlo<precision DEFAULT>"
)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep, ready to train.

    Attributes:
      experiment: the name of the experiment.
      config: the configuration.
      dataset: the images and the true labels.
      ensemble: the compiled functions.
      groups: the members, in groups that are trained together.
      parameters: the shape of each variable.
      conv: how a device trains many networks, a name in `strategies.STRATEGIES`.
      signal: returns the number of the recorded signal, or 0.
      push: sends the run's folder to its bucket, if it has one; every process must call this.
    """

    experiment: str
    config: SweepConfig
    dataset: Dataset
    ensemble: Ensemble
    groups: list[list[Member]]
    parameters: dict[str, list[int]]
    conv: str
    signal: Callable[[], int] = lambda: 0
    push: Callable[[], None] | None = None


def make_sweep(
    experiment: str,
    config: SweepConfig,
    dataset: Dataset,
    members: Sequence[Member],
    model: Model | None = None,
    conv: str | None = None,
) -> Sweep:
    """Return a sweep with all members in one group.

    Nothing is compiled yet, unless the fastest strategy is found by timing.

    Args:
      experiment: the name of the experiment.
      config: the configuration.
      dataset: the data.
      members: the networks.
      model: the user's own network; None uses the one that the configuration names.
      conv: the strategy of an earlier start; None decides by `config.conv`.

    Raises:
      ValueError: the network cannot be trained on these images.
    """
    if config.augment and min(dataset.image_shape[:2]) < SHARE:
        raise ValueError(f"--augment=true: images of at least {SHARE} x {SHARE} pixels are needed")
    classifier = choose_classifier(config, dataset.image_shape, dataset.num_classes, model)
    parameters = leaf_shapes(classifier)
    if config.devices_per_network > 1:
        parts = (config.batch_size, config.devices_per_network)
        classifier = divide_batches(classifier, dataset.image_shape, *parts)
    elif not can_divide_batches(classifier):
        suggest_convolution(classifier, dataset.image_shape)
    elif not config.resume:
        suggest_sharing(len(members), config.batch_size)

    def make(name: str) -> Ensemble:
        return make_ensemble(
            use_strategy(classifier, dataset.image_shape, name),
            optax.sgd(config.learning_rate, momentum=config.momentum),
            batch_size=config.batch_size,
            target_losses=config.target_losses,
            norms=[parse_norm(name) for name in config.norms],
            weight_decay=config.weight_decay,
            augment=config.augment,
            stop_at_targets=config.stop_at_targets,
            matmul_precision=config.matmul_precision,
            at_once=STRATEGIES[name].at_once,
            devices_per_network=config.devices_per_network,
        )

    allowed = strategies_of(classifier)
    if config.conv not in ("auto", *allowed):
        raise ValueError(f"--conv={config.conv}: this network allows auto, {', '.join(allowed)}")
    if conv is None and config.conv != "auto":
        conv = config.conv
    elif conv is None:
        what = {"model": config.model, "parameters": parameters, "image_shape": dataset.image_shape}
        conv = fastest_strategy(config, make, allowed, len(members), what)
    return Sweep(experiment, config, dataset, make(conv), [list(members)], parameters, conv)


def fastest_strategy(
    config: SweepConfig,
    make: Callable[[str], Ensemble],
    allowed: Sequence[str],
    num_members: int,
    network: dict[str, Any],
) -> str:
    """Return how the devices train the networks fastest; every process must call this."""
    if jax.default_backend() == "cpu":
        return "one_by_one"
    names = ("batch_size", "matmul_precision", "weight_decay", "augment", "devices_per_network")
    places = len(jax.local_devices()) // config.devices_per_network
    return processes.from_first(
        lambda: find_fastest(
            make,
            allowed,
            num_networks=-(-num_members // (jax.process_count() * places)) * places,
            places=places,
            settings={**network, **{name: getattr(config, name) for name in names}},
        )
    )


def divide_batches(
    classifier: Classifier, image_shape: Sequence[int], batch_size: int, num_parts: int
) -> Classifier:
    """Return the network for devices that share each batch.

    Raises:
      ValueError: the number of devices is not a multiple of `num_parts`, a batch has fewer images
        than parts, there are several processes, or the network is the user's own: what it does to
        a batch, such as statistics or dropout, would be done to each part.
    """
    flag, num_devices = f"--devices_per_network={num_parts}", len(jax.local_devices())
    if num_devices % num_parts:
        raise ValueError(
            f"{flag}: must divide the {num_devices} devices; on a CPU, XLA_FLAGS="
            "'--xla_force_host_platform_device_count=N --xla_cpu_multi_thread_eigen=false' sets N"
        )
    if num_parts > batch_size:
        raise ValueError(f"{flag}: must not exceed --batch_size={batch_size}")
    if jax.process_count() > 1:
        raise ValueError(f"{flag}: only for one process, not with --distributed")
    if not can_divide_batches(classifier):
        raise ValueError(f"{flag}: only {', '.join(MODEL_NAMES)} can be trained so")
    if isinstance(classifier.module, ConvNet5):
        return with_fields(classifier, image_shape, axis_name=PART)
    return classifier


def can_divide_batches(classifier: Classifier) -> bool:
    """Return whether several devices can share the batches of a network."""
    return type(classifier.module) in (ConvNet3, ConvNet5, Linear)


def suggest_sharing(num_members: int, batch_size: int) -> None:
    """Print how idle cores can be used if there are fewer networks than cores."""
    cores = len(jax.local_devices())
    most = min(cores // num_members, batch_size // CPU_MICROBATCH)
    allowed = [parts for parts in range(2, most + 1) if cores % parts == 0]
    if allowed and jax.default_backend() == "cpu" and jax.process_count() == 1:
        print(
            f"{num_members} of {cores} cores would train a network: "
            f"--devices_per_network={allowed[-1]} shares each batch",
            file=sys.stderr,
        )


def suggest_convolution(classifier: Classifier, image_shape: Sequence[int]) -> None:
    """Print how the convolutions of a user's network become fast on a CPU, if it has slow ones."""
    if jax.default_backend() != "cpu" or not processes.is_first():
        return
    images = jax.ShapeDtypeStruct((2, *image_shape), np.float32)
    program = jax.jit(classifier.apply).lower(classifier.shapes, images).as_text()
    if re.search(_SLOW, program):
        print(
            "JAX's convolution is slow in a sweep on a CPU; nn.Conv and nnx.Conv are faster with "
            "conv_general_dilated=normjax.conv_general_dilated",
            file=sys.stderr,
        )


def choose_classifier(
    config: SweepConfig, image_shape: Sequence[int], num_classes: int, own: Model | None = None
) -> Classifier:
    """Return the user's own network, or the one that the configuration names.

    A name `package.module:function` imports that module.

    Raises:
      ValueError: the network cannot be trained on these images.
    """
    if own is not None:
        model = own
    elif is_reference(config.model):
        model = import_model(config.model)
    else:
        model = make_model(config.model, num_classes, batch_norm=config.batch_norm)
    return make_classifier(model, image_shape, num_classes, config.tied)


def load_data(config: SweepConfig, own: Dataset | tuple[Arrays, Arrays] | None = None) -> Dataset:
    """Return the data of a configuration, checked against its batch size.

    Args:
      config: the configuration; `train_size` and `test_size` choose a subset.
      own: the user's own data; None loads the data that the configuration names.

    Raises:
      ValueError: the data cannot be found or used.
    """
    if own is None:
        sizes = {"train_size": config.train_size, "test_size": config.test_size}
        dataset = load_dataset(config.dataset, data_dir=config.data_dir, **sizes)
    else:
        dataset = as_dataset(own)
        dataset = dataset._replace(
            train=take_subset(dataset.train, config.train_size, "train"),
            test=take_subset(dataset.test, config.test_size, "test"),
        )
    num_examples = len(dataset.train.labels)
    if config.batch_size > num_examples:
        raise ValueError(
            f"--batch_size={config.batch_size}: must not exceed the {num_examples} training images"
        )
    return dataset


def as_dataset(own: Dataset | tuple[Arrays, Arrays]) -> Dataset:
    """Return the user's data as a `Dataset`; the class names of bare arrays are the labels.

    Raises:
      ValueError: there are fewer than 2 classes, images are not uint8 [N, H, W, C] of one shape, or
        labels are not 0 to K - 1.
    """
    if not isinstance(own, Dataset):
        try:
            (images, labels), (test_images, test_labels) = own
        except (TypeError, ValueError):
            raise ValueError(
                "dataset: a Dataset or ((images, labels), (images, labels)) is needed"
            ) from None
        largest = max(int(np.max(own, initial=1)) for own in (labels, test_labels))
        names = tuple(map(str, range(1 + largest)))
        own = Dataset(Split(images, labels), Split(test_images, test_labels), names, "own data")
    check_classes(own)
    splits = {}
    for name in ("train", "test"):
        images, labels = (np.asarray(part) for part in getattr(own, name))
        if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
            raise ValueError(f"dataset: {name} images must be uint8 [N, H, W, C]")
        if images.shape[1:] != np.shape(own.train.images)[1:]:
            raise ValueError("dataset: training and test images must have one shape")
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise ValueError(f"dataset: {name} labels must be integers [N], one for each image")
        if labels.min() < 0 or labels.max() >= own.num_classes:
            raise ValueError(f"dataset: {name} labels must be from 0 to {own.num_classes - 1}")
        splits[name] = Split(images, labels.astype(np.int32))
    return own._replace(**splits)
