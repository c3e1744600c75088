"""Prunes what a language model attends to across, instead of among its own tokens (Mllama).

Vision tokens are no positions of the sequence there: layers of their own read them as keys and
values. So the sequence stays as it is, and the language model's call is rewritten: fewer vision
states at prefill, and the columns of the cross-attention mask that belong to them, then and at
every later step.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, PreTrainedModel

from gprune.errors import UnsupportedModelError
from gprune.hf.cache import TranslatedCache, mixed
from gprune.hf.hook import EncodedImage, KeptGroup, PrunedModel, find_cache
from gprune.hf.signals import replaced


class CrossPrunedCache(TranslatedCache):
    """A cache whose cross-attention layers hold a part of the vision tokens; mixed in by `mark`.

    Attributes:
        columns: which vision token each of the cached ones is, -1 for padding, int64 [b, k].
        total: how many vision tokens there were, dropped ones and those of padding tiles included.
    """

    columns: Tensor
    total: int

    def crop(self, tokens_to_remove: int) -> None:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"tokens_to_remove={tokens_to_remove} would roll the cache back, which transformers "
            "does to vision tokens as to text; generate without an assistant and prompt lookup"
        )

    def _rows(self) -> int:
        return len(self.columns)

    def _take_rows(self, rows: Tensor) -> None:
        self.columns = self.columns[rows.to(self.columns.device)]


def mark(cache: Cache, columns: Tensor, total: int) -> None:
    """Makes ``cache``, which has just been filled, know what it holds (see `CrossPrunedCache`)."""
    if not isinstance(cache, CrossPrunedCache):
        cache.__class__ = mixed(CrossPrunedCache, cache.__class__)
    state: Any = cache
    state.columns, state.total, state.translated = columns, total, False


@dataclass(frozen=True, eq=False)
class Across:
    """What is left of a batch's new vision tokens.

    Attributes:
        states: the tokens of each row, [k, d].
        columns: which of all new tokens they are, int64 [k].
        groups: what was kept of each row's tiles.
        dropped: how many went, those of padding tiles apart.
    """

    states: list[Tensor]
    columns: list[Tensor]
    groups: list[list[KeptGroup]]
    dropped: int


class CrossPrunedModel(PrunedModel):
    """A model under pruning whose language model attends across to its vision tokens.

    Attributes:
        kept_mask: all true: no position leaves the sequence, an image's placeholder neither.
    """

    def __init__(self, model: PreTrainedModel, *args: Any) -> None:
        super().__init__(model, *args)
        if self.pruner.signals:
            raise UnsupportedModelError(
                f"{type(model).__name__} attends to its images across, where "
                f"{' and '.join(self.pruner.signals)} for {self.pruner.name} cannot be had yet; "
                "take a method that needs features alone, such as graph_cover"
            )
        self._kept: list[list[KeptGroup]] = []
        self._tiles = model.config.vision_config.max_num_tiles
        self._layer = min(model.config.text_config.cross_attention_layers)

    @property
    def kept(self) -> list[list[KeptGroup]]:
        """For each row of the latest prefill's batch its tiles, image by image.

        Padding tiles, and those that no text of the row may see, are no tokens: they have no group.
        """
        return self._kept

    def before(
        self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The outer call stays as it is."""
        return args, kwargs

    def after(
        self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """The outer call leaves nothing to be done."""

    def inside(self) -> AbstractContextManager[None]:
        """Rewrites the calls of the language model."""
        language = self.model.base_model.language_model
        return replaced(language, "forward", self._shortening(language.forward))

    def _shortening(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(forward).parameters)

        @functools.wraps(forward)
        def shortened(*args: Any, **kwargs: Any) -> Any:
            call = {**dict(zip(names, args, strict=False)), **kwargs}
            cache = call.get("past_key_values")
            held = None
            if call.get("cross_attention_states") is not None:
                held = self._prefill_across(call, cache)
            else:
                self._continue_across(call, cache)
            if isinstance(cache, CrossPrunedCache):
                cache.translated = True
            try:
                output = forward(**call)
            finally:
                if isinstance(cache, CrossPrunedCache):
                    cache.translated = False
            cache = find_cache(output) if cache is None else cache
            if held is not None and cache is not None:
                mark(cache, *held)
            return output

        return shortened

    def _continue_across(self, call: dict[str, Any], cache: Cache | None) -> None:
        """A decoding step, or a turn without images."""
        if isinstance(cache, CrossPrunedCache):
            call["cross_attention_mask"] = self._across_mask(
                call, cache.columns, cache.total, cache
            )
        elif cache is None or int(cache.get_seq_length()) == 0:
            self._begin(call)

    def _begin(self, call: dict[str, Any]) -> int:
        """Forgets the prefill before; returns the batch's size."""
        ids = call.get("input_ids")
        words = call["inputs_embeds"] if ids is None else ids
        self.kept_mask = torch.ones(words.shape[:2], dtype=torch.bool, device=words.device)
        self._kept = [[] for _ in words]
        return len(words)

    def _prefill_across(
        self, call: dict[str, Any], cache: Cache | None
    ) -> tuple[Tensor, int] | None:
        """Chooses what to keep and shortens ``call`` in place.

        Returns:
            what the cache will hold, see `CrossPrunedCache`; None where it holds everything.
        """
        b = self._begin(call)
        states = call["cross_attention_states"]
        if states.ndim != 3 or len(states) % (b * self._tiles):
            raise ValueError(
                f"cross_attention_states of shape {list(states.shape)} are not [rows * images * "
                f"{self._tiles} tiles, tokens of a tile, channels] of {b} rows; pass pixel_values"
            )
        new = len(states) // b * states.shape[1]
        states = states.view(b, -1, self._tiles, *states.shape[1:])  # [b, images, tiles, n, d]
        chosen = self._choose_tiles(states, self._seen(call, states))
        self._kept = chosen.groups
        pruned = isinstance(cache, CrossPrunedCache)
        if not chosen.dropped and not pruned:
            return None  # the model sees its own call, so what it computes is bit-identical
        # Zeros as padding: without bias they are keys and values of zero, so a row without images
        # adds nothing to its text, as if it had come alone.
        call["cross_attention_states"] = pad_sequence(chosen.states, batch_first=True)
        columns = pad_sequence(chosen.columns, batch_first=True, padding_value=-1)
        total = new
        if cache is not None:
            old, before = self._held(cache, columns)
            columns = torch.cat([old, torch.where(columns < 0, -1, columns + before)], 1)
            total += before
        call["cross_attention_mask"] = self._across_mask(call, columns, total, cache)
        return columns, total

    def _held(self, cache: Cache, like: Tensor) -> tuple[Tensor, int]:
        """Columns and total of a cache before this call."""
        if isinstance(cache, CrossPrunedCache):
            return cache.columns, cache.total
        count = int(cache.get_seq_length(self._layer))
        return torch.arange(count, device=like.device).expand(len(like), -1), count

    @staticmethod
    def _seen(call: dict[str, Any], states: Tensor) -> list[list[list[bool]]]:
        """Which tiles are seen by any text, for each row and image; padding tiles are not.

        What stays has a shape, which the host has to know: the one read of a prefill.
        """
        mask = call.get("cross_attention_mask")
        b, images, tiles, n = states.shape[:4]
        if mask is None:
            return [[[True] * tiles] * images] * b
        open_rows = call["full_text_row_masked_out_mask"] != 0  # [b, 1, L, 1]
        # Rows that see nothing are zero all over, so that their softmax is defined.
        seen = ((mask == 0) & open_rows).any(2).view(b, -1)[:, -images * tiles * n :: n]
        found: list[list[list[bool]]] = seen.view(b, images, tiles).tolist()
        return found

    def _choose_tiles(self, states: Tensor, seen: list[list[list[bool]]]) -> Across:
        """Runs the pruner on every tile that is seen, those of one image together."""
        _, images, tiles, n, d = states.shape
        place = torch.arange(images * tiles * n, device=states.device).view(images, tiles, n)
        shown = [
            (row, number, own)
            for row, flags in enumerate(seen)
            for number, image in enumerate(flags)
            if (own := [tile for tile, flag in enumerate(image) if flag])
        ]
        choices = self._choose_images(
            "image",
            [
                EncodedImage(states[row, number, own].flatten(0, 1), None, {})
                for row, number, own in shown
            ],
        )
        features = [[states.new_empty(0, d)] for _ in seen]
        columns = [[place.new_empty(0)] for _ in seen]
        groups: list[list[KeptGroup]] = [[] for _ in seen]
        dropped = 0
        for (row, number, own), choice in zip(shown, choices, strict=True):
            features[row].append(choice.features)
            columns[row].append(place[number, own].flatten()[choice.rows])
            groups[row] += [KeptGroup(*group, number) for group in choice.groups]
            dropped += len(own) * n - len(choice.rows)
        return Across(
            [torch.cat(parts) for parts in features],
            [torch.cat(parts) for parts in columns],
            groups,
            dropped,
        )

    def _across_mask(
        self, call: dict[str, Any], columns: Tensor, total: int, cache: Cache | None
    ) -> Tensor:
        """The additive mask [b, 1, L, k] over the vision tokens that are left."""
        mask = call.get("cross_attention_mask")
        if mask is None:
            mask = torch.zeros(1, dtype=self.model.dtype, device=columns.device)
            mask = mask.expand(len(columns), 1, 1, total)
        if mask.shape[-1] != total:
            raise ValueError(
                f"cross_attention_mask has {mask.shape[-1]} columns for vision tokens, expected "
                f"{total}: those of every image so far, the pruned ones included"
            )
        least = torch.finfo(mask.dtype).min
        columns = columns[:, None, None]  # [b, 1, 1, k]
        index = columns.clamp(min=0).expand(-1, 1, mask.shape[2], -1)
        mask = mask.gather(-1, index).masked_fill(columns < 0, least)
        layer = cache.layers[self._layer : self._layer + 1] if cache is not None else []
        # A static cache shows its whole length, used or not.
        width = max([getattr(one, "max_cache_len", 0) for one in layer], default=0)
        return F.pad(mask, (0, max(0, width - mask.shape[-1])), value=least)
