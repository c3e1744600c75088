"""Attention as two batched matrix products, for training in bf16 on a CPU.

PyTorch's fused CPU attention keeps its blocks in float32, so that it gains nothing from a CPU's
bf16 units; two plain products do. What it costs is memory, the [n, n] shares of each head, of which
a tiny model has few, and that logits are rounded to bf16.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

# What to give as ``attn_implementation``.
PRODUCTS = "products"


def products(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax attention in the dtype of its input, in the form transformers calls it.

    Args:
        module: the attention layer.
        query: [b, heads, n, width].
        key: [b, heads, m, width].
        value: [b, heads, m, width].
        attention_mask: added to the logits, or None.
        scaling: of the logits; 1 / sqrt(width) when absent.
        dropout: of the shares; the tiny VLM has none.

    Returns:
        The output, [b, n, heads, width], and the shares, [b, heads, n, m].

    Raises:
        ValueError: ``dropout`` is not 0, or there are fewer keys' heads than queries'.
    """
    if dropout or key.shape[1] != query.shape[1]:
        raise ValueError(
            f"attention {PRODUCTS!r} is for as many heads of keys as of queries and no dropout, "
            f"got {key.shape[1]}, {query.shape[1]} and {dropout}; take 'sdpa'"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = (query * scale) @ key.transpose(2, 3)
    if attention_mask is not None:
        # A float32 mask would make all that follows float32.
        logits = logits + attention_mask.to(logits.dtype)
    shares = logits.softmax(-1)
    return (shares @ value).transpose(1, 2).contiguous(), shares


AttentionInterface.register(PRODUCTS, products)
# Masks must be made, and as numbers, where a caller gives none.
AttentionMaskInterface.register(PRODUCTS, eager_mask)
