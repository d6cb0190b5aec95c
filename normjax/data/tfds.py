"""TensorFlow Datasets without TensorFlow: read prepared data, and download with checksums."""

import os
import re
import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from normjax.data.dataset import Dataset, Split
from normjax.data.images import ALLOWED_SIZE, MAX_SIDE
from normjax.files import expand_user, one_line, plainly_named

NETWORK_TIMEOUT = 3.0  # seconds


def default_dir() -> Path | None:
    """Return the TFDS folder: $TFDS_DATA_DIR, else ~/tensorflow_datasets; None without a home."""
    return expand_user(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def load_prepared(name: str, folder: Path) -> Dataset | None:
    """Read an image classification set that TFDS has prepared as array_record in `folder`.

    Examples with an `id` are sorted by it (the official order of CIFAR); others keep the file
    order.

    Args:
      name: a TFDS name, `dataset[/config][:version]`.
      folder: the TFDS data folder.

    Returns:
      The data set, or None if `folder` has no prepared data of that name.

    Raises:
      ValueError: the data have a different file format, lack a train or test split, are not labeled
        8-bit images of one shape, declare images that are too large, or are damaged.
    """
    # Checked first, because TFDS takes a second to import and warns about missing folders.
    dataset_name = re.match(r"\w+", name)
    if not dataset_name or not (folder / dataset_name.group()).is_dir():
        return None
    with plainly_named(folder) as data_dir:
        return _load_prepared(name, folder, data_dir)


def _load_prepared(name: str, folder: Path, data_dir: Path) -> Dataset | None:
    """Read a data set in `data_dir`, which is called `folder` in messages."""
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except ValueError:  # TFDS does not know the name
        return None
    if not builder.is_prepared():
        return None
    features = builder.info.features
    match builder.info.supervised_keys:
        case (str(image_key), str(label_key)):
            pass
        case _:
            image_key, label_key = "image", "label"
    if not (
        {image_key, label_key} <= set(features)
        and isinstance(features[image_key], tfds.features.Image)
        and isinstance(features[label_key], tfds.features.ClassLabel)
    ):
        raise ValueError(f"{name} in {folder} is not a set of images with one class label each")
    if max(side or 0 for side in features[image_key].shape) > MAX_SIDE:
        raise ValueError(
            f"{name} in {folder} has images of {features[image_key].shape}: {ALLOWED_SIZE}"
        )
    if missing := {"train", "test"} - set(builder.info.splits):
        raise ValueError(
            f"{name} in {folder} has no {' or '.join(sorted(missing))} split: "
            f"it has {', '.join(sorted(builder.info.splits))}"
        )
    id_key = "id" if "id" in features else None
    try:
        train, test = (
            _read_split(builder.as_data_source(split=split), image_key, label_key, id_key)
            for split in ("train", "test")
        )
    except Exception as error:  # protocol buffers, PNG and JPEG raise their own errors
        raise ValueError(f"{name} in {folder} cannot be read: {one_line(error)}") from error
    return Dataset(train, test, tuple(features[label_key].names), name)


def _read_split(source, image_key: str, label_key: str, id_key: str | None) -> Split:
    """Read all examples of a TFDS data source."""
    from tqdm import tqdm

    examples = tqdm(source, desc="reading TFDS data", unit="image", disable=None)
    if id_key:
        examples = sorted(examples, key=lambda example: example[id_key])
    images, labels = zip(*((e[image_key], e[label_key]) for e in examples), strict=True)
    images, labels = np.stack(images), np.asarray(labels, np.int32)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"images of {images.dtype} {images.shape[1:]} are not 8-bit gray or RGB")
    if labels.min() < 0:
        raise ValueError("some examples have no label")
    return Split(images, labels)


def fetch(url: str, dataset_name: str, folder: Path) -> Path:
    """Download a file to the place where TFDS expects it, and verify its checksum.

    Args:
      url: the address; TFDS must have a checksum for it.
      dataset_name: the TFDS data set of the file.
      folder: the TFDS data folder; the file goes to `downloads` in it.

    Returns:
      The path of the file.

    Raises:
      OSError: there is no network (detected within seconds), or the download failed.
    """
    check_network(url)
    import tensorflow_datasets as tfds

    try:
        manager = tfds.download.DownloadManager(
            download_dir=folder / "downloads",
            dataset_name=dataset_name,
            force_checksums_validation=True,
        )
        return Path(os.fspath(manager.download(url)))
    except Exception as error:  # network, disk and checksum errors have different types
        raise OSError(f"the download failed: {one_line(error)}") from error


def check_network(url: str) -> None:
    """Raise OSError within seconds if the host (or the proxy) cannot be reached.

    TFDS would retry for minutes.
    """
    address = urllib.parse.urlsplit(url)
    if proxy := urllib.request.getproxies().get(address.scheme):
        address = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = address.port or (443 if address.scheme == "https" else 80)
    failure = [f"no answer in {NETWORK_TIMEOUT:g} s"]

    def connect():
        try:
            socket.create_connection((address.hostname, port), timeout=NETWORK_TIMEOUT).close()
            failure.clear()
        except OSError as error:
            failure[0] = str(error)

    # In a thread, because the name lookup has no timeout.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(NETWORK_TIMEOUT + 0.5)
    if failure:
        raise OSError(f"no network: {address.hostname} cannot be reached ({failure[0]})")
