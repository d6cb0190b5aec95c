"""Synthetic images: noise plus one pattern per class."""

import numpy as np

NUM_CLASSES = 10


def make_data(num_images: int, image_shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Make images that a network can learn to classify in a few epochs.

    Args:
      num_images: N.
      image_shape: (H, W, C).

    Returns:
      Images uint8 [N, H, W, C] and labels int32 [N], the same on every call.
    """
    rng = np.random.default_rng(0)
    patterns = rng.normal(128, 3, (NUM_CLASSES, *image_shape))
    labels = rng.integers(NUM_CLASSES, size=num_images, dtype=np.int32)
    images = patterns[labels] + rng.normal(0, 40, (num_images, *image_shape))
    return np.clip(images, 0, 255).astype(np.uint8), labels
