"""The measured processes of `benchmarks.accelerator`: one JSON line on stdout for each case."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.timing import Prepared

NUM_STEPS, NUM_CALLS = 8, 5


def main(task: dict[str, Any]) -> None:
    """Measure each name at every setting until the time is over; name the cases that are left.

    The first name is measured at every setting before the second one, so that a setting lacks only
    the last names if the time is short. Full float32 is measured at the end, for the fastest
    strategy of each setting.
    """
    until = time.monotonic() + task["seconds"]
    prepare, describe = {"normjax": normjax_case, "PyTorch": torch_case}[task["framework"]]()

    def measure_case(setting: dict[str, Any], name: str, precision: str) -> float | None:
        row = {"framework": task["framework"], **setting, "contender": name}
        row |= {"precision": precision, "ms": None, "peak_gb": None, "compile_s": None}
        row |= describe()
        if time.monotonic() > until:
            row["why_not"] = "not run: time"
        else:
            row |= measure(partial(prepare, setting, name, precision))
        print(json.dumps(row), flush=True)
        return row["ms"]

    cases: list[tuple[dict[str, Any], dict[str, float]]] = [(s, {}) for s in task["settings"]]
    for name in task["names"]:
        for setting, times in cases:
            if ms := measure_case(setting, name, "default"):
                times[name] = ms
    if task["framework"] == "normjax":
        for setting, times in cases:
            if times:
                measure_case(setting, min(times, key=lambda name: times[name]), "highest")


def measure(prepare: Callable[[], tuple[Prepared, Callable[[], float | None]]]) -> dict[str, Any]:
    """Return the median time of a case in ms per network-step and its memory, or why it failed."""
    try:
        prepared, peak_bytes = prepare()
        prepared.call()
        seconds = []
        for _ in range(NUM_CALLS):
            started = time.perf_counter()
            prepared.call()
            seconds.append(time.perf_counter() - started)
        peak = peak_bytes()
    except Exception as error:  # no memory, no algorithm: the next case
        lines = str(error).splitlines() or [type(error).__name__]
        return {"why_not": f"failed: {lines[0][:80].replace('|', '/')}"}
    return {
        "ms": 1e3 * statistics.median(seconds) / prepared.work,
        "peak_gb": None if peak is None else peak / 1e9,
        "compile_s": prepared.compile_s,
    }


def normjax_case() -> tuple[Callable, Callable[[], dict[str, str]]]:
    """Return how normjax prepares a case, and what it ran on."""
    import jax

    from benchmarks.normjax_contenders import make_networks, prepare_steps
    from normjax.training.memory import program_bytes

    def prepare(setting, name, precision):
        networks = make_networks(
            setting["model"],
            setting["members"],
            setting["batch"],
            NUM_STEPS * setting["batch"],
            strategy=name,
            matmul_precision=precision,
        )
        prepared, program = prepare_steps(networks, setting["members"], NUM_STEPS)
        return prepared, lambda: program_bytes(program)

    def describe():
        return {"device": jax.local_devices()[0].device_kind, "version": f"jax {jax.__version__}"}

    return prepare, describe


def torch_case() -> tuple[Callable, Callable[[], dict[str, str]]]:
    """Return how PyTorch prepares a case, and what it ran on."""
    import torch

    from benchmarks.torch_contenders import choose_device, prepare_train

    is_cuda = choose_device().type == "cuda"

    def prepare(setting, name, _):
        if is_cuda:
            torch.cuda.reset_peak_memory_stats()
        prepared = prepare_train(
            setting["model"], setting["members"], setting["batch"], NUM_STEPS, name
        )
        return prepared, lambda: torch.cuda.max_memory_allocated() if is_cuda else None

    def describe():
        device = torch.cuda.get_device_name() if is_cuda else "cpu"
        return {"device": device, "version": f"torch {torch.__version__}"}

    return prepare, describe


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
