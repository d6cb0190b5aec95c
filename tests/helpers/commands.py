"""Command lines as tests give them."""

import pytest
from absl.flags import FlagValues

from experiments import flags


def parse(config_class, *arguments, **defaults):
    """The configuration that a command line gives; each call has flags of its own."""
    values = flags.define(config_class, FlagValues(), **defaults)
    return flags.parse(config_class, ["command", *map(str, arguments)], values)


def error_of(function, *arguments, **how):
    """The line for stderr that a command or its parser ends the process with."""
    with pytest.raises(SystemExit) as stop:
        function(*arguments, **how)
    message = stop.value.code  # sys.exit(text) prints it; the exit code is 1
    assert message.startswith("error: ") and "\n" not in message
    return message
