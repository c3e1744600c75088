"""A cache whose cross-attention layers hold only some of the vision tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache

from gprune.hf.cache import HookedCache, mixed_class


class CrossPrunedCache(HookedCache):
    """A cache with fewer vision tokens than images had; mixed in by `mark_cross_pruned`.

    Attributes:
        columns: index of each cached vision token among all, -1 for padding, int64 [b, k].
        total: number of vision tokens before pruning, those of padding tiles included.
    """

    columns: Tensor
    total: int

    def crop(self, tokens_to_remove: int) -> None:
        """Refuses to remove positions, because transformers would remove vision tokens too.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"tokens_to_remove={tokens_to_remove} would roll the cache back, and transformers "
            "would remove vision tokens with the text; generate without an assistant and without "
            "prompt lookup"
        )

    def _row_count(self) -> int:
        return len(self.columns)

    def _take_rows(self, rows: Tensor) -> None:
        self.columns = self.columns[rows.to(self.columns.device)]


def mark_cross_pruned(cache: Cache, columns: Tensor, total: int) -> None:
    """Makes a cache that has just been filled a `CrossPrunedCache`; arguments are its attributes.

    The object stays the same, because its owner holds it: its class is changed.
    """
    if not isinstance(cache, CrossPrunedCache):
        cache.__class__ = mixed_class(CrossPrunedCache, cache.__class__)
    state: Any = cache
    state.columns, state.total, state.hook_active = columns, total, False
