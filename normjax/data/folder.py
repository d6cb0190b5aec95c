"""Read class folders of image files, and cache the decoded images in an uncompressed npz."""

import hashlib
import itertools
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from normjax.data.dataset import Dataset, Split
from normjax.files import expand_user, one_line

SPLITS = ("train", "test")
MAX_SIDE = 1024
ALLOWED_SIZE = f"allowed is up to {MAX_SIDE} a side"
# Only plain raster formats: Pillow passes others, such as EPS, to an external interpreter.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
COLOR_MODES = ("1", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def load_folder(path: str | os.PathLike) -> Dataset:
    """Read `path/{train,test}/<class>/*`, 8-bit images of equal size.

    Classes and files are sorted by name; hidden entries are ignored. Images keep one channel if all
    are grayscale ("L"); otherwise they become RGB. The decoded images are cached in `cache_dir`
    under a hash of the files' names, sizes and modification times. A damaged cache file is rebuilt
    with a warning.

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
    cache_file = cache_dir() / f"folder-{_fingerprint(root, files)}.npz"
    labels = {split: _number_classes(classes) for split, classes in files.items()}
    counts = {split: len(labels[split]) for split in SPLITS}
    images = _read_cache(cache_file, counts)
    if images is None:
        images = _decode_all(files, counts)
        _write_cache(cache_file, images)
    splits = [Split(images[split], labels[split]) for split in SPLITS]
    return Dataset(*splits, class_names=class_names, name=f"folder:{path}")


def cache_dir() -> Path:
    """Return $NORMJAX_CACHE_DIR, else $XDG_CACHE_HOME/normjax, else ~/.cache/normjax.

    Without a home folder, the path cannot exist: nothing is found there, and writing is an OSError.
    """
    shared = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "normjax")
    found = expand_user(os.environ.get("NORMJAX_CACHE_DIR") or shared)
    return found or Path(os.devnull, "no home folder; NORMJAX_CACHE_DIR names another")


def _visible(folder: Path) -> list[os.DirEntry]:
    """List the visible entries of a folder, sorted by name; refuse broken links."""
    with os.scandir(folder) as entries:
        visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in visible:
        if entry.is_symlink() and not os.path.exists(entry):
            raise ValueError(f"{entry.path} is a broken link")
    return visible


def _list_split(root: Path, split: str) -> dict[str, list[os.DirEntry]]:
    """List the files of each class of a split, sorted by name."""
    folder = root / split
    if not folder.is_dir():
        raise ValueError(f"{root} has no {split}/ folder: expected {{train,test}}/<class>/<image>")
    classes = {entry.name: _visible(Path(entry)) for entry in _visible(folder) if entry.is_dir()}
    if not classes:
        raise ValueError(f"no images: {folder} has no class folders, expected <class>/<image>")
    for name, entries in classes.items():
        if not entries:
            raise ValueError(f"the class folder {folder / name} is empty")
        for entry in entries:
            if not entry.is_file():
                raise ValueError(f"{entry.path} is not a file: a class folder holds only images")
    return classes


def _fingerprint(root: Path, files: dict[str, dict[str, list[os.DirEntry]]]) -> str:
    """Hash the files' folder, names, sizes and modification times."""
    digest = hashlib.sha256(repr(str(root)).encode())
    for split, classes in files.items():
        for name, entries in classes.items():
            for entry in entries:
                stat = entry.stat()
                record = (split, name, entry.name, stat.st_size, stat.st_mtime_ns)
                digest.update(repr(record).encode())
    return digest.hexdigest()[:32]


def _number_classes(classes: dict[str, list[os.DirEntry]]) -> np.ndarray:
    """Return the labels of the files of a split, int32."""
    sizes = [len(entries) for entries in classes.values()]
    return np.repeat(np.arange(len(classes), dtype=np.int32), sizes)


def _decode_all(
    files: dict[str, dict[str, list[os.DirEntry]]], counts: dict[str, int]
) -> dict[str, np.ndarray]:
    """Decode the images of each split, with 1 channel if all are grayscale, else 3."""
    from tqdm import tqdm

    classes = [entries for split in files.values() for entries in split.values()]
    paths = [entry.path for entry in itertools.chain.from_iterable(classes)]
    images = []
    for path in tqdm(paths, desc="decoding images", unit="image", disable=None):
        image = _decode(path)
        if images and image.shape[:2] != images[0].shape[:2]:
            raise ValueError(
                f"{path} is {_size(image)} pixels, but the first image, {paths[0]}, is "
                f"{_size(images[0])}: all images must have one size"
            )
        images.append(image)
    num_channels = max(image.shape[2] for image in images)
    stacked = np.empty((len(images), *images[0].shape[:2], num_channels), np.uint8)
    for row, image in zip(stacked, images, strict=True):
        row[...] = image  # a grayscale image fills all three channels
    return dict(zip(SPLITS, np.split(stacked, [counts["train"]]), strict=True))


def _size(image: np.ndarray) -> str:
    """Format height x width for an error message."""
    return f"{image.shape[0]}x{image.shape[1]}"


def _decode(path: str) -> np.ndarray:
    """Decode one image file as uint8 [H, W, 1] (grayscale) or [H, W, 3]."""
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
        if image.mode not in ("L", *COLOR_MODES):
            raise ValueError(f"{path} has pixels of mode {image.mode}; only 8-bit images are read")
        try:
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
        except Exception as error:
            raise ValueError(f"{path} is a damaged image: {one_line(error)}") from None
    return pixels.reshape(*pixels.shape[:2], -1)


def _read_cache(cache_file: Path, counts: dict[str, int]) -> dict[str, np.ndarray] | None:
    """Read the cached images of each split; None without a cache, and a warning if damaged.

    Zip checksums protect the data. The counts detect a header with the wrong number of images.
    """
    try:
        with cache_file.open("rb") as stream, np.load(stream, allow_pickle=False) as cached:
            images = {split: cached[f"{split}_images"] for split in SPLITS}
        shape = images["train"].shape[1:]
        for split, array in images.items():
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
    return images


def _write_cache(cache_file: Path, images: dict[str, np.ndarray]) -> None:
    """Save the images; a failure only gives a warning."""
    try:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        # Processes on different hosts may write the same file with equal process ids.
        handle, temporary = tempfile.mkstemp(dir=cache_file.parent, suffix=".npz.tmp")
        try:
            with os.fdopen(handle, "wb") as stream:
                arrays: Any = {f"{split}_images": array for split, array in images.items()}
                np.savez(stream, **arrays)
            os.replace(temporary, cache_file)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        warnings.warn(f"the decoded images could not be cached: {error}", stacklevel=5)
