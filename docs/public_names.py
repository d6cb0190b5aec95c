"""For the reference: where the public names are, which normjax loads at their first use."""

import griffe

import normjax


class PublicNames(griffe.Extension):
    """Gives the package the aliases that static analysis cannot see."""

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        """Add the names of `normjax.__all__`."""
        for name, module in normjax._MODULE_OF.items():
            pkg.set_member(name, griffe.Alias(name, f"normjax.{module}.{name}"))
