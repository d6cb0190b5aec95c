"""Read the pickles of the CIFAR archives without running code that they name.

Every allowed name is replaced by an inert stand-in that records its arguments and state. Arrays are
built from the records; no function, not even of NumPy, is called with arguments from a file.
"""

import io
import pickle
import pickletools
from typing import Any

import numpy as np

from normjax.files import one_line

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
# The names in pickled uint8 arrays and Python 2 strings, for NumPy 1 and 2.
ALLOWED = frozenset(
    [(module, "_reconstruct") for module in _MULTIARRAY]
    + [(module, "_frombuffer") for module in _NUMERIC]  # protocol 5
    + [("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")]
)


class _Record:
    """The stand-in for a name in a pickle; it records arguments and state."""

    def __init__(self, name: str, args: tuple = (), state: Any = None):
        self.name, self.args, self.state = name, args, state

    def __call__(self, *args):
        return _Record(self.name, args)

    def __setstate__(self, state):
        self.state = state


class _Unpickler(pickle.Unpickler):
    """An unpickler that resolves allowed names to records and rejects all others."""

    def find_class(self, module, name):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"the name {module}.{name} is not allowed")
        return _Record(name)


def load_plain_dict(content: bytes) -> dict[str, object]:
    """Unpickle a dict of plain values and uint8 arrays, written by Python 2 or 3.

    Args:
      content: the pickle.

    Returns:
      The dict with string keys. Lists and numbers are unchanged; convert matrices with `to_matrix`
      and strings with `to_text`.

    Raises:
      ValueError: the pickle is damaged, uses a name outside `ALLOWED`, or is not a dict.
    """
    try:
        # A few bytes can request a memo table of many GiB; real pickles number their objects.
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
                raise pickle.UnpicklingError("its memo index is out of range")
        loaded = _Unpickler(io.BytesIO(content), encoding="latin1").load()
        if not isinstance(loaded, dict):
            raise pickle.UnpicklingError(f"it holds a {type(loaded).__name__}, not a dict")
        return {to_text(key): value for key, value in loaded.items()}
    except Exception as error:  # damaged pickles raise nearly any type
        reason = one_line(error) or type(error).__name__
        raise ValueError(f"not a readable pickle: {reason}") from None


def to_text(value: object) -> str:
    """Convert a pickled string of Python 2 or 3 to text."""
    return _to_bytes(value).decode("latin1")


def to_matrix(value: object) -> np.ndarray:
    """Convert a pickled uint8 matrix, of either memory order, to an array [rows, columns].

    Raises:
      ValueError: the value is not such a matrix.
    """
    if not isinstance(value, _Record):
        raise ValueError(f"not a matrix of uint8 but {type(value).__name__}")
    try:
        if value.name == "_reconstruct":
            _, shape, dtype, is_fortran, raw = value.state
            order = "F" if is_fortran else "C"
        else:
            raw, dtype, shape, order = value.args
        if dtype.name != "dtype" or dtype.args[0] not in ("u1", "|u1", "uint8"):
            raise ValueError("its numbers are not uint8")
        rows, columns = shape
        return np.frombuffer(_to_bytes(raw), np.uint8).reshape((rows, columns), order=order)
    except (AttributeError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"not a matrix of uint8: {one_line(error)}") from None


def _to_bytes(value: object) -> bytes:
    """Return the bytes of a pickled string: latin1 text, bytes, or a recorded `encode` call."""
    if isinstance(value, _Record) and value.name == "encode":
        value = value.args[0]
    if isinstance(value, str):
        return value.encode("latin1")
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    raise ValueError(f"{type(value).__name__} where a string was expected")
