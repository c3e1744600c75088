"""Questions with known answers: tasks, metrics, runs and reports."""

from __future__ import annotations

import warnings
from typing import Any

from gprune import costs


def __getattr__(name: str) -> Any:
    """Returns names that moved to `gprune.costs`, for one release, with a warning."""
    if name not in costs.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"gprune.evaluation.{name} is now gprune.costs.{name}; the old path goes in the next "
        "release",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(costs, name)
