"""Runs a full-length language model layer by layer, with tokens hidden from some layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from gprune.layouts import cache_name
from gprune.proof.batches import Batch
from gprune.proof.models import IMAGE, VIDEO


@dataclass
class Reader:
    """What a method can read before a layer.

    Attributes:
        attention: returns the weights [b, heads, L, L] of the previous layer, or if true of the
            next one.
        keys: returns the keys that the previous layer caches, [b, kv heads, L, head_dim].
    """

    attention: Callable[[bool], Tensor]
    keys: Callable[[], Tensor]


@dataclass
class Change:
    """What happens before a layer.

    Attributes:
        hide: columns to hide from this and later layers, bool [b, L].
        hidden: the layer's input to use instead, [b, L, d].
        order: for each place the column that moves there, int64 [b, L]; None if all stay.
    """

    hide: Tensor
    hidden: Tensor
    order: Tensor | None = None


# Called before each layer with its index, its input [b, L, d] and a reader.
BeforeLayer = Callable[[int, Tensor, Reader], Change]


def embedded(model: Any, batch: Batch) -> Tensor:
    """Returns the input of the first layer, [b, L, d]."""
    ids = batch.inputs["input_ids"]
    embeds = model.get_input_embeddings()(ids).clone()
    pixels = batch.pixels
    images = {name: pixels[name] for name in pixels if not name.startswith("video")}
    images.pop("pixel_values_videos", None)
    if "pixel_values" in images:
        output = model.base_model.get_image_features(**images, return_dict=True)
        embeds[ids == IMAGE] = torch.cat([x.flatten(0, -2) for x in output.pooler_output])
    if batch.video:
        output = model.base_model.get_video_features(**batch.video, return_dict=True)
        embeds[ids == VIDEO] = torch.cat([x.flatten(0, -2) for x in output.pooler_output])
    return embeds


def run(
    model: Any, embeds: Tensor, real: Tensor, positions: Tensor, before_layer: BeforeLayer
) -> tuple[Tensor, list[Tensor]]:
    """Returns the logits [b, L, vocabulary] and each layer's attention weights.

    Args:
        model: with the eager kernel, which returns attention weights.
        embeds: [b, L, d].
        real: false at padding, bool [b, L].
        positions: of the first layer, [..., b, L]. If ``before_layer.compact`` is true, each layer
            numbers the tokens that it sees one by one from the position of the first.
        before_layer: called before each layer.
    """
    decoder = model.get_decoder()
    compact = getattr(before_layer, "compact", False)
    b, length, _ = embeds.shape
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    hidden, found, cached = embeds, [], []
    visible = real.clone()

    def run_layer(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = causal & visible[:, None]  # [b, L, L]
        mask = torch.zeros(b, 1, length, length).masked_fill(~seen[:, None], -1e30)
        own = positions
        if compact:
            first = torch.where(real, positions, 10**9).amin(-1, keepdim=True)
            own = (first + visible.cumsum(1) - 1).clamp(min=0)
        weights: list[Tensor] = []
        handle = layer.self_attn.register_forward_hook(
            lambda module, args, output: weights.append(output[1])
        )
        cache, embeddings = DynamicCache(), decoder.rotary_emb(hidden, own)
        arguments = {cache_name(layer.forward): cache}
        output = layer(hidden, attention_mask=mask, position_embeddings=embeddings, **arguments)
        handle.remove()
        return output, weights[0], cache.layers[layer.self_attn.layer_idx].keys

    for index, layer in enumerate(decoder.layers):

        def read(ahead: bool, layer: Any = layer, hidden: Tensor = hidden) -> Tensor:
            return run_layer(layer, hidden)[1] if ahead else found[-1]

        change = before_layer(index, hidden, Reader(read, lambda: cached[-1]))
        hidden, visible = change.hidden, visible & ~change.hide
        if change.order is not None:
            hidden = hidden.gather(1, change.order[..., None].expand_as(hidden))
            visible = visible.gather(1, change.order)
        hidden, weights, keys = run_layer(layer, hidden)
        found.append(weights)
        cached.append(keys)
    return model.lm_head(decoder.norm(hidden)), found


def greedy(
    model: Any, batch: Batch, steps: int, before_layer: BeforeLayer
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Decodes greedily; returns tokens [b, steps], their logits, and the prompt's attention."""
    embeds, real = embedded(model, batch), batch.inputs["attention_mask"].bool()
    positions = batch.positions(model)
    tokens, logits, first = [], [], None
    for _ in range(steps):
        output, weights = run(model, embeds, real, positions, before_layer)
        first = weights if first is None else first
        last = output[:, -1]
        token = last.argmax(-1, keepdim=True)
        tokens.append(token)
        logits.append(last)
        embeds = torch.cat([embeds, model.get_input_embeddings()(token)], 1)
        real = torch.cat([real, torch.ones_like(token, dtype=torch.bool)], 1)
        positions = torch.cat([positions, positions[..., -1:] + 1], -1)
    assert first is not None
    return torch.cat(tokens, 1), torch.stack(logits, 1), first
