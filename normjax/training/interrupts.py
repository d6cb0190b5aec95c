"""SIGTERM and Ctrl-C: a run ends at a place from which it can go on."""

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(Exception):
    """A run ends because a signal asked for it.

    Attributes:
      signum: the signal's number.
    """

    def __init__(self, signum: int):
        """By a signal's number."""
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


@contextlib.contextmanager
def delayed() -> Iterator[Callable[[], int]]:
    """Within it, SIGINT and SIGTERM are noted, not obeyed; a second one ends the program at once.

    Yields a function: the number of the signal that came, 0 while none has. Must be entered in the
    main thread.
    """
    received = 0

    def note(signum, _frame):
        nonlocal received
        if received:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        received = signum
        name = signal.Signals(signum).name
        message = f"\n{name}: stopping after this epoch with a checkpoint; once more stops now\n"
        os.write(sys.__stderr__.fileno(), message.encode())  # print may be interrupted in itself

    heard = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]  # as under nohup
    # A handler that was not set from Python is None here and can't be set again.
    earlier = {signum: signal.signal(signum, note) or signal.SIG_DFL for signum in heard}
    try:
        yield lambda: received
    finally:
        for signum, handler in earlier.items():
            signal.signal(signum, handler)


def resume_command() -> str:
    """The command line of this process, with --resume."""
    command = sys.orig_argv
    return shlex.join(command if "--resume" in command else [*command, "--resume"])


def exit_code(error: StoppedError) -> int:
    """What a shell reports of a program that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + error.signum
