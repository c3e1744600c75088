"""Adapters: how gprune is asked for what a vector asks. One module for related methods.

Each module here defines ``METHODS``, a dictionary from a method's name to a function that takes a
``Vector`` and returns an ``Outcome``. Adapters read the rules of a vector from its ``k``,
``variant`` and ``params``, never from the name of its case.
"""

from importlib import import_module
from pkgutil import iter_modules

from tests.parity.vectors_io import Adapter


def adapters() -> dict[str, Adapter]:
    """Returns the adapter of each method.

    Raises:
        ValueError: if two modules claim a method.
    """
    found: dict[str, Adapter] = {}
    owners: dict[str, str] = {}
    for module in sorted(iter_modules(__path__), key=lambda module: module.name):
        for method, adapter in import_module(f"{__name__}.{module.name}").METHODS.items():
            if method in found:
                raise ValueError(
                    f"{method!r} has two adapters, in {owners[method]}.py and {module.name}.py"
                )
            found[method], owners[method] = adapter, module.name
    return found
