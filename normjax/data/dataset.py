"""The types of a data set, fixed subsets, and the scaling of images."""

from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

FOLDER = "folder:"
"""Prefix of a data set's name; the rest is the path of a folder of images."""

ArrayT = TypeVar("ArrayT", bound=Any)  # NumPy or JAX


class Split(NamedTuple):
    """Images and their labels.

    Attributes:
      images: uint8 [N, H, W, C], 0..255, C is 1 (grayscale) or 3 (RGB).
      labels: int32 [N], 0..K-1.
    """

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A training and a test split over the same classes.

    Attributes:
      train: the training split.
      test: the test split.
      class_names: K names; `class_names[label]` is the name of a label.
      name: the name as given to `load_dataset`.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    name: str

    @property
    def num_classes(self) -> int:
        """Return K, the number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (H, W, C), the shape of every image."""
        return self.train.images.shape[1:]


def check_classes(dataset: Dataset) -> None:
    """Raise ValueError unless a data set has at least two classes."""
    if dataset.num_classes < 2:
        known = ", ".join(dataset.class_names) or "none"
        raise ValueError(f"dataset {dataset.name!r}: at least 2 classes are needed, not {known}")


def take_subset(split: Split, size: int | None, which: str) -> Split:
    """Return a fixed pseudorandom subset of exactly `size` examples, in their original order.

    The subset is the sorted first `size` entries of a permutation. It depends only on the length of
    the split and `size`, and subsets of different sizes are nested.

    Args:
      split: the whole split.
      size: the number of examples; None keeps all.
      which: "train" or "test", for the error message.

    Raises:
      ValueError: `size` is below 1 or larger than the split.
    """
    if size is None:
        return split
    num_examples = len(split.labels)
    if not 1 <= size <= num_examples:
        raise ValueError(
            f"{which}_size={size} is not possible: the {which} split has {num_examples} examples; "
            f"allowed is 1 to {num_examples}"
        )
    # NumPy guarantees that the stream of RandomState never changes, unlike that of Generator.
    chosen = np.sort(np.random.RandomState(0).permutation(num_examples)[:size])
    return Split(split.images[chosen], split.labels[chosen])


def standardize_images(images: ArrayT) -> ArrayT:
    """Scale pixels to [-1, 1] as in the paper: `(x / 255 - 0.5) / 0.5`.

    Examples:
      >>> import numpy as np
      >>> import normjax
      >>> normjax.standardize_images(np.array([0, 255], np.uint8)).tolist()
      [-1.0, 1.0]

    Args:
      images: uint8 [...], 0..255, a NumPy or JAX array (works under jit and vmap).

    Returns:
      float32 [...], of the same array type.
    """
    return (images.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def dataset_label(name: str) -> str:
    """Return the name of a data set in figures; for folder:PATH, the last part of the path."""
    return Path(name.removeprefix(FOLDER)).name if name.startswith(FOLDER) else name
