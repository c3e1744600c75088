"""Errors with a class of their own; all others are a ValueError or a TypeError."""

from __future__ import annotations


class UnsupportedModelError(TypeError):
    """The model's family, or its configuration, is not supported."""


class UnsupportedVersionError(RuntimeError):
    """The installed version of a library has not been tested with gprune."""
