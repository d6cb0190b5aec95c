"""Read files that may be damaged, and write files atomically.

A ValueError states the problem with a file in one line.
"""

import inspect
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

T = TypeVar("T")


def one_line(error: object, limit: int = 500) -> str:
    """Return an error's text on one line, truncated after `limit` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else f"{text[:limit]}..."


def expand_user(path: str) -> Path | None:
    """Return a path with ~ expanded, or None if there is no home folder."""
    found = os.path.expanduser(path)
    return None if found.partition(os.sep)[0] == "~" else Path(found)


def is_address(path: str | os.PathLike) -> bool:
    """Return whether a path starts with a scheme, such as s3://."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", os.fspath(path)) is not None


def check_address(address: str) -> None:
    """Raise ValueError unless `address` names a folder in a bucket."""
    if not _BUCKET.fullmatch(address):
        raise ValueError(
            "gs://BUCKET/FOLDER or s3://BUCKET/FOLDER is needed; names may have letters, digits "
            "and .,+=@_-"
        )


_BUCKET = re.compile(r"(gs|s3)://[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9.,+=@_-]*)+/?")


def local_path(path: str | os.PathLike) -> Path:
    """Return a path to read a run from.

    Raises:
      ValueError: the path is an address.
    """
    if is_address(path):
        raise ValueError(f"{path}: normjax.training.bucket.fetch_run makes it a local folder")
    return Path(path)


def cache_dir() -> Path:
    """Return $NORMJAX_CACHE_DIR, else $XDG_CACHE_HOME/normjax, else ~/.cache/normjax.

    Without a home folder, the path cannot exist: nothing is found there, and writes raise OSError.
    """
    shared = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "normjax")
    found = expand_user(os.environ.get("NORMJAX_CACHE_DIR") or shared)
    return found or Path(os.devnull, "no home folder; NORMJAX_CACHE_DIR names another")


def read_text(path: str | os.PathLike) -> str:
    """Return the text of a UTF-8 file with its line endings unchanged.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is not UTF-8; the message names the file and the byte.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a UTF-8 text file (byte {error.start})") from None


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` on success and is removed on failure.

    Readers never see a partial file. Parent folders are created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Add the file name to every system error in the block; a full-disk error has none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # an OSError with only text would lose it
            error.filename = error.filename or os.fspath(path)
        raise


@contextmanager
def plainly_named(folder: Path) -> Iterator[Path]:
    """Yield a path to a folder that Orbax, TensorStore and TFDS take literally.

    They may read a path as a pattern ("[", "*", "?") or an address ("gs:"), and backslashes as
    slashes, and then write or read elsewhere. A path with anything but letters, digits and harmless
    punctuation is replaced by a symbolic link. That folder is created if it does not exist.

    Raises:
      OSError: the link cannot be created.
    """
    if _PLAIN.fullmatch(os.fspath(folder)):
        yield folder
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="normjax_") as temporary:
        link = Path(temporary).resolve() / "folder"
        if not _PLAIN.fullmatch(os.fspath(link)):
            raise OSError(f"{folder}: such a name needs a TMPDIR of plain letters, not {temporary}")
        link.symlink_to(folder.resolve(), target_is_directory=True)
        yield link


_PLAIN = re.compile(r"[\w/.,+=@ -]*")


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON; replace `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_object(path: str | os.PathLike, **kinds: Any) -> dict[str, Any]:
    """Return the JSON object in a file; see `parse_object`.

    Raises:
      OSError: the file cannot be read.
      ValueError: the content is invalid; the message names the file.
    """
    return parse_object(read_text(path), str(path), **kinds)


def parse_object(text: str, place: str, **kinds: Any) -> dict[str, Any]:
    """Parse a JSON object and check some of its values; see `check_types`.

    Raises:
      ValueError: the text is not JSON (which has no NaN) or not an object, or a value is missing or
        has the wrong type; the message starts with `place`.
    """
    try:
        values = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError(f"{place}: not JSON (too deeply nested)") from None
    except ValueError as error:
        raise ValueError(f"{place}: not JSON ({one_line(error)})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{place}: a JSON object is needed, not {type(values).__name__}")
    check_types(values, kinds, place)
    return values


def check_types(values: Mapping[str, Any], kinds: Mapping[str, Any], place: str) -> None:
    """Check the types of values of a JSON object.

    Args:
      values: the object.
      kinds: {name: type}: classes, unions, `list[...]` and `tuple[..., ...]`. Integers count as
        floats; floats must be finite.
      place: the start of the error message.

    Raises:
      ValueError: a value is missing or has the wrong type.
    """
    for name, kind in kinds.items():
        if name not in values:
            raise ValueError(f"{place}: the field {name!r} is missing")
        if not _fits(values[name], kind):
            value = one_line(repr(values[name]), 40)
            wanted = kind.__name__ if isinstance(kind, type) else str(kind)
            raise ValueError(f"{place}: {name} is {value}, not of type {wanted}")


def make_record(make: Callable[..., T], values: Mapping[str, Any], place: str) -> T:
    """Make a dataclass or NamedTuple from the values of a JSON object; lists become tuples.

    Raises:
      ValueError: a value is unknown, missing, or has the wrong type.
    """
    fields = inspect.signature(make).parameters
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"{place}: {one_line(unknown[0])!r} is not known")
    kinds = {name: field.annotation for name, field in fields.items()}
    absent = {n for n, field in fields.items() if field.default is not field.empty} - set(values)
    check_types(values, {n: kind for n, kind in kinds.items() if n not in absent}, place)
    return make(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a JSON value has the given type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(_fits(value, argument) for argument in arguments)
    if origin in (list, tuple):
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return isinstance(value, type(None) if kind is None else kind)
