"""Prunes visual tokens between two layers of the language model, for methods that rank them there.

The model's own call stays as it is. A pre-hook on each layer drops tokens where a method has a
stage: it gathers the hidden states and the rotary embeddings of what stays, and builds the mask of
the shorter layers from a 2-D one as the model does. Layer 0 sees every token, so the cache's first
layer has the length that `generate` counts with; the other layers' lengths are on the cache.

Attention is recomputed for the few queries that rank tokens, from the layer's own projections, so
the model stays on SDPA or FlashAttention.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import rotate_half

from gprune.errors import UnsupportedModelError
from gprune.hf.cache import Slots, StagedCache, mark_staged
from gprune.hf.hook import (
    ImageChoice,
    PrunedModel,
    Selection,
    aligned_right,
    find_cache,
    require_uncompiled,
    two_dimensional,
)
from gprune.hf.signals import replaced
from gprune.layouts import Group
from gprune.pruners.base import merged
from gprune.pruners.decoder import DecoderPruner, DecoderTokens

# Families whose language models are plain stacks of layers, proven by the tests.
FAMILIES = ("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "internvl")

# Attention whose scores were compared with the weights of the eager kernel.
ATTENTION = (
    "LlamaAttention",
    "MistralAttention",
    "Qwen2Attention",
    "Qwen2VLAttention",
    "Qwen2_5_VLAttention",
    "Qwen3Attention",
)


@dataclass(frozen=True, eq=False)
class Divided:
    """One modality of a call, before anything is chosen.

    Attributes:
        modality: ``image`` or ``video``.
        placeholder: where the call has its placeholders, bool [b, L].
        images: each image's features [n, d] and the groups that they divide into.
    """

    modality: str
    placeholder: Tensor
    images: list[tuple[Tensor, list[Group]]]

    def candidates(self) -> Tensor:
        """The placeholders that may go, bool [b, L]: those in a group."""
        flags = []
        for features, groups in self.images:
            inside = torch.zeros(len(features), dtype=torch.bool, device=features.device)
            for group in groups:
                inside[group.rows] = True
            flags.append(inside)
        places = torch.zeros_like(self.placeholder)
        return places.masked_scatter(self.placeholder, torch.cat(flags).to(places.device))

    def selection(self, kept_mask: Tensor) -> Selection:
        """What was kept, once ``kept_mask`` [b, L] tells which positions reached the last layer."""
        lengths = [len(features) for features, _ in self.images]
        chosen = []
        flags = torch.split(kept_mask[self.placeholder], lengths)
        for (features, groups), stays in zip(self.images, flags, strict=True):
            rows = stays.nonzero().squeeze(1).to(features.device)
            kept = [
                (
                    stays[group.rows.to(stays.device)].nonzero().squeeze(1),
                    len(group.rows),
                    group.grid,
                    group.kind,
                )
                for group in groups
            ]
            chosen.append(ImageChoice(rows, features[rows], kept))
        return Selection(self.modality, self.placeholder, lengths, chosen)


class Prefill:
    """A prefill on its way through the layers.

    Attributes:
        order: original column of each one that is left, int64 [b, p].
        real: false where it is padding, bool [b, p].
        slots: the columns of each stage that has dropped something.
        visual: visual tokens of each row before the first stage and after each of ``slots``.
    """

    def __init__(
        self,
        pruner: DecoderPruner,
        config: Any,
        stages: Sequence[int],
        real: Tensor,
        divided: Sequence[Divided],
        prompt: int,
    ) -> None:
        """Takes the call's columns apart.

        Args:
            pruner: the method.
            config: of the language model.
            stages: the layers before which tokens are dropped.
            real: false at padding, bool [b, L].
            divided: the images and videos.
            prompt: columns of the prompt; what comes after them was generated and rates nothing.
        """
        self.pruner, self.config, self.stages = pruner, config, tuple(stages)
        self.divided = divided
        visual = torch.stack([part.placeholder for part in divided]).any(0)
        self.candidates = torch.stack([part.candidates() for part in divided]).any(0)
        self.totals: list[int] = self.candidates.sum(1).tolist()
        self.text = [text_columns(*row, prompt) for row in zip(real, visual & real, strict=True)]
        self.raters = [columns[-1:] for columns in self.text]
        columns = torch.arange(real.shape[1], device=real.device)
        self.order, self.real = columns.expand_as(real), real
        self.slots: list[Slots] = []
        self.visual: list[list[int]] = [(visual & real).sum(1).tolist()]
        self.attention: list[Tensor] = []
        self.embeddings: tuple[Tensor, Tensor] | None = None
        self.mask: Tensor | None = None

    def kept_mask(self) -> Tensor:
        """Which columns are left, bool [b, L]."""
        if not self.slots:
            return torch.ones_like(self.candidates)
        kept = torch.zeros_like(self.candidates)
        return kept.scatter(1, self.order, self.real)

    def visual_by_layer(self, depth: int) -> list[list[int]]:
        """For each row the visual tokens in each of ``depth`` layers."""
        firsts = [slots.first for slots in self.slots]
        stages = [sum(layer >= first for first in firsts) for layer in range(depth)]
        return [[counts[stage] for stage in stages] for counts in zip(*self.visual, strict=True)]

    def enter(
        self, index: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call of layer ``index`` to make instead."""
        hidden, *rest = args or (kwargs.pop("hidden_states"),)
        if self.embeddings is None:
            cos, sin = kwargs["position_embeddings"]
            b = len(hidden)
            self.embeddings = (cos.expand(b, -1, -1), sin.expand(b, -1, -1))
        if index == 0:
            self._pick_raters(hidden)
        if index in self.stages:
            if self.pruner.ranks_ahead:
                self.attention = self._attend(layer, hidden)
            hidden = self._drop(index, hidden, kwargs.get("past_key_values"))
        if index + 1 in self.stages and not self.pruner.ranks_ahead:
            self.attention = self._attend(layer, hidden)
        if self.slots:
            kwargs["position_embeddings"] = self.embeddings
            kwargs["attention_mask"] = self.mask
            # The embeddings tell the layer its places; FlashAttention would take the gaps between
            # these ids for the seams of sequences packed in one row.
            kwargs["position_ids"] = None
        return (hidden, *rest), kwargs

    def _pick_raters(self, embeddings: Tensor) -> None:
        for row, columns in enumerate(self.text):
            if self.totals[row]:
                visual = embeddings[row, self.candidates[row]]
                picked = self.pruner.raters(visual, embeddings[row, columns])
                self.raters[row] = columns[picked]

    def _attend(self, layer: Any, hidden: Tensor) -> list[Tensor]:
        """What each row's raters pay to each column that is left, each [r, p]."""
        assert self.embeddings is not None
        places = [
            ((order == columns[:, None]) & real).to(torch.uint8).argmax(1)
            for order, real, columns in zip(self.order, self.real, self.raters, strict=True)
        ]
        return attention_of(layer, hidden, self.embeddings, places, self.real)

    def _drop(self, index: int, hidden: Tensor, cache: Cache | None) -> Tensor:
        """Shortens the columns; returns the hidden states [b, p, d] that stay."""
        stage = self.stages.index(index)
        keep = self.real.clone()
        left = self.candidates.gather(1, self.order) & self.real
        for row, total in enumerate(self.totals):
            if not total:
                continue
            columns = left[row].nonzero().squeeze(1)
            tokens = DecoderTokens(
                hidden[row, columns], self.attention[row][:, columns].contiguous(), total
            )
            k = self.pruner.count(stage, len(self.stages), tokens)
            if k >= len(columns):
                continue
            kept, members = self.pruner.drop(tokens, k)
            keep[row, columns] = False
            keep[row, columns[kept]] = True
            if members is not None:
                hidden = hidden.clone()
                hidden[row, columns[kept]] = merged(tokens.hidden, members, k)
        self.attention = []
        if torch.equal(keep, self.real):
            return hidden
        order, self.real = aligned_right(keep, int(keep.sum(1).max()))
        self.order = self.order.gather(1, order)
        assert self.embeddings is not None
        cos, sin = (rows_at(values, order) for values in self.embeddings)
        self.embeddings = cos, sin
        hidden = rows_at(hidden, order)
        self.mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=self.real.long(),
            past_key_values=cache,
            layer_idx=index,
        )
        gone = (left & ~keep).sum(1).tolist()
        self.visual.append([n - less for n, less in zip(self.visual[-1], gone, strict=True)])
        self.slots.append(Slots(index, torch.where(self.real, self.order, -1), self.real))
        return hidden


