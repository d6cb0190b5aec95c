"""Command lines as tests give them."""

from absl.flags import FlagValues

from experiments import flags


def parse(config_class, *arguments, **defaults):
    """The configuration that a command line gives; each call has flags of its own."""
    values = flags.define(config_class, FlagValues(), **defaults)
    return flags.parse(config_class, ["command", *map(str, arguments)], values)
