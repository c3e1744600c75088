"""Shortens the arguments of a call to the positions that stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache

from gprune.device import raise_pending
from gprune.hf.cache import PrunedCache, mark_pruned
from gprune.hf.calls import refuse_logits_positions
from gprune.hf.choice import Selection

# Implementations that take ranges in place of a mask for a batch of one.
FLASH = ("flash_attention_2", "flash_attention_3")

# Arguments that tell text from images, with one value per position.
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True, eq=False)
class Plan:
    """How the call of one prefill is shortened from L to p columns.

    Attributes:
        kept_mask: true at the columns that stay, bool [b, L].
        order: original column of each remaining one, int64 [b, p].
        real: false where a remaining column is padding that pruning added, bool [b, p].
        past: logical length of the cache before the call.
        position_shift: what is subtracted from position ids to number them without gaps, int64,
            [b, L], or [3, b, L] where time, row and column shift differently.
    """

    kept_mask: Tensor
    order: Tensor
    real: Tensor
    past: int
    position_shift: Tensor

    @property
    def length(self) -> int:
        """Number of columns before shortening."""
        return self.kept_mask.shape[1]

    def final_shift(self) -> Tensor:
        """Returns the shift of the positions after the call, int64 [b].

        After the last column time, row and column shift alike.
        """
        final = self.position_shift[..., -1]
        return final if final.ndim == 1 else final[0]

    def gather(self, values: Tensor, fill: int) -> Tensor:
        """Returns the values at the remaining columns, ``fill`` at padding.

        Args:
            values: [..., b or 1, L]; M-RoPE has leading dimensions.
            fill: value at padding that pruning added.

        Returns:
            [..., b, p].
        """
        b, p = self.order.shape
        shape = (*values.shape[:-2], b)
        index = self.order.expand(*shape, p)
        gathered = values.expand(*shape, values.shape[-1]).gather(-1, index)
        return gathered.masked_fill(~self.real, fill)

    def compact(self, positions: Tensor) -> Tensor:
        """Returns position ids [..., b, L] that have no gaps after `gather`."""
        shift = self.position_shift
        if shift.ndim == 3:
            # Some models have a fourth row, before M-RoPE's three, that numbers the text alone.
            fourth = torch.zeros_like(shift[: len(positions) - 3])
            shift = torch.cat([fourth, shift])
        return positions - shift


class PlannedOutputs(dict[str, Any]):
    """Encoder outputs of a shortened call that carry its plan from the pre-hook to the post-hook.

    Only the call itself is not shared by two threads that use one model.
    """

    plan: Plan


def plan_prefill(selections: Sequence[Selection], mask: Tensor, past: int) -> Plan:
    """Plans which columns stay; rows are right-aligned, so that each ends with its last token.

    Synchronises the host once for a batch of more than one row, because the new length is a shape.

    Args:
        selections: one for each modality.
        mask: over past and new positions, [b, past + L].
        past: logical length of the cache.
    """
    dropped = torch.zeros_like(selections[0].placeholder)
    for selection in selections:
        dropped |= selection.dropped_mask()
    keep = ~dropped
    b, length = keep.shape
    if b > 1:
        # Padding is dropped too: otherwise the row with the most of it would set the length.
        keep = keep & mask[:, past:].bool()
        remaining = int(keep.sum(1).max())
        raise_pending()  # the results of pending checks have arrived with the length
    else:
        remaining = length - sum(selection.dropped_count for selection in selections)
    order, real = right_aligned(keep, remaining)
    return Plan(keep, order, real, past, dropped.long().cumsum(1))


def right_aligned(keep: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Moves the columns that stay to the end of their rows, in their order.

    Args:
        keep: true at the columns that stay, bool [b, L].
        length: number of columns of the result: the most that any row keeps.

    Returns:
        the original column of each remaining one, int64 [b, length];
        false where it is padding of a row that keeps fewer, bool [b, length].
    """
    order = torch.sort(keep.to(torch.uint8), dim=1, stable=True).indices[:, -length:]
    return order, keep.gather(1, order)


def shorten_call(
    call: dict[str, Any],
    plan: Plan,
    mask: Tensor,
    cache: Cache | None,
    pad_id: int,
    compact: bool,
) -> None:
    """Gathers every argument that has one value per position, in place; sets a 2-D mask.

    Args:
        call: the arguments, with ``position_ids``.
        plan: the columns that stay.
        mask: over past and new positions, [b, past + L].
        cache: of the call.
        pad_id: token id of padding that pruning adds.
        compact: whether to number positions without gaps.

    Raises:
        ValueError: ``logits_to_keep`` names positions.
    """
    refuse_logits_positions(call)
    call["input_ids"] = plan.gather(call["input_ids"], pad_id)
    positions = call["position_ids"]
    call["position_ids"] = plan.gather(plan.compact(positions) if compact else positions, 0)
    past_mask = physical_history(mask[:, : plan.past], cache)
    # Always explicit: without a mask, gaps in position ids read as packed sequences.
    call["attention_mask"] = torch.cat([past_mask, plan.gather(mask[:, plan.past :], 0)], 1)
    if call.get("labels") is not None:
        call["labels"] = plan.gather(call["labels"], -100)
    for name in TOKEN_TYPES:
        if call.get(name) is not None:
            call[name] = shortened_types(call[name], plan, cache)


