"""How many tokens to keep.

Integer arithmetic, because two processes that floor a float product independently (a serving
frontend and its worker, say) can disagree by one token.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

PARTS = 1_000_000


def check_keep(keep: float | int) -> float | int:
    """Returns ``keep`` as a plain float or int.

    Raises:
        TypeError: ``keep`` is no number (a bool is none).
        ValueError: a ratio outside (0, 1], or a count below 1.
    """
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise TypeError(
            f"keep must be a ratio in (0, 1] or a whole count >= 1, got {keep!r}; "
            "write keep=0.36 for 36% of the tokens or keep=64 for 64 of them"
        )
    if isinstance(keep, Integral):
        if keep < 1:
            raise ValueError(
                f"keep={int(keep)} as a count must be at least 1; "
                "to keep every token write keep=1.0"
            )
        return int(keep)
    if not (math.isfinite(keep) and 0 < keep <= 1):
        raise ValueError(
            f"keep={float(keep)} as a ratio must lie in (0, 1]; "
            "write keep=0.36 for 36% of the tokens, or an int such as keep=64 for a count"
        )
    return float(keep)


def parts_per_million(keep: float) -> int:
    """A ratio as the integer that every engine computes with."""
    return round(keep * PARTS)


def kept_count(n: int, keep: float | int) -> int:
    """How many of ``n`` tokens ``keep`` retains: at least 1, at most ``n``.

    A float is a retention ratio, of which ``floor(n * keep)`` is taken in integer parts per
    million; an int is a count. ``keep=1.0`` is every token, ``keep=1`` a single one.

    Raises:
        TypeError, ValueError: see `check_keep`; or ``n`` is below 1.

    >>> kept_count(576, 0.36), kept_count(576, 64), kept_count(576, 1.0), kept_count(576, 1)
    (207, 64, 576, 1)
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1: an empty group has nothing to keep")
    keep = check_keep(keep)
    wanted = keep if isinstance(keep, int) else n * parts_per_million(keep) // PARTS
    return min(n, max(1, wanted))
