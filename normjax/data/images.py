"""Decode image files as viewers show them."""

import warnings
from typing import Any

import numpy as np

from normjax.files import one_line

MAX_SIDE = 1024
ALLOWED_SIZE = f"allowed is up to {MAX_SIDE} a side"
ALLOWED_DEPTH = "only 8-bit images are read"
# Only plain raster formats: Pillow passes others, such as EPS, to an external interpreter.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
GRAY_MODES = ("1", "L", "LA")
COLOR_MODES = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
TIFF_BITS_PER_SAMPLE = 258

FIRST_FRAME = "have several frames or pages, and the first is read"
ON_WHITE = "have transparent pixels, and are read as on white"


def decode_image(path: str) -> tuple[np.ndarray, list[str]]:
    """Decode one image file.

    The EXIF orientation is applied and transparency is composited on white. Only the first frame or
    page is read.

    Returns:
      The pixels, uint8 [H, W, 1] (grayscale) or [H, W, 3] (RGB), and those of the remarks
      `FIRST_FRAME` and `ON_WHITE` that apply to the file.

    Raises:
      ValueError: the file is not an image of an allowed format, size and depth, or is damaged.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # Pillow warns about large images and rejects larger ones; all are too large here.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)  # reads the header only
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"{path} is too large an image; {ALLOWED_SIZE}") from None
    except Exception as error:  # Pillow's readers raise many types on damaged files
        raise ValueError(f"{path} is not a readable image: {one_line(error)}") from None
    with image:
        if max(image.size) > MAX_SIDE:
            raise ValueError(f"{path} is {image.height}x{image.width} pixels; {ALLOWED_SIZE}")
        if image.mode not in (*GRAY_MODES, *COLOR_MODES):
            raise ValueError(f"{path} has pixels of mode {image.mode}; {ALLOWED_DEPTH}")
        try:
            is_deep = _is_deep(image)
            decoded = None if is_deep else _decode(image)
        except Exception as error:
            raise ValueError(f"{path} is a damaged image: {one_line(error)}") from None
        if decoded is None:
            raise ValueError(f"{path} has channels of more than 8 bits; {ALLOWED_DEPTH}")
        return decoded


def _is_deep(image: Any) -> bool:
    """Return whether a channel has more than 8 bits; Pillow would drop the lower ones."""
    if image.format == "TIFF":
        return max(image.tag_v2.get(TIFF_BITS_PER_SAMPLE, (1,))) > 8
    return image.format == "PNG" and str(image.tile[0][3]).endswith(";16B")


def _decode(image: Any) -> tuple[np.ndarray, list[str]]:
    """Return the pixels of an open image, and the remarks about it."""
    from PIL import Image, ImageOps

    remarks = [FIRST_FRAME] if getattr(image, "n_frames", 1) > 1 else []
    ImageOps.exif_transpose(image, in_place=True)
    mode = "L" if image.mode in GRAY_MODES else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        lowest, _ = image.getchannel("A").getextrema()
        if lowest < 255:
            remarks.append(ON_WHITE)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.asarray(image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1), remarks
