"""How a device trains many networks: the fastest way, found by timing.

Which convolution is fast depends on the device, the shapes and the precision, and on a GPU or TPU
nothing predicts it well. So two batches are trained in each way, and the fastest is kept in the
user's cache. On a CPU the answer is known, and nothing is timed.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from normjax.files import cache_dir, one_line, write_json
from normjax.training.ensemble import Ensemble, make_order_key, shard_members, share

CACHE_FILE = "strategies.json"
NUM_BATCHES, NUM_RUNS = 2, 3


def find_fastest(
    make: Callable[[str], Ensemble],
    names: Sequence[str],
    *,
    num_networks: int,
    places: int,
    settings: Mapping[str, Any],
    clock: Callable[[], float] = time.perf_counter,
) -> str:
    """Return the fastest strategy for training on the local devices.

    An earlier answer for the same device, JAX, shapes and settings is taken from the cache.

    Args:
      make: returns the compiled functions of a strategy.
      names: the strategies to compare.
      num_networks: the number of networks on the local devices, a multiple of `places`.
      places: the number of networks if each local device trains one; see `member_mesh`.
      settings: what else the time depends on, as JSON values; among them "batch_size" and
        "image_shape", (H, W, C).
      clock: returns seconds.

    Returns:
      The name of the strategy; the first one if none trains even one network per device.
    """
    device = jax.local_devices()[0]
    key = {
        "device": f"{len(jax.local_devices())} x {device.device_kind}",
        "jax": jax.__version__,
        "networks": num_networks,
        **json.loads(json.dumps(settings)),
    }
    path = cache_dir() / CACHE_FILE
    known = _read_cache(path)
    for entry in known:
        if entry["key"] == key and entry["fastest"] in names:
            return entry["fastest"]
    started = clock()
    step_ms: dict[str, float] = {}
    count = num_networks
    while not step_ms and count:  # with fewer networks, if no strategy fits them
        for name in names:
            size, shape = settings["batch_size"], settings["image_shape"]
            seconds = time_strategy(make(name), count, size, shape, clock)
            if seconds is not None:
                step_ms[name] = round(1e3 * seconds / count / NUM_BATCHES, 4)
        count = count // 2 // places * places
    if not step_ms:
        return names[0]
    fastest = min(step_ms, key=lambda name: step_ms[name])
    times = ", ".join(f"{name} {ms:.3g}" for name, ms in step_ms.items())
    print(
        f"--conv=auto: {fastest} (ms per network and step: {times}; {clock() - started:.0f} s)",
        file=sys.stderr,
    )
    _write_cache(path, [*known, {"key": key, "fastest": fastest, "step_ms": step_ms}])
    return fastest


def time_strategy(
    ensemble: Ensemble,
    num_networks: int,
    batch_size: int,
    image_shape: Sequence[int],
    clock: Callable[[], float] = time.perf_counter,
) -> float | None:
    """Return the median seconds of training on two batches.

    None means that the device cannot: it has too little memory, or no algorithm for it.
    """
    num_images = NUM_BATCHES * batch_size
    rng = np.random.default_rng(0)
    labels = shard_members(np.zeros((num_networks, num_images), np.int32), ensemble.mesh)
    images = share(rng.integers(0, 256, (num_images, *image_shape), np.uint8))
    key = share(make_order_key(0))
    seconds = []
    try:
        keys = shard_members(jax.random.split(jax.random.key(0), num_networks), ensemble.mesh)
        state = ensemble.init(keys, None)
        for _ in range(1 + NUM_RUNS):  # the first one compiles
            started = clock()
            state, _ = jax.block_until_ready(ensemble.train_epoch(state, labels, images, key))
            seconds.append(clock() - started)
    except (MemoryError, jax.errors.JaxRuntimeError):
        return None
    return statistics.median(seconds[1:])


def _read_cache(path: Path) -> list[dict[str, Any]]:
    """Return the entries of the cache; none if it is missing or damaged."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [{**e, "key": dict(e["key"]), "fastest": str(e["fastest"])} for e in entries]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _write_cache(path: Path, entries: list[dict[str, Any]]) -> None:
    """Write the entries; a cache that cannot be written only costs another timing."""
    try:
        write_json(path, entries)
    except OSError as error:
        print(f"warning: {path}: {one_line(error)}", file=sys.stderr)
