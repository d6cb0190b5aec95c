"""Time contenders against one another: each in its own process, in turns, one at a time.

A process each, because contenders want different settings (XLA's flags, threads) and must not share
a heap. In turns, because a noisy machine then disturbs all of them alike.
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

PAUSE = 0.3  # seconds before each call: PyTorch's threads go on spinning for a while
LONG = 10.0  # seconds: a call that long warms up within itself, and its first one counts


class Row(NamedTuple):
    """A line of the table and an entry of the JSON file."""

    bench: str
    contender: str
    members: int | None  # networks at once
    batch: int | None  # examples per step
    value: float
    unit: str
    compile_s: float | None  # None where nothing is compiled


class Prepared(NamedTuple):
    """A contender that is ready to be timed."""

    call: Callable[[], Any]  # all of its work is done when it returns
    work: int  # what a call does, in the bench's unit: network-steps, passes, networks
    compile_s: float | None


class Case(NamedTuple):
    """A contender at one setting."""

    contender: str
    members: int
    batch: int | None
    prepare: str  # "module:function"; called as function(*args) in the process, gives a Prepared
    args: tuple


def choose_num_rounds(seconds: float) -> int:
    """Return how often a call that takes `seconds` is timed.

    A single round is for plain Flax on a CPU at batch 1024: it is an order of magnitude behind,
    which one round shows, and three would take longer than all the rest.
    """
    if seconds < 2:
        return 5
    return 3 if seconds < 20 else 1


def measure(
    bench: str, cases: Sequence[Case], unit: str, per_second: float, pause: float = PAUSE
) -> list[Row]:
    """Time cases against one another.

    Every case is prepared (and compiled), then called once to warm up, then called in rounds: one
    call of each case a round. A first call of `LONG` seconds or more counts as a round. A case
    whose process fails is left out, with a line on stderr.

    Args:
      bench: the rows' bench.
      cases: what is compared.
      unit: the rows' unit, of time per piece of work.
      per_second: how many of that unit a second has.
      pause: seconds to wait before each call.

    Returns:
      A row for each case, in their order: the median time of a call, divided by its work.
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
            with contextlib.suppress(BrokenPipeError):  # _receive says that the process is gone
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
    """Connect to a new process that prepares the case, then times a call per message."""
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
    """Return what the process sends; None, with a line on stderr, if it has ended."""
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        setting = f"{case.members} members, batch {case.batch}"
        print(f"{case.contender}, {setting}: its process failed, no row", file=sys.stderr)
        return None
