"""Overrides a method of one object for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def override_method(owner: Any, name: str, method: Any) -> Iterator[None]:
    """Sets ``owner.name`` to ``method`` inside a ``with`` block; the class stays unchanged.

    On exit an attribute that ``owner`` had itself is restored; otherwise the attribute is deleted,
    so that the class's method is found again.
    """
    own = vars(owner).get(name)
    setattr(owner, name, method)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
