"""LLaVA-PruMerge: tokens that stand out in the CLS token's attention, merged with their like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.device import uploaded
from gprune.graph import CosineRows
from gprune.pruners.base import MergingPruner, check_number, check_share, highest, unchosen
from gprune.pruners.baselines import spread
from gprune.tokens import VisualTokens


@dataclass(frozen=True)
class PruMerge(MergingPruner):
    """The tokens with the most class attention, each averaged with its nearest neighbours.

    Shang, Cai, Xu, Lee, Yan: "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large
    Multimodal Models", ICCV 2025, arXiv 2403.15388.

    A kept token i becomes Σ aⱼ yⱼ / Σ aⱼ over itself and its ``neighbours`` nearest dropped
    tokens, by the cosine of their keys in the vision encoder; a is the attention of the CLS token,
    averaged over heads.

    The paper's number of tokens varies: it keeps the outliers of a by the interquartile rule,
    a > Q3 + 1.5 (Q3 − Q1). Here the budget says how many of the highest are kept, which are the
    same tokens when it equals the number of outliers. The paper merges before the projector; here
    projected features are averaged.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        neighbours: how many tokens each kept one is averaged with, >= 0; 0 only prunes.

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
        """The tokens to keep, int64 [k], ascending."""
        return highest(attention, k)

    def partition(self, tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor | None]:
        assert tokens.attention is not None  # by `signals`
        assert tokens.keys is not None
        attention = tokens.attention.float()
        kept = self.centres(attention, k)
        near = CosineRows(tokens.keys)[kept]  # [k, n]
        near[:, kept] = -2  # kept tokens are no neighbours of each other
        near.scatter_(1, kept[:, None], 2)  # each is its own nearest
        count = 1 + min(self.neighbours, len(tokens) - k)
        order = torch.sort(near, dim=1, descending=True, stable=True).indices[:, :count]
        share = attention.clamp(min=torch.finfo(torch.float32).tiny)[order]
        weights = torch.zeros_like(near).scatter_(1, order, share)
        return kept, weights / weights.sum(1, keepdim=True)


@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """PruMerge with evenly spaced tokens beside those that stand out.

    Shang, Cai, Xu, Lee, Yan: "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large
    Multimodal Models", ICCV 2025, arXiv 2403.15388 (PruMerge+).

    As `PruMerge`, but of the kept tokens only ``outliers`` are those with the most class attention;
    the others lie evenly spaced among the tokens left, in raster order. The paper's number varies;
    the released code takes three evenly spaced tokens for one outlier, which is the share here.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        neighbours: see `PruMerge`.
        outliers: share of the kept tokens chosen by attention, in (0, 1], rounded up.

    Raises:
        ValueError: a parameter is out of range.
    """

    outliers: float = 0.25

    name: ClassVar[str] = "prumerge_plus"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("outliers", self.outliers, "(0, 1]")

    def centres(self, attention: Tensor, k: int) -> Tensor:
        count = -int(-k * self.outliers // 1)
        best = highest(attention, count)
        rest = unchosen(best, len(attention))
        even = uploaded(spread(k - count, len(rest)), rest.device)
        return torch.cat([best, rest[even]]).sort().values
