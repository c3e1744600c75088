"""Arguments of models whose names differ between versions of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

# The KV cache: `cache` from transformers 5.24 on, `past_key_values` before and, in calls by users,
# until 5.40.
CACHE_NAMES = ("cache", "past_key_values")


def cache_of(call: Mapping[str, Any]) -> Any:
    """Returns the KV cache among the arguments of a call, or None if there is none."""
    return next((call[name] for name in CACHE_NAMES if call.get(name) is not None), None)


def cache_name(function: Callable[..., Any]) -> str:
    """Returns the name of a function's argument for the KV cache."""
    parameters = inspect.signature(function).parameters
    return next(name for name in CACHE_NAMES if name in parameters)
