"""A KV cache that knows which positions were pruned.

After a pruned prefill the cache has two lengths. The physical length is the number of keys it
holds; attention masks and query offsets use it. The logical length adds the dropped positions;
`generate` slices ids, masks and position ids of the whole history by it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache


class HookedCache:
    """Base of the pruned caches, which only a model under pruning can continue.

    Mixed into a cache's own class.

    Attributes:
        hook_active: true while a hook that knows both lengths runs the model.
    """

    hook_active: bool

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Returns physical sizes.

        Raises:
            RuntimeError: the model is not under pruning and would read them as logical ones.
        """
        if not self.hook_active:
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
        rows = torch.arange(self._row_count())
        self._take_rows(rows.repeat_interleave(repeats))

    @abstractmethod
    def _row_count(self) -> int:
        """Returns the number of batch rows."""

    @abstractmethod
    def _take_rows(self, rows: Tensor) -> None:
        """Selects batch rows of what is known about the keys."""


class PrunedCache(HookedCache):
    """A cache whose layers hold fewer keys than positions were seen; mixed in by `mark_pruned`.

    A slot is the index of a key in the cache.

    Attributes:
        origin: logical position of each slot of the prefilled part, -1 for padding that pruning
            added, int64 [b, p].
        slot_mask: mask of the prefilled part for calls without one, bool [b, p].
        position_shift: by how much compact numbering lowers the position ids of what follows: in
            general the number of dropped tokens, int64 [b].
        logical: logical length of the prefilled part.
        weights: what attention adds to the logits of the prefilled part's keys, float32 [b, p];
            None for methods that do not weigh keys.
    """

    origin: Tensor
    slot_mask: Tensor
    position_shift: Tensor
    logical: int
    weights: Tensor | None = None

    @property
    def length_difference(self) -> int:
        """Logical minus physical length."""
        return self.logical - self.origin.shape[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns the logical length."""
        length: int = super().get_seq_length(layer_idx)  # type: ignore[misc]
        return length + self.length_difference

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Returns the physical length, which is the slot of the next query."""
        offset: int = super().get_query_offset(layer_idx)  # type: ignore[misc]
        return offset - self.length_difference

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last positions, as `Cache.crop`; assisted decoding rejects candidates so.

        Args:
            tokens_to_remove: number of positions, negative; pruned ones count.

        Raises:
            ValueError: the rows of the batch keep different numbers of these positions.
        """
        if tokens_to_remove > 0:  # in transformers 5.19 it is the length to keep
            tokens_to_remove = min(0, tokens_to_remove - self.get_seq_length())
        remaining = self.get_seq_length() + tokens_to_remove
        slots = tokens_to_remove
        if remaining < self.logical:
            removed = (self.origin >= remaining).sum(1)
            if not bool((removed == removed[0]).all()):
                raise ValueError(
                    f"tokens_to_remove={tokens_to_remove} reaches into pruned images, of which the "
                    "rows of the batch kept different numbers of tokens; start from an empty cache"
                )
            count = int(removed[0])
            slots = self.logical - count - self.get_seq_length()
            self._crop_prefill(remaining, count)
        super().crop(slots)  # type: ignore[misc]

    def _crop_prefill(self, remaining: int, slots: int) -> None:
        """Cuts the prefilled part to ``remaining`` positions; the last ``slots`` slots go."""
        length = self.origin.shape[1] - slots
        self.origin, self.slot_mask = self.origin[:, :length], self.slot_mask[:, :length]
        if self.weights is not None:
            self.weights = self.weights[:, :length]
        self.position_shift = self.position_shift - (self.logical - remaining - slots)
        self.logical = remaining

    def _row_count(self) -> int:
        return len(self.origin)

    def _take_rows(self, rows: Tensor) -> None:
        rows = rows.to(self.origin.device)
        self.origin, self.slot_mask = self.origin[rows], self.slot_mask[rows]
        self.position_shift = self.position_shift[rows]
        if self.weights is not None:
            self.weights = self.weights[rows]

    def physical_mask(self, mask: Tensor | None, query_length: int) -> Tensor:
        """Returns the mask over slots and new tokens, [b, physical length + query_length].

        Args:
            mask: 2-D mask over all logical positions, old and new, or None.
            query_length: number of new tokens.

        Raises:
            ValueError: the mask has another length.
        """
        total = self.get_seq_length() + query_length
        if mask is None:
            new = self.slot_mask.new_ones(len(self.slot_mask), total - self.logical)
            return torch.cat([self.slot_mask, new], 1).long()
        if mask.shape[1] == total - self.length_difference != total:
            return mask  # made by a caller that reads the physical length
        if mask.shape[1] != total:
            raise ValueError(
                f"attention_mask has {mask.shape[1]} columns, expected {total}: one for every "
                f"position so far, the {self.length_difference} pruned ones included"
            )
        return self.at_slots(mask, 0)

    def at_slots(self, values: Tensor, fill: int) -> Tensor:
        """Returns one value per slot, see `slot_values`."""
        return slot_values(values, self.origin, self.logical, fill)


def slot_values(values: Tensor, origin: Tensor, logical: int, fill: int) -> Tensor:
    """Returns one value per slot, from one value per position since the start.

    Args:
        values: [b, logical + m]; all of the last m positions have slots.
        origin: logical position of each slot of the prefilled part, -1 for padding, int64 [b, p].
        logical: logical length of the prefilled part.
        fill: value at padding that pruning added.

    Returns:
        [b, p + m].
    """
    origin = origin.to(values.device)
    prefilled = values.gather(1, origin.clamp(min=0)).masked_fill(origin < 0, fill)
    return torch.cat([prefilled, values[:, logical:]], 1)


@dataclass(frozen=True, eq=False)
class LayerSlots:
    """The slots of a prefill in the layers from one on.

    Attributes:
        first: the first of these layers.
        origin: position of each slot, -1 for padding, int64 [b, p].
        mask: false at padding, bool [b, p].
        shift: by how much the position ids of what follows are lower in these layers than in the
            first, int64 [b]; None if they are the same.
    """

    first: int
    origin: Tensor
    mask: Tensor
    shift: Tensor | None = None

    def take_rows(self, rows: Tensor) -> LayerSlots:
        """Returns the slots of some batch rows."""
        rows = rows.to(self.origin.device)
        shift = None if self.shift is None else self.shift[rows]
        return LayerSlots(self.first, self.origin[rows], self.mask[rows], shift)


class StagedCache(HookedCache):
    """A cache whose later layers hold less of the prompt; mixed in by `mark_staged`.

    Its first layer holds every position, so its length is the logical one.

    Attributes:
        slots: the slots of later layers, ascending by first layer.
        logical: length of the prefilled part in the first layer.
    """

    slots: list[LayerSlots]
    logical: int

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last positions, as `Cache.crop`; assisted decoding rejects candidates so.

        Args:
            tokens_to_remove: number of positions, negative.

        Raises:
            ValueError: the layers hold different numbers of these positions.
        """
        length: int = super().get_seq_length()  # type: ignore[misc]
        if tokens_to_remove > 0:  # in transformers 5.19 it is the length to keep
            tokens_to_remove = min(0, tokens_to_remove - length)
        remaining = length + tokens_to_remove
        if remaining < self.logical:  # candidates came with the prompt
            self.slots = [self._crop_slots(slots, remaining) for slots in self.slots]
            self.logical = remaining
        super().crop(tokens_to_remove)  # type: ignore[misc]

    def _crop_slots(self, slots: LayerSlots, remaining: int) -> LayerSlots:
        """Returns ``slots`` without the positions from ``remaining`` on."""
        count = self.logical - remaining
        if not bool(((slots.origin >= remaining).sum(1) == count).all()):
            raise ValueError(
                f"tokens_to_remove={remaining - self.logical} cannot be cut: the last {count} "
                "positions of the prompt include pruned images or padding, so layers hold "
                "different parts of them; start from an empty cache"
            )
        length = slots.origin.shape[1] - count
        return replace(slots, origin=slots.origin[:, :length], mask=slots.mask[:, :length])

    def physical_mask(self, slots: LayerSlots, mask: Tensor | None, query_length: int) -> Tensor:
        """Returns the mask over a layer's slots and new tokens, [b, slots + query_length].

        Args:
            slots: of the layer.
            mask: 2-D mask over all positions, old and new, or None.
            query_length: number of new tokens.

        Raises:
            ValueError: the mask has another length.
        """
        total = super().get_seq_length() + query_length  # type: ignore[misc]
        if mask is None:
            mask = slots.mask.new_ones(len(slots.mask), total)
        elif mask.shape[1] != total:
            raise ValueError(
                f"attention_mask has {mask.shape[1]} columns, expected {total}: one for every "
                "position so far, the pruned ones included"
            )
        return slot_values(mask, slots.origin, self.logical, 0).long()

    def _row_count(self) -> int:
        return len(self.slots[0].origin)

    def _take_rows(self, rows: Tensor) -> None:
        self.slots = [slots.take_rows(rows) for slots in self.slots]


_cache_classes: dict[tuple[type, type], Any] = {}


def mixed_class(mixin: type, cache_class: type) -> Any:
    """Returns the class that derives from ``mixin`` and a class of caches; one for each pair."""
    if (mixin, cache_class) not in _cache_classes:
        name = mixin.__name__.removesuffix("Cache") + cache_class.__name__
        _cache_classes[mixin, cache_class] = type(name, (mixin, cache_class), {})
    return _cache_classes[mixin, cache_class]


def mark_pruned(
    cache: Cache, origin: Tensor, slot_mask: Tensor, position_shift: Tensor, logical: int
) -> None:
    """Makes a cache that has just been filled a `PrunedCache`; arguments are its attributes.

    The object stays the same, because its owner holds it: its class is changed.
    """
    if not isinstance(cache, PrunedCache):
        cache.__class__ = mixed_class(PrunedCache, type(cache))
    state: Any = cache
    state.origin, state.slot_mask = origin, slot_mask
    state.position_shift, state.logical = position_shift, logical
    state.hook_active = False


def mark_staged(cache: Cache, slots: list[LayerSlots], logical: int) -> None:
    """Makes a cache that has just been filled a `StagedCache`; as `mark_pruned`."""
    cache.__class__ = mixed_class(StagedCache, type(cache))
    state: Any = cache
    state.slots, state.logical, state.hook_active = slots, logical, False
