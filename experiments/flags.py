"""Turn command lines into configurations and errors into one-line messages, for all commands.

A command defines a frozen dataclass with fields from `normjax.training.config.setting`, and a
function of it:

    @dataclasses.dataclass(frozen=True)
    class Config:
        source: str = setting(help="Folder of a finished run.", flag="from")
        norms: tuple[str, ...] = setting(("2",), "Norms to evaluate under.")
        seed: int = setting(0, "Seed of the bootstrap.", check=check_seed)

    def main(config: Config) -> None: ...

    if __name__ == "__main__":
        flags.run(main, Config)

Each field is a flag of type `str`, `int`, `float`, `bool`, or a tuple of one of these (a
comma-separated list); `| None` marks an optional flag. A field without a default is required. If a
default depends on other fields, it is None and a property of the class resolves it. The method
`check_together` raises ValueError if fields contradict each other.
"""

import dataclasses
import io
import os
import re
import shlex
import sys
import types
import typing
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from absl import app, flags, logging

from normjax.files import is_address, one_line, read_text
from normjax.training import processes
from normjax.training.config import expand_home, flag_name, validate
from normjax.training.interrupts import StoppedError

T = TypeVar("T")


def run(main: Callable[[T], None], config_class: type[T], **defaults: Any) -> None:
    """Parse the command line and call `main`; the last line of every command.

    Args:
      main: the command, a function of its configuration.
      config_class: the class of the configuration.
      **defaults: defaults of this command that override those of the class.
    """
    _restart_with_utf8_paths()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does
    logging.set_verbosity(logging.WARNING)  # Orbax and Matplotlib log every step
    warnings.formatwarning = lambda message, *_: f"warning: {one_line(message)}\n"
    processes.keep_compiled()
    define(config_class, **defaults)
    app.run(partial(call, main), flags_parser=partial(parse, config_class))


def call(main: Callable[[T], None], config: T) -> None:
    """Call a command; if it fails, exit with one line and an exit code.

    The exit code is 1 for an error that all processes agree on, such as a bad setting, and for an
    OSError, such as a full disk, or if JAX has no devices; it is 128 plus the signal number for a
    signal. Other exceptions are bugs and keep their traceback.
    """
    try:
        main(config)
    except StoppedError as error:
        if processes.is_first():
            print(f"{error}; continue with: {resume_command()}", file=sys.stderr)
        sys.exit(128 + error.signum)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (processes.AgreedError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
    except (RuntimeError, AssertionError):
        if reason := processes.why_no_devices():
            sys.exit(f"error: {reason}")
        raise


def _restart_with_utf8_paths() -> None:
    """Replace this process by one in Python's UTF-8 mode if its paths have another encoding.

    In such a locale, Python's paths and those that orbax writes to would be different files. The
    streams keep their encoding.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        if sys.stdout is not None:  # None if it is closed
            os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def resume_command() -> str:
    """Return the command line of this process with --resume."""
    command = sys.orig_argv
    return shlex.join(command if "--resume" in command else [*command, "--resume"])


def define(
    config_class: type, values: flags.FlagValues = flags.FLAGS, **defaults: Any
) -> flags.FlagValues:
    """Define a flag for each field of a configuration class; return `values`."""
    kinds = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        name, help_text, allowed = (
            flag_name(field),
            field.metadata["help"],
            field.metadata["allowed"],
        )
        default = defaults.get(field.name, field.default)
        default = None if default is dataclasses.MISSING else default
        kind = _kind(kinds[field.name])
        if typing.get_origin(kind) is tuple:
            default = ",".join(map(str, default or ()))
            flags.DEFINE_list(name, default, help_text, flag_values=values)
        elif allowed:
            flags.DEFINE_enum(name, default, allowed, help_text, flag_values=values)
        else:
            _DEFINE[kind](name, default, help_text, flag_values=values)
        values.register_key_flag_for_module(sys.argv[0], values[name])  # for --help
    return values


def parse(config_class: type[T], argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> T:
    """Parse and validate a command line.

    An unknown, malformed or missing flag, an unexpected argument or an invalid value ends the
    process with one line on stderr and exit code 1.
    """
    try:
        if stray := values(expand_flagfiles(argv))[1:]:
            raise ValueError(f"unexpected argument {stray[0]!r}; options are --name=value")
        kinds = typing.get_type_hints(config_class)
        given = {
            field.name: _value(field, kinds[field.name], values[flag_name(field)].value)
            for field in dataclasses.fields(config_class)
        }
        config = config_class(**given)
        remote = _remote_runs(config)
        validate(config, tuple(remote))  # all other flags, before anything is fetched
        if remote:
            config = dataclasses.replace(config, **{n: _fetched(v) for n, v in remote.items()})
            validate(config)
        return config
    except (flags.Error, ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")


def expand_flagfiles(arguments: Sequence[str], outer: Sequence[str] = ()) -> list[str]:
    """Return a command line with the lines of each flagfile in place of its --flagfile.

    Absl would read the files in the encoding of the terminal. Ours are UTF-8 everywhere, with or
    without a byte order mark. Empty lines and lines that start with # or // are comments.

    Args:
      arguments: the command line.
      outer: the flagfiles that contain it.

    Raises:
      OSError, ValueError: a file cannot be read, or includes itself.
    """
    expanded, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        name, has_value, path = argument.partition("=")
        if argument == "--":
            return [*expanded, argument, *rest]
        if name not in ("--flagfile", "-flagfile"):
            expanded.append(argument)
            continue
        if not has_value and not rest:
            raise ValueError("--flagfile: a file is needed")
        path = os.path.expanduser((path if has_value else rest.pop(0)).strip())
        if path in outer:
            raise ValueError(f"--flagfile={path}: it includes itself")
        lines = re.split(r"[\r\n]+", read_text(path)) if path else []
        own = [line.strip() for line in lines if not line.strip().startswith(("#", "//"))]
        expanded += expand_flagfiles([line for line in own if line], (*outer, path))
    return expanded


_DEFINE = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
}


def _kind(hint: Any) -> Any:
    """Return a field's type without None."""
    if typing.get_origin(hint) is types.UnionType:
        (hint,) = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    return hint


def _value(field: dataclasses.Field, hint: Any, value: Any) -> Any:
    """Convert a flag's value to the type of its field; lists become tuples."""
    if value is None and field.default is dataclasses.MISSING:
        raise ValueError(f"--{flag_name(field)} is required: {field.metadata['help']}")
    if isinstance(value, list):
        entries = [entry.strip() for entry in value if entry.strip()]
        kind = typing.get_args(_kind(hint))[0]
        try:
            value = tuple(kind(entry) for entry in entries)
        except ValueError:
            raise ValueError(
                f"--{flag_name(field)}={','.join(entries)}: must be numbers separated by commas"
            ) from None
    return expand_home(value) if field.metadata["is_path"] else value


def _remote_runs(config: Any) -> dict[str, Any]:
    """Return {field: value} for --from, if the value is or contains an address in a bucket."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        folders = value if isinstance(value, tuple) else (value,)
        if flag_name(field) == "from" and any(map(is_address, filter(None, folders))):
            found[field.name] = value
    return found


def _fetched(source: str | tuple[str, ...]) -> Any:
    """Return the local folders of the runs at addresses; other folders are unchanged."""
    if isinstance(source, tuple):
        return tuple(map(_fetched, source))
    if not is_address(source):
        return source
    from normjax.training.bucket import fetch_run

    return str(fetch_run(source))
