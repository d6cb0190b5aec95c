"""Name the line of a user's program that led to an operation of its jaxpr."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

_LIBRARIES = tuple(f"/{name}/" for name in ("jax", "jaxlib", "flax", "haiku", "equinox", "keras"))
_OWN = str(Path(__file__).with_name("trace.py"))


def source_line(calls: Sequence[Any]) -> str:
    """Return the primitive, the module and the line, such as `'tanh' in Net (net.py:12)`.

    Args:
      calls: the equations of the enclosing calls, outermost first, then the equation itself.
    """
    name = repr(calls[-1].primitive.name)
    for eqn in reversed(calls):
        scope = str(eqn.source_info.name_stack)
        if scope.startswith("'"):  # a translated program names operation and line itself
            return scope
        frames = _frames(eqn)
        # JAX keeps a function's first trace: frames beyond its boundary may be another caller's.
        if eqn is not calls[0]:
            boundary = next((i for i, f in enumerate(frames) if _is_boundary(f)), len(frames))
            frames = frames[:boundary]
        own = next((frame for frame in frames if not _is_library(frame.file_name)), None)
        if own is not None:
            line = f"{Path(own.file_name).name}:{own.line_num}"
            return f"{name} in {scope or own.function_name} ({line})"
    return name


def _frames(eqn: Any) -> list[Any]:
    """Return the frames that led to an equation, innermost first."""
    traceback = eqn.source_info.traceback
    return [] if traceback is None else list(traceback.frames)


def _is_boundary(frame: Any) -> bool:
    """Whether JAX traces a function here whose jaxpr it keeps."""
    return "trace_to_jaxpr" in frame.function_name and _is_library(frame.file_name)


def _is_library(file_name: str) -> bool:
    is_installed = "site-packages" in file_name or "dist-packages" in file_name
    path = Path(file_name).as_posix()
    return (
        path == _OWN
        or path.startswith("<frozen")
        or (is_installed and any(library in path for library in _LIBRARIES))
        or path.startswith(Path(jax.__file__).parent.as_posix())
    )
