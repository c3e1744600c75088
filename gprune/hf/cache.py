"""A key-value cache that remembers which positions were pruned.

After a pruned prefill the cache has two lengths. The physical one is how many keys it holds: the
attention mask and the query offset go by it. The logical one adds what was dropped: `generate`
slices full-history ids, masks and position ids by it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache


class TranslatedCache:
    """What both kinds of pruned caches have in common; mixed into a cache's own class.

    Attributes:
        translated: true while a hook that knows of the lengths runs the model.
    """

    translated: bool

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Physical sizes; refuses a model that would read them as logical ones."""
        if not self.translated:
            raise RuntimeError(
                "past_key_values was pruned by gprune and cannot be continued without it: call the "
                "model inside `with pruner(model):`, or start from an empty cache"
            )
        sizes: tuple[int, int] = super().get_mask_sizes(query_length, layer_idx)  # type: ignore[misc]
        return sizes

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._take_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._take_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        rows = torch.arange(self._rows())
        self._take_rows(rows.repeat_interleave(repeats))

    @abstractmethod
    def _rows(self) -> int:
        """Rows of the batch."""

    @abstractmethod
    def _take_rows(self, rows: Tensor) -> None:
        """Does to what is known of the rows what was done to the keys."""


class PrunedCache(TranslatedCache):
    """Mixed into a cache's own class by `mark_pruned`; never instantiated by itself.

    Attributes:
        origin: logical position of each physical slot of the prefilled part, -1 for padding that
            pruning put there, int64 [b, p].
        used: mask of the prefilled part as it was used, bool [b, p], for calls without a mask.
        gone: how many visual tokens of each row were dropped, int64 [b].
        logical: logical length of the prefilled part.
        weights: what attention adds to the logits of the prefilled part's keys, float32 [b, p];
            None where nothing is added.
    """

    origin: Tensor
    used: Tensor
    gone: Tensor
    logical: int
    weights: Tensor | None = None

    @property
    def dropped(self) -> int:
        """How many slots fewer the cache holds than positions were seen."""
        return self.logical - self.origin.shape[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The logical length."""
        length: int = super().get_seq_length(layer_idx)  # type: ignore[misc]
        return length + self.dropped

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """The physical length: where the next query stands among the keys."""
        offset: int = super().get_query_offset(layer_idx)  # type: ignore[misc]
        return offset - self.dropped

    def crop(self, tokens_to_remove: int) -> None:
        """Rolls back the last positions, as `Cache.crop` (assisted decoding rejects candidates).

        Args:
            tokens_to_remove: as a negative number; pruned positions among them count.

        Raises:
            ValueError: rows of the batch keep different numbers of those positions.
        """
        if tokens_to_remove > 0:  # transformers 5.19: the length to be left
            tokens_to_remove = min(0, tokens_to_remove - self.get_seq_length())
        remains = self.get_seq_length() + tokens_to_remove
        slots = tokens_to_remove
        if remains < self.logical:
            cut = (self.origin >= remains).sum(1)
            if not bool((cut == cut[0]).all()):
                raise ValueError(
                    f"tokens_to_remove={tokens_to_remove} reaches into pruned images, of which the "
                    "rows of the batch kept different numbers of tokens; start from an empty cache"
                )
            count = int(cut[0])
            slots = self.logical - count - self.get_seq_length()
            length = self.origin.shape[1] - count
            self.origin, self.used = self.origin[:, :length], self.used[:, :length]
            if self.weights is not None:
                self.weights = self.weights[:, :length]
            self.gone = self.gone - (self.logical - remains - count)
            self.logical = remains
        super().crop(slots)  # type: ignore[misc]

    def _rows(self) -> int:
        return len(self.origin)

    def _take_rows(self, rows: Tensor) -> None:
        rows = rows.to(self.origin.device)
        self.origin, self.used = self.origin[rows], self.used[rows]
        self.gone = self.gone[rows]
        if self.weights is not None:
            self.weights = self.weights[rows]

    def physical_mask(self, mask: Tensor | None, query_length: int) -> Tensor:
        """The mask over physical slots and new tokens, [b, physical length + query_length].

        Args:
            mask: 2-D mask over all logical positions, old and new, or None.
            query_length: number of new tokens.

        Raises:
            ValueError: the mask has another length.
        """
        total = self.get_seq_length() + query_length
        if mask is None:
            new = self.used.new_ones(len(self.used), total - self.logical)
            return torch.cat([self.used, new], 1).long()
        if mask.shape[1] == total - self.dropped != total:
            return mask  # someone who reads the cache's true length
        if mask.shape[1] != total:
            raise ValueError(
                f"attention_mask has {mask.shape[1]} columns, expected {total}: one for every "
                f"position so far, the {self.dropped} pruned ones included"
            )
        return self.physical(mask, 0)

    def physical(self, values: Tensor, fill: int) -> Tensor:
        """One value for each slot, see `at_slots`."""
        return at_slots(values, self.origin, self.logical, fill)


def at_slots(values: Tensor, origin: Tensor, logical: int, fill: int) -> Tensor:
    """One value for each slot, out of one for each position since the start.

    Args:
        values: [b, logical + m], of positions of which the last m all have slots.
        origin: logical position of each slot of the prefilled part, -1 for padding, int64 [b, p].
        logical: logical length of the prefilled part.
        fill: what stands for padding that pruning put there.

    Returns:
        [b, p + m].
    """
    origin = origin.to(values.device)
    old = values.gather(1, origin.clamp(min=0)).masked_fill(origin < 0, fill)
    return torch.cat([old, values[:, logical:]], 1)


@dataclass(frozen=True, eq=False)
class Slots:
    """What the layers from one on hold of a prefill.

    Attributes:
        first: the first of these layers.
        origin: position of each slot, -1 for padding, int64 [b, p].
        used: false at padding, bool [b, p].
    """

    first: int
    origin: Tensor
    used: Tensor

    def take_rows(self, rows: Tensor) -> Slots:
        """Those of some rows of the batch."""
        rows = rows.to(self.origin.device)
        return Slots(self.first, self.origin[rows], self.used[rows])


class StagedCache(TranslatedCache):
    """A cache whose later layers hold less of the prompt; mixed in by `mark_staged`.

    Its first layer holds every position, so its length is the logical one.

    Attributes:
        slots: what layers hold, by their first layer, ascending.
        logical: length of the prefilled part in the first layer.
    """

    slots: list[Slots]
    logical: int

    def crop(self, tokens_to_remove: int) -> None:
        """Rolls back the last positions, as `Cache.crop` (assisted decoding rejects candidates).

        Raises:
            ValueError: the layers hold different parts of what is to go.
        """
        length: int = super().get_seq_length()  # type: ignore[misc]
        if tokens_to_remove > 0:  # transformers 5.19: the length to be left
            tokens_to_remove = min(0, tokens_to_remove - length)
        remains = length + tokens_to_remove
        if remains < self.logical:  # candidates came with the prompt
            self.slots = [self._cut(slots, remains) for slots in self.slots]
            self.logical = remains
        super().crop(tokens_to_remove)  # type: ignore[misc]

    def _cut(self, slots: Slots, remains: int) -> Slots:
        """``slots`` without the positions from ``remains`` on."""
        count = self.logical - remains
        if not bool(((slots.origin >= remains).sum(1) == count).all()):
            raise ValueError(
                f"the last {count} positions of the prompt have pruned images or padding among "
                "them, so layers hold different parts and cannot be rolled back; start from an "
                "empty cache"
            )
        length = slots.origin.shape[1] - count
        return Slots(slots.first, slots.origin[:, :length], slots.used[:, :length])

    def physical_mask(self, slots: Slots, mask: Tensor | None, query_length: int) -> Tensor:
        """The mask over a layer's slots and new tokens, [b, its length + query_length].

        Args:
            slots: what the layer holds.
            mask: 2-D mask over all positions, old and new, or None.
            query_length: number of new tokens.

        Raises:
            ValueError: the mask has another length.
        """
        total = super().get_seq_length() + query_length  # type: ignore[misc]
        if mask is None:
            mask = slots.used.new_ones(len(slots.used), total)
        elif mask.shape[1] != total:
            raise ValueError(
                f"attention_mask has {mask.shape[1]} columns, expected {total}: one for every "
                "position so far, the pruned ones included"
            )
        return at_slots(mask, slots.origin, self.logical, 0).long()

    def _rows(self) -> int:
        return len(self.slots[0].origin)

    def _take_rows(self, rows: Tensor) -> None:
        self.slots = [slots.take_rows(rows) for slots in self.slots]


_mixed: dict[tuple[type, type], Any] = {}


def mixed(mixin: type, kind: type) -> Any:
    """The class of caches of one kind that know what was dropped."""
    if (mixin, kind) not in _mixed:
        name = mixin.__name__.removesuffix("Cache")
        _mixed[mixin, kind] = type(f"{name}{kind.__name__}", (mixin, kind), {})
    return _mixed[mixin, kind]


def mark_pruned(cache: Cache, origin: Tensor, used: Tensor, gone: Tensor, logical: int) -> None:
    """Makes ``cache``, which has just been filled, know what was dropped (see `PrunedCache`).

    The object stays the same, because its owner holds it: it changes its class.
    """
    if not isinstance(cache, PrunedCache):
        cache.__class__ = mixed(PrunedCache, type(cache))
    state: Any = cache
    state.origin, state.used, state.gone, state.logical = origin, used, gone, logical
    state.translated = False


def mark_staged(cache: Cache, slots: list[Slots], logical: int) -> None:
    """Makes ``cache``, which has just been filled, know what its layers hold (see `StagedCache`).

    As with `mark_pruned`, the object stays the same.
    """
    cache.__class__ = mixed(StagedCache, type(cache))
    state: Any = cache
    state.slots, state.logical, state.translated = slots, logical, False
