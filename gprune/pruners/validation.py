"""Checks of a method's own parameters."""

from __future__ import annotations

import math


def check_share(name: str, value: float, interval: str = "[0, 1]") -> None:
    """Checks that ``value`` lies in an interval from 0 to 1; a round bracket excludes the end.

    Raises:
        ValueError: it does not.
    """
    above = value >= 0 if interval.startswith("[") else value > 0
    below = value <= 1 if interval.endswith("]") else value < 1
    if not (above and below):
        raise ValueError(f"{name}={value} must be a share in {interval}")


def check_weight(name: str, value: float) -> None:
    """Checks that ``value`` is finite and not negative.

    Raises:
        ValueError: it is not.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value} must be a finite number >= 0")


def check_number(name: str, value: int, least: int) -> None:
    """Checks that ``value`` is at least ``least``.

    Raises:
        ValueError: it is less.
    """
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}")
