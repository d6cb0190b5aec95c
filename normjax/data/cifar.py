"""Read the official files of CIFAR-10 and CIFAR-100: both formats, archives or folders.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The formats
are described at https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import gzip
import hashlib
import io
import itertools
import tarfile
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from normjax.data.dataset import Dataset, Split
from normjax.data.pickles import load_plain_dict, to_matrix, to_text
from normjax.files import one_line

# The official archives have 8 or 9 members and 186 MB; these limits stop malicious archives.
MAX_MEMBERS = 64
MAX_BYTES = 256 * 2**20
IMAGE_BYTES = 3 * 32 * 32
# gzip and tarfile raise these on damaged files; long chains of extra tar headers recurse.
_ARCHIVE_ERRORS = (
    *(OSError, EOFError, ValueError, OverflowError, RecursionError),
    *(zlib.error, tarfile.TarError),
)


class Layout(NamedTuple):
    """An official archive and its folder."""

    archive: str
    folder: str
    sha256: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    meta_file: str

    @property
    def is_binary(self) -> bool:
        """Return whether the files are binary, not pickles."""
        return self.test_files[0].endswith(".bin")


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_BINARY_BATCHES = tuple(f"{name}.bin" for name in _BATCHES)
# fmt: off
LAYOUTS = {
    "cifar10": (
        Layout("cifar-10-binary.tar.gz", "cifar-10-batches-bin",
               "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
               _BINARY_BATCHES, ("test_batch.bin",), "batches.meta.txt"),
        Layout("cifar-10-python.tar.gz", "cifar-10-batches-py",
               "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
               _BATCHES, ("test_batch",), "batches.meta"),
    ),
    "cifar100": (
        Layout("cifar-100-binary.tar.gz", "cifar-100-binary",
               "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
               ("train.bin",), ("test.bin",), "fine_label_names.txt"),
        Layout("cifar-100-python.tar.gz", "cifar-100-python",
               "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
               ("train",), ("test",), "meta"),
    ),
}
# fmt: on

_CLASS_NAMES_TEXT = {
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck",
    "cifar100": """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
        crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house
        kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
        mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
        plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew
        skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
        telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf
        woman worm""",
}
CLASS_NAMES = {name: tuple(text.split()) for name, text in _CLASS_NAMES_TEXT.items()}


def find_cifar(name: str, folder: Path) -> tuple[Layout, Path] | None:
    """Find an official CIFAR archive in `folder`, or else its unpacked folder, or `folder` itself.

    Archives that TFDS has downloaded to `folder/downloads` are found too; TFDS puts the address
    before the name and a checksum after it.
    """
    layouts = LAYOUTS[name]
    places = [(layout, folder / layout.archive) for layout in layouts]
    places += [(layout, folder / layout.folder) for layout in layouts]
    for layout in layouts:
        pattern = f"*_{layout.archive.removesuffix('.tar.gz')}*.tar.gz"
        for downloads in (folder / "downloads" / name, folder / "downloads"):
            places += [(layout, path) for path in sorted(downloads.glob(pattern))]
    inner = ((layout, folder) for layout in layouts if _is_unpacked(layout, folder))
    return next((place for place in places if place[1].exists()), next(inner, None))


def _is_unpacked(layout: Layout, folder: Path) -> bool:
    """Return whether a folder itself is an unpacked archive, by its name or its files."""
    has_test_files = all((folder / name).is_file() for name in layout.test_files)
    return folder.resolve().name == layout.folder or has_test_files


def load_cifar(name: str, layout: Layout, path: Path) -> Dataset:
    """Read an official CIFAR archive or its unpacked folder, in the official order.

    Archives are read in memory and never extracted. A warning reports a SHA-256 that differs from
    the official one. CIFAR-100 uses fine labels. Files may have any number of examples.

    Args:
      name: "cifar10" or "cifar100".
      layout: the layout at `path`, from `LAYOUTS[name]`.
      path: the archive or the folder.

    Raises:
      ValueError: truncated, damaged, incomplete or oversized files; the message names the file.
    """
    files = _read_folder(layout, path) if path.is_dir() else _read_archive(layout, path)
    if missing := {*layout.train_files, *layout.test_files} - set(files):
        raise ValueError(f"{path} is incomplete: it lacks {', '.join(sorted(missing))}")
    num_classes = len(CLASS_NAMES[name])
    parse = _parse_binary if layout.is_binary else _parse_pickle

    def read_split(members: Iterable[str]) -> Split:
        parts = []
        for member in members:
            try:
                parts.append(parse(files[member], num_classes))
            except ValueError as error:
                raise ValueError(f"{path}: {member} is damaged: {error}") from None
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Split(images, labels)

    try:
        class_names = _parse_class_names(name, layout, files.get(layout.meta_file))
    except ValueError as error:
        raise ValueError(f"{path}: {layout.meta_file} is damaged: {error}") from None
    return Dataset(read_split(layout.train_files), read_split(layout.test_files), class_names, name)


def _wanted(layout: Layout) -> tuple[str, ...]:
    """Return the names of the files to read."""
    return (*layout.train_files, *layout.test_files, layout.meta_file)


def _read_folder(layout: Layout, path: Path) -> dict[str, bytes]:
    """Read the wanted files of an unpacked archive."""
    files = {}
    for name in _wanted(layout):
        file = path / name
        if file.is_file():
            if file.stat().st_size > MAX_BYTES:
                raise ValueError(f"{file} is larger than {MAX_BYTES} bytes")
            files[name] = file.read_bytes()
    return files


def _read_archive(layout: Layout, path: Path) -> dict[str, bytes]:
    """Read the wanted files of a .tar.gz in memory."""
    try:
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            with gzip.open(stream) as unzipped:
                content = unzipped.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")
        files = _read_tar(_wanted(layout), content)
    except _ARCHIVE_ERRORS as error:
        raise ValueError(f"{path} is truncated or damaged: {one_line(error)}") from None
    if sha256 != layout.sha256:
        warnings.warn(
            f"{path} is not the official {layout.archive}: its SHA-256 is {sha256}, "
            f"the official one is {layout.sha256}",
            stacklevel=5,
        )
    return files


def _read_tar(wanted: Iterable[str], content: bytes) -> dict[str, bytes]:
    """Read the wanted regular files of a tar archive, in any folder.

    Nothing is written, so paths, links and devices have no effect.
    """
    files = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        for member in itertools.islice(tar, MAX_MEMBERS):
            name = PurePosixPath(member.name).name
            # Sparse members can claim any size, and links can point anywhere.
            if name in wanted and member.isreg() and not member.issparse():
                if not 0 <= member.size <= len(content):
                    raise ValueError(f"{name} claims {member.size} bytes")
                if name in files:
                    raise ValueError(f"it holds {name} twice")
                stream = tar.extractfile(member)
                files[name] = stream.read() if stream else b""
    return files


def _to_images(rows: np.ndarray) -> np.ndarray:
    """Convert uint8 [N, 3072], with planes of red, green and blue, to [N, 32, 32, 3]."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _parse_binary(content: bytes, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of a binary file: records of label bytes and an image."""
    num_label_bytes = 1 if num_classes == 10 else 2  # CIFAR-100: coarse, fine
    record_bytes = num_label_bytes + IMAGE_BYTES
    if not content or len(content) % record_bytes:
        raise ValueError(f"{len(content)} bytes are not a number of {record_bytes}-byte records")
    records = np.frombuffer(content, np.uint8).reshape(-1, record_bytes)
    labels = records[:, num_label_bytes - 1].astype(np.int32)
    if labels.max() >= num_classes:
        raise ValueError(f"label {labels.max()} is outside 0..{num_classes - 1}")
    return _to_images(records[:, num_label_bytes:]), labels


