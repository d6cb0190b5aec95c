"""Read Fashion-MNIST from its four official IDX files, compressed or not.

Source: H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST", arXiv 1708.07747, 2017. Debian's package
`dataset-fashion-mnist` has the files in /usr/share/datasets/fashion-mnist.
"""

import gzip
import hashlib
import warnings
import zlib
from pathlib import Path

import numpy as np

from normjax.data.dataset import Dataset, Split
from normjax.files import one_line

NAME = "fashion_mnist"
CLASS_NAMES = tuple(
    "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")
)
SPLITS = {  # images and labels
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SHA256 = {  # of the unpacked files; MNIST's have the same names
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
MAX_BYTES = 2**26  # of a file's content; the largest official one has 47 MB


def find_files(folder: Path) -> dict[str, Path] | None:
    """Return the four files in a folder by name, or None if it has none of them.

    Raises:
      ValueError: the folder has only some of them.
    """
    places = [(name, folder / (name + suffix)) for suffix in (".gz", "") for name in SHA256]
    found = {name: path for name, path in places if path.is_file()}
    if found and (missing := [name for name in SHA256 if name not in found]):
        raise ValueError(f"{folder} is incomplete: it lacks {', '.join(missing)}")
    return found or None


def load_files(files: dict[str, Path]) -> Dataset:
    """Read the files of `find_files`, in the official order; warn about unofficial files.

    Raises:
      ValueError: a file is damaged, or files do not belong together; the message names the file.
    """
    splits = {}
    for split, (images_name, labels_name) in SPLITS.items():
        images = _read(images_name, files, num_axes=3)[..., np.newaxis]
        labels = _read(labels_name, files, num_axes=1).astype(np.int32)
        path = files[labels_name]
        if len(labels) != len(images):
            raise ValueError(f"{path}: {len(labels)} labels for {len(images)} images")
        if labels.max() >= len(CLASS_NAMES):
            raise ValueError(f"{path}: label {labels.max()} of {len(CLASS_NAMES)} classes")
        splits[split] = Split(images, labels)
    if splits["train"].images.shape[1:] != splits["test"].images.shape[1:]:
        raise ValueError(f"{files[SPLITS['test'][0]]}: another size than that of training images")
    return Dataset(splits["train"], splits["test"], CLASS_NAMES, NAME)


def _read(name: str, files: dict[str, Path], num_axes: int) -> np.ndarray:
    """Return the array of unsigned bytes in an IDX file."""
    path = files[name]
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or damaged: {one_line(error)}") from None
    start = 4 + 4 * num_axes
    shape = np.frombuffer(content[4:start], ">u4")
    is_whole = len(shape) == num_axes and len(content) == start + np.prod(shape, dtype=object)
    if content[:4] != bytes([0, 0, 8, num_axes]) or not is_whole or len(content) == start:
        raise ValueError(f"{path} is truncated or damaged: its header does not match its content")
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        warnings.warn(f"{path} is not Fashion-MNIST's official {name}", stacklevel=5)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
