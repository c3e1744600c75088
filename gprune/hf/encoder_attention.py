"""Recomputes attention weights of a vision encoder's layer from the layer's own input, in float32.

The model itself runs as it was loaded, with SDPA or FlashAttention.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gprune.hf.rotary import rotate

# Attention modules whose weights were compared with those that the eager kernel returns: with
# separate projections, and with one for queries, keys and values that are then rotated.
PROJECTED = (
    "CLIPAttention",
    "SiglipAttention",
    "InternVLVisionAttention",
    "Idefics3VisionAttention",
    "SmolVLMVisionAttention",
)
FUSED = (
    "VisionAttention",
    "Qwen2_5_VLVisionAttention",
    "Qwen3VLVisionAttention",
    "Qwen3VLMoeVisionAttention",
    "Glm4vVisionAttention",
)

# Number of queries whose attention is in memory at a time.
QUERY_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class AttentionInputs:
    """What an attention module computes its weights from.

    Attributes:
        query: [b, heads, n, c].
        key: [b, heads, n, c].
        spans: lengths of the sequences packed into n, which attend only to themselves.
        mask: additive mask of the logits, [b, 1, 1 or n, n], or None.
        scale: factor of the logits.
    """

    query: Tensor
    key: Tensor
    spans: Sequence[int]
    mask: Tensor | None
    scale: float

    def weights(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """Returns attention weights [b, heads, q, n] of some queries over some keys, float32."""
        logits = query.float() @ key.float().mT * self.scale
        return torch.softmax(logits if mask is None else logits + mask, -1)

    def first_query(self) -> Tensor:
        """Returns the mean over heads of the first query's attention, float32 [b, n, 1]."""
        mask = None if self.mask is None else self.mask[:, :, :1]
        return self.weights(self.query[:, :, :1], self.key, mask).mean(1).transpose(1, 2)

    def joint_first_query(self) -> Tensor:
        """Returns the first query's attention with all heads as one, float32 [b, n, 1].

        That is softmax(q Kᵀ / √w), where q and K hold all heads side by side and w is their width.
        """
        query = self.query[:, :, :1].transpose(1, 2).flatten(2)  # [b, 1, heads * c]
        key = self.key.transpose(1, 2).flatten(2)  # [b, n, heads * c]
        logits = query.float() @ key.float().mT * key.shape[-1] ** -0.5
        return torch.softmax(logits, -1).mT

    def mean_received(self) -> Tensor:
        """Returns the mean over heads and queries of the attention each token receives, [b, n, 1].

        A query outside a token's span is not counted.
        """
        spans = list(self.spans)
        pairs = zip(torch.split(self.query, spans, 2), torch.split(self.key, spans, 2), strict=True)
        return torch.cat([self._mean_in_span(*pair) for pair in pairs], 1).unsqueeze(-1)

    def _mean_in_span(self, query: Tensor, key: Tensor) -> Tensor:
        """Computes `mean_received` for one span, [b, n]."""
        n, mask = query.shape[2], self.mask
        received = query.new_zeros(len(query), n, dtype=torch.float32)
        for start in range(0, n, QUERY_CHUNK):
            rows = slice(start, start + QUERY_CHUNK)
            chunk_mask = mask if mask is None or mask.shape[2] == 1 else mask[:, :, rows]
            received += self.weights(query[:, :, rows], key, chunk_mask).sum((1, 2))
        return received / (n * query.shape[1])


def attention_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> AttentionInputs:
    """Recomputes queries and keys of an attention module, of `PROJECTED` or `FUSED`, from its call.

    Args:
        module: the attention module.
        args: positional arguments of its call.
        kwargs: keyword arguments of its call.
    """
    call = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    own: Any = module
    hidden = call["hidden_states"].detach()
    scale = own.scaling if hasattr(own, "scaling") else own.scale
    if type(module).__name__ in FUSED:
        width = (len(hidden), 3, own.num_heads, -1)
        query, key = own.qkv(hidden).reshape(width).unbind(1)[:2]  # [n, heads, c]
        query, key = (rotate_in_float32(x, *call["position_embeddings"]) for x in (query, key))
        spans = call["cu_seqlens"].diff().tolist()
        return AttentionInputs(
            query.transpose(0, 1)[None], key.transpose(0, 1)[None], spans, None, scale
        )
    query, key = own.q_proj(hidden), own.k_proj(hidden)
    if hasattr(own, "q_norm"):
        query, key = own.q_norm(query), own.k_norm(key)
    query, key = (x.unflatten(-1, (own.num_heads, -1)).transpose(1, 2) for x in (query, key))
    mask = additive_mask(call.get("attention_mask"))
    return AttentionInputs(query, key, [hidden.shape[1]], mask, scale)


def rotate_in_float32(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies `rotate` in float32, as vision encoders do; the result has the dtype of ``values``.

    Args:
        values: [n, heads, c].
        cos: [n, c].
        sin: [n, c].
    """
    cos, sin = cos.unsqueeze(-2).float(), sin.unsqueeze(-2).float()
    return rotate(values.float(), cos, sin).to(values.dtype)


def additive_mask(mask: Tensor | None) -> Tensor | None:
    """Returns an attention mask in the form that is added to logits, [b, 1, 1 or n, n]."""
    if mask is None:
        return None
    if mask.ndim == 2:  # FlashAttention's, true at the keys that exist
        mask = mask[:, None, None].bool()
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
    return mask.float()