def _parse_pickle(content: bytes, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of a pickled batch."""
    batch = load_plain_dict(content)
    labels = batch.get("labels" if num_classes == 10 else "fine_labels")
    if not isinstance(labels, list) or not labels:
        raise ValueError("it has no list of labels")
    if not all(type(label) is int and 0 <= label < num_classes for label in labels):
        raise ValueError(f"its labels are not all integers in 0..{num_classes - 1}")
    rows = to_matrix(batch.get("data"))
    if rows.shape != (len(labels), IMAGE_BYTES):
        raise ValueError(f"data of shape {rows.shape} do not fit {len(labels)} labels")
    return _to_images(rows), np.asarray(labels, np.int32)


def _parse_class_names(name: str, layout: Layout, content: bytes | None) -> tuple[str, ...]:
    """Return the class names in the archive, or else the official ones."""
    if content is None:
        return CLASS_NAMES[name]
    if layout.is_binary:
        class_names = tuple(content.decode("latin1").split())
    else:
        key = "label_names" if name == "cifar10" else "fine_label_names"
        listed = load_plain_dict(content).get(key)
        if not isinstance(listed, list):
            raise ValueError(f"it has no list {key}")
        class_names = tuple(to_text(item) for item in listed)
    if len(class_names) != len(CLASS_NAMES[name]):
        raise ValueError(f"it names {len(class_names)} classes, not {len(CLASS_NAMES[name])}")
    return class_names
