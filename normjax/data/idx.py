"""Read MNIST and Fashion-MNIST from their official IDX files, compressed or not.

Sources: Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits"; H. Xiao, K.
Rasul and R. Vollgraf, "Fashion-MNIST", arXiv 1708.07747, 2017. Debian's package
`dataset-fashion-mnist` has the latter in /usr/share/datasets/fashion-mnist.
"""

import gzip
import zlib
from pathlib import Path

import numpy as np

from normjax.data.dataset import Dataset, Split
from normjax.files import one_line

FILES = {"train": "train", "test": "t10k"}
MAX_BYTES = 2**26  # of a file's content; the official ones have 47 MB
CLASS_NAMES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": tuple(
        "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")
    ),
}


def find_idx(folder: Path) -> dict[str, Path] | None:
    """Return the four IDX files in a folder by name, or None if it has none of them.

    Raises:
      ValueError: it has some of them only.
    """
    found = {}
    names = [
        f"{prefix}-{kind}-ubyte"
        for prefix in FILES.values()
        for kind in ("images-idx3", "labels-idx1")
    ]
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                found[name] = path
    if found and (missing := [name for name in names if name not in found]):
        raise ValueError(f"{folder} is incomplete: it lacks {', '.join(missing)}")
    return found or None


def load_idx(name: str, files: dict[str, Path]) -> Dataset:
    """Read "mnist" or "fashion_mnist" in the official order; see `find_idx`.

    Raises:
      ValueError: a file is damaged, or files do not belong together; the message names the file.
    """
    splits = {}
    for split, prefix in FILES.items():
        images = _read(files[f"{prefix}-images-idx3-ubyte"], 3)[..., np.newaxis]
        path = files[f"{prefix}-labels-idx1-ubyte"]
        labels = _read(path, 1).astype(np.int32)
        if len(labels) != len(images):
            raise ValueError(f"{path}: {len(labels)} labels for {len(images)} images")
        if labels.max() >= len(CLASS_NAMES[name]):
            raise ValueError(f"{path}: label {labels.max()} of {len(CLASS_NAMES[name])} classes")
        splits[split] = Split(images, labels)
    if splits["train"].images.shape[1:] != splits["test"].images.shape[1:]:
        raise ValueError(f"{path}: images of another size than those of the training set")
    return Dataset(splits["train"], splits["test"], CLASS_NAMES[name], name)


def _read(path: Path, num_axes: int) -> np.ndarray:
    """Return the array of unsigned bytes in an IDX file."""
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or damaged: {one_line(error)}") from None
    start = 4 + 4 * num_axes
    shape = np.frombuffer(content[4:start], ">u4")
    is_whole = len(shape) == num_axes and len(content) == start + np.prod(shape, dtype=object)
    if content[:4] != bytes([0, 0, 8, num_axes]) or not is_whole or not len(content) > start:
        raise ValueError(f"{path} is truncated or damaged: its header does not match its content")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
