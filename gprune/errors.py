"""The errors that have a name of their own; everything else is a ValueError or TypeError."""

from __future__ import annotations


class UnsupportedModelError(TypeError):
    """The model's family, or the way it is set up, is not supported."""


class UnsupportedVersionError(RuntimeError):
    """The installed version of a library has not been tested with gprune."""
