"""Recomputes keys and attention of a language model's layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gprune.hf.rotary import rotate

# Attention modules whose recomputed scores were compared with the weights of the eager kernel.
TESTED_ATTENTION = (
    "LlamaAttention",
    "MistralAttention",
    "Qwen2Attention",
    "Qwen2VLAttention",
    "Qwen2_5_VLAttention",
    "Qwen3Attention",
)


def keys_of(layer: Any, hidden: Tensor, embeddings: tuple[Tensor, Tensor]) -> Tensor:
    """Returns a layer's keys as it caches them, after RoPE, [b, p, kv heads, head_dim].

    Args:
        layer: a decoder layer.
        hidden: hidden states that enter it, [b, p, d].
        embeddings: cosines and sines of the rotary embedding, [b, p, head_dim] each.
    """
    cos, sin = (values.unsqueeze(2) for values in embeddings)  # [b, p, 1, head_dim]
    return rotate(projected(layer.self_attn, "k", layer.input_layernorm(hidden)), cos, sin)


def attention_of(
    layer: Any,
    hidden: Tensor,
    embeddings: tuple[Tensor, Tensor],
    queries: Sequence[Tensor],
    real: Tensor,
    keys: Tensor | None = None,
) -> list[Tensor]:
    """Returns the mean over heads of a layer's attention, for a few queries.

    Args:
        layer: a decoder layer.
        hidden: hidden states that enter it, [b, p, d].
        embeddings: cosines and sines of the rotary embedding, [b, p, head_dim] each.
        queries: for each row the columns of the queries, int64 [r].
        real: false at padding, bool [b, p].
        keys: `keys_of` of the same arguments, if they have been computed.

    Returns:
        for each row the attention of its queries to each column, float32 [r, p].
    """
    attention = layer.self_attn
    if keys is None:
        keys = keys_of(layer, hidden, embeddings)
    cos, sin = (values.unsqueeze(2) for values in embeddings)  # [b, p, 1, head_dim]
    columns = torch.arange(hidden.shape[1], device=hidden.device)
    scores = []
    for row, own in enumerate(queries):
        normed = layer.input_layernorm(hidden[row, own])
        query = rotate(projected(attention, "q", normed), cos[row, own], sin[row, own])
        # Query heads that share a key head are adjacent: [r, kv heads, shared, head_dim].
        query = query.view(len(own), keys.shape[2], -1, attention.head_dim).float()
        logits = torch.einsum("rhsd,phd->rhsp", query, keys[row].float()) * attention.scaling
        visible = real[row] & (columns <= own[:, None])  # [r, p]
        logits = logits.masked_fill(~visible[:, None, None], -torch.inf)
        scores.append(torch.softmax(logits, -1).mean((1, 2)))
    return scores


def projected(attention: Any, kind: str, hidden: Tensor) -> Tensor:
    """Projects hidden states [..., d] to queries or keys, [..., heads, head_dim].

    Args:
        attention: the attention module.
        kind: ``q`` or ``k``.
        hidden: normed hidden states.
    """
    heads = getattr(attention, f"{kind}_proj")(hidden)
    heads = heads.view(*hidden.shape[:-1], -1, attention.head_dim)
    norm = getattr(attention, f"{kind}_norm", None)
    return heads if norm is None else norm(heads)
