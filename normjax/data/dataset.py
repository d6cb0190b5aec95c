"""The types of a data set, its fixed subsets, and the scaling of its images."""

from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

ArrayT = TypeVar("ArrayT", bound=Any)  # numpy's or JAX's


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
      name: the name that the data set was loaded by.
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


def take_subset(split: Split, size: int | None, which: str) -> Split:
    """Return a fixed pseudo-random subset of exactly `size` examples, in the split's own order.

    The subset is the first `size` entries of one permutation, sorted. It depends on nothing but
    the split's length and `size`, and a smaller subset lies inside every larger one.

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
            f"{which}_size={size} is not possible: the {which} split has {num_examples} examples, "
            f"allowed is 1 to {num_examples}"
        )
    # RandomState: numpy guarantees that its stream never changes, unlike Generator's.
    chosen = np.sort(np.random.RandomState(0).permutation(num_examples)[:size])
    return Split(split.images[chosen], split.labels[chosen])


def standardize_images(images: ArrayT) -> ArrayT:
    """Scale pixels to [-1, 1] as the paper does: `(x / 255 - 0.5) / 0.5`.

    Example:
      >>> import numpy as np
      >>> import normjax
      >>> normjax.standardize_images(np.array([0, 255], np.uint8)).tolist()
      [-1.0, 1.0]

    Args:
      images: uint8 [...], 0..255, a numpy or JAX array (works under jit and vmap).

    Returns:
      float32 [...], of the same kind of array.
    """
    return (images.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def dataset_label(name: str) -> str:
    """Return the data set's name in figures; for a folder, the folder's own name."""
    return Path(name.removeprefix("folder:")).name if name.startswith("folder:") else name
