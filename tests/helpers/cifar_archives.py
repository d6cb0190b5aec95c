"""Small CIFAR archives in the official layout, and pickles as Python 2 and 3 write them."""

import io
import pickle
import struct
import tarfile

import numpy as np

from normjax.data.cifar import CLASS_NAMES

BINARY, PYTHON = 0, 1  # the places in LAYOUTS[name]


def draw_examples(name, counts=(3, 2, 4, 3, 3, 5)):
    """Images [N, 32, 32, 3] and fine labels for each file of an archive, test file last."""
    rng = np.random.default_rng(0)
    counts = counts if name == "cifar10" else counts[-2:]
    return [
        (
            rng.integers(0, 256, (count, 32, 32, 3), np.uint8),
            rng.integers(0, len(CLASS_NAMES[name]), count),
        )
        for count in counts
    ]


def to_rows(images):
    """Each image as its planes of red, green and blue: uint8 [N, 3072]."""
    return np.stack([np.concatenate([i[..., c].ravel() for c in range(3)]) for i in images])


def python2_pickle(value):
    """Pickles as Python 2's cPickle with numpy 1 did at protocol 2, all strings being bytes."""

    def write(item):
        if isinstance(item, str):
            item = item.encode("latin1")
        if isinstance(item, bytes):
            return b"T" + struct.pack("<i", len(item)) + item
        if isinstance(item, bool):
            return b"\x89" if not item else b"\x88"
        if item is None:
            return b"N"
        if isinstance(item, int | np.integer):
            return b"J" + struct.pack("<i", item)
        if isinstance(item, tuple):
            return b"(" + b"".join(map(write, item)) + b"t"
        if isinstance(item, list):
            return b"](" + b"".join(map(write, item)) + b"e"
        if isinstance(item, dict):
            return b"}(" + b"".join(write(k) + write(v) for k, v in item.items()) + b"u"
        reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
        dtype = b"cnumpy\ndtype\n" + write(("u1", 0, 1)) + b"R"
        dtype += write((3, "|", None, None, None, -1, -1, 0)) + b"b"
        state = b"(" + write(1) + write(item.shape) + dtype + write(False) + write(item.tobytes())
        return reconstruct + write((0,)) + write("b") + b"tR" + state + b"tb"

    return b"\x80\x02" + write(value) + b"."


def python3_pickle(protocol, value):
    return pickle.dumps(value, protocol=protocol)


def write_files(name, layout, examples, dumps=python2_pickle):
    """The files of an archive as {name: content}."""
    files = {"readme.html": b"<html></html>"}
    names = (*layout.train_files, *layout.test_files)
    for file, (images, labels) in zip(names, examples, strict=True):
        rows = to_rows(images)
        if layout.is_binary:
            columns = [labels] if name == "cifar10" else [labels // 5, labels]
            files[file] = np.column_stack([*columns, rows]).astype(np.uint8).tobytes()
        else:
            key = "labels" if name == "cifar10" else "fine_labels"
            batch = {"data": rows, key: labels.tolist(), "batch_label": file}
            if name == "cifar100":
                batch["coarse_labels"] = (labels // 5).tolist()
            files[file] = dumps(batch)
    class_names = [f"class_{i}" for i in range(len(CLASS_NAMES[name]))]
    if layout.is_binary:
        files[layout.meta_file] = ("\n".join(class_names) + "\n").encode()
    else:
        key = "label_names" if name == "cifar10" else "fine_label_names"
        files[layout.meta_file] = dumps({key: class_names})
    return files


def write_tar(layout, files):
    """A .tar.gz of the files, in the official folder, as bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for file, content in files.items():
            member = tarfile.TarInfo(f"{layout.folder}/{file}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()
