"""Drops visual tokens of one prefill while it runs through the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.masking_utils import create_causal_mask

from gprune.hf.cache import LayerSlots
from gprune.hf.decoder.attention import attention_of, keys_of
from gprune.hf.decoder.columns import Columns, gather_columns, text_columns
from gprune.hf.decoder.grouped import GroupedModality
from gprune.layouts import cache_of
from gprune.pruners.decoder import DecoderPruner, DecoderTokens

# The arguments of a layer's call.
LayerCall = tuple[tuple[Any, ...], dict[str, Any]]

# The fields of `DecoderTokens` that are read off the previous layer's keys, off the text, and off
# the layout of the groups.
KEY_FIELDS = {"keys", "text_keys"}
LAYOUT_FIELDS = {"coordinates", "rasters", "groups"}


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a prefill starts from.

    Attributes:
        real: false at padding, bool [b, L].
        modalities: the images and videos.
        length: number of columns of the prompt; generated columns after it never rank tokens.
        positions: position ids to renumber after each stage, int64 [b or 1, L]; None to leave them
            alone.
    """

    real: Tensor
    modalities: Sequence[GroupedModality]
    length: int
    positions: Tensor | None = None


class Prefill:
    """A prefill that is running through the layers.

    Attributes:
        modalities: the images and videos.
        candidates: true at the columns that may be dropped, bool [b, L].
        totals: number of candidates of each row.
        columns: the columns that remain.
        slots: the columns after each stage that has dropped something.
        visual_counts: visual tokens of each row before the first stage and after each of ``slots``.
    """

    def __init__(
        self,
        pruner: DecoderPruner,
        decoder: Any,
        config: Any,
        stages: Sequence[int],
        prompt: Prompt,
    ) -> None:
        """Finds candidates and text in the call.

        Args:
            pruner: the method.
            decoder: the language model, with its layers, final norm and rotary embedding.
            config: of the language model.
            stages: the layers before which tokens are dropped.
            prompt: the call.
        """
        self.pruner, self.decoder, self.config = pruner, decoder, config
        self.stages, self.modalities = tuple(stages), prompt.modalities
        self._reads = set(pruner.reads)
        real = prompt.real
        visual = torch.stack([part.placeholder for part in self.modalities]).any(0)
        self._visual = visual & real  # [b, L]
        self.candidates = torch.stack([part.candidates() for part in self.modalities]).any(0)
        self.totals: list[int] = self.candidates.sum(1).tolist()
        self._text = [
            text_columns(*row, prompt.length) for row in zip(real, self._visual, strict=True)
        ]
        self._raters = [columns[-1:] for columns in self._text]
        self._place = real.cumsum(1) - 1  # [b, L], position in the prompt without padding
        self._layout = self._read_layout() if self._reads & LAYOUT_FIELDS else None
        self.columns = Columns(real, prompt.positions)
        self.slots: list[LayerSlots] = []
        self.visual_counts: list[list[int]] = [self._visual.sum(1).tolist()]
        self._attention: list[Tensor] = []
        self._keys: Tensor | None = None
        self._embeddings: tuple[Tensor, Tensor] | None = None
        self._mask: Tensor | None = None

    def drops_nothing(self) -> bool:
        """Returns whether every candidate reaches the last layer."""
        return all(self.pruner.final_count(total) == total for total in self.totals if total)

    def kept_mask(self) -> Tensor:
        """Returns the mask of remaining columns, bool [b, L]."""
        if not self.slots:
            return torch.ones_like(self.candidates)
        kept = torch.zeros_like(self.candidates)
        return kept.scatter(1, self.columns.order, self.columns.real)

    def visual_by_layer(self, depth: int) -> list[list[int]]:
        """Returns for each row the number of visual tokens in each of ``depth`` layers."""
        firsts = [slots.first for slots in self.slots]
        stages = [sum(layer >= first for first in firsts) for layer in range(depth)]
        by_row = zip(*self.visual_counts, strict=True)
        return [[counts[stage] for stage in stages] for counts in by_row]

    def pre_layer(
        self, index: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LayerCall:
        """Returns the arguments to call layer ``index`` with instead."""
        hidden, *rest = args or (kwargs.pop("hidden_states"),)
        if self._embeddings is None:
            cos, sin = kwargs["position_embeddings"]
            b = len(hidden)
            self._embeddings = (cos.expand(b, -1, -1), sin.expand(b, -1, -1))
        if index == 0 and "attention" in self._reads:
            self._pick_raters(hidden)
        if index in self.stages:
            if self.pruner.ranks_ahead:
                self._rate(layer, hidden, None)
            hidden = self._run_stage(index, hidden, cache_of(kwargs))
        if index + 1 in self.stages:
            self._read_layer(layer, hidden)
        if self.slots:
            kwargs["position_embeddings"] = self._embeddings
            kwargs["attention_mask"] = self._mask
            # Layers take positions from the embeddings; FlashAttention would read gaps in position
            # ids as boundaries of sequences packed into one row.
            kwargs["position_ids"] = None
        return (hidden, *rest), kwargs

    def _read_layout(self) -> Tensor:
        """Returns where each visual token lies in its group, int64 [b, L, 5], see `layout`."""
        layouts = [part.layout() for part in self.modalities]
        first = 0
        for layout in layouts:  # groups of the second modality follow those of the first
            layout[..., 4] = torch.where(layout[..., 4] < 0, -1, layout[..., 4] + first)
            first = int(layout[..., 4].max()) + 1
        return torch.stack(layouts).amax(0)

    def _pick_raters(self, embeddings: Tensor) -> None:
        """Asks the method which text columns rank tokens, given the embeddings [b, L, d]."""
        for row, columns in enumerate(self._text):
            if self.totals[row]:
                visual = embeddings[row, self.candidates[row]]
                raters = self.pruner.raters(visual, embeddings[row, columns])
                self._raters[row] = columns[raters]

    def _read_layer(self, layer: Any, hidden: Tensor) -> None:
        """Computes what the next stage reads of the layer before it."""
        assert self._embeddings is not None
        ranks = not self.pruner.ranks_ahead and "attention" in self._reads
        if not (ranks or self._reads & KEY_FIELDS):
            return
        keys = keys_of(layer, hidden, self._embeddings)
        if ranks:
            self._rate(layer, hidden, keys)
        if self._reads & KEY_FIELDS:
            self._keys = keys.flatten(2).float()

    def _rate(self, layer: Any, hidden: Tensor, keys: Tensor | None) -> None:
        """Computes for each row the attention of its raters to each remaining column, [r, p]."""
        assert self._embeddings is not None
        queries = [self.columns.find(row, raters) for row, raters in enumerate(self._raters)]
        self._attention = attention_of(
            layer, hidden, self._embeddings, queries, self.columns.real, keys
        )

    def _run_stage(self, index: int, hidden: Tensor, cache: Cache | None) -> Tensor:
        """Drops tokens before layer ``index``; returns the remaining hidden states, [b, p, d]."""
        stage = self.stages.index(index)
        candidates = self.columns.take(self.candidates) & self.columns.real  # [b, p]
        keep = self.columns.real.clone()
        appended = torch.zeros_like(keep)
        for row, total in enumerate(self.totals):
            if total:
                hidden = self._reduce_row(row, stage, candidates[row], keep, appended, hidden)
        self._attention, self._keys = [], None
        if torch.equal(keep, self.columns.real):
            return hidden
        dropped = (candidates & ~keep).sum(1).tolist()
        hidden = self._gather(keep, appended, hidden)
        real = self.columns.real
        self._mask = create_causal_mask(self.config, hidden, real.long(), cache, layer_idx=index)
        before = self.visual_counts[-1]
        self.visual_counts.append([n - less for n, less in zip(before, dropped, strict=True)])
        origin = torch.where(real, self.columns.order, -1)
        self.slots.append(LayerSlots(index, origin, real, self.columns.shift))
        return hidden

    def _reduce_row(
        self,
        row: int,
        stage: int,
        candidates: Tensor,
        keep: Tensor,
        appended: Tensor,
        hidden: Tensor,
    ) -> Tensor:
        """Runs the method on one row.

        Args:
            row: number of the row.
            stage: number of the stage, from 0.
            candidates: true at the row's candidates, bool [p].
            keep: true at the columns that stay, bool [b, p]; changed in place.
            appended: true at the columns of appended rows, bool [b, p]; changed in place.
            hidden: hidden states, [b, p, d].

        Returns:
            the hidden states with merged and appended ones; a copy if there are any.
        """
        columns = candidates.nonzero().squeeze(1)
        tokens = self._tokens(row, columns, hidden)
        reduction = self.pruner.at_stage(stage, len(self.stages), tokens)
        if reduction is None:
            return hidden
        stays = columns[reduction.positions(len(tokens))]
        keep[row, columns] = False
        keep[row, stays] = True
        if reduction.appended is not None:
            appended[row, stays] = True
            appended[row, columns[reduction.kept]] = False
        if reduction.merges:
            hidden = hidden.clone()
            hidden[row, stays] = reduction.features(tokens.hidden)
        return hidden

    def _tokens(self, row: int, columns: Tensor, hidden: Tensor) -> DecoderTokens:
        """Returns a row's tokens at ``columns``, int64 [n], with the fields the method reads."""
        own = hidden[row, columns]
        fields: dict[str, Tensor] = {}
        if "attention" in self._reads:
            fields["attention"] = self._attention[row][:, columns].contiguous()
        if "normed" in self._reads:
            fields["normed"] = self.decoder.norm(own)
        if "columns" in self._reads:
            fields["columns"] = self.columns.take(self._place)[row, columns]
        if self._keys is not None:
            fields["keys"] = self._keys[row, columns]
        if self._layout is not None:
            layout = self._layout[row, self.columns.order[row, columns]]
            fields |= {"coordinates": layout[:, :2], "rasters": layout[:, 2:4]}
            fields["groups"] = layout[:, 4]
        fields |= self._text_fields(row, hidden)
        read = {name: value for name, value in fields.items() if name in self._reads}
        return DecoderTokens(own, read.pop("attention", None), self.totals[row], **read)

    def _text_fields(self, row: int, hidden: Tensor) -> dict[str, Tensor]:
        """Returns what the method may read of the text after a row's last visual token."""
        if not self._reads & {"text_keys", "text_hidden", "normed_text"}:
            return {}
        text = self._text[row]
        columns = self.columns.find(row, text[~self._visual[row, text]])
        own = hidden[row, columns]
        fields = {"text_hidden": own}
        if "normed_text" in self._reads:
            fields["normed_text"] = self.decoder.norm(own)
        if self._keys is not None:
            fields["text_keys"] = self._keys[row, columns]
        return fields

    def _gather(self, keep: Tensor, appended: Tensor, hidden: Tensor) -> Tensor:
        """Removes columns from the state of this prefill; returns the hidden states that stay."""
        assert self._embeddings is not None
        order = self.columns.keep(keep, appended, self.columns.take(self._visual))
        hidden = gather_columns(hidden, order)
        if self.columns.positions is None:
            cos, sin = (gather_columns(values, order) for values in self._embeddings)
            self._embeddings = cos, sin
        else:
            self._embeddings = self.decoder.rotary_emb(hidden, self.columns.positions)
        return hidden
