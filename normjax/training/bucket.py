"""Runs in a bucket: --workdir=gs://BUCKET/FOLDER or s3://BUCKET/FOLDER.

Process 0 works in a local folder, as always, and sends it to the bucket at each point from which a
run can resume. FOLDER/manifest.json lists the files of that point and is written last: a file that
it does not list does not count yet, and one that it no longer lists is removed afterwards. So the
bucket holds a state to resume from, whenever the process ends. Files that keep their names
(run.json, metrics.jsonl, tables) may be newer than the manifest; a resumed run treats them like
those of a process that was killed in a local folder.

The bucket is the source of truth: a start makes the local folder equal to it, with one exception.
Before a state is sent, the local file unsent.json describes it and names the state that it follows.
If the bucket still has that one, the next start sends the rest first; if not, it moves the folder
aside. FOLDER/lock.json names the process that works there; see `Mirror.locked`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from normjax.files import cache_dir, check_address, one_line, parse_object, read_object, write_json
from normjax.results import tensorboard
from normjax.results.table import RESULTS_FILE
from normjax.training.checkpoints import RUN_FILE, has_progress
from normjax.training.record import LOCK_FILE, is_marked_finished, kernel_lock

MANIFEST_FILE = "manifest.json"
BUCKET_LOCK_FILE = "lock.json"
UNSENT_FILE = "unsent.json"
RENEW_S = 30.0  # between two signs of life of the process that holds the lock
STALE_S = 120.0  # without a sign of life until --resume takes the lock over
SETTLE_S = 5.0  # until the earlier of two processes that take it over sees the later one
PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
ENDPOINTS = {"gs": ["STORAGE_EMULATOR_HOST"], "s3": ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]}
_TEMPORARY = re.compile(rf"(^|/)({re.escape(LOCK_FILE)}|\.[^/]*\.tmp)$|\.orbax-checkpoint-tmp")
_DROPPING = ("checkpoints/", f"{tensorboard.FOLDER}/")  # where a run removes files
_CHANGING = ("finished", "wall_time_s", "groups")  # what a run changes in run.json


@dataclasses.dataclass
class Mirror:
    """A run in a bucket and its local folder.

    Attributes:
      address: gs://BUCKET/FOLDER or s3://BUCKET/FOLDER.
      home: the local folder that holds the run's folder and what concerns this machine alone.
      run_dir: the local folder of the run.
      fs: the file system of fsspec.
      owner: the owner that the lock names while this process holds it.
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
          ValueError: the manifest is damaged.
        """
        files, listed = self._digests(), self.manifest["files"]
        changed = [path for path in files if files[path] != listed.get(path)]
        gone = [path for path in listed if path not in files]
        if not changed and not gone:
            return
        manifest = {"id": uuid.uuid4().hex, "base": self.manifest["id"], "files": files}
        write_json(self.home / UNSENT_FILE, manifest)
        try:
            self._check_state()
            with self._reaching():
                self.fs.put([str(self.run_dir / path) for path in changed], self._names(changed))
            self._check_state()  # sending may have taken longer than another process waits
            self._write(MANIFEST_FILE, manifest)
        except OSError as error:
            how = "" if self.is_lost else ", and --resume sends it"
            raise OSError(f"{error}; what is not there yet is in {self.run_dir}{how}") from error
        self.manifest = manifest
        (self.home / UNSENT_FILE).unlink()
        self._remove(gone)

    def fetch(self, resume: bool) -> None:
        """Send what is unsent, or make the local folder equal to the run in the bucket.

        Raises:
          OSError: the bucket cannot be reached.
          ValueError: the bucket holds a run (if not `resume`), something else, or a damaged file.
        """
        is_there, place = self.read_manifest(), f"--workdir={self.address}"
        with self._reaching():
            found = self.fs.find(self._names([""])[0])
        found = [name[len(self._names([""])[0]) :] for name in found]
        if not is_there and any(p == RESULTS_FILE or p.startswith(_DROPPING) for p in found):
            raise ValueError(f"{place} holds other results ({MANIFEST_FILE} is missing)")
        path, unsent = self.home / UNSENT_FILE, None
        if path.exists() and self._digests():
            unsent = read_object(path, id=str, base=str | None, files=dict)
        if not is_there and (unsent["base"] if unsent else has_progress(self.run_dir)):
            raise ValueError(f"{place} holds no run any more, but {self.run_dir} does: move it")
        if not resume and (is_there or unsent):
            raise ValueError(
                f"{place} already holds a run: give another folder, or --resume to continue"
            )
        if unsent and self._follows(unsent):
            print(f"{self.run_dir}: sending what is not in {self.address} yet", file=sys.stderr)
            self.push()
        else:
            path.unlink(missing_ok=True)
            self.get_files()
            self.drop_unlisted("")
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
          ValueError: a file of a finished run is damaged; if run.json is newer, others may be too.
        """
        listed, local = self.manifest["files"], self._digests()
        paths = [path for path in listed if listed[path] != local.get(path)]
        with self._reaching():
            self.fs.get(self._names(paths), [str(self.run_dir / path) for path in paths])
        local = self._digests()
        other = [path for path in paths if listed[path] != local.get(path)]
        if other and RUN_FILE not in other and is_marked_finished(self.run_dir):
            raise ValueError(f"{self.address}/{other[0]}: damaged, not as in {MANIFEST_FILE}")

    @contextlib.contextmanager
    def locked(self, resume: bool) -> Iterator[None]:
        """Hold the lock in the bucket, and renew it every `RENEW_S` seconds.

        The lock is created only if there is none. A killed process leaves it behind. The next
        process of this folder, whose kernel lock the caller holds, takes it over at once; another
        one with `resume`, after `STALE_S` seconds without a sign of life, timed here because clocks
        differ. If two take it over, the later wins. Each start has a new id, as folders get copied.

        Raises:
          OSError: the bucket cannot be reached.
          ValueError: another process holds the lock, or the store cannot have one.
        """
        path = self.home / f"owner_{socket.gethostname()}"
        last = path.read_text() if path.exists() else None
        self.owner, found = uuid.uuid4().hex, self._owner()
        if found is None:
            with contextlib.suppress(FileExistsError):
                for _ in range(2):  # the second one fails if the store obeys "create"
                    self._write(BUCKET_LOCK_FILE, self._sign_of_life(), mode="create")
                self._remove([BUCKET_LOCK_FILE])
                raise ValueError(f"{self.address}: this store cannot create a file only once")
        elif found == last:
            self._write(BUCKET_LOCK_FILE, self._sign_of_life())
        if self._owner() != self.owner:
            self._take_over(resume)
        path.write_text(self.owner)
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

    def _check_state(self) -> None:
        """Raise OSError if another process has the lock, or has continued the run."""
        now = dataclasses.replace(self, manifest={"id": None})
        now.read_manifest()
        self.is_lost |= self._owner() != self.owner or now.manifest["id"] != self.manifest["id"]
        self.check()

    def _follows(self, unsent: dict[str, Any]) -> bool:
        """Return whether the unsent state follows the bucket's; move aside one that conflicts."""
        if unsent["id"] == self.manifest["id"]:
            return False  # it was sent
        is_behind = unsent["base"] != self.manifest["id"]
        if not is_behind and unsent["files"] == self._digests():
            return True
        why = "another process has gone on with this run" if is_behind else "it has been changed"
        aside = self.run_dir.rename(f"{self.run_dir}.unsent_{unsent['id'][:8]}")
        self.run_dir.mkdir()
        print(f"{aside}: what is not in {self.address} was moved here: {why}", file=sys.stderr)
        return False

    def is_same(self) -> bool:
        """Return whether the local run.json is of the same run as that in the bucket."""
        text = self._read(RUN_FILE) or ""
        with contextlib.suppress(OSError, ValueError):  # a damaged file is of no run
            runs = read_object(self.run_dir / RUN_FILE), parse_object(text, "")
            ours, theirs = ({n: run[n] for n in run if n not in _CHANGING} for run in runs)
            return ours == theirs
        return False

    def drop_unlisted(self, start: str | tuple[str, ...]) -> None:
        """Remove local files that start like this and are not listed, and empty folders."""
        for path in sorted(self.run_dir.rglob("*"), reverse=True):  # contents before folders
            name = path.relative_to(self.run_dir).as_posix()
            if path.is_dir():
                with contextlib.suppress(OSError):  # it is not empty
                    path.rmdir()
            elif name.startswith(start) and name not in self.manifest["files"]:
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
        with self._reaching():
            self.fs.pipe_file(*self._names([path]), json.dumps(value, indent=2).encode(), mode=mode)

    def _remove(self, paths: Sequence[str]) -> None:
        with self._reaching():
            for name in self._names(paths):
                with contextlib.suppress(FileNotFoundError):
                    self.fs.rm_file(name)

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turn the errors of fsspec and of its file systems into a one-line OSError."""
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
    """Return the SHA-256 of a file, which is read again only if it has changed."""
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
    """Fetch a run from a bucket, to read it; earlier analyses of it stay in its local folder.

    Args:
      address: gs://BUCKET/FOLDER or s3://BUCKET/FOLDER.

    Returns:
      The folder, for `read_results`, `load_member` and the like.

    Raises:
      OSError: there is no run (FileNotFoundError), or the bucket cannot be reached.
      ValueError: a package is missing, the folder is in use, or a file is damaged.
    """
    mirror = open_mirror(address, "copy")
    with kernel_lock(mirror.home / "lock", f"{mirror.run_dir} is in use by another process"):
        if not mirror.read_manifest():
            raise FileNotFoundError(f"{address}: no run here ({MANIFEST_FILE} is missing)")
        mirror.drop_unlisted(_DROPPING if mirror.is_same() else "")
        mirror.get_files()
    return mirror.run_dir


def open_mirror(address: str, purpose: str) -> Mirror:
    """Return the mirror of a run in a bucket; nothing is read yet.

    Args:
      address: gs://BUCKET/FOLDER or s3://BUCKET/FOLDER.
      purpose: "run" or "copy", each with a local folder of its own.

    Raises:
      OSError: the local folder cannot be created.
      ValueError: `address` is not such an address, or a package is missing.
    """
    check_address(address)
    address, scheme = address.rstrip("/"), address.partition(":")[0]
    try:
        importlib.import_module(PACKAGES[scheme])
    except ImportError as error:
        raise ValueError(f"{address}: {error}; pip install 'normjax[{scheme}]'") from None
    import fsspec

    fs = fsspec.filesystem(scheme, use_listings_cache=False)
    options = fs.storage_options.get("client_kwargs", {}) | fs.storage_options
    endpoints = [options.get("endpoint_url"), *map(os.getenv, ENDPOINTS[scheme])]
    where = next(filter(None, endpoints), "") + address  # two stores may have the same names
    key = hashlib.sha256(where.encode()).hexdigest()[:16]
    home = cache_dir() / "buckets" / key / purpose
    run_dir = home / address.rpartition("/")[2]
    run_dir.mkdir(parents=True, exist_ok=True)
    return Mirror(address, home, run_dir, fs)
