"""How many tokens to keep.

Everything is integer arithmetic: two processes that floor a float product independently (a serving
frontend and its worker, say) can disagree by one token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

MILLION = 1_000_000

# The kinds of groups: a whole image, LLaVA-NeXT's thumbnail or its canvas of tiles, one tile, or
# one frame of a video.
GROUP_KINDS = ("image", "thumbnail", "canvas", "tile", "frame")

# The budget of methods that find the number of tokens themselves (`Pruner.adaptive`).
ADAPTIVE = "adaptive"

Budget: TypeAlias = float | int | Literal["adaptive"]
# One budget for all groups, one for each kind of group, or a function that takes the groups of an
# image or video (`gprune.tokens.VisualTokens`) and returns a budget (or `PartBudgets`) for each.
Keep: TypeAlias = Budget | Mapping[str, Budget] | Callable[[Sequence[Any]], Any]


class GroupOfTokens(Protocol):
    """What a budget depends on: `gprune.tokens.VisualTokens`, which this module must not import."""

    @property
    def kind(self) -> str:
        """One of `GROUP_KINDS`."""


@dataclass(frozen=True, eq=False)
class PartBudgets:
    """A group's budget, divided among parts of the group that are pruned separately.

    Attributes:
        parts: for each part its rows in the group, int64 [m], and the (rows, columns) of the grid
            that they form, or None; every row of the group is in exactly one part.
        counts: how many tokens to keep of each part, protected tokens not counted; 0 is allowed,
            but not for all.

    Raises:
        ValueError: ``parts`` and ``counts`` differ in length, a count is negative, or all are 0.
    """

    parts: Sequence[tuple[Tensor, tuple[int, int] | None]]
    counts: Sequence[int]

    def __post_init__(self) -> None:
        bad = len(self.parts) != len(self.counts) or min(self.counts, default=0) < 0
        if bad or not sum(self.counts):
            raise ValueError(
                f"counts={list(self.counts)} must be one number >= 0 for each of the "
                f"{len(self.parts)} parts, and at least one of them above 0"
            )


def check_keep(keep: Budget) -> float | int:
    """Returns ``keep`` as a plain float or int.

    Raises:
        TypeError: ``keep`` is not a number; a bool does not count as one.
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


def parse_keep(text: str) -> float | int:
    """Parses a budget from text: ``0.36`` is a share, ``64`` a count, ``1`` everything.

    Raises:
        ValueError: ``text`` is not a number.

    Examples:
        >>> parse_keep("0.36"), parse_keep("64"), parse_keep("1")
        (0.36, 64, 1.0)
    """
    try:
        number = float(text)
    except ValueError:
        raise ValueError(
            f"keep={text!r} is no number; write 0.36 for 36% of the tokens or 64 for 64 of them"
        ) from None
    return int(text) if text.strip().isdigit() and number != 1 else number


def check_rule(keep: Keep) -> Keep:
    """Returns ``keep`` in the form in which it is stored: a number, a dict, a function, "adaptive".

    Raises:
        TypeError, ValueError: see `check_keep`; or a mapping is empty or has an unknown kind.
    """
    if callable(keep):
        return keep
    if isinstance(keep, str) and keep == ADAPTIVE:
        return "adaptive"
    if not isinstance(keep, Mapping):
        return check_keep(keep)
    unknown = [kind for kind in keep if kind not in GROUP_KINDS]
    if unknown or not keep:
        raise ValueError(
            f"keep={dict(keep)!r} must map kinds of groups to budgets; the kinds are "
            f"{', '.join(GROUP_KINDS)}"
        )
    return {kind: check_keep(budget) for kind, budget in keep.items()}


def budgets(keep: Keep, groups: Sequence[GroupOfTokens]) -> list[Budget | PartBudgets]:
    """Returns the budget of each group of one image.

    Raises:
        TypeError, ValueError: a mapping has no entry for a group's kind, or a function does not
            return one valid budget for each group.
    """
    if callable(keep):
        returned = list(keep(groups))
        if len(returned) != len(groups):
            raise ValueError(
                f"keep returned {len(returned)} budgets for {len(groups)} groups; "
                "return one for each"
            )
        return [
            budget if isinstance(budget, PartBudgets) else check_keep(budget) for budget in returned
        ]
    if not isinstance(keep, Mapping):
        return [keep] * len(groups)
    missing = sorted({group.kind for group in groups} - set(keep))
    if missing:
        raise ValueError(
            f"keep={keep!r} has no budget for groups of kind {', '.join(missing)}; add one for each"
        )
    return [keep[group.kind] for group in groups]


def parts_per_million(keep: float) -> int:
    """Returns a ratio as the integer that every engine computes with."""
    return round(keep * MILLION)


def kept_count(n: int, keep: Budget) -> int:
    """Returns how many of ``n`` tokens to keep: at least 1, at most ``n``.

    A float is a retention ratio: ``floor(n * keep)``, computed in integer parts per million. An int
    is a count. ``keep=1.0`` is every token, ``keep=1`` a single one.

    Raises:
        TypeError, ValueError: see `check_keep`; or ``n`` is below 1.

    Examples:
        >>> kept_count(576, 0.36), kept_count(576, 64), kept_count(576, 1.0), kept_count(576, 1)
        (207, 64, 576, 1)
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1: an empty group has nothing to keep")
    keep = check_keep(keep)
    wanted = keep if isinstance(keep, int) else n * parts_per_million(keep) // MILLION
    return min(n, max(1, wanted))


def apportion(total: int, weights: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Divides ``total`` tokens in proportion to ``weights``, at most ``sizes[i]`` for part i.

    What exceeds the size of a part goes to the others by their weights. What remains after rounding
    down goes to the largest remainders, ties to the first. Integers throughout.

    Raises:
        ValueError: a part has a size but no weight, or the sizes sum to less than ``total``.

    Examples:
        >>> apportion(10, [1, 1, 2], [10, 10, 10]), apportion(10, [1, 1, 2], [10, 10, 3])
        ([3, 2, 5], [4, 3, 3])
    """
    too_light = any(weight < min(size, 1) for weight, size in zip(weights, sizes, strict=True))
    if too_light or not 0 <= total <= sum(sizes):
        raise ValueError(
            f"total={total} cannot be divided by weights={list(weights)} among "
            f"sizes={list(sizes)}: weights must be at least 1 and the sizes must hold the total"
        )
    counts = [0] * len(weights)
    rest = list(range(len(weights)))
    while True:
        weight = sum(weights[part] for part in rest)
        full = [part for part in rest if total * weights[part] > sizes[part] * weight]
        if not full:
            break
        for part in full:
            counts[part] = sizes[part]
        total -= sum(sizes[part] for part in full)
        rest = [part for part in rest if part not in full]
    for part in rest:
        counts[part] = total * weights[part] // weight
    left = total - sum(counts[part] for part in rest)
    by_remainder = sorted(rest, key=lambda part: -(total * weights[part] % weight))
    for part in by_remainder[:left]:
        counts[part] += 1
    return counts
