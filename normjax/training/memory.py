"""Estimate how many networks fit in device memory, from the compiled programs.

XLA reports the memory that a compiled program will use. JAX caches the programs, so the estimate
is free if the whole group fits.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from normjax.training.ensemble import AXIS, Ensemble, make_order_key

SHARE = 0.8  # fraction of the free memory to use: the estimate ignores fragmentation
MEMINFO = Path("/proc/meminfo")
CACHED = ("inactive_file", "total_inactive_file")  # the kernel can reclaim them


class ControlGroup(NamedTuple):
    """The kernel's files about the memory of a container."""

    limit: Path
    usage: Path
    statistics: Path


_V2, _V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")
CONTROL_GROUPS = (
    ControlGroup(_V2 / "memory.max", _V2 / "memory.current", _V2 / "memory.stat"),
    ControlGroup(_V1 / "memory.limit_in_bytes", _V1 / "memory.usage_in_bytes", _V1 / "memory.stat"),
)


def available_memory() -> float | None:
    """Return the free bytes of each local device, or None if unknown.

    CPU devices share the free memory of the machine or container. Other processes of this run on
    the same machine are not taken into account.
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
    """Return the bytes of main memory that this process can use, or None if unknown."""
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
    """Return whether an error means that a device or the machine ran out of memory."""
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
    """Return the peak bytes per device while a group is trained and evaluated.

    This compiles training, tracking and evaluation for the number of networks, and runs nothing.

    Args:
      ensemble: the functions.
      num_per_device: the number of networks on each local device, or on those that share them.
      train_shape: (N, H, W, C) of the training images.
      test_shape: the same for the test images, if they are on the devices during training.

    Returns:
      The bytes; infinity if the compiler itself runs out of memory; None if the backend does not
      report them.
    """
    mesh, places = ensemble.mesh, ensemble.places
    stacked = lambda tree: _abstract(tree, NamedSharding(mesh, PartitionSpec(AXIS)))  # noqa: E731
    shared = lambda tree: _abstract(tree, NamedSharding(mesh, PartitionSpec()))  # noqa: E731
    count = num_per_device * places
    keys = stacked(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count)))
    state = stacked(jax.eval_shape(ensemble.init, keys, None))
    snapshots = stacked(jax.eval_shape(ensemble.init_snapshots, state))
    labels, images = _split(train_shape, count, stacked, shared)
    order_key = shared(jax.eval_shape(lambda: make_order_key(0)))
    metrics = stacked(jax.eval_shape(ensemble.train_epoch, state, labels, images, order_key)[1])
    now = (jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.bool))
    kept = _device_bytes((state, snapshots), places)
    test = 0.0
    if test_shape is not None:
        test_labels, test_images = _split(test_shape, count, stacked, shared)
        test = _device_bytes(test_labels, places) + _device_bytes(test_images, 1)
    programs: list[tuple[Any, tuple, float]] = [  # a function, its arguments, other bytes
        (ensemble.train_epoch, (state, labels, images, order_key), kept + test),
        (ensemble.track, (snapshots, state, labels, metrics, images, *now), test),
        (ensemble.evaluate, (state.variables, labels, images), kept),
    ]
    try:
        own = [program_bytes(fn.lower(*args).compile()) for fn, args, _ in programs]
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
      needed: returns the bytes per device for a number of networks (see `group_memory`).
      most: the number of networks to fit, at least 1.
      available: the free bytes of a device, or None if unknown.

    Returns:
      `most` if they fit or if memory is unknown; otherwise the largest number that fits, by linear
      interpolation between 1 and `most`; at least 1.
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


def program_bytes(compiled: Any) -> float | None:
    """Return the bytes per device that a compiled program occupies while it runs."""
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
    """Return the labels [M, N] and images of a split as abstract arrays on the devices."""
    labels = stacked(jax.ShapeDtypeStruct((count, shape[0]), jnp.int32))
    return labels, shared(jax.ShapeDtypeStruct(tuple(shape), jnp.uint8))


def _device_bytes(tree, places):
    """Return the bytes per device of a tree that is sharded over `places`."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) / places


def _read_fields(path):
    """Return {first word: following number} for the lines of a file; {} if unreadable."""
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
