"""Mllama (Llama 3.2 Vision), whose text reads images by cross-attention."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from gprune.layouts.base import Family
from gprune.layouts.towers import patches_per_side
from gprune.tokens import Group


class Mllama(Family):
    """Mllama: each tile starts with a CLS token, which is in no group.

    Its visual tokens are keys of cross-attention layers, not positions of the sequence; the hook
    for that is `gprune.hf.cross`.
    """

    cross_attention: ClassVar[bool] = True

    def groups(
        self, model: Any, modality: str, features: Tensor, grid: tuple[int, int, int] | None
    ) -> list[Group]:
        side = patches_per_side(model.config)
        rows = torch.arange(len(features), device=features.device).view(-1, 1 + side * side)
        return [Group(tile[1:], (side, side), "tile") for tile in rows]
