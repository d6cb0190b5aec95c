"""Several processes, on one host or on many: the --distributed flag, and what they agree on.

Members are independent, so that each process trains its own share of them on its own devices; the
compiled functions know nothing of the others. What must be known everywhere (a line of metrics, a
checkpoint, an evaluation) is put together by `ensemble.gather_members`, and process 0 writes it.
Every decision that changes what is called next is taken together, by `worst`: a process that went
another way than the others would leave them waiting.
"""

import contextlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from normjax.training.memory import is_out_of_memory

START_TIMEOUT_S = 120  # for the processes to find each other
SHUTDOWN_TIMEOUT_S = 30  # for all to end; they end together, see `together`
ALLOWED = "allowed are none, auto and host:port,n,i with 0 <= i < n, as in localhost:12345,2,0"


T = TypeVar("T")


class OutOfMemoryError(Exception):
    """The memory of a device was too small, in this process or in another one."""


class Address(NamedTuple):
    """This process among the others."""

    coordinator: str  # host:port of process 0
    num_processes: int
    process_id: int


def prepare_cpu() -> None:
    """One CPU device for each core: members then train side by side, a core each.

    Must be called before JAX starts its backend. Without effect on GPUs and TPUs, and where
    XLA_FLAGS already says how many CPU devices there are.
    """
    xla_flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" in xla_flags:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ["XLA_FLAGS"] = (
        f"{xla_flags} --xla_force_host_platform_device_count={cores}"
        " --xla_cpu_multi_thread_eigen=false"
    ).strip()


def parse(text: str) -> Address | None:
    """What --distributed says; None for none and auto.

    Raises:
      ValueError: it is malformed; the message says what is allowed.
    """
    if text in ("none", "auto"):
        return None
    coordinator, *numbers = text.split(",")
    host, _, port = coordinator.rpartition(":")
    if len(numbers) == 2 and host and all(x.isdecimal() for x in (port, *numbers)):
        num_processes, process_id = map(int, numbers)
        if 0 < int(port) < 2**16 and process_id < num_processes:
            return Address(coordinator, num_processes, process_id)
    raise ValueError(f"--distributed={text}: {ALLOWED}")


def connect(text: str) -> None:
    """Joins the processes that --distributed names; must come before JAX starts its backend.

    Process 0 waits for the others and they for it, `START_TIMEOUT_S` at most. If some never come,
    JAX ends process 0 by SIGABRT, with a message of its own after the line that is printed here.

    Raises:
      ValueError: there is no cluster that JAX knows, process 0 does not answer, or the processes
        have different numbers of devices.
    """
    if text == "none":
        return
    address = parse(text)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # no other backend looks at it
    timeouts = {
        "initialization_timeout": START_TIMEOUT_S,
        "shutdown_timeout_seconds": SHUTDOWN_TIMEOUT_S,
    }
    if address is None:
        try:
            jax.distributed.initialize(**timeouts)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"--distributed=auto: JAX finds no cluster here ({error}); "
                "give host:port,n,i, or leave the flag out"
            ) from error
    else:
        print(
            f"process {address.process_id} of {address.num_processes}: waiting for the others at "
            f"{address.coordinator}, {START_TIMEOUT_S} s at most",
            file=sys.stderr,
            flush=True,
        )
        if address.process_id > 0:
            _await_coordinator(address.coordinator)
        # Without looking for a cluster: under Slurm, that would hide devices from the process.
        jax.distributed.initialize(*address, cluster_detection_method="deactivate", **timeouts)
    counts = np.bincount([device.process_index for device in jax.devices()])
    if len(set(counts.tolist())) > 1:
        raise ValueError(
            f"--distributed={text}: the processes have {', '.join(map(str, counts))} devices; "
            "every one must have the same number"
        )


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def worst(value: int) -> int:
    """The largest value that any process has; every process must call it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.int32(value)).max())


def attempt(work: Callable[[], T]) -> T:
    """What `work` gives here; every process must call it.

    Raises:
      OutOfMemoryError: the memory of some process, this or another, was too small.
    """
    result, is_too_small = None, False
    try:
        result = work()
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        is_too_small = True
    if worst(is_too_small):
        raise OutOfMemoryError
    return result


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around all that a run does; an OSError, as of a full disk, is one line and exit code 1.

    Of several processes, one with an exception that the others don't know of ends at once: JAX's
    own shutdown would wait for the others, which wait for this one. So they notice, and end too.
    """
    try:
        yield
    except Exception as error:
        problem = f"error: {' '.join(str(error).split())}" if isinstance(error, OSError) else None
        if jax.process_count() == 1:
            if problem is None:
                raise
            sys.exit(problem)
        print(problem or traceback.format_exc(), file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)


def _await_coordinator(coordinator: str) -> None:
    """Returns when process 0 listens: JAX's client would end the program if it never did."""
    host, _, port = coordinator.rpartition(":")
    give_up = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > give_up:
                raise ValueError(
                    f"--distributed: process 0 does not answer at {coordinator} ({error})"
                ) from error
        time.sleep(0.2)
