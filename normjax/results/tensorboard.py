"""TensorBoard's view of metrics.jsonl: a folder with one event file for each network.

The event files are written from lines of metrics.jsonl alone, so that a resumed run writes them
again from the lines it keeps: no epoch is lost or shown twice, even if `--tensorboard` is new.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from normjax.files import naming

FOLDER = "tensorboard"
_NO_METRICS = {"member", "family", "level", "seed", "group", "step", "phase", "epoch"}


def check_installed(is_wanted: bool) -> None:
    """Raise ValueError if event files are wanted and cannot be written."""
    if is_wanted:
        try:
            import tensorboardX  # noqa: F401
        except ImportError as error:
            raise ValueError(f"{error}; pip install 'normjax[tensorboard]'") from None


@contextlib.contextmanager
def event_files(
    run_dir: Path, is_wanted: bool
) -> Iterator[Callable[[Iterable[Mapping[str, Any]]], None]]:
    """Yield a function that writes lines of metrics.jsonl into their networks' event files.

    The first lines of a network replace the event file that it had. Scalars are named as in
    metrics.jsonl, null is left out, and the step is that of the line: epochs of both phases.

    Args:
      run_dir: the folder of the run.
      is_wanted: whether to write anything.
    """
    if not is_wanted:
        yield lambda lines: None
        return
    # SummaryWriter hands its events to a thread. On a full disk that thread ends, and the run would
    # wait for it forever.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    writers: dict[Path, EventsWriter] = {}

    def open_writer(folder: Path) -> None:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        # tensorboardX never mistakes an absolute path for an address such as gs:.
        writers[folder] = EventsWriter(str(folder.absolute() / "events"))
        stack.callback(close, folder)

    def close(folder: Path) -> None:
        with naming(folder):
            writers[folder].close()

    def write(lines: Iterable[Mapping[str, Any]]) -> None:
        for line in lines:
            folder = run_dir / FOLDER / network_name(line)
            values = [
                Summary.Value(tag=name, simple_value=value)
                for name, value in line.items()
                if name not in _NO_METRICS and value is not None
            ]
            summary = Summary(value=values)
            event = Event(wall_time=time.time(), step=line["step"], summary=summary)
            with naming(folder):
                if folder not in writers:
                    open_writer(folder)
                writers[folder].write_event(event)
        for folder, writer in writers.items():
            with naming(folder):
                writer.flush()

    with contextlib.ExitStack() as stack:
        yield write


def network_name(line: Mapping[str, Any]) -> str:
    """Return the name under which TensorBoard lists the network of a line."""
    return f"{line['member']:03d}_{line['family']}_level={line['level']:g}_seed={line['seed']}"
