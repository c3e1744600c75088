"""LLaVA-PruMerge: tokens with high CLS attention, merged with similar ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import CosineRows
from gprune.pruners.base import Pruner
from gprune.pruners.ranking import highest
from gprune.pruners.reduction import Reduction
from gprune.pruners.registry import register
from gprune.pruners.validation import check_number
from gprune.tokens import VisualTokens


@register
@dataclass(frozen=True)
class PruMerge(Pruner):
    """The tokens with the most CLS attention, each averaged with its nearest neighbours.

    Shang, Cai, Xu, Lee, Yan: "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large
    Multimodal Models", ICCV 2025, arXiv 2403.15388.

    A kept token i becomes Σ aⱼ yⱼ / Σ aⱼ over itself and its ``neighbours`` nearest dropped
    tokens, by the cosine of their keys in the vision encoder; a is the attention of the CLS token,
    averaged over heads.

    In the paper the number of tokens varies: it keeps the outliers of a by the interquartile rule,
    a > Q3 + 1.5 (Q3 − Q1). Here the budget sets how many of the highest are kept; they are the same
    tokens if it equals the number of outliers. The paper merges before the projector; here
    projected features are averaged.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        neighbours: number of dropped tokens averaged into each kept one, >= 0; 0 only prunes.

    Raises:
        ValueError: ``neighbours`` is negative.
    """

    neighbours: int = 32

    name: ClassVar[str] = "prumerge"
    signals: ClassVar[tuple[str, ...]] = ("cls_attention", "keys")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("neighbours", self.neighbours, 0)

    def centres(self, attention: Tensor, k: int) -> Tensor:
        """Returns the tokens to keep, int64 [k], ascending."""
        return highest(attention, k)

    def choose(self, tokens: VisualTokens, k: int) -> Reduction:
        assert tokens.attention is not None  # by `signals`
        attention = tokens.attention.float()
        kept = self.centres(attention, k)
        near = CosineRows(tokens.joint_keys())[kept]  # [k, n]
        near[:, kept] = -2  # kept tokens are no neighbours of each other
        near.scatter_(1, kept[:, None], 2)  # each is its own nearest
        count = 1 + min(self.neighbours, len(tokens) - k)
        order = torch.sort(near, dim=1, descending=True, stable=True).indices[:, :count]
        share = attention.clamp(min=torch.finfo(torch.float32).tiny)[order]
        weights = torch.zeros_like(near).scatter_(1, order, share)
        return Reduction(kept, weights=weights / weights.sum(1, keepdim=True))
