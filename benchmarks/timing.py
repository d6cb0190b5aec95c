"""Time contenders against each other: each in its own process, interleaved, one at a time.

Contenders need separate processes because they use different settings (XLA flags, threads) and must
not share a heap. They are interleaved so that noise on the machine affects all of them equally.
"""

import contextlib
import multiprocessing
import pkgutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

PAUSE = 0.3  # seconds before each call: PyTorch's threads keep spinning for a while
LONG = 10.0  # seconds: calls this long need no separate warm-up call


class Row(NamedTuple):
    """A line of the table and an entry of the JSON file."""

    bench: str
    contender: str
    members: int | None  # networks at once
    batch: int | None  # examples per step
    value: float
    unit: str
    compile_s: float | None  # None without compilation


class Prepared(NamedTuple):
    """A contender that is ready to be timed."""

    call: Callable[[], Any]  # blocks until all work is done
    work: int  # work per call, in the unit of the bench: network-steps, passes, networks
    compile_s: float | None


class Case(NamedTuple):
    """A contender at one setting."""

    contender: str
    members: int
    batch: int | None
    prepare: str  # "module:function"; function(*args) returns a Prepared in the process
    args: tuple


def choose_num_rounds(seconds: float) -> int:
    """Return how often to time a call that takes `seconds`.

    A single round is for plain Flax on a CPU at batch 1024. It is an order of magnitude slower,
    which one round shows; three rounds would take longer than everything else.
    """
    if seconds < 2:
        return 5
    return 3 if seconds < 20 else 1


def measure(
    bench: str, cases: Sequence[Case], unit: str, per_second: float, pause: float = PAUSE
) -> list[Row]:
    """Time cases against each other.

    Every case is prepared (and compiled), called once to warm up, and then called once per round. A
    first call of `LONG` seconds or more counts as a round. A case whose process fails is skipped
    with a message on stderr.

    Args:
      bench: the name of the bench.
      cases: the cases to compare.
      unit: the unit of time per work.
      per_second: the number of time units per second.
      pause: seconds to wait before each call.

    Returns:
      A row per case, in order: the median time per call, divided by its work.
    """
    seconds = {case: [] for case in cases}
    ready = {}
    with contextlib.ExitStack() as stack:
        connections = {}
        for case in cases:
            connections[case] = stack.enter_context(_process(case))
            ready[case] = _receive(case, connections[case])

        def call(case):
            time.sleep(pause)
            with contextlib.suppress(BrokenPipeError):  # _receive reports that the process is gone
                connections[case].send(True)
            return _receive(case, connections[case])

        warm_up = {case: call(case) for case in cases if ready[case]}
        rounds = {case: choose_num_rounds(s) for case, s in warm_up.items() if s}
        for case in [c for c in rounds if warm_up[c] >= LONG]:
            seconds[case].append(warm_up[case])
            rounds[case] -= 1
        for number in range(max(rounds.values(), default=0)):
            for case in [c for c, n in rounds.items() if number < n]:
                seconds[case].append(call(case))

    rows = []
    for case in cases:
        if seconds[case] and all(seconds[case]):
            work, compile_s = ready[case]
            value = statistics.median(seconds[case]) * per_second / work
            names = (bench, case.contender, case.members, case.batch)
            rows.append(Row(*names, value, unit, compile_s))
    return rows


@contextlib.contextmanager
def _process(case: Case) -> Iterator[Connection]:
    """Connect to a new process that prepares the case and times one call per message."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, case.prepare, case.args), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.terminate()
        process.join()


def _serve(connection: Connection, prepare: str, args: tuple) -> None:
    prepared = pkgutil.resolve_name(prepare)(*args)
    connection.send((prepared.work, prepared.compile_s))
    while connection.recv():
        started = time.perf_counter()
        prepared.call()
        connection.send(time.perf_counter() - started)


def _receive(case: Case, connection: Connection) -> Any:
    """Return what the process sends, or None with a message on stderr if it has ended."""
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        setting = f"{case.members} members, batch {case.batch}"
        print(f"{case.contender}, {setting}: its process failed, no row", file=sys.stderr)
        return None
