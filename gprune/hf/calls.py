"""Reads and checks the arguments and the output of a model's call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import Cache

from gprune.layouts import cache_of


def bind_arguments(
    parameters: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns all arguments of a call by name; ``parameters`` are the function's, in order."""
    return {**dict(zip(parameters, args, strict=False)), **kwargs}


def find_cache(output: Any, call: Mapping[str, Any] | None = None) -> Cache | None:
    """Returns the KV cache of a call, or None if it has none.

    Args:
        output: the model's output, a ModelOutput, a tuple, or None if the call failed.
        call: the arguments of the call; a cache in them is preferred.
    """
    cache: Cache | None = cache_of(call or {})
    if cache is not None or output is None:
        return cache
    values = output if isinstance(output, tuple) else output.values()
    return next((value for value in values if isinstance(value, Cache)), None)


def require_2d_mask(mask: Any) -> Tensor | None:
    """Returns an attention mask, [b, L], or None if it is None.

    Raises:
        ValueError: the mask is not a 2-D tensor.
    """
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        return mask
    tensor = isinstance(mask, Tensor)
    kind = f"a tensor of shape {list(mask.shape)}" if tensor else f"a {type(mask).__name__}"
    raise ValueError(
        f"attention_mask must be a 2-D tensor, got {kind}: the columns of dropped tokens cannot be "
        "removed from other masks; pass the tokenizer's mask, with one column per position"
    )


def full_mask(call: Mapping[str, Any], past: int) -> Tensor:
    """Returns the call's mask over past and new positions, [b, past + L]; ones if it has none.

    Raises:
        ValueError: the mask is not 2-D, or has another number of columns.
    """
    ids, mask = call["input_ids"], require_2d_mask(call.get("attention_mask"))
    expected = past + ids.shape[1]
    if mask is None:
        return ids.new_ones(len(ids), expected)
    if mask.shape[1] != expected:
        raise ValueError(
            f"attention_mask has {mask.shape[1]} columns, expected {expected}: one for each of the "
            f"{past} positions in the cache and of the {ids.shape[1]} new ones"
        )
    return mask


def refuse_logits_positions(call: Mapping[str, Any]) -> None:
    """Checks that ``logits_to_keep`` names no positions, which pruning would move.

    Raises:
        ValueError: ``logits_to_keep`` is a tensor.
    """
    if isinstance(call.get("logits_to_keep"), Tensor):
        raise ValueError(
            "logits_to_keep is a tensor of positions, which pruning moves; pass an int, or index "
            "the logits afterwards by pruned.kept_mask"
        )
