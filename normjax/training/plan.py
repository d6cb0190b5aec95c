"""Set up a sweep: the data, the network and the compiled functions."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from normjax.batch_norm import absorb_batch_norm
from normjax.data import Dataset, Split, load_dataset, standardize_images
from normjax.data.dataset import take_subset
from normjax.files import one_line
from normjax.networks.models import make_model
from normjax.normalize import check_homogeneity
from normjax.norms import parse_norm
from normjax.training.config import SweepConfig
from normjax.training.ensemble import Ensemble, Member, make_ensemble
from normjax.types import Array, Params

Arrays = tuple[np.ndarray, np.ndarray]
"""Images uint8 [N, H, W, C] and labels int [N]."""

_TOLERANCE = 1e-4  # relative; rounding in float32 is near 1e-6


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep, ready to train.

    Attributes:
      experiment: the name of the experiment.
      config: the configuration.
      dataset: the images and the true labels.
      ensemble: the compiled functions.
      groups: the members, in groups that are trained together.
      parameters: the shape of each parameter, without batch normalization.
      signal: returns the number of the recorded signal, or 0.
    """

    experiment: str
    config: SweepConfig
    dataset: Dataset
    ensemble: Ensemble
    groups: list[list[Member]]
    parameters: dict[str, list[int]]
    signal: Callable[[], int] = lambda: 0


def make_sweep(
    experiment: str,
    config: SweepConfig,
    dataset: Dataset,
    members: Sequence[Member],
    model: nn.Module | None = None,
) -> Sweep:
    """Return a sweep with all members in one group; nothing is compiled yet.

    Args:
      experiment: the name of the experiment.
      config: the configuration.
      dataset: the data.
      members: the networks.
      model: the user's own network; None uses the one that the configuration names.

    Raises:
      ValueError: the network cannot be trained on these images.
    """
    if model is None:
        model = make_model(config.model, dataset.num_classes, batch_norm=config.batch_norm)
    else:
        check_own_model(model, dataset, members)
    ensemble = make_ensemble(
        model,
        without_batch_norm(model),
        optax.sgd(config.learning_rate, momentum=config.momentum),
        image_shape=dataset.image_shape,
        batch_size=config.batch_size,
        target_losses=config.target_losses,
        norms=[parse_norm(name) for name in config.norms],
    )
    parameters = parameter_shapes(model, dataset.image_shape)
    return Sweep(experiment, config, dataset, ensemble, [list(members)], parameters)


def without_batch_norm(model: nn.Module) -> nn.Module:
    """Return the network that takes the parameters from `absorb_batch_norm`."""
    return model.clone(batch_norm=False) if getattr(model, "batch_norm", False) else model


def abstract_params(model: nn.Module, image_shape: Sequence[int]) -> Any:
    """Return the shapes and dtypes of a network's parameters, without batch normalization."""
    init = without_batch_norm(model).init
    images = jnp.zeros((1, *image_shape), jnp.float32)
    return jax.eval_shape(init, jax.random.key(0), images)["params"]


def parameter_shapes(model: nn.Module, image_shape: Sequence[int]) -> dict[str, list[int]]:
    """Return the shape of each parameter by path, as in run.json."""
    leaves = jax.tree.leaves_with_path(abstract_params(model, image_shape))
    return {path_name(path): list(leaf.shape) for path, leaf in leaves}


def path_name(path: Any) -> str:
    """Return a leaf's path as "Dense_0/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


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
      ValueError: images are not uint8 [N, H, W, C] of one shape, or labels are not 0 to K - 1.
    """
    if not isinstance(own, Dataset):
        try:
            (images, labels), (test_images, test_labels) = own
        except (TypeError, ValueError):
            raise ValueError(
                "dataset: a Dataset or ((images, labels), (images, labels)) is needed"
            ) from None
        num_classes = 1 + max(np.max(labels, initial=1), np.max(test_labels, initial=1))
        names = tuple(map(str, range(int(num_classes))))
        own = Dataset(Split(images, labels), Split(test_images, test_labels), names, "own data")
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


def check_own_model(model: nn.Module, dataset: Dataset, members: Sequence[Member]) -> None:
    """Check that the user's network can be trained and satisfies eq. 2.

    The check draws random parameters, including biases, which are often initialized to zero.

    Raises:
      ValueError: one line that states the problem.
    """
    name = f"model {type(model).__name__}"
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name}: a Linen module is needed")
    if any(member.init_std is not None for member in members) and not hasattr(model, "init_std"):
        raise ValueError(f"{name}: it needs a field init_std, which this experiment varies")
    plain = without_batch_norm(model)
    images = jnp.asarray(standardize_images(dataset.test.images[:16]))

    def apply_fn(params: Params, x: Array) -> Any:
        return plain.apply({"params": params}, x)

    try:
        variables = model.init(jax.random.key(0), images[:1])
        params = absorb_batch_norm(variables)
        expected = plain.init(jax.random.key(0), images[:1])
        logits = apply_fn(params, images)
    except Exception as error:  # user code may raise anything
        raise ValueError(
            f"{name}: it cannot be applied to the images: {one_line(error)}"
        ) from error
    if set(variables) - {"params"} and plain is model:
        raise ValueError(f"{name}: batch normalization needs a field batch_norm that is true")
    if set(expected) != {"params"} or jax.tree.map(jnp.shape, dict(params)) != jax.tree.map(
        jnp.shape, dict(expected["params"])
    ):
        raise ValueError(f"{name}: with batch_norm=False it must have the absorbed parameters")
    if any(leaf.dtype != jnp.float32 for leaf in jax.tree.leaves(variables)):
        raise ValueError(f"{name}: its parameters must be float32")
    if logits.shape != (len(images), dataset.num_classes):
        raise ValueError(
            f"{name}: its logits have shape {logits.shape}, not "
            f"{(len(images), dataset.num_classes)}"
        )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(x.dtype), params)
    check = check_homogeneity(apply_fn, params, images)
    if not check.relative_error < _TOLERANCE:
        raise ValueError(
            f"{name}: normalizing changes its predictions (relative error "
            f"{check.relative_error:.2g}): a layer is not homogeneous in its weights, or the names "
            "of the layers are not in the order of their application"
        )
