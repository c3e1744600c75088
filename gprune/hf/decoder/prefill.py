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
from gprune.hf.choice import ImageChoice, Selection
from gprune.hf.decoder.attention import attention_of
from gprune.hf.rewrite import right_aligned
from gprune.layouts import cache_of
from gprune.pruners.decoder import DecoderPruner, DecoderTokens
from gprune.pruners.image import ReducedImage
from gprune.tokens import Group

# The arguments of a layer's call.
LayerCall = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class GroupedModality:
    """The images or videos of a call, before anything is chosen.

    Attributes:
        modality: ``image`` or ``video``.
        placeholder: true at the placeholders, bool [b, L].
        images: features [n, d] and groups of each image.
    """

    modality: str
    placeholder: Tensor
    images: list[tuple[Tensor, list[Group]]]

    def candidates(self) -> Tensor:
        """Returns a mask of the placeholders that may be dropped, those in a group, bool [b, L]."""
        flags = []
        for features, groups in self.images:
            in_group = torch.zeros(len(features), dtype=torch.bool, device=features.device)
            for group in groups:
                in_group[group.rows] = True
            flags.append(in_group)
        none = torch.zeros_like(self.placeholder)
        return none.masked_scatter(self.placeholder, torch.cat(flags).to(none.device))

    def selection(self, kept_mask: Tensor) -> Selection:
        """Returns what was kept.

        Args:
            kept_mask: true at the positions that reached the last layer, bool [b, L].
        """
        lengths = [len(features) for features, _ in self.images]
        choices = []
        flags = torch.split(kept_mask[self.placeholder], lengths)
        for (features, groups), stays in zip(self.images, flags, strict=True):
            rows = stays.nonzero().squeeze(1).to(features.device)
            kept = [stays[g.rows.to(stays.device)].nonzero().squeeze(1) for g in groups]
            choices.append(ImageChoice(groups, ReducedImage(rows, features[rows], kept)))
        return Selection(self.modality, self.placeholder, lengths, choices)


