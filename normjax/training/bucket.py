"""Runs in a bucket: --workdir=gs://BUCKET/FOLDER or s3://BUCKET/FOLDER.

Process 0 works in a local folder, as always, and sends it to the bucket at each moment from which a
run can go on. FOLDER/manifest.json lists the files of such a moment and is written last: what it
does not list does not count yet, and what it no longer lists is removed afterwards. So the bucket
holds a state to resume from, whenever the process ends. Files that keep their names (run.json,
metrics.jsonl, tables) may be newer than the manifest; a resumed run takes them as it takes those of
a process that was killed in a local folder.

The bucket is the truth: a start makes the local folder equal to it. There is one exception: before
a state is sent, the local file unsent.json describes it and names the state that it follows. If the
bucket still has that one, the next start sends the rest first.

FOLDER/lock.json names the process that works there; see `Mirror.locked`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from normjax.files import (
    cache_dir,
    check_address,
    one_line,
    parse_object,
    read_object,
    replacing,
    write_json,
)
from normjax.results import tensorboard
from normjax.results.table import RESULTS_FILE
from normjax.training.checkpoints import has_progress
from normjax.training.record import LOCK_FILE, kernel_lock

MANIFEST_FILE = "manifest.json"
BUCKET_LOCK_FILE = "lock.json"
UNSENT_FILE = "unsent.json"
RENEW_S = 30.0  # between two signs of life of the process that holds the lock
STALE_S = 120.0  # without a sign of life until --resume takes the lock over
SETTLE_S = 5.0  # until the earlier of two processes that take it over sees the later one
PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
_TEMPORARY = re.compile(rf"(^|/)({re.escape(LOCK_FILE)}|\.[^/]*\.tmp)$|\.orbax-checkpoint-tmp")
_DROPPING = ("checkpoints/", f"{tensorboard.FOLDER}/")  # where a run removes files


@dataclasses.dataclass
class Mirror:
    """A run in a bucket and its local folder.

    Attributes:
      address: gs://BUCKET/FOLDER or s3://BUCKET/FOLDER.
      home: the local folder that holds the run's folder and what concerns this machine alone.
      run_dir: the local folder of the run.
      fs: the file system of fsspec.
      owner: what the lock names if it is that of this folder's process.
      manifest: the state in the bucket: its `id`, and `files`, {path: SHA-256}.
      is_lost: whether another process has taken the lock over.
    """

    address: str
    home: Path
    run_dir: Path
    fs: Any
    owner: str = ""
    manifest: dict[str, Any] = dataclasses.field(default_factory=lambda: {"id": None, "files": {}})
    is_lost: bool = False

    def check(self) -> None:
        """Raise OSError if another process has taken the lock over."""
        if self.is_lost:
            raise OSError(f"{self.address}: another process has taken this run over")

    def push(self) -> None:
        """Send the run's folder, which must be in a state to resume from.

        Raises:
          OSError: the bucket cannot be reached, or another process has taken the run over.
        """
        files, listed = self._digests(), self.manifest["files"]
        changed = [path for path in files if files[path] != listed.get(path)]
        gone = [path for path in listed if path not in files]
        if not changed and not gone:
            return
        manifest = {"id": uuid.uuid4().hex, "base": self.manifest["id"], "files": files}
        write_json(self.home / UNSENT_FILE, manifest)
        try:
            self.is_lost |= self._owner() != self.owner
            self.check()
            with self._reaching():
                self.fs.put([str(self.run_dir / path) for path in changed], self._names(changed))
            self._write(MANIFEST_FILE, manifest)
        except OSError as error:
            raise OSError(
                f"{error}; what is not there yet is in {self.run_dir}, and --resume sends it"
            ) from error
        self.manifest = manifest
        (self.home / UNSENT_FILE).unlink()
        self._remove(gone)

    def fetch(self, resume: bool) -> None:
        """Send what is unsent, or make the local folder equal to the run in the bucket.

        Raises:
          OSError: the bucket cannot be reached.
          ValueError: it holds a run and not `resume`, or it holds something else.
        """
        is_there = self.read_manifest()
        with self._reaching():
            found = self.fs.find(self._names([""])[0])
        found = [name[len(self._names([""])[0]) :] for name in found]
        if not is_there and any(p == RESULTS_FILE or p.startswith(_DROPPING) for p in found):
            raise ValueError(f"--workdir={self.address} holds other results")
        is_unsent = (self.home / UNSENT_FILE).exists()
        if not resume and (is_there or is_unsent):
            raise ValueError(
                f"--workdir={self.address} already holds a run: give another folder, or --resume "
                "to continue"
            )
        if not is_there and not is_unsent and has_progress(self.run_dir):
            raise ValueError(
                f"--workdir={self.address} holds no run any more, but {self.run_dir} does: move it"
            )
        if is_unsent and self._follows():
            print(f"{self.run_dir}: sending what is not in {self.address} yet", file=sys.stderr)
            self.push()
        else:
            (self.home / UNSENT_FILE).unlink(missing_ok=True)
            self.get_files()
            self._drop_unlisted()
        listed = self.manifest["files"]
        self._remove([path for path in found if path.startswith(_DROPPING) and path not in listed])

    def read_manifest(self) -> bool:
        """Read the manifest, and return whether there is one.

        Raises:
          OSError: the bucket cannot be reached.
          ValueError: the manifest is damaged.
        """
        text, place = self._read(MANIFEST_FILE), f"{self.address}/{MANIFEST_FILE}"
        if text is None:
            return False
        self.manifest = parse_object(text, place, id=str, files=dict)
        for path in map(PurePosixPath, self.manifest["files"]):
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{place}: {path} is outside of the run")
        return True

    def get_files(self) -> None:
        """Fetch the listed files that differ.

        Raises:
          OSError: the bucket cannot be reached, or a file is missing there.
        """
        listed, local = self.manifest["files"], self._digests()
        paths = [path for path in listed if listed[path] != local.get(path)]
        with self._reaching():
            self.fs.get(self._names(paths), [str(self.run_dir / path) for path in paths])

    @contextlib.contextmanager
    def locked(self, resume: bool) -> Iterator[None]:
        """Hold the lock in the bucket, and renew it every `RENEW_S` seconds.

        It is created only if there is none. A killed process leaves it behind. With `resume`, it is
        taken over: at once if its process was one of this folder, whose kernel lock the caller
        holds; otherwise after `STALE_S` seconds without a sign of life, as measured here, because
        clocks differ. Of two processes that take it over, the later one wins.

        Raises:
          OSError: the bucket cannot be reached.
          ValueError: another process holds the lock, or the store cannot have one.
        """
        path = self.home / f"owner_{socket.gethostname()}"
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_text(uuid.uuid4().hex)
        self.owner = path.read_text()
        if self._owner() is None:
            with contextlib.suppress(FileExistsError):
                for _ in range(2):  # where the condition counts, the second one fails
                    self._write(BUCKET_LOCK_FILE, self._sign_of_life(), mode="create")
                self._remove([BUCKET_LOCK_FILE])
                raise ValueError(f"{self.address}: this store cannot create a file only once")
        if self._owner() != self.owner:
            self._take_over(resume)
        end = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(end,), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            end.set()
            renewing.join(timeout=RENEW_S)  # without a network it may hang
            with contextlib.suppress(OSError):  # a lock that stays is taken over later
                if self._owner() == self.owner:
                    self._remove([BUCKET_LOCK_FILE])

    def _take_over(self, resume: bool) -> None:
        seen = self._read(BUCKET_LOCK_FILE)
        used = f"--workdir={self.address} is in use by another process"
        if not resume:
            raise ValueError(f"{used}; if that was killed, --resume takes over")
        print(f"{self.address}: locked; waiting {STALE_S:g} s for a sign of life", file=sys.stderr)
        give_up = time.monotonic() + STALE_S
        while time.monotonic() < give_up:
            time.sleep(SETTLE_S)
            if self._read(BUCKET_LOCK_FILE) != seen:
                raise ValueError(used)
        self._write(BUCKET_LOCK_FILE, self._sign_of_life())
        time.sleep(SETTLE_S)
        if self._owner() != self.owner:
            raise ValueError(used)

    def _renew(self, end: threading.Event) -> None:
        """Give signs of life until the end."""
        while not end.wait(RENEW_S):
            with contextlib.suppress(OSError):  # the network may be back soon; `push` needs it
                if self._owner() != self.owner:
                    self.is_lost = True
                    return
                self._write(BUCKET_LOCK_FILE, self._sign_of_life())

    def _sign_of_life(self) -> dict[str, Any]:
        return {"owner": self.owner, "host": socket.gethostname(), "time": time.time()}

    def _owner(self) -> str | None:
        """Return the owner of the lock, None if there is no lock."""
        text = self._read(BUCKET_LOCK_FILE)
        try:
            return None if text is None else parse_object(text, "", owner=str)["owner"]
        except ValueError:
            return "somebody else"

    def _follows(self) -> bool:
        """Return whether the local folder holds a state that follows the bucket's; say why not."""
        unsent = read_object(self.home / UNSENT_FILE, id=str, base=str | None, files=dict)
        if unsent["id"] == self.manifest["id"]:
            return False  # it was sent
        why = None
        if unsent["base"] != self.manifest["id"]:
            why = "another process has gone on with this run"
        elif unsent["files"] != self._digests():
            why = "it has been changed"
        if why:
            print(f"{self.run_dir}: what is not in {self.address} is lost: {why}", file=sys.stderr)
        return why is None

    def _drop_unlisted(self) -> None:
        """Remove local files that are not listed, and empty folders."""
        for path in sorted(self.run_dir.rglob("*"), reverse=True):  # a folder after its content
            if path.is_dir():
                with contextlib.suppress(OSError):  # it is not empty
                    path.rmdir()
            elif path.relative_to(self.run_dir).as_posix() not in self.manifest["files"]:
                path.unlink()

    def _digests(self) -> dict[str, str]:
        """Return the SHA-256 of the run's local files by path."""
        digests = {}
        for path in sorted(self.run_dir.rglob("*")):
            name, status = path.relative_to(self.run_dir).as_posix(), path.stat()
            if path.is_file() and not _TEMPORARY.search(name):
                digests[name] = _digest(path, status.st_size, status.st_mtime_ns)
        return digests

    def _names(self, paths: Sequence[str]) -> list[str]:
        """Return the names of objects without the scheme."""
        return [f"{self.address.partition('://')[2]}/{path}" for path in paths]

    def _read(self, path: str) -> str | None:
        with self._reaching():
            try:
                return self.fs.cat_file(*self._names([path])).decode()
            except FileNotFoundError:
                return None

    def _write(self, path: str, value: dict[str, Any], mode: str = "overwrite") -> None:
        data = json.dumps(value, indent=2).encode()
        with self._reaching():
            self.fs.pipe_file(*self._names([path]), data, mode=mode)

    def _remove(self, paths: Sequence[str]) -> None:
        with self._reaching():
            for name in self._names(paths):
                with contextlib.suppress(FileNotFoundError):
                    self.fs.rm_file(name)

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turn the errors of fsspec and of its file systems into an OSError of one line."""
        try:
            yield
        except FileExistsError:
            raise
        except Exception as error:
            text = one_line(error) or type(error).__name__
            what = "not found: " if isinstance(error, FileNotFoundError) else ""
            raise OSError(f"{self.address}: {what}{text}") from error


@functools.cache
def _digest(path: Path, _size: int, _mtime_ns: int) -> str:
    """Return the SHA-256 of a file, which is read again only if it was changed."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def mirrored(address: str, resume: bool) -> Iterator[Mirror]:
    """Lock a run in a bucket, and fetch it into its local folder.

    Raises:
      OSError: the bucket cannot be reached.
      ValueError: another process works there, a package is missing, or see `Mirror.fetch`.
    """
    mirror = open_mirror(address, "run")
    with (
        kernel_lock(mirror.home / "lock", f"--workdir={address} is in use by another process"),
        mirror.locked(resume),
    ):
        mirror.fetch(resume)
        yield mirror


