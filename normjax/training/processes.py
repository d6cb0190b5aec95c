"""Coordinate several processes on one or more hosts.

Networks are independent: each process trains its own share on its own devices, and the compiled
functions involve one process only. `ensemble.gather_members` collects metrics, checkpoints and
evaluations. Only process 0 reads and writes files; `from_first` gives the others what it read.
Processes agree on what to call next through `all_max`; a process that decided alone would leave the
others waiting.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import os
import pickle
import platform
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from normjax.files import cache_dir, one_line
from normjax.training.memory import is_out_of_memory

START_TIMEOUT_S = 120  # for the processes to find each other
SHUTDOWN_TIMEOUT_S = 30  # for the processes to shut down together
COMPILED_BYTES = 2 * 1024**3
ALLOWED = "allowed are none, auto and host:port,n,i with 0 <= i < n, as in localhost:12345,2,0"
ELSEWHERE = "another process failed and reports why"
WAIT_S = 7 * 24 * 3600  # for process 0, for example to load the data
BROADCAST_BYTES = 2**24  # at once, because every device holds a copy

T = TypeVar("T")


class AgreedError(Exception):
    """An error that all processes raise together."""


class SettingsError(AgreedError, ValueError):
    """A setting or the data are invalid, or a folder or file cannot be used."""


class OutOfMemoryError(AgreedError, MemoryError):
    """A device of some process ran out of memory."""


@dataclasses.dataclass(frozen=True)
class Address:
    """The place of this process among all processes.

    Attributes:
      coordinator: host:port of process 0.
      num_processes: the number of processes.
      process_id: the number of this process, from 0.
    """

    coordinator: str
    num_processes: int
    process_id: int


def prepare_cpu() -> None:
    """Make JAX use one CPU device per core, so that each core trains its own networks.

    Call this before JAX starts its backend. It has no effect on GPUs and TPUs, or if XLA_FLAGS
    already sets the number of CPU devices.
    """
    xla_flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" in xla_flags:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ["XLA_FLAGS"] = (
        f"{xla_flags} --xla_force_host_platform_device_count={cores}"
        " --xla_cpu_multi_thread_eigen=false"
    ).strip()


def why_no_devices() -> str:
    """Return, in one line, why JAX cannot start here, or ""."""
    try:
        jax.devices()
    except Exception as error:  # JAX raises several types, some without text
        reason = one_line(error) or "JAX finds no such device"
        return f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: {reason}"
    return ""


def keep_compiled() -> None:
    """Keep compiled programs in the user's cache folder, at most `COMPILED_BYTES`, for later runs.

    JAX's own environment variables for the folder take precedence. Programs compiled for
    another kind of CPU can crash, so each kind has its own folder.
    """
    names = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
    if any(name in os.environ for name in names):
        return
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    cpu = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    kind = hashlib.sha256("\n".join([platform.machine(), *sorted(cpu)]).encode()).hexdigest()
    with contextlib.suppress(OSError):  # no folder: each run compiles anew
        folder = cache_dir() / f"compiled-{kind[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
            jax.config.update("jax_compilation_cache_max_size", COMPILED_BYTES)


def parse(text: str) -> Address | None:
    """Parse the value of --distributed; return None for none and auto.

    Raises:
      ValueError: the value is malformed; the message states the allowed values.
    """
    if text in ("none", "auto"):
        return None
    coordinator, *numbers = text.split(",")
    host, _, port = coordinator.rpartition(":")
    if len(numbers) == 2 and host and all(x.isdecimal() for x in (port, *numbers)):
        num_processes, process_id = map(int, numbers)
        if 0 < int(port) < 2**16 and process_id < num_processes:
            return Address(coordinator, num_processes, process_id)
    raise ValueError(ALLOWED)


def connect(text: str) -> None:
    """Join the processes that --distributed names, before JAX starts its backend.

    The processes wait for each other for at most `START_TIMEOUT_S`. If one is still missing, JAX
    prints a message and aborts process 0 with SIGABRT.

    Raises:
      SettingsError: JAX finds no cluster, process 0 does not answer, or the processes have
        different numbers of devices.
    """
    if text == "none":
        return
    address = parse(text)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # other backends ignore it
    initialize = partial(
        jax.distributed.initialize,
        initialization_timeout=START_TIMEOUT_S,
        shutdown_timeout_seconds=SHUTDOWN_TIMEOUT_S,
    )
    if address is None:
        try:
            initialize()
        except (ValueError, RuntimeError) as error:
            raise SettingsError(
                f"--distributed=auto: JAX finds no cluster here ({error}); "
                "give host:port,n,i, or leave the flag out"
            ) from error
    else:
        print(
            f"process {address.process_id} of {address.num_processes}: waiting for the others at "
            f"{address.coordinator}, at most {START_TIMEOUT_S} s",
            file=sys.stderr,
            flush=True,
        )
        if address.process_id > 0:
            _await_coordinator(address.coordinator)
        # Under Slurm, detecting a cluster would hide devices from the process.
        initialize(
            address.coordinator,
            address.num_processes,
            address.process_id,
            cluster_detection_method="deactivate",
        )
    counts = np.bincount([device.process_index for device in jax.devices()])
    if len(set(counts.tolist())) > 1:
        raise SettingsError(
            f"--distributed={text}: the processes have {', '.join(map(str, counts))} devices; "
            "every one must have the same number"
        )


def is_first() -> bool:
    """Return whether this is process 0, which writes the run's files."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Print a line in process 0; characters that stdout cannot encode are escaped."""
    if is_first():
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # stdout may be closed
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def all_max(value: int) -> int:
    """Return the largest value of all processes; every process must call this."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.int32(value)).max())


def sync() -> None:
    """Wait for all processes, even for longer than the 30 s of JAX's first collective on CPUs."""
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        everyone = set(range(jax.process_count()))
        wait = multihost.get_barrier_sync_fn(processes=everyone)
        wait(key=f"normjax_{next(_syncs)}", timeout_ms=WAIT_S * 1000)


