"""Attention as two batched matrix products, for training in bfloat16 on a CPU.

PyTorch's fused CPU attention accumulates its blocks in float32 and gains nothing from a CPU's
bfloat16 units; two plain products do. The cost is memory for the [n, n] attention weights of each
head, small in a tiny model, and logits rounded to bfloat16.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

# The value of ``attn_implementation`` that selects this module.
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
    """Computes softmax attention in the dtype of its input, with transformers' signature.

    Args:
        module: the attention layer, unused.
        query: [b, heads, n, width].
        key: [b, heads, m, width].
        value: [b, heads, m, width].
        attention_mask: added to the logits, or None.
        scaling: of the logits; None is 1 / sqrt(width).
        dropout: must be 0.

    Returns:
        the output, [b, n, heads, width], and the attention weights, [b, heads, n, m].

    Raises:
        ValueError: ``dropout`` is not 0, or the numbers of key and query heads differ.
    """
    if dropout or key.shape[1] != query.shape[1]:
        raise ValueError(
            f"attention {PRODUCTS!r} needs as many key heads as query heads and no dropout, "
            f"got {key.shape[1]}, {query.shape[1]} and {dropout}; take 'sdpa'"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = (query * scale) @ key.transpose(2, 3)
    if attention_mask is not None:
        # A float32 mask would promote everything after it to float32.
        logits = logits + attention_mask.to(logits.dtype)
    weights = logits.softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(PRODUCTS, products)
# Where a caller passes no mask, transformers must build one, and as numbers.
AttentionMaskInterface.register(PRODUCTS, eager_mask)