class Continuation:
    """Text after a pruned prefill, on its way through the layers."""

    def __init__(self, config: Any, cache: StagedCache, mask: Tensor | None, length: int) -> None:
        self.config = config
        self.masks = {
            slots.first: cache.physical_mask(slots, mask, length) for slots in cache.slots
        }
        self.mask: Tensor | None = None

    def enter(
        self, index: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call of layer ``index`` to make instead."""
        if index < min(self.masks):
            return args, kwargs
        if index in self.masks:
            self.mask = create_causal_mask(
                config=self.config,
                inputs_embeds=args[0] if args else kwargs["hidden_states"],
                attention_mask=self.masks[index],
                past_key_values=kwargs["past_key_values"],
                layer_idx=index,
            )
        return args, {**kwargs, "attention_mask": self.mask}


class Underway(threading.local):
    """What a thread is about to send through the layers; two may use one model.

    Attributes:
        call: the prefill or the text after one; None where the layers are left alone.
        prompt: columns of the prompt that `generate` was called with; None outside of it.
    """

    call: Prefill | Continuation | None = None
    prompt: int | None = None


class DecoderPrunedModel(PrunedModel):
    """A model whose visual tokens are dropped between its layers.

    ``kept_mask`` and ``kept`` tell what reached the last layer, ``visual_by_layer`` how many tokens
    the layers before it had. Where a method recycles, a kept token may stand for several.
    """

    pruner: DecoderPruner

    def __init__(self, model: PreTrainedModel, pruner: DecoderPruner, positions: str) -> None:
        super().__init__(model, pruner, positions)
        if positions != "original":
            raise ValueError(
                f"positions={positions!r} is not possible with {pruner.name}: the layers before "
                "the first stage see every token at its place; take positions='original'"
            )
        if self.family.name not in FAMILIES:
            raise UnsupportedModelError(
                f"{pruner.name} prunes inside the language model, which has not been proven with "
                f"{type(model).__name__} yet; it has with {', '.join(FAMILIES)}. Take a method "
                "before the language model, such as gprune"
            )
        self.config = model.config.get_text_config()
        check_attention(model, self.config, pruner)
        require_uncompiled(model, pruner)
        self.layers = model.get_decoder().layers[: self.config.num_hidden_layers]
        self.stages = pruner.stages(len(self.layers))
        self._underway = Underway()

    @contextmanager
    def inside(self) -> Iterator[None]:
        with ExitStack() as stack:
            for index, layer in enumerate(self.layers):
                enter = functools.partial(self._enter, index)
                handle = layer.register_forward_pre_hook(enter, with_kwargs=True)
                stack.callback(handle.remove)
            stack.enter_context(replaced(self.model, "generate", self._knowing_the_prompt()))
            yield

    def after(
        self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        call, self._underway.call = self._underway.call, None
        cache = kwargs.get("past_key_values")
        if cache is None:
            cache = find_cache(output)
        if isinstance(cache, StagedCache):
            cache.translated = False
        super().after(model, args, kwargs, output)
        if output is None or not isinstance(call, Prefill):
            return
        self._note(call)
        if cache is not None and call.slots:
            mark_staged(cache, call.slots, call.candidates.shape[1])

    def _note(self, prefill: Prefill) -> None:
        """Keeps what users ask for."""
        kept_mask = prefill.kept_mask()
        self.kept_mask = kept_mask
        self._selections = [part.selection(kept_mask) for part in prefill.divided]
        self.visual_by_layer = prefill.visual_by_layer(len(self.layers))

    def _enter(
        self, index: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The pre-hook of a layer."""
        call = self._underway.call
        return None if call is None else call.enter(index, layer, args, kwargs)

    def _knowing_the_prompt(self) -> Any:
        """`generate` that remembers how long its prompt is.

        Candidates of assisted decoding, and without a cache all that was generated, come with the
        call that prunes. They must not rate tokens: what is kept is the prompt's matter.
        """
        generate = self.model.generate

        @functools.wraps(generate)
        def remembering(*args: Any, **kwargs: Any) -> Any:
            ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
            self._underway.prompt = None if ids is None else ids.shape[1]
            try:
                return generate(*args, **kwargs)
            finally:
                self._underway.prompt = None

        return remembering

    def _continue_text(
        self, call: dict[str, Any], cache: Cache | None, past: int, positions: Tensor | None
    ) -> None:
        if isinstance(cache, StagedCache):
            length = call["input_ids"].shape[1]
            mask = two_dimensional(call.get("attention_mask"))
            self._underway.call = Continuation(self.config, cache, mask, length)
            cache.translated = True
        else:
            super()._continue_text(call, cache, past, positions)

    def _prefill(
        self,
        call: dict[str, Any],
        cache: Cache | None,
        past: int,
        positions: Tensor,
        visual: dict[str, Any],
    ) -> None:
        ids = call["input_ids"]
        divided = []
        for modality, output in visual.items():
            placeholder, located = self._located(ids, positions, modality, output)
            images = [
                (features, self.family.groups(self.model, modality, features, grid))
                for features, grid in located
            ]
            divided.append(Divided(modality, placeholder, images))
        call["mm_encoder_outputs"] = {**(call.get("mm_encoder_outputs") or {}), **visual}
        call["position_ids"] = positions
        prompt = self._underway.prompt
        prefill = Prefill(
            self.pruner,
            self.config,
            self.stages,
            self._mask(call, past)[:, past:].bool(),
            divided,
            ids.shape[1] if prompt is None else prompt - past,
        )
        whole = all(self.pruner.final_count(total) == total for total in prefill.totals if total)
        if whole and not isinstance(cache, StagedCache):
            # Nothing goes: the layers are left alone, so what they compute is bit-identical.
            self._note(prefill)
            return
        self._check_prunable(call, cache, past)
        self._underway.call = prefill

    def _check_prunable(self, call: dict[str, Any], cache: Cache | None, past: int) -> None:
        """Refuses what would be wrong with layers of different lengths.

        Raises:
            ValueError: the call trains, continues a cache, or has one of a fixed size.
        """
        name = self.pruner.name
        if self.model.training or call.get("labels") is not None:
            raise ValueError(
                f"{name} is for inference: call model.eval() and pass no labels, or train with a "
                "method before the language model, such as gprune"
            )
        if past:
            raise ValueError(
                f"past_key_values holds {past} positions already: {name} ranks images by the text "
                "of one prompt; pass the whole conversation with an empty cache"
            )
        if cache is not None and cache.is_compileable:
            raise ValueError(
                f"past_key_values is a {type(cache).__name__} of a fixed size, but {name} fills "
                "the layers to different lengths; leave cache_implementation unset"
            )
        if isinstance(call.get("logits_to_keep"), Tensor):
            raise ValueError(
                "logits_to_keep as a tensor names positions that pruning moves; pass an int, or "
                "read pruned.kept_mask and index the logits afterwards"
            )


def check_attention(model: PreTrainedModel, config: Any, pruner: DecoderPruner) -> None:
    """Refuses language models whose layers differ from those that were tested.

    Raises:
        UnsupportedModelError: unknown attention, sliding windows, or layers on several devices.
    """
    layers = model.get_decoder().layers
    places = {str(weight.device) for layer in layers for weight in layer.parameters()}
    if len(places) > 1:
        raise UnsupportedModelError(
            f"the language model's layers lie on {', '.join(sorted(places))}, but {pruner.name} "
            "ranks the tokens of one layer in another and needs all of them on one device; load "
            "the model with device_map=0, or take a method before the language model"
        )
    kinds = {type(getattr(layer, "self_attn", layer)).__name__ for layer in layers}
    unknown = sorted(kinds - set(ATTENTION))
    if unknown:
        raise UnsupportedModelError(
            f"{pruner.name} recomputes attention, which has not been proven for "
            f"{', '.join(unknown)} yet; it has for {', '.join(ATTENTION)}. Take a method before "
            "the language model, such as gprune"
        )
    types = getattr(config, "layer_types", None)
    sliding = getattr(config, "sliding_window", None) if types is None else None
    if sliding is not None or any(kind != "full_attention" for kind in types or ()):
        raise UnsupportedModelError(
            f"{pruner.name} needs layers with full attention, but this language model has sliding "
            "windows, whose extent dropped tokens would change; take a method before the language "
            "model, such as gprune"
        )


def text_columns(real: Tensor, visual: Tensor, prompt: int) -> Tensor:
    """The prompt's text after the last visual token of one row, or else its last token.

    Args:
        real: false at padding, bool [L].
        visual: bool [L].
        prompt: columns of the prompt.

    Returns:
        int64 [m], ascending, m >= 1.
    """
    columns = torch.arange(len(real), device=real.device)
    inside = real & (columns < prompt)
    after = inside & (visual.flip(0).cumsum(0).flip(0) == 0)
    found = after.nonzero().squeeze(1)
    return found if len(found) else inside.nonzero().squeeze(1)[-1:]


def attention_of(
    layer: Any,
    hidden: Tensor,
    embeddings: tuple[Tensor, Tensor],
    queries: Sequence[Tensor],
    real: Tensor,
) -> list[Tensor]:
    """What a layer's attention would be for a few queries, the mean over heads.

    Args:
        layer: a decoder layer.
        hidden: hidden states on their way into it, [b, p, d].
        embeddings: cosines and sines of the rotary embedding, [b, p, head_dim] each.
        queries: for each row the columns that look, int64 [r].
        real: the columns that can be seen, bool [b, p].

    Returns:
        for each row what its queries pay to each column, float32 [r, p].
    """
    attention = layer.self_attn
    b, p, _ = hidden.shape
    normed = layer.input_layernorm(hidden)
    keys = attention.k_proj(normed).view(b, p, -1, attention.head_dim)
    if hasattr(attention, "k_norm"):
        keys = attention.k_norm(keys)
    cos, sin = (values.unsqueeze(2) for values in embeddings)  # [b, p, 1, head_dim]
    keys = rotated(keys, cos, sin)
    columns = torch.arange(p, device=hidden.device)
    found = []
    for row, looking in enumerate(queries):
        query = attention.q_proj(normed[row, looking]).view(len(looking), -1, attention.head_dim)
        if hasattr(attention, "q_norm"):
            query = attention.q_norm(query)
        query = rotated(query, cos[row, looking], sin[row, looking])
        # Query heads that share a key head are neighbours: [r, kv heads, shared, head_dim].
        query = query.view(len(looking), keys.shape[2], -1, attention.head_dim).float()
        logits = torch.einsum("rhsd,phd->rhsp", query, keys[row].float()) * attention.scaling
        seen = real[row] & (columns <= looking[:, None])  # [r, p]
        logits = logits.masked_fill(~seen[:, None, None], -torch.inf)
        found.append(torch.softmax(logits, -1).mean((1, 2)))
    return found


def rotated(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary embedding applied to queries or keys."""
    turned: Tensor = values * cos + rotate_half(values) * sin
    return turned


def rows_at(values: Tensor, order: Tensor) -> Tensor:
    """``values`` [b, p, d] at the columns ``order`` [b, q]: [b, q, d]."""
    return values.gather(1, order.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
