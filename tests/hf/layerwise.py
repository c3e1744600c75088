"""A full-length language model run layer by layer, in which tokens are hidden from some layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.hf.batches import Batch
from tests.hf.models import IMAGE, VIDEO

# Attention weights [b, heads, L, L] of the layer before, or of the one about to run.
Look = Callable[[bool], Tensor]
# Given the layer about to run, its input [b, L, d] and a look at attention: which columns are
# hidden from it and from those after it (bool [b, L]), and the hidden states to go on with.
Between = Callable[[int, Tensor, Look], tuple[Tensor, Tensor]]


def embedded(model: Any, batch: Batch) -> Tensor:
    """What enters the first layer, [b, L, d]."""
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
    model: Any, embeds: Tensor, real: Tensor, positions: Tensor, between: Between
) -> tuple[Tensor, list[Tensor]]:
    """The last layer's output through the head, [b, L, vocabulary], and each layer's attention.

    Args:
        model: with the eager kernel, whose attention weights can be read.
        embeds: [b, L, d].
        real: false at padding, bool [b, L].
        positions: [..., b, L].
        between: what happens before each layer.
    """
    decoder = model.get_decoder()
    b, length, _ = embeds.shape
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    embeddings = decoder.rotary_emb(embeds, positions)
    hidden, found = embeds, []
    gone = torch.zeros(b, length, dtype=torch.bool)

    def through(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
        seen = causal & (real & ~gone)[:, None]  # [b, L, L]
        mask = torch.zeros(b, 1, length, length).masked_fill(~seen[:, None], -1e30)
        weights: list[Tensor] = []
        handle = layer.self_attn.register_forward_hook(
            lambda module, args, output: weights.append(output[1])
        )
        output = layer(hidden, attention_mask=mask, position_embeddings=embeddings)
        handle.remove()
        return output, weights[0]

    for index, layer in enumerate(decoder.layers):

        def look(ahead: bool, layer: Any = layer, hidden: Tensor = hidden) -> Tensor:
            return through(layer, hidden)[1] if ahead else found[-1]

        now, hidden = between(index, hidden, look)
        gone = gone | now
        hidden, weights = through(layer, hidden)
        found.append(weights)
    return model.lm_head(decoder.norm(hidden)), found


def greedy(
    model: Any, batch: Batch, steps: int, between: Between
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Tokens [b, steps], the logits that chose them, and the prompt's attention weights."""
    embeds, real = embedded(model, batch), batch.inputs["attention_mask"].bool()
    positions = batch.positions(model)
    tokens, logits, first = [], [], None
    for _ in range(steps):
        output, weights = run(model, embeds, real, positions, between)
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
