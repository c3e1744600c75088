"""The number of tokens to keep of an image, on which frontend and workers must agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gprune.budget import GROUP_KINDS, MILLION, Budget, Keep, kept_count, parts_per_million
from gprune.layouts.base import Family
from gprune.serving.row_numbers import MAX_TOKENS
from gprune.tokens import Group

# Counts are capped here, to fit an int64; no image has so many tokens.
MAX_COUNT = 2**31


def encode_keep(keep: Keep) -> tuple[int, ...]:
    """Encodes a budget as one integer for each of `GROUP_KINDS`.

    Every process computes the same counts from integers. A share is encoded in parts per million, a
    count as a negative number of at most `MAX_COUNT`, and a kind without budget as 0.
    """
    assert not callable(keep)
    by_kind = keep if isinstance(keep, Mapping) else dict.fromkeys(GROUP_KINDS, keep)
    return tuple(encode_budget(by_kind[kind]) if kind in by_kind else 0 for kind in GROUP_KINDS)


def encode_budget(budget: Budget) -> int:
    """Encodes the budget of one kind of group."""
    assert budget != "adaptive"  # `keep_from_json` refuses it
    if isinstance(budget, int):
        return -min(budget, MAX_COUNT)
    return max(1, parts_per_million(budget))


def decode_keep(encoded: Sequence[int]) -> dict[str, float | int]:
    """Reverses `encode_keep`: returns the budget of each kind that has one."""
    return {
        kind: -number if number < 0 else number / MILLION
        for kind, number in zip(GROUP_KINDS, encoded, strict=True)
        if number
    }


@dataclass(frozen=True)
class ImagePlan:
    """Size and budget of one image; sent to the workers as a row of integers.

    Attributes:
        tokens: visual tokens before pruning.
        rows: of the raster, of one tile, or of the canvas.
        columns: of the same; of the canvas without its newlines.
        keep: a budget encoded by `encode_keep`.
    """

    tokens: int
    rows: int
    columns: int
    keep: tuple[int, ...]

    def to_tensor(self) -> Tensor:
        """Returns the plan as int64 [3 + number of kinds]."""
        return torch.tensor([self.tokens, self.rows, self.columns, *self.keep])

    @classmethod
    def from_tensor(cls, values: Tensor) -> ImagePlan:
        """Reverses `to_tensor`."""
        tokens, rows, columns, *keep = values.tolist()
        return cls(tokens, rows, columns, tuple(keep))

    def groups(self, family: Family, device: torch.device | None = None) -> list[Group]:
        """Returns the groups of the image, with indices on ``device``."""
        return family.layout(self.tokens, self.rows, self.columns, device)

    def kept_in(self, group: Group) -> int:
        """Returns how many tokens of a group to keep.

        Raises:
            ValueError: the budget has no entry for the group's kind.
        """
        by_kind = decode_keep(self.keep)
        if group.kind not in by_kind:
            raise ValueError(
                f"keep={by_kind!r} has no budget for groups of kind {group.kind}; add one for each"
            )
        return kept_count(len(group.rows), by_kind[group.kind])

    def kept_tokens(self, family: Family) -> int:
        """Returns how many tokens to keep of the image, those in no group included.

        Raises:
            ValueError: see `kept_in`; or the image has too many tokens to number their rows.
        """
        if self.tokens > MAX_TOKENS:
            raise ValueError(
                f"an image of {self.tokens} visual tokens is too large, the maximum is "
                f"{MAX_TOKENS}; send a smaller one"
            )
        groups = self.groups(family)
        return self.tokens - sum(len(group.rows) - self.kept_in(group) for group in groups)
