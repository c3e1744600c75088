"""HoloV: a budget for each crop of the picture, by how much there is in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.device import uploaded
from gprune.graph import UnitRows
from gprune.pruners.base import Pruner, check_number, check_weight
from gprune.pruners.baselines import cells_a_line
from gprune.tokens import VisualTokens

# A sum of variances of cosine similarities below this is rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class HoloV(Pruner):
    """Budgets for crops, by their attention and by how much their tokens differ from each other.

    Zou, Lu, Wang, Yan, Lyu, Zheng, Zhang, Hu: "Don't Just Chase 'Highlighted Tokens' in MLLMs:
    Revisiting Visual Holistic Context Retention", NeurIPS 2025, arXiv 2510.02912.

    The picture is cut into ``crops`` of nearly equal size. In each, a token's context is the
    variance of its cosine similarities with the other tokens of the crop, and its score

        attention + context_weight · variance · mean(attention) / mean(variance)

    with means over the crop. Attention is that of the CLS token, averaged over heads, or where
    there is none the mean that a token receives. The budget is dealt out to crops in proportion to
    their mean scores, rounded down, what is left one by one to those of the highest means; what a
    crop cannot hold goes to the others in the same way. Within a crop the highest scores are kept.

    Numbers follow the released code, which cuts the sequence into runs and ranks by attention alone
    within a crop; the paper cuts the picture, as is done here where there is a grid. Fetching back
    pruned context inside the language model, an option of the paper, is not part of it.

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
        """The tokens of each crop, ascending, int64 [m], on the host."""
        rows, columns = tokens.grid or (1, len(tokens))
        bands = cells_a_line(rows, columns, min(self.crops, len(tokens)))
        place = torch.arange(len(tokens)).view(rows, columns)
        crops = []
        for band, cells in enumerate(bands):
            top, bottom = band * rows // len(bands), (band + 1) * rows // len(bands)
            for cell in range(cells):
                left, right = cell * columns // cells, (cell + 1) * columns // cells
                crops.append(place[top:bottom, left:right].flatten())
        return crops

    def score(self, tokens: VisualTokens, members: Sequence[Tensor], inside: Tensor) -> Tensor:
        """Attention and context of every token, float64 [n].

        Args:
            tokens: the group.
            members: the tokens of each crop, ascending, int64 [m].
            inside: 1 where a crop has a token, float64 [crops, n].
        """
        assert tokens.attention is not None  # by `signals`
        attention = tokens.attention.double()
        unit = UnitRows(tokens.features)
        variance = torch.empty_like(attention)
        for part in members:
            variance[part] = variance_to_others(unit.similarity(part, part))
        level, spread = inside @ attention, inside @ variance  # sums over each crop
        # Where all tokens of a crop are alike the variance is rounding.
        scale = torch.where(spread > ROUNDING, level / spread, 0)
        return attention + self.context_weight * variance * (scale @ inside)

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        device = tokens.features.device
        crops = self.crops_of(tokens)
        n, count = len(tokens), len(crops)
        sizes = [len(part) for part in crops]
        by_crop = uploaded(torch.cat(crops), device)
        number = uploaded([i for i, length in enumerate(sizes) for _ in range(length)], device)
        crop = torch.empty_like(number).index_copy_(0, by_crop, number)
        own = torch.arange(n, device=device)
        inside = torch.zeros(count, n, dtype=torch.float64, device=device)
        inside[crop, own] = 1
        size = inside.sum(1)
        score = self.score(tokens, torch.split(by_crop, sizes), inside)
        order = torch.sort(score.float(), descending=True, stable=True).indices
        order = order[torch.sort(crop[order], stable=True).indices]  # by crop, then by score
        starts = (size.cumsum(0) - size).long()
        rank = torch.empty_like(order)
        rank[order] = own - starts[crop[order]]  # of each token in its crop
        mean = inside @ score / size
        # In float32, so that crops that are alike tie.
        weights = torch.where(mean.sum() > 0, mean / mean.sum(), 1 / count).float()
        share = (weights.double() * k + 1e-6).floor().long()  # a whole number stays whole
        heaviest = torch.sort(weights, descending=True, stable=True).indices
        turn = torch.empty_like(heaviest)
        turn[heaviest] = torch.arange(count, device=turn.device)
        # First what the shares hold, then in rounds one of each crop, the heaviest crop first.
        beyond = rank - share[crop]
        priority = torch.where(beyond < 0, -1, beyond * count + turn[crop])
        return torch.sort(priority, stable=True).indices[:k].sort().values


def variance_to_others(similarity: Tensor) -> Tensor:
    """The variance of each token's similarities [m, m] with the others, float64 [m]."""
    others = max(1, len(similarity) - 1)
    # What is on the diagonal counts for nothing, and rounds.
    wide = similarity.double().fill_diagonal_(0)
    mean = wide.sum(1, keepdim=True) / others
    return (wide - mean).square().fill_diagonal_(0).sum(1) / others
