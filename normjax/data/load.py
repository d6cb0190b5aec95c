"""Load a data set by name."""

import os
import re
from pathlib import Path

from normjax.data import fashion_mnist
from normjax.data.cifar import LAYOUTS, find_cifar, load_cifar
from normjax.data.dataset import FOLDER, Dataset, check_classes, take_subset
from normjax.data.digits import load_digits
from normjax.data.folder import load_folder
from normjax.data.tfds import default_dir, fetch, load_prepared

CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"
ALLOWED = (
    "allowed are digits, cifar10, cifar100, fashion_mnist, folder:PATH, or a TFDS "
    "image-classification name prepared with `tfds build NAME --file_format=array_record`"
)


def load_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
) -> Dataset:
    """Load an image classification data set, or a fixed subset of it.

    Examples:
      >>> import normjax
      >>> dataset = normjax.load_dataset("digits", train_size=100)
      >>> dataset.train.images.shape, dataset.test.images.shape
      ((100, 8, 8, 1), (450, 8, 8, 1))

    Args:
      name: one of

        - "digits": scikit-learn's 1,797 handwritten digits, 8x8, offline;
        - "folder:PATH": image files in `PATH/{train,test}/<class>/`;
        - "cifar10", "cifar100" (fine labels): the official archives or their unpacked folders in
          `data_dir` or the TFDS folder; else data that TFDS has prepared there; else the archive is
          downloaded to the TFDS folder;
        - "fashion_mnist": the four official IDX files, in `data_dir` or the TFDS folder;
          else data that TFDS has prepared there;
        - any image classification set that TFDS has prepared as array_record in `data_dir` or the
          TFDS folder.
      data_dir: a folder to search before the TFDS folder ($TFDS_DATA_DIR, else
        ~/tensorflow_datasets). Not used by "digits" and "folder:PATH".
      train_size: the size of a fixed pseudorandom subset of the training examples. The subset is
        the same on every call, in the original order and not balanced by class; subsets of
        different sizes are nested. None keeps all.
      test_size: the same for the test examples.

    Returns:
      The data set; images are uint8 [N, H, W, C], labels int32 [N].

    Raises:
      ValueError: an unknown name (the message lists the allowed ones), data that cannot be found
        (the message lists all places tried), damaged files (the message names the file), or a size
        outside 1..N.
    """
    dataset = _load_whole(name, data_dir)
    check_classes(dataset)
    return dataset._replace(
        train=take_subset(dataset.train, train_size, "train"),
        test=take_subset(dataset.test, test_size, "test"),
    )


def _load_whole(name: str, data_dir: str | os.PathLike | None) -> Dataset:
    """Load the whole data set."""
    if name == "digits":
        return load_digits()
    if name.startswith(FOLDER):
        return load_folder(name.removeprefix(FOLDER))
    if not re.fullmatch(r"\w+(/[\w.-]+)?(:[\d.*]+)?", name):
        raise ValueError(f"unknown dataset {name!r}: {ALLOWED}")
    folders = []
    if data_dir is not None:
        folders.append(Path(os.path.expanduser(data_dir)))
        if not folders[0].is_dir():
            raise ValueError(f"data_dir {data_dir} is not a folder")
    if (tfds_dir := default_dir()) is not None:
        folders.append(tfds_dir)
    for folder in folders:
        if name in LAYOUTS and (found := find_cifar(name, folder)):
            return load_cifar(name, *found)
        if name == fashion_mnist.NAME and (files := fashion_mnist.find_files(folder)):
            return fashion_mnist.load_files(files)
        if dataset := load_prepared(name, folder):
            return dataset
    tried = f"prepared TFDS data in {' and '.join(map(str, folders)) or 'no folder'}"
    if tfds_dir is None:
        tried += " (without a home folder, TFDS_DATA_DIR says where the TFDS folder is)"
    if name == fashion_mnist.NAME:
        tried += f" and the files {', '.join(fashion_mnist.SHA256)} there, compressed or not"
    if name not in LAYOUTS:
        raise ValueError(f"dataset {name!r} is unknown or not prepared: tried {tried}; {ALLOWED}")
    layouts = LAYOUTS[name]
    url = CIFAR_URL + layouts[0].archive
    try:
        if tfds_dir is None:
            raise OSError("there is no folder for it")
        archive = fetch(url, name, tfds_dir)
    except OSError as error:
        files = [layout.archive for layout in layouts] + [layout.folder for layout in layouts]
        raise ValueError(
            f"dataset {name!r} was not found: tried {', '.join(files)} and {tried}, "
            f"and downloading {url}: {error}"
        ) from None
    return load_cifar(name, layouts[0], archive)