def shortened_types(types: Tensor, plan: Plan, cache: Cache | None) -> Tensor:
    """Returns token types of the remaining columns, [b, p], after those of the history if given."""
    if types.shape[1] < plan.length:
        # Assisted decoding passes the prompt's types, without those of the first candidates.
        types = pad(types, (0, plan.length - types.shape[1]))
    # Models that read types from the start of the history (Gemma 3) get all of them.
    history = types[:, : -plan.length]
    if history.shape[1]:
        history = physical_history(history, cache)
    return torch.cat([history, plan.gather(types[:, -plan.length :], 0)], 1)


def physical_history(values: Tensor, cache: Cache | None) -> Tensor:
    """Returns values of past positions [b, past] for the slots of the cache, [b, slots]."""
    return cache.at_slots(values, 0) if isinstance(cache, PrunedCache) else values


def drop_pruned_history(call: dict[str, Any], cache: PrunedCache, past: int) -> None:
    """Removes pruned positions from the history arguments of an unpruned call, in place."""
    new = call["input_ids"].shape[1]
    call["attention_mask"] = cache.physical_mask(call.get("attention_mask"), new)
    for name in TOKEN_TYPES:
        types = call.get(name)
        if types is not None and types.shape[1] == past + new:
            call[name] = cache.at_slots(types, 0)


def mark_as_one_sequence(call: dict[str, Any], cache: Cache | None) -> None:
    """Passes FlashAttention the range of the sequence of a batch of one, in place.

    Otherwise it reads gaps in position ids as boundaries of sequences packed into one row.

    Raises:
        ValueError: a later turn of a model with sliding windows has images.
    """
    b, length = call["input_ids"].shape
    if b > 1:
        return
    total = call["attention_mask"].shape[1]
    if total > length and any(getattr(cache, "is_sliding", ())):
        raise ValueError(
            "past_key_values has sliding-window layers, whose lengths differ from those of the "
            "other layers, but FlashAttention takes one length for all; load the model with "
            "attn_implementation='sdpa' to use images in later turns"
        )
    for side, size in (("q", length), ("k", total)):
        ends = torch.tensor([0, size], dtype=torch.int32, device=call["input_ids"].device)
        call[f"cu_seq_lens_{side}"], call[f"max_length_{side}"] = ends, size


def record_plan(cache: Cache, plan: Plan, mask: Tensor) -> None:
    """Records on a cache that has just been filled what the prefill dropped.

    Args:
        cache: of the call; becomes a `PrunedCache`.
        plan: of the call.
        mask: of the shortened call, [b, past slots + p].
    """
    past_mask, new_mask = mask.bool().tensor_split([mask.shape[1] - plan.order.shape[1]], 1)
    origin = torch.where(plan.real, plan.order + plan.past, -1)
    slot_mask = new_mask
    shift = plan.final_shift()
    if isinstance(cache, PrunedCache):
        shift = shift + cache.position_shift
    if plan.past:
        origin = torch.cat([past_origin(cache, past_mask, plan.past), origin], 1)
        slot_mask = torch.cat([past_mask, new_mask], 1)
    mark_pruned(cache, origin, slot_mask, shift, plan.past + plan.length)


def past_origin(cache: Cache, past_mask: Tensor, past: int) -> Tensor:
    """Returns the logical position of every slot that a cache held before a call, [b, slots].

    Args:
        cache: before the call is recorded.
        past_mask: over these slots, [b, slots].
        past: logical length of the cache before the call.
    """
    device = past_mask.device
    if not isinstance(cache, PrunedCache):
        return torch.arange(past, device=device).expand(len(past_mask), -1)
    decoded = torch.arange(cache.logical, past, device=device)
    return torch.cat([cache.origin, decoded.expand(len(past_mask), -1)], 1)


def padding_id(config: Any, placeholder_ids: set[int]) -> int:
    """Returns a token id for padding that is not a placeholder.

    The mask hides padding, so any other id of the vocabulary will do.

    Args:
        config: of the model.
        placeholder_ids: ids of the placeholders.
    """
    text = config.get_text_config()
    for source in (config, text):
        pad_id = getattr(source, "pad_token_id", None)
        if (
            isinstance(pad_id, int)
            and 0 <= pad_id < text.vocab_size
            and pad_id not in placeholder_ids
        ):
            return pad_id
    return next(index for index in range(len(placeholder_ids) + 1) if index not in placeholder_ids)
