"""All networks of the zoo, by the file that they are in."""

import importlib
import importlib.util
from typing import Any

import jax

from tests.zoo.network import Network

NEEDS = {
    "linen": "flax",
    "linen_activations": "flax",
    "linen_images": "flax",
    "nnx": "flax",
    "haiku": "haiku",
    "equinox": "equinox",
    "stax": "jax",
    "keras": "keras",
    "torch_networks": "torch",
}
"""The package that each file of the zoo needs."""


def load_networks(file: str) -> list[Network]:
    """Return the networks of a file, whose library must be installed."""
    return importlib.import_module(f"tests.zoo.{file}").NETWORKS


def is_installed(file: str) -> bool:
    """Whether the library of a file is installed."""
    return importlib.util.find_spec(NEEDS[file]) is not None


def full_size(name: str) -> tuple[Any, Any, Any]:
    """Return VGG16 or ResNet50 as published, 1,000 classes, with shapes alone."""
    from tests.zoo import linen_images

    model = {
        "VGG16": linen_images.VGG(divisor=1, classes=1000),
        "ResNet50": linen_images.ResNet(linen_images.Bottleneck, (3, 4, 6, 3)),
    }[name]
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    return model.apply, jax.eval_shape(model.init, jax.random.key(0), x), x
