"""The one list of methods: `register` adds to it, `make` builds from it."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar

from gprune.budget import Keep
from gprune.pruners.base import Pruner

# By name, in the order in which they are registered.
METHODS: dict[str, type[Pruner]] = {}

RECOMMENDED = "graph_cover"
RECOMMENDED_REASON = (
    "recommended is graph_cover: it reads features alone and merges nothing, so it works in every "
    "engine and with every attention kernel; in transformers with SDPA, weighted_cover kept more "
    "accuracy on the tiny models measured here"
)

Method = TypeVar("Method", bound=type[Pruner])


def register(method: Method) -> Method:
    """Adds a class to `gprune.methods`; a decorator.

    Examples:
        >>> from gprune import register, ScorePruner
        >>> @register  # doctest: +SKIP
        ... @dataclass(frozen=True)
        ... class Mine(ScorePruner): ...

    Raises:
        ValueError: another class has its name, or it has none.
    """
    name = getattr(method, "name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"{method.__name__} has no name; add name: ClassVar[str] = 'my_method' to the class"
        )
    if name == "recommended" or METHODS.get(name, method).__qualname__ != method.__qualname__:
        raise ValueError(f"name={name!r} of {method.__name__} is taken; choose another")
    METHODS[name] = method
    return method


def methods() -> list[str]:
    """Returns the name of every method, G-Prune first."""
    return list(METHODS)


def group_methods() -> list[str]:
    """Returns the methods that choose within one group of tokens, by `Pruner.select`."""
    return [name for name, method in METHODS.items() if method.scope == "group"]


def make(name: str, keep: Keep, **options: Any) -> Pruner:
    """Builds a method by name: ``make("gprune", keep=0.36, threshold=0.7)``.

    ``recommended`` is the method to take if you do not know which (see `RECOMMENDED_REASON`).

    Raises:
        ValueError: there is no such method, or ``keep`` or an option is out of range.
        TypeError: the method has no such option.
    """
    name = RECOMMENDED if name == "recommended" else name
    if name not in METHODS:
        near = difflib.get_close_matches(name, [*METHODS, "recommended"], 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"method {name!r} is unknown; {hint}choose one of {', '.join(METHODS)}, or recommended"
        )
    return METHODS[name](keep, **options)
