"""Prunes vision tokens that a language model reads by cross-attention (Mllama).

There vision tokens are no positions of the sequence: cross-attention layers read them as keys and
values. So the sequence stays as it is, and the language model's call is rewritten: fewer vision
states at prefill, and fewer columns of the cross-attention mask, at prefill and at every later
step.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, PreTrainedModel

from gprune.errors import UnsupportedModelError
from gprune.hf.calls import bind_arguments, find_cache
from gprune.hf.cross_cache import CrossPrunedCache, mark_cross_pruned
from gprune.hf.cross_tiles import choose_tiles, visible_tiles
from gprune.hf.model import PrunedModel
from gprune.hf.overrides import override_method
from gprune.hf.records import KeptGroup
from gprune.layouts import cache_of
from gprune.pruners.base import Pruner


class CrossPrunedModel(PrunedModel):
    """A model under pruning whose language model cross-attends to vision tokens.

    Attributes:
        kept_mask: all true: no position leaves the sequence, image placeholders included.
    """

    def __init__(self, model: PreTrainedModel, pruner: Pruner, positions: str) -> None:
        super().__init__(model, pruner, positions)
        if pruner.signals:
            raise UnsupportedModelError(
                f"{pruner.name} reads {' and '.join(pruner.signals)}, which is not available yet "
                f"where {type(model).__name__} cross-attends to its images; use a method that "
                "needs features alone, such as graph_cover"
            )
        self._kept: list[list[KeptGroup]] = []
        self._tiles = model.config.vision_config.max_num_tiles
        self._layer = min(model.config.text_config.cross_attention_layers)

    @property
    def kept(self) -> list[list[KeptGroup]]:
        """For each batch row of the latest prefill its tiles, image by image.

        Padding tiles, and tiles that no text of the row can see, have no group.
        """
        return self._kept

    def pre_forward(
        self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the outer call unchanged: the inner one is rewritten."""
        return args, kwargs

    def post_forward(
        self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Does nothing: the inner call has recorded what was dropped."""

    def patched(self) -> AbstractContextManager[None]:
        """Overrides the language model's ``forward``."""
        language = self.model.base_model.language_model
        return override_method(language, "forward", self._pruned_forward(language.forward))

    def _pruned_forward(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps the language model's ``forward``."""
        parameters = list(inspect.signature(forward).parameters)

        @functools.wraps(forward)
        def pruned_forward(*args: Any, **kwargs: Any) -> Any:
            call = bind_arguments(parameters, args, kwargs)
            cache = cache_of(call)
            cached_columns = None
            if call.get("cross_attention_states") is not None:
                cached_columns = self._prefill(call, cache)
            else:
                self._continue(call, cache)
            if isinstance(cache, CrossPrunedCache):
                cache.hook_active = True
            try:
                output = forward(**call)
            finally:
                if isinstance(cache, CrossPrunedCache):
                    cache.hook_active = False
            cache = find_cache(output, call)
            if cached_columns is not None and cache is not None:
                mark_cross_pruned(cache, *cached_columns)
            return output

        return pruned_forward

    def _continue(self, call: dict[str, Any], cache: Cache | None) -> None:
        """Rewrites a decoding step or a turn without images, in place."""
        if isinstance(cache, CrossPrunedCache):
            mask = self._column_mask(call, cache.columns, cache.total, cache)
            call["cross_attention_mask"] = mask
        elif cache is None or int(cache.get_seq_length()) == 0:
            self._reset(call)

    def _reset(self, call: dict[str, Any]) -> int:
        """Forgets the previous prefill; returns the number of batch rows."""
        ids = call.get("input_ids")
        sequence = call["inputs_embeds"] if ids is None else ids
        self.kept_mask = torch.ones(sequence.shape[:2], dtype=torch.bool, device=sequence.device)
        self._kept = [[] for _ in sequence]
        return len(sequence)

    def _prefill(self, call: dict[str, Any], cache: Cache | None) -> tuple[Tensor, int] | None:
        """Chooses what to keep and shortens ``call`` in place.

        Returns:
            ``columns`` and ``total`` of the cache after the call, see `CrossPrunedCache`; None if
            nothing is dropped.

        Raises:
            ValueError: the vision states have another shape.
        """
        b = self._reset(call)
        states = self._tile_states(call["cross_attention_states"], b)
        tiles = choose_tiles(self.chooser, states, visible_tiles(call, states))
        self._kept = tiles.groups
        if not tiles.dropped_count and not isinstance(cache, CrossPrunedCache):
            return None  # the model gets its own call, so that its results are bit-identical
        # Padded with zeros: without bias they become keys and values of zero, so a row without
        # images adds nothing to its text, as if it had been processed alone.
        call["cross_attention_states"] = pad_sequence(tiles.states, batch_first=True)
        columns = pad_sequence(tiles.columns, batch_first=True, padding_value=-1)
        total = states[0].numel() // states.shape[-1]
        if cache is not None:
            old_columns, old_total = self._cached(cache, columns)
            columns = torch.where(columns < 0, -1, columns + old_total)
            columns = torch.cat([old_columns, columns], 1)
            total += old_total
        call["cross_attention_mask"] = self._column_mask(call, columns, total, cache)
        return columns, total

    def _tile_states(self, states: Tensor, b: int) -> Tensor:
        """Returns vision states in the shape [b, images, tiles, n, d].

        Raises:
            ValueError: they have another number of tiles.
        """
        if states.ndim != 3 or len(states) % (b * self._tiles):
            raise ValueError(
                f"cross_attention_states of shape {list(states.shape)} are not [rows * images * "
                f"{self._tiles} tiles, tokens per tile, channels] of {b} rows; pass pixel_values"
            )
        return states.view(b, -1, self._tiles, *states.shape[1:])

    def _cached(self, cache: Cache, like: Tensor) -> tuple[Tensor, int]:
        """Returns columns and total of a cache before this call, on the device of ``like``."""
        if isinstance(cache, CrossPrunedCache):
            return cache.columns, cache.total
        count = int(cache.get_seq_length(self._layer))
        return torch.arange(count, device=like.device).expand(len(like), -1), count

    def _column_mask(
        self, call: dict[str, Any], columns: Tensor, total: int, cache: Cache | None
    ) -> Tensor:
        """Returns the additive mask over the vision tokens that stay, [b, 1, L, k].

        Raises:
            ValueError: the call's mask does not have ``total`` columns.
        """
        mask = call.get("cross_attention_mask")
        if mask is None:
            mask = torch.zeros(1, dtype=self.model.dtype, device=columns.device)
            mask = mask.expand(len(columns), 1, 1, total)
        if mask.shape[-1] != total:
            raise ValueError(
                f"cross_attention_mask has {mask.shape[-1]} columns for vision tokens, expected "
                f"{total}: one for each token of every image so far, the pruned ones included"
            )
        least = torch.finfo(mask.dtype).min
        columns = columns[:, None, None]  # [b, 1, 1, k]
        index = columns.clamp(min=0).expand(-1, 1, mask.shape[2], -1)
        mask = mask.gather(-1, index).masked_fill(columns < 0, least)
        layers = cache.layers[self._layer : self._layer + 1] if cache is not None else []
        # Attention to a static cache reads its whole length, used or not.
        width = max([getattr(layer, "max_cache_len", 0) for layer in layers], default=0)
        return F.pad(mask, (0, max(0, width - mask.shape[-1])), value=least)
