"""Random flips and shifts of training images (`--augment`)."""

import zlib

import jax
import jax.numpy as jnp

from normjax.types import Array

SHARE = 8  # shifts of up to an eighth of the side: 4 pixels of 32, as usual for CIFAR
STREAM = zlib.crc32(b"augment")  # keeps the draws apart from the step's other random numbers


def augment_images(images: Array, key: Array) -> Array:
    """Flip each image with probability 1/2, and shift it by its own number of pixels.

    Shifts down and right are uniform from -H // 8 to H // 8 and from -W // 8 to W // 8. What moves
    in is black, as in torchvision's `RandomCrop(32, padding=4)` before standardization.

    Args:
      images: uint8 [B, H, W, C].
      key: the key of the step.

    Returns:
      uint8 [B, H, W, C].
    """
    num, height, width, _ = images.shape
    rows, columns = height // SHARE, width // SHARE
    for_flips, for_rows, for_columns = jax.random.split(jax.random.fold_in(key, STREAM), 3)
    is_flipped = jax.random.bernoulli(for_flips, shape=(num, 1, 1, 1))
    images = jnp.where(is_flipped, images[:, :, ::-1], images)
    tops = jax.random.randint(for_rows, (num,), 0, 2 * rows + 1)
    lefts = jax.random.randint(for_columns, (num,), 0, 2 * columns + 1)
    padded = jnp.pad(images, ((0, 0), (rows, rows), (columns, columns), (0, 0)))

    def crop(image, top, left):
        return jax.lax.dynamic_slice(image, (top, left, jnp.zeros_like(top)), images.shape[1:])

    return jax.vmap(crop)(padded, tops, lefts)