_syncs = itertools.count()  # a barrier's name is used once


def in_step(work: Callable[[], T]) -> T:
    """Return the result of `work` if it succeeds in all processes; every process must call this.

    Raises:
      SettingsError: `work` raised ValueError or OSError in some process.
    """
    result: Any = None
    problem = None
    try:
        result = work()
    except (ValueError, OSError) as error:
        problem = error
    if all_max(problem is not None):
        raise SettingsError(ELSEWHERE if problem is None else _text(problem)) from problem
    return result


def from_first(work: Callable[[], T]) -> T:
    """Return what `work` returns in process 0, which alone runs it; every process must call this.

    Files are read this way: the other processes need not see them. The result is pickled for them.

    Raises:
      SettingsError: `work` raised ValueError or OSError; all processes raise the same message.
    """
    result: Any = None
    problem = None
    if is_first():
        try:
            result = work()
        except (ValueError, OSError) as error:
            problem = error
    text = None if problem is None else _text(problem)
    if jax.process_count() > 1:
        sent = _broadcast(pickle.dumps((result, text)) if is_first() else b"")
        result, text = (result, text) if is_first() else pickle.loads(sent)
    if text is not None:
        raise SettingsError(text) from problem
    return result


def _text(error: Exception) -> str:
    """Return an error's text on one line, or its type if it has none."""
    return one_line(error) or type(error).__name__


def _broadcast(data: bytes) -> bytes:
    """Return the bytes of process 0, padded with zeros; every process must call this."""
    sync()
    width = min(BROADCAST_BYTES, 1 << max(len(data).bit_length(), 2))  # few: each width is compiled
    header = np.array([-(-len(data) // width), width], np.int32)
    count, width = multihost_utils.broadcast_one_to_all(header)
    parts = np.frombuffer(data.ljust(count * width, b"\0"), np.uint32).reshape(count, -1)
    return b"".join(multihost_utils.broadcast_one_to_all(part).tobytes() for part in parts)


def attempt(work: Callable[[], T]) -> T:
    """Return the result of `work` if no process runs out of memory; all must call this.

    Raises:
      OutOfMemoryError: some process ran out of memory.
    """
    result: Any = None
    is_too_small = False
    try:
        result = work()
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        is_too_small = True
    if all_max(is_too_small):
        raise OutOfMemoryError
    return result


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Exit at once on an error that the other processes do not share.

    A regular shutdown of JAX would deadlock: it waits for the other processes, which wait for this
    one. If this process exits, they notice and exit too. A single process raises the error.
    """
    try:
        yield
    except AgreedError:
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        is_known = isinstance(error, OSError)  # such as a full disk
        text = f"error: {one_line(error)}" if is_known else traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)


def _await_coordinator(coordinator: str) -> None:
    """Wait until process 0 listens; otherwise JAX's client would abort the program."""
    host, _, port = coordinator.rpartition(":")
    give_up = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > give_up:
                raise SettingsError(
                    f"--distributed: process 0 does not answer at {coordinator} ({error})"
                ) from error
        time.sleep(0.2)
