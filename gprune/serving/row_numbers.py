"""Stores each token's row number in its embedding.

vLLM passes embeddings from the encoder to the model runner and nothing beside them. The runner
needs the row of each kept token in its image, to give it its original position id.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Row numbers have two base-256 digits, which bfloat16 represents exactly.
BASE = 256
MAX_TOKENS = BASE**2


def with_row_numbers(features: Tensor, rows: Tensor) -> Tensor:
    """Appends two channels to ``features`` [k, d] that hold ``rows`` [k]; returns [k, d + 2]."""
    digits = torch.stack([rows // BASE, rows % BASE], 1).to(features.dtype)
    return torch.cat([features, digits], 1)


def split_row_numbers(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Reverses `with_row_numbers`: returns features [k, d] and row numbers, int64 [k]."""
    high, low = embeddings[:, -2:].long().unbind(1)
    return embeddings[:, :-2], high * BASE + low