def fetch_run(address: str) -> Path:
    """Fetch a run from a bucket, to read it; files of earlier analyses stay in its local folder.

    Args:
      address: gs://BUCKET/FOLDER or s3://BUCKET/FOLDER.

    Returns:
      The folder, for `read_results`, `load_member` and the like.

    Raises:
      FileNotFoundError: there is no run.
      OSError: the bucket cannot be reached.
      ValueError: a package is missing, or the folder is in use.
    """
    mirror = open_mirror(address, "copy")
    with kernel_lock(mirror.home / "lock", f"{mirror.run_dir} is in use by another process"):
        if not mirror.read_manifest():
            raise FileNotFoundError(f"{address}: no run here ({MANIFEST_FILE} is missing)")
        mirror.get_files()
    return mirror.run_dir


def open_mirror(address: str, purpose: str) -> Mirror:
    """Return the mirror of a run in a bucket; nothing is read yet.

    Args:
      address: gs://BUCKET/FOLDER or s3://BUCKET/FOLDER.
      purpose: "run" or "copy", each with a local folder of its own.

    Raises:
      OSError: the local folder cannot be made.
      ValueError: it is no such address, or a package is missing.
    """
    check_address(address)
    address = address.rstrip("/")
    scheme = address.partition(":")[0]
    try:
        importlib.import_module(PACKAGES[scheme])
    except ImportError as error:
        raise ValueError(f"{address}: {error}; pip install 'normjax[{scheme}]'") from None
    import fsspec

    fs = fsspec.filesystem(scheme, use_listings_cache=False)
    key = hashlib.sha256(address.encode()).hexdigest()[:16]
    home = cache_dir() / "buckets" / key / purpose
    run_dir = home / address.rpartition("/")[2]
    run_dir.mkdir(parents=True, exist_ok=True)
    return Mirror(address, home, run_dir, fs)
