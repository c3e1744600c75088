"""The rotary position embedding, as transformers applies it."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies the rotary embedding to queries or keys, in the dtype of the arguments.

    Args:
        values: queries or keys, [..., c]; channel i is paired with channel i + c / 2.
        cos: cosines, broadcastable to ``values``.
        sin: sines, broadcastable to ``values``.
    """
    first, second = values.chunk(2, -1)
    return values * cos + torch.cat([-second, first], -1) * sin
