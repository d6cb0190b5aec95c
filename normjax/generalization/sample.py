"""The training images that the costly measures use, and images made from them."""

from typing import NamedTuple

import jax
import numpy as np

from normjax.data import standardize_images


class Sample(NamedTuple):
    """Training images in random order, with the labels that the network was trained to fit.

    Attributes:
      x: inputs, float32 `[n, ...]`, with pixels in [-1, 1].
      labels: integers `[n]`.
      seed: seed of whatever is drawn for them.
    """

    x: np.ndarray
    labels: np.ndarray
    seed: int


def draw_sample(images: np.ndarray, labels: np.ndarray, size: int, seed: int) -> Sample:
    """Draw training images without replacement; the same for all networks of one seed.

    Args:
      images: uint8 `[N, ...]`.
      labels: integers `[N]`.
      size: maximum number of images.
      seed: seed of the draw.
    """
    chosen = np.random.default_rng(seed).choice(len(labels), min(size, len(labels)), replace=False)
    return Sample(standardize_images(images[chosen]), np.asarray(labels)[chosen], seed)


def mix_within_classes(sample: Sample) -> Sample:
    """Return the mean of each image and a random other image with its label (label-wise mixup).

    Images that are alone in their class are left out.
    """
    rng = np.random.default_rng(sample.seed)
    first, second = [], []
    for label in np.unique(sample.labels):
        members = rng.permutation(np.flatnonzero(sample.labels == label))
        if len(members) > 1:
            first.append(members)
            second.append(np.roll(members, 1))
    if not first:
        return Sample(sample.x[:0], sample.labels[:0], sample.seed)
    one, other = np.concatenate(first), np.concatenate(second)
    return Sample((sample.x[one] + sample.x[other]) / 2, sample.labels[one], sample.seed)


def augment(sample: Sample) -> dict[str, np.ndarray]:
    """Return the images under seven augmentations, by name.

    As in the public code of Aithal, Kashyap and Subramanyam: a flip, a random saturation, a crop of
    the central 90%, horizontal edges, a higher brightness, a flip with a random saturation, and a
    random black rectangle. Images with one channel have no saturation.
    """
    rng = np.random.default_rng(sample.seed)
    pixels = (np.asarray(sample.x, np.float32) + 1) / 2
    flipped = pixels[:, :, ::-1]
    augmented = {
        "flip": flipped,
        "saturation": _saturate(pixels, rng.uniform(0.6, 1.6)),
        "crop": _crop(pixels),
        "edges": _edges(pixels) / 4 + 0.5,
        "brightness": pixels + 0.5,
        "flip_saturation": _saturate(flipped, rng.uniform(0.6, 1.6)),
        "erasure": _erase(pixels, rng),
    }
    return {name: np.asarray(2 * x - 1, np.float32) for name, x in augmented.items()}


def _saturate(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Multiply the HSV saturation, capped at 1; hue and value stay the same."""
    if pixels.shape[-1] != 3:
        return pixels
    value = pixels.max(axis=-1, keepdims=True)
    chroma = value - pixels.min(axis=-1, keepdims=True)
    largest = np.divide(value, chroma, out=np.ones_like(value), where=chroma > 0)
    return value - (value - pixels) * np.minimum(factor, largest)


def _crop(pixels: np.ndarray) -> np.ndarray:
    """Crop 5% from each side, rounded down, and resize to the original size."""
    rows, columns = (int((side - 0.9 * side) / 2) for side in pixels.shape[1:3])
    center = pixels[:, rows : pixels.shape[1] - rows, columns : pixels.shape[2] - columns]
    return np.asarray(jax.image.resize(center, pixels.shape, "linear", antialias=False))


def _edges(pixels: np.ndarray) -> np.ndarray:
    """Return the horizontal Sobel derivative, with mirrored borders."""
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    difference = padded[:, :, 2:] - padded[:, :, :-2]
    return difference[:, :-2] + 2 * difference[:, 1:-1] + difference[:, 2:]


def _erase(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blacken a random rectangle in each image, with sides as in the public code."""
    erased = pixels.copy()
    height, width = pixels.shape[1:3]
    smallest = round((0.02 * height * width * 0.3) ** 0.5)
    largest = round((0.4 * height * width / 0.3) ** 0.5)
    for image in erased:
        h, w = (rng.integers(smallest, min(largest, side)) for side in (height, width))
        top, left = rng.integers(0, height - h), rng.integers(0, width - w)
        image[top : top + h, left : left + w] = 0
    return erased
