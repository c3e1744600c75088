"""Runs text after a pruned prefill through layers that hold different parts of the prompt."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.masking_utils import create_causal_mask

from gprune.hf.cache import StagedCache
from gprune.layouts import cache_of


class Continuation:
    """A call after a pruned prefill that is running through the layers.

    Where the prefill renumbered positions without gaps, a new token's position in a layer follows
    those of the tokens that the layer holds: its position in the first layer, less the tokens
    dropped from its row so far.
    """

    def __init__(
        self, decoder: Any, config: Any, cache: StagedCache, mask: Tensor | None, length: int
    ) -> None:
        """Prepares the 2-D masks of the shorter layers.

        Args:
            decoder: the language model, with its rotary embedding.
            config: of the language model.
            cache: of the prefill.
            mask: over all positions, old and new, or None.
            length: number of new tokens.
        """
        self.decoder, self.config = decoder, config
        self.slots = {slots.first: slots for slots in cache.slots}
        self.masks = {
            first: cache.physical_mask(slots, mask, length) for first, slots in self.slots.items()
        }
        self._changes: dict[str, Any] = {}  # to the arguments of the layers from a stage on

    def pre_layer(
        self, index: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments to call layer ``index`` with instead."""
        if index in self.masks:
            hidden = args[0] if args else kwargs["hidden_states"]
            self._changes["attention_mask"] = create_causal_mask(
                self.config, hidden, self.masks[index], cache_of(kwargs), layer_idx=index
            )
            shift = self.slots[index].shift
            if shift is not None:
                positions = kwargs["position_ids"] - shift[:, None].to(hidden.device)
                embeddings = self.decoder.rotary_emb(hidden, positions)
                self._changes["position_embeddings"] = embeddings
        return args, {**kwargs, **self._changes}
