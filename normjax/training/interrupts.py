"""Handle SIGTERM and Ctrl-C so that a stopped run can be resumed."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(KeyboardInterrupt):
    """A signal stopped a run after a checkpoint.

    Attributes:
      signum: the number of the signal.
    """

    def __init__(self, signum: int, run_dir: Path):
        """Name the run and the signal in the message."""
        super().__init__(f"{run_dir}: stopped by {signal.Signals(signum).name}")
        self.signum = signum


@contextlib.contextmanager
def delayed() -> Iterator[Callable[[], int]]:
    """Record SIGINT and SIGTERM instead of stopping; a second signal stops at once.

    Python delivers signals only to the main thread. In other threads nothing is recorded.

    Yields:
      A function that returns the number of the recorded signal, or 0.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    received = 0

    def note(signum, _frame):
        nonlocal received
        if received:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        received = signum
        name = signal.Signals(signum).name
        message = f"\n{name}: stopping after this epoch with a checkpoint; repeat to stop now\n"
        os.write(2, message.encode())  # print is not reentrant

    heard = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]  # ignored ones stay so
    # A handler that was not set from Python is None here and cannot be restored.
    earlier = {signum: signal.signal(signum, note) or signal.SIG_DFL for signum in heard}
    try:
        yield lambda: received
    finally:
        for signum, handler in earlier.items():
            signal.signal(signum, handler)
