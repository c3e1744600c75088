"""HoloV: a budget for each crop of the picture, by its attention and variety."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.device import to_device
from gprune.graph import UnitRows
from gprune.pruners.base import Pruner
from gprune.pruners.raster import raster_cells
from gprune.pruners.registry import register
from gprune.pruners.validation import check_number, check_weight
from gprune.tokens import VisualTokens

# A crop's sum of variances of cosine similarities below this is rounding.
MIN_VARIANCE_SUM = 1e-9


@register
@dataclass(frozen=True)
class HoloV(Pruner):
    """The tokens of each crop with the most attention and context; more in important crops.

    Zou, Lu, Wang, Yan, Lyu, Zheng, Zhang, Hu: "Don't Just Chase 'Highlighted Tokens' in MLLMs:
    Revisiting Visual Holistic Context Retention", NeurIPS 2025, arXiv 2510.02912.

    The picture is cut into ``crops`` of nearly equal size. In each, a token's context is the
    variance of its cosine similarities with the other tokens of the crop, and its score

        attention + context_weight · variance · mean(attention) / mean(variance)

    with means over the crop. Attention is that of the CLS token, averaged over heads, or if there
    is none the mean that a token receives. The budget is divided among crops in proportion to their
    mean scores, rounded down; what remains goes one by one to the crops of the highest means, and
    what exceeds a crop goes to the others in the same way. Within a crop the highest scores are
    kept.

    Constants follow the released code, which cuts the sequence into runs and ranks by attention
    alone within a crop; the paper cuts the picture, as is done here if there is a grid. The paper's
    optional step, fetching back pruned context inside the language model, is not implemented.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        crops: number of crops, >= 1.
        context_weight: weight of the variance against attention, >= 0.

    Raises:
        ValueError: a parameter is out of range.
    """

    crops: int = 16
    context_weight: float = 0.09

    name: ClassVar[str] = "holov"
    signals: ClassVar[tuple[str, ...]] = ("attention",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("crops", self.crops, 1)
        check_weight("context_weight", self.context_weight)

    def crops_of(self, tokens: VisualTokens) -> list[Tensor]:
        """Returns the tokens of each crop, int64 [m], ascending, on the host."""
        rows, columns = tokens.grid or (1, len(tokens))
        index = torch.arange(len(tokens)).view(rows, columns)
        cells = raster_cells(rows, columns, min(self.crops, len(tokens)))
        return [index[cell.rows, cell.columns].flatten() for cell in cells]

    def token_scores(
        self, tokens: VisualTokens, crops: Sequence[Tensor], membership: Tensor
    ) -> Tensor:
        """Returns attention plus weighted context of every token, float64 [n].

        Args:
            tokens: the group.
            crops: the tokens of each crop, int64 [m], ascending.
            membership: 1 where a crop contains a token, else 0, float64 [crops, n].
        """
        assert tokens.attention is not None  # by `signals`
        attention = tokens.attention.double()
        unit = UnitRows(tokens.features)
        variance = torch.empty_like(attention)
        for crop in crops:
            variance[crop] = variance_to_others(unit.similarity(crop, crop))
        attention_sum, variance_sum = membership @ attention, membership @ variance  # [crops]
        scale = torch.where(variance_sum > MIN_VARIANCE_SUM, attention_sum / variance_sum, 0)
        return attention + self.context_weight * variance * (scale @ membership)

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        device = tokens.features.device
        crops = self.crops_of(tokens)
        n, count = len(tokens), len(crops)
        sizes = [len(crop) for crop in crops]
        by_crop = to_device(torch.cat(crops), device)
        number = to_device([i for i, size in enumerate(sizes) for _ in range(size)], device)
        crop_of = torch.empty_like(number).index_copy_(0, by_crop, number)  # [n]
        membership = torch.zeros(count, n, dtype=torch.float64, device=device)
        membership[crop_of, torch.arange(n, device=device)] = 1
        scores = self.token_scores(tokens, torch.split(by_crop, sizes), membership)
        size = membership.sum(1)
        rank = rank_in_crop(scores.float(), crop_of, size)
        mean = membership @ scores / size
        # In float32, so that equal crops tie.
        weights = torch.where(mean.sum() > 0, mean / mean.sum(), 1 / count).float()
        return keep_by_shares(rank, crop_of, weights, k)


def rank_in_crop(scores: Tensor, crop_of: Tensor, size: Tensor) -> Tensor:
    """Returns the rank of each token in its crop by descending score, from 0, int64 [n].

    Args:
        scores: [n].
        crop_of: crop of each token, int64 [n].
        size: number of tokens of each crop, [crops].
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    order = order[torch.sort(crop_of[order], stable=True).indices]  # by crop, then by score
    starts = (size.cumsum(0) - size).long()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - starts[crop_of[order]]
    return rank


def keep_by_shares(rank: Tensor, crop_of: Tensor, weights: Tensor, k: int) -> Tensor:
    """Chooses ``k`` tokens, int64 [k], ascending, with each crop's share by its weight.

    Args:
        rank: of each token in its crop, int64 [n].
        crop_of: crop of each token, int64 [n].
        weights: of the crops, sum 1, float32 [crops].
        k: 1 to n.
    """
    # The offset keeps a product that should be an integer from being rounded below it.
    share = (weights.double() * k + 1e-6).floor().long()
    heaviest = torch.sort(weights, descending=True, stable=True).indices
    turn = torch.empty_like(heaviest)
    turn[heaviest] = torch.arange(len(weights), device=turn.device)
    # First the shares; then, in rounds, one token of each crop, the heaviest crop first.
    excess = rank - share[crop_of]
    priority = torch.where(excess < 0, -1, excess * len(weights) + turn[crop_of])
    return torch.sort(priority, stable=True).indices[:k].sort().values


def variance_to_others(similarity: Tensor) -> Tensor:
    """Returns the variance of each token's similarities [m, m] with the others, float64 [m]."""
    others = max(1, len(similarity) - 1)
    # The diagonal does not count, and is rounded.
    wide = similarity.double().fill_diagonal_(0)
    mean = wide.sum(1, keepdim=True) / others
    return (wide - mean).square().fill_diagonal_(0).sum(1) / others
