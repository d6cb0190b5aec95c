"""Read class folders of image files, and cache the decoded images in an uncompressed npz."""

import hashlib
import itertools
import os
import tempfile
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from normjax.data.dataset import Dataset, Split
from normjax.data.images import decode_image
from normjax.files import cache_dir, one_line

SPLITS = ("train", "test")


def load_folder(path: str | os.PathLike) -> Dataset:
    """Read `path/{train,test}/<class>/*`, 8-bit images of equal size.

    Classes and files are sorted by name in Unicode NFC; hidden entries are ignored. Images are
    decoded by `decode_image`. They keep one channel if all are grayscale; otherwise they become
    RGB. Remarks, such as that later frames were not read, give one warning each, not one per image.
    The decoded images are cached in `cache_dir` under a hash of the files' names and contents. A
    damaged cache file is rebuilt with a warning.

    Args:
      path: the folder with `train` and `test`.

    Raises:
      ValueError: a folder is missing or empty, the splits have different classes, or a file is not
        an image, is too large, or differs in size from the first one.
    """
    root = Path(os.path.expanduser(path)).resolve()
    files = {split: _list_split(root, split) for split in SPLITS}
    class_names = tuple(files["train"])
    if differing := set(class_names) ^ set(files["test"]):
        raise ValueError(
            f"{root}: train/ and test/ must have the same classes; only one of them has "
            + ", ".join(sorted(differing))
        )
    cache_file = cache_dir() / f"folder-{_fingerprint(files)}.npz"
    labels = {split: _number_classes(classes) for split, classes in files.items()}
    counts = {split: len(labels[split]) for split in SPLITS}
    arrays = _read_cache(cache_file, counts)
    if arrays is None:
        arrays = _decode_all(root, files, counts)
        _write_cache(cache_file, arrays)
    for remark in arrays["remarks"]:
        warnings.warn(f"{root}: {remark}", stacklevel=4)
    splits = [Split(arrays[f"{split}_images"], labels[split]) for split in SPLITS]
    return Dataset(*splits, class_names=class_names, name=f"folder:{path}")


def _visible(folder: Path) -> list[os.DirEntry]:
    """List the visible entries of a folder, sorted by name; refuse broken links."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in visible:
        if entry.is_symlink() and not os.path.exists(entry):
            raise ValueError(f"{entry.path} is a broken link")
    return sorted(visible, key=lambda entry: (_composed(entry.name), entry.name))


def _composed(name: str) -> str:
    """Return a name in the Unicode normal form in which names are compared."""
    return unicodedata.normalize("NFC", name)


def _list_split(root: Path, split: str) -> dict[str, list[os.DirEntry]]:
    """List the files of each class of a split, sorted by name."""
    folder = root / split
    if not folder.is_dir():
        raise ValueError(f"{root} has no {split}/ folder: expected {{train,test}}/<class>/<image>")
    folders = [entry for entry in _visible(folder) if entry.is_dir()]
    classes = {_composed(entry.name): _visible(Path(entry)) for entry in folders}
    if len(classes) < len(folders):
        names = sorted(_composed(entry.name) for entry in folders)
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{folder} has two folders {twice}, written in two Unicode normal forms")
    if not classes:
        raise ValueError(f"no images: {folder} has no class folders, expected <class>/<image>")
    for name, entries in classes.items():
        if not entries:
            raise ValueError(f"the class folder {folder / name} is empty")
        for entry in entries:
            if not entry.is_file():
                raise ValueError(f"{entry.path} is not a file: a class folder holds only images")
    return classes


def _fingerprint(files: dict[str, dict[str, list[os.DirEntry]]]) -> str:
    """Hash the files' names and contents."""
    digest = hashlib.sha256()
    for split, classes in files.items():
        for name, entries in classes.items():
            for entry in entries:
                with open(entry, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
                digest.update(repr((split, name, entry.name, content)).encode())
    return digest.hexdigest()[:32]


def _number_classes(classes: dict[str, list[os.DirEntry]]) -> np.ndarray:
    """Return the labels of the files of a split, int32."""
    sizes = [len(entries) for entries in classes.values()]
    return np.repeat(np.arange(len(classes), dtype=np.int32), sizes)


def _decode_all(
    root: Path, files: dict[str, dict[str, list[os.DirEntry]]], counts: dict[str, int]
) -> dict[str, np.ndarray]:
    """Decode the images of each split, with 1 channel if all are grayscale, else 3.

    Returns:
      "train_images", "test_images", and "remarks", one line of text for each kind of remark.
    """
    from tqdm import tqdm

    classes = [entries for split in files.values() for entries in split.values()]
    paths = [entry.path for entry in itertools.chain.from_iterable(classes)]
    images = []
    remarked: dict[str, list[str]] = {}
    for path in tqdm(paths, desc="decoding images", unit="image", disable=None):
        image, remarks = decode_image(path)
        if images and image.shape[:2] != images[0].shape[:2]:
            raise ValueError(
                f"{path} is {_size(image)} pixels, but the first image, {paths[0]}, is "
                f"{_size(images[0])}: all images must have one size"
            )
        images.append(image)
        for remark in remarks:
            remarked.setdefault(remark, []).append(os.path.relpath(path, root))
    num_channels = max(image.shape[2] for image in images)
    stacked = np.empty((len(images), *images[0].shape[:2], num_channels), np.uint8)
    for row, image in zip(stacked, images, strict=True):
        row[...] = image  # a grayscale image fills all three channels
    train, test = np.split(stacked, [counts["train"]])
    lines = [
        f"{len(of)} of {len(paths)} images, such as {of[0]}, {remark}"
        for remark, of in remarked.items()
    ]
    return {"train_images": train, "test_images": test, "remarks": np.array(lines, str)}


def _size(image: np.ndarray) -> str:
    """Format height x width for an error message."""
    return f"{image.shape[0]}x{image.shape[1]}"


def _read_cache(cache_file: Path, counts: dict[str, int]) -> dict[str, np.ndarray] | None:
    """Read what `_decode_all` returned; None if there is no cache, or with a warning if damaged.

    Zip checksums protect the data. The counts detect a header with the wrong number of images.
    """
    try:
        with cache_file.open("rb") as stream, np.load(stream, allow_pickle=False) as cached:
            arrays = {name: cached[name] for name in ("train_images", "test_images", "remarks")}
        shape = arrays["train_images"].shape[1:]
        for split in SPLITS:
            array = arrays[f"{split}_images"]
            if array.dtype != np.uint8 or array.shape != (counts[split], *shape) or len(shape) != 3:
                raise ValueError(f"{split}_images are {array.dtype} {array.shape}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # the images can be decoded again
        warnings.warn(
            f"the cache file {cache_file} is damaged and will be rebuilt: {one_line(error)}",
            stacklevel=5,
        )
        return None
    return arrays


def _write_cache(cache_file: Path, arrays: Any) -> None:
    """Save what `_decode_all` returned; a failure only gives a warning."""
    try:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        # Processes on different hosts may write the same file with equal process ids.
        handle, temporary = tempfile.mkstemp(dir=cache_file.parent, suffix=".npz.tmp")
        try:
            with os.fdopen(handle, "wb") as stream:
                np.savez(stream, **arrays)
            os.replace(temporary, cache_file)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        warnings.warn(f"the decoded images could not be cached: {error}", stacklevel=5)
