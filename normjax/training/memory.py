"""How many networks fit into a device's memory, measured on the compiled programs before a run.

Once a program is compiled, XLA tells what memory it will use. The run needs the programs of the
whole group anyway, and JAX keeps them: if the group fits, the estimate costs nothing.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from normjax.training.ensemble import AXIS, Ensemble, make_order_key, member_mesh

SHARE = 0.8  # of the free memory: the estimate ignores fragmentation
MEMINFO = Path("/proc/meminfo")
CACHED = ("inactive_file", "total_inactive_file")  # the kernel frees them if memory is short


class ControlGroup(NamedTuple):
    """The files in which the kernel tells about a container's memory."""

    limit: Path
    usage: Path
    statistics: Path


_V2, _V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")
CONTROL_GROUPS = (
    ControlGroup(_V2 / "memory.max", _V2 / "memory.current", _V2 / "memory.stat"),
    ControlGroup(_V1 / "memory.limit_in_bytes", _V1 / "memory.usage_in_bytes", _V1 / "memory.stat"),
)


def available_memory() -> float | None:
    """Return the free bytes of each local device; None if they are unknown.

    CPU devices share the free memory of the machine or container. Several processes on one machine
    do not know of each other.
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
    meminfo: Path = MEMINFO, control_groups: Sequence[ControlGroup] = CONTROL_GROUPS
) -> float | None:
    """Return the bytes of main memory that are free for this process; None if they are unknown."""
    free = []
    if "MemAvailable:" in (kilobytes := _read_fields(meminfo)):
        free.append(kilobytes["MemAvailable:"] * 1024)
    for control_group in control_groups:
        most, now = _read_number(control_group.limit), _read_number(control_group.usage)
        if most is not None and now is not None:
            known = _read_fields(control_group.statistics)
            cached = max(known.get(name, 0.0) for name in CACHED)
            free.append(max(most - now + cached, 0.0))
    return min(free, default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that a device or the machine ran out of memory."""
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
    """Return the most bytes that a device needs while a group is trained and evaluated.

    It compiles training, the measurements for the snapshots and the evaluation for this number of
    networks, and runs nothing.

    Args:
      ensemble: the functions.
      num_per_device: the networks on each local device.
      train_shape: (N, H, W, C) of the training images.
      test_shape: that of the test images, if these are on the devices during training.

    Returns:
      The bytes; infinity if the compiler itself runs out of memory; None if the backend does not
      tell.
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
    programs: list[tuple[Any, tuple, float]] = [  # a function, its arguments, other bytes
        (ensemble.train_epoch, (state, labels, images, order_key), kept + test),
        (ensemble.track, (snapshots, state, labels, metrics, images, *now), test),
        (ensemble.evaluate, (state.variables, labels, images), kept),
    ]
    try:
        own = [_program_bytes(fn.lower(*args).compile()) for fn, args, _ in programs]
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if is_out_of_memory(error):
            return math.inf
        raise
    known = [size for size in own if size is not None]
    if len(known) < len(own):
        return None
    return max(size + other for size, (_, _, other) in zip(known, programs, strict=True))


def networks_that_fit(
    needed: Callable[[int], float | None], most: int, available: float | None
) -> int:
    """Return how many networks fit on a device.

    Args:
      needed: the bytes that a device needs for a number of networks (see `group_memory`).
      most: the number that is wanted, at least 1.
      available: the free bytes of a device, None if unknown.

    Returns:
      `most` if they fit or nothing is known; else the largest number that fits, interpolated
      linearly between one network and `most`; at least 1.
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
    if alone is None:
        return most
    slope = (together - alone) / (most - 1)
    if alone >= available or slope <= 0:
        return 1
    return min(most - 1, 1 + int((available - alone) / slope))


def _program_bytes(compiled: Any) -> float | None:
    """Return the bytes that a compiled program occupies on each device while it runs."""
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
    """Return a split's labels [M, N] and images as abstract arrays on the devices."""
    labels = stacked(jax.ShapeDtypeStruct((count, shape[0]), jnp.int32))
    return labels, shared(jax.ShapeDtypeStruct(tuple(shape), jnp.uint8))


def _device_bytes(tree, num_devices):
    """Return the bytes on each device of a tree that is split over the devices."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) / num_devices


def _read_fields(path):
    """Return {first word: number after it} of a file's lines; empty if it cannot be read."""
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
