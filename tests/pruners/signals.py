"""Groups of tokens with all signals."""

from __future__ import annotations

import torch
from torch import Tensor

from gprune import VisualTokens


def with_signals(
    features: Tensor, grid: tuple[int, int] | None = None, seed: int = 0
) -> VisualTokens:
    """Returns ``features`` [n, d] with random attention, keys and text, determined by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    n, d = features.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return VisualTokens(
        features,
        grid=grid,
        attention=(2 * normal(n)).softmax(0),
        object_attention=(2 * normal(n)).softmax(0),
        keys=normal(n, 7),
        text=normal(3, d),
    )