class Prefill:
    """A prefill that is running through the layers.

    Columns are positions of the call, of which fewer and fewer remain.

    Attributes:
        modalities: the images and videos.
        candidates: true at the columns that may be dropped, bool [b, L].
        totals: number of candidates of each row.
        order: original column of each remaining one, int64 [b, p].
        real: false at padding, bool [b, p].
        slots: the columns after each stage that has dropped something.
        visual_counts: visual tokens of each row before the first stage and after each of ``slots``.
    """

    def __init__(
        self,
        pruner: DecoderPruner,
        config: Any,
        stages: Sequence[int],
        real: Tensor,
        modalities: Sequence[GroupedModality],
        prompt: int,
    ) -> None:
        """Finds candidates and text in the call.

        Args:
            pruner: the method.
            config: of the language model.
            stages: the layers before which tokens are dropped.
            real: false at padding, bool [b, L].
            modalities: the images and videos.
            prompt: number of columns of the prompt; generated columns after it never rank tokens.
        """
        self.pruner, self.config, self.stages = pruner, config, tuple(stages)
        self.modalities = modalities
        visual = torch.stack([part.placeholder for part in modalities]).any(0)
        self.candidates = torch.stack([part.candidates() for part in modalities]).any(0)
        self.totals: list[int] = self.candidates.sum(1).tolist()
        self._text = [text_columns(*row, prompt) for row in zip(real, visual & real, strict=True)]
        self._raters = [columns[-1:] for columns in self._text]
        columns = torch.arange(real.shape[1], device=real.device)
        self.order, self.real = columns.expand_as(real), real
        self.slots: list[LayerSlots] = []
        self.visual_counts: list[list[int]] = [(visual & real).sum(1).tolist()]
        self._attention: list[Tensor] = []
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
        return kept.scatter(1, self.order, self.real)

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
        if index == 0:
            self._pick_raters(hidden)
        if index in self.stages:
            if self.pruner.ranks_ahead:
                self._attention = self._rate(layer, hidden)
            hidden = self._run_stage(index, hidden, cache_of(kwargs))
        if index + 1 in self.stages and not self.pruner.ranks_ahead:
            self._attention = self._rate(layer, hidden)
        if self.slots:
            kwargs["position_embeddings"] = self._embeddings
            kwargs["attention_mask"] = self._mask
            # Layers take positions from the embeddings; FlashAttention would read gaps in position
            # ids as boundaries of sequences packed into one row.
            kwargs["position_ids"] = None
        return (hidden, *rest), kwargs

    def _pick_raters(self, embeddings: Tensor) -> None:
        """Asks the method which text columns rank tokens, given the embeddings [b, L, d]."""
        for row, columns in enumerate(self._text):
            if self.totals[row]:
                visual = embeddings[row, self.candidates[row]]
                raters = self.pruner.raters(visual, embeddings[row, columns])
                self._raters[row] = columns[raters]

    def _rate(self, layer: Any, hidden: Tensor) -> list[Tensor]:
        """Returns for each row the attention of its raters to each remaining column, [r, p]."""
        assert self._embeddings is not None
        queries = [
            ((order == columns[:, None]) & real).to(torch.uint8).argmax(1)
            for order, real, columns in zip(self.order, self.real, self._raters, strict=True)
        ]
        return attention_of(layer, hidden, self._embeddings, queries, self.real)

    def _run_stage(self, index: int, hidden: Tensor, cache: Cache | None) -> Tensor:
        """Drops tokens before layer ``index``; returns the remaining hidden states, [b, p, d]."""
        stage = self.stages.index(index)
        candidates = self.candidates.gather(1, self.order) & self.real  # [b, p]
        keep = self.real.clone()
        for row, total in enumerate(self.totals):
            if total:
                hidden = self._reduce_row(row, stage, candidates[row], keep, hidden)
        self._attention = []
        if torch.equal(keep, self.real):
            return hidden
        dropped = (candidates & ~keep).sum(1).tolist()
        hidden = self._gather(keep, hidden)
        self._mask = create_causal_mask(
            self.config, hidden, self.real.long(), cache, layer_idx=index
        )
        before = self.visual_counts[-1]
        self.visual_counts.append([n - less for n, less in zip(before, dropped, strict=True)])
        self.slots.append(LayerSlots(index, torch.where(self.real, self.order, -1), self.real))
        return hidden

    def _reduce_row(
        self, row: int, stage: int, candidates: Tensor, keep: Tensor, hidden: Tensor
    ) -> Tensor:
        """Runs the method on one row.

        Args:
            row: number of the row.
            stage: number of the stage, from 0.
            candidates: true at the row's candidates, bool [p].
            keep: true at the columns that stay, bool [b, p]; changed in place.
            hidden: hidden states, [b, p, d].

        Returns:
            the hidden states with merged ones; a copy if there are any.
        """
        columns = candidates.nonzero().squeeze(1)
        attention = self._attention[row][:, columns].contiguous()
        tokens = DecoderTokens(hidden[row, columns], attention, self.totals[row])
        k = self.pruner.count(stage, len(self.stages), tokens)
        if k >= len(columns):
            return hidden
        reduction = self.pruner.drop(tokens, k)
        kept = columns[reduction.positions(len(tokens))]
        keep[row, columns] = False
        keep[row, kept] = True
        if reduction.merges:
            hidden = hidden.clone()
            hidden[row, kept] = reduction.features(tokens.hidden)
        return hidden

    def _gather(self, keep: Tensor, hidden: Tensor) -> Tensor:
        """Removes columns from the state of this prefill; returns the hidden states that stay."""
        order, self.real = right_aligned(keep, int(keep.sum(1).max()))
        self.order = self.order.gather(1, order)
        assert self._embeddings is not None
        cos, sin = (gather_columns(values, order) for values in self._embeddings)
        self._embeddings = cos, sin
        return gather_columns(hidden, order)


def text_columns(real: Tensor, visual: Tensor, prompt: int) -> Tensor:
    """Returns the columns of a row's text after its last visual token, or else its last token.

    Args:
        real: false at padding, bool [L].
        visual: true at visual tokens, bool [L].
        prompt: number of columns of the prompt; later ones are ignored.

    Returns:
        int64 [m], ascending, m >= 1.
    """
    columns = torch.arange(len(real), device=real.device)
    in_prompt = real & (columns < prompt)
    after_visual = in_prompt & (visual.flip(0).cumsum(0).flip(0) == 0)
    text = after_visual.nonzero().squeeze(1)
    return text if len(text) else in_prompt.nonzero().squeeze(1)[-1:]


def gather_columns(values: Tensor, order: Tensor) -> Tensor:
    """Returns ``values`` [b, p, d] at the columns ``order`` [b, q], [b, q, d]."""
    return values.gather(1, order.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
