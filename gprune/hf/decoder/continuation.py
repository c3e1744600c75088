"""Runs text after a pruned prefill through layers that hold different parts of the prompt."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.masking_utils import create_causal_mask

from gprune.hf.cache import StagedCache
from gprune.layouts import cache_of


class Continuation:
    """A call after a pruned prefill that is running through the layers."""

    def __init__(self, config: Any, cache: StagedCache, mask: Tensor | None, length: int) -> None:
        """Prepares the 2-D masks of the shorter layers.

        Args:
            config: of the language model.
            cache: of the prefill.
            mask: over all positions, old and new, or None.
            length: number of new tokens.
        """
        self.config = config
        self.masks = {
            slots.first: cache.physical_mask(slots, mask, length) for slots in cache.slots
        }
        self._layer_mask: Tensor | None = None

    def pre_layer(
        self, index: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments to call layer ``index`` with instead."""
        if index < min(self.masks):
            return args, kwargs
        if index in self.masks:
            self._layer_mask = create_causal_mask(
                self.config,
                args[0] if args else kwargs["hidden_states"],
                self.masks[index],
                cache_of(kwargs),
                layer_idx=index,
            )
        return args, {**kwargs, "attention_mask": self._layer_mask}
