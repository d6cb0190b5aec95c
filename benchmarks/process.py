"""Measure startup times and peak memory in fresh Python processes."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence

TIMED = "import time; started = time.perf_counter(); {}; print(time.perf_counter() - started)"


def run_python(*arguments: str) -> str:
    """Return the stdout of a Python process; print its stderr if it fails.

    Raises:
      RuntimeError: the process failed.
    """
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise RuntimeError(f"python {' '.join(arguments)}: exit code {done.returncode}")
    return done.stdout


def seconds_of(statement: str, after: str = "pass") -> float:
    """Return the seconds of a statement in a fresh process, `after` an untimed statement."""
    return float(run_python("-c", f"{after}; {TIMED.format(statement)}"))


def wall_seconds(arguments: Sequence[str]) -> float:
    """Return the wall time of a process in seconds."""
    started = time.perf_counter()
    run_python(*arguments)
    return time.perf_counter() - started


def peak_megabytes(statement: str) -> float:
    """Return the peak resident memory of a process that runs a statement, in MB (10^6 bytes).

    On Linux, the peak of a child includes the fork and is at least the memory of its parent. The
    caller must be small, so `benchmarks.run` does not import JAX.

    Raises:
      RuntimeError: the statement failed.
    """
    process = subprocess.Popen([sys.executable, "-c", statement])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"python -c {statement!r}: exit code {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return usage.ru_maxrss * unit / 1e6
