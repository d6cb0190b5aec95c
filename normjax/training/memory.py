"""How many networks fit into a device's memory: measured on the compiled programs, before a run.

What XLA reserves for a program is known as soon as it is compiled. The programs of the whole group
are needed for the run anyway, and JAX keeps them: where they fit, the estimate costs nothing.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from normjax.training.ensemble import AXIS, Ensemble, make_order_key, member_mesh

SHARE = 0.8  # of the free memory that may be planned with: the estimate knows no fragmentation
MEMINFO = Path("/proc/meminfo")
# Of a container, version 2 and version 1: its limit, its use, its statistics, and therein the part
# of its use that is cached files, which are given back when memory is short.
CGROUPS = (
    tuple(
        Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current", "memory.stat")
    ),
    tuple(
        Path("/sys/fs/cgroup/memory") / name
        for name in ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    ),
)
CACHED = ("inactive_file", "total_inactive_file")


def available_memory() -> float | None:
    """Bytes that are free for each local device; None where nobody says.

    CPU devices share what the machine, or the container that this runs in, has left. Several
    processes on one machine don't know of each other.
    """
    devices = jax.local_devices()
    if jax.default_backend() == "cpu":
        free = host_memory()
        return None if free is None else free / len(devices)
    stats = [device.memory_stats() for device in devices]
    if not all(s and "bytes_limit" in s for s in stats):
        return None
    return min(s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats)


def host_memory(
    meminfo: Path = MEMINFO, cgroups: Sequence[tuple[Path, Path, Path]] = CGROUPS
) -> float | None:
    """Bytes of main memory that are free for this process; None where the system doesn't say."""
    free = []
    if "MemAvailable:" in (kilobytes := _read_fields(meminfo)):
        free.append(kilobytes["MemAvailable:"] * 1024)
    for limit, used, statistics in cgroups:
        most, now = _read_number(limit), _read_number(used)
        if most is not None and now is not None:
            known = _read_fields(statistics)
            cached = max(known.get(name, 0.0) for name in CACHED)
            free.append(max(most - now + cached, 0.0))
    return min(free, default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of a device, or of the machine, was too small."""
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    )


def group_memory(
    ensemble: Ensemble,
    num_per_device: int,
    *,
    train_shape: Sequence[int],
    test_shape: Sequence[int] | None = None,
) -> float | None:
    """Bytes that a device needs for its networks at the worst moment of a group's life.

    It compiles training, the measurements for the snapshots and the evaluation for so many
    networks, and runs nothing.

    Args:
      ensemble: the functions.
      num_per_device: the networks on each local device.
      train_shape: (N, H, W, C) of the training images.
      test_shape: of the test images if they stay on the devices while networks are trained.

    Returns:
      The bytes; infinity if the compiler itself found that the memory was too small; None where
      the backend doesn't say.
    """
    mesh = member_mesh()
    stacked = lambda tree: _abstract(tree, NamedSharding(mesh, PartitionSpec(AXIS)))  # noqa: E731
    shared = lambda tree: _abstract(tree, NamedSharding(mesh, PartitionSpec()))  # noqa: E731
    count = num_per_device * mesh.size
    keys = stacked(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count)))
    state = stacked(jax.eval_shape(ensemble.init, keys, None))
    snapshots = stacked(jax.eval_shape(ensemble.init_snapshots, state))
    labels, images = _split(train_shape, count, stacked, shared)
    order_key = shared(jax.eval_shape(lambda: make_order_key(0)))
    metrics = stacked(jax.eval_shape(ensemble.train_epoch, state, labels, images, order_key)[1])
    now = (jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.bool))
    kept = _device_bytes((state, snapshots), mesh.size)
    test = 0.0
    if test_shape is not None:
        test_labels, test_images = _split(test_shape, count, stacked, shared)
        test = _device_bytes(test_labels, mesh.size) + _device_bytes(test_images, 1)
    programs = (  # the function, its arguments, and the bytes that are there beside it
        (ensemble.train_epoch, (state, labels, images, order_key), kept + test),
        (ensemble.track, (snapshots, state, labels, metrics, images, *now), test),
        (ensemble.evaluate, (state.variables, labels, images), kept),
    )
    try:
        needed = [_program_bytes(fn.lower(*args).compile()) for fn, args, _ in programs]
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if is_out_of_memory(error):
            return math.inf
        raise
    if None in needed:
        return None
    return max(own + beside for own, (_, _, beside) in zip(needed, programs, strict=True))


def networks_that_fit(
    needed: Callable[[int], float | None], most: int, available: float | None
) -> int:
    """How many networks a device can take.

    Args:
      needed: the bytes that a device needs for a number of networks (see `group_memory`).
      most: the number that is wished for, at least 1.
      available: the bytes that a device has free, None if that isn't known.

    Returns:
      `most` if they fit or if that can't be known; else the largest number that does, on the
      straight line between what one network and what `most` need; at least 1.
    """
    if available is None or most == 1:
        return most
    available *= SHARE
    together = needed(most)
    if together is None or together <= available:
        return most
    if math.isinf(together):
        return networks_that_fit(needed, (most + 1) // 2, available / SHARE)
    alone = needed(1)
    slope = (together - alone) / (most - 1)
    if alone >= available or slope <= 0:
        return 1
    return min(most - 1, 1 + int((available - alone) / slope))


def _program_bytes(compiled: Any) -> float | None:
    """What a compiled program occupies on each device while it runs."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        + analysis.generated_code_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def _abstract(tree, sharding):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _split(shape, count, stacked, shared):
    """A split's labels [M, N] and images on the devices, without values."""
    labels = stacked(jax.ShapeDtypeStruct((count, shape[0]), jnp.int32))
    return labels, shared(jax.ShapeDtypeStruct(tuple(shape), jnp.uint8))


def _device_bytes(tree, num_devices):
    """Bytes on each device of what is split over so many."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) / num_devices


def _read_fields(path):
    """{first word: the number that follows} of a file's lines; empty if it can't be read."""
    try:
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    except OSError:
        return {}
    return {words[0]: float(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _read_number(path):
    try:
        return float(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" where there is no limit
        return None
