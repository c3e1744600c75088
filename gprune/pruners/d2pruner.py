"""D²Pruner: debiased attention, then an independent set of the other tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import CosineRows, cosine_similarity, dense_fits
from gprune.pruners.base import Pruner
from gprune.pruners.greedy import RowReader
from gprune.pruners.registry import register
from gprune.pruners.validation import check_share
from gprune.tokens import VisualTokens


@register
@dataclass(frozen=True)
class D2Pruner(Pruner):
    """Pivots by debiased attention, then tokens unlike their neighbours (an independent set).

    Zhang, Yu, Wu, Wen, Yan, Ding, Qi, Zhang: "D²Pruner: Debiased Importance and Structural
    Diversity for MLLM Token Pruning", AAAI 2026, arXiv 2512.19443.

    No released code could be found (November 2026; the paper names EvelynZhang-epiclab/D2Pruner,
    which could not be had): this class follows the paper alone, and nothing shows that it selects
    what its authors' program does.

    Pivots, a share of the budget, are the tokens of the highest importance. The others form a graph
    with an edge between two that are adjacent in the raster or whose cosine similarity reaches
    ``threshold``. The most important free token is kept and its neighbours are no longer free,
    until the budget is met. If no token is free before that, all that are not kept become free
    again, which starts the next independent set.

    The paper ranks by attention inside the language model and divides out its positional bias: the
    attention that a position gets whatever it shows. Here, before the language model, the vision
    encoder's attention is used, and the importance of the token at row r and column c is

        a(r, c) · mean(a) / (mean of row r · mean of column c)

    that is, attention relative to what its row and its column get in the same picture. Without a
    grid attention is not debiased, and neighbours are those in the sequence. The share of pivots,
    the distance and the threshold are this project's choice.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        pivots: share of the kept tokens that are pivots, in [0, 1], rounded up.
        threshold: least cosine similarity of an edge, in [-1, 1].

    Raises:
        ValueError: a parameter is out of range.
    """

    pivots: float = 0.5
    threshold: float = 0.9

    name: ClassVar[str] = "d2pruner"
    signals: ClassVar[tuple[str, ...]] = ("attention",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("pivots", self.pivots)
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must be a cosine similarity in [-1, 1]")

    def importance(self, tokens: VisualTokens) -> Tensor:
        """Returns attention relative to that of row and column, float32 [n]."""
        assert tokens.attention is not None  # by `signals`
        attention = tokens.attention.double()
        if tokens.grid is None:
            return attention.float()
        raster = attention.view(tokens.grid)
        expected = raster.mean(1, keepdim=True) * raster.mean(0, keepdim=True)
        debiased = torch.where(expected > 0, raster * raster.mean() / expected, 0)
        return debiased.flatten().float()

    def neighbours(self, tokens: VisualTokens) -> Tensor | Neighbours:
        """Returns which tokens are neighbours, bool [n, n], or an object with its rows."""
        if not dense_fits(len(tokens)):
            return Neighbours(tokens, CosineRows(tokens.features), self.threshold)
        similarity = cosine_similarity(tokens.features)
        every = torch.arange(len(tokens), device=similarity.device)
        return Neighbours(tokens, similarity, self.threshold)[every]

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        importance = self.importance(tokens)
        order = torch.sort(importance, descending=True, stable=True).indices
        pivots = min(k, -int(-k * self.pivots // 1))
        kept = torch.zeros(len(tokens), dtype=torch.bool, device=order.device)
        kept[order[:pivots]] = True
        neighbours = self.neighbours(tokens)
        rows = RowReader(neighbours, prefetch=not isinstance(neighbours, Tensor))
        free = ~kept
        chosen = [order[:pivots]]
        for _ in range(k - pivots):
            free = torch.where(free.any(), free, ~kept)
            merit = importance.masked_fill(~free, -torch.inf)
            following = merit.argmax(keepdim=True)
            kept = kept.index_fill(0, following, True)
            free = free & ~rows.row(following, merit) & ~kept
            chosen.append(following)
        return torch.cat(chosen).sort().values


class Neighbours:
    """Which tokens are adjacent or similar: rows of a matrix, bool [r, n].

    Indexed by tokens [r]. No token is its own neighbour.
    """

    def __init__(
        self, tokens: VisualTokens, similarity: Tensor | CosineRows, threshold: float
    ) -> None:
        index = torch.arange(len(tokens), device=tokens.features.device)
        columns = tokens.grid[1] if tokens.grid else len(tokens)
        self._coordinates = index // columns, index % columns
        self._similarity = similarity
        self._threshold = threshold

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        down, across = ((x[rows].unsqueeze(1) - x).abs_() for x in self._coordinates)
        adjacent = down.add_(across) <= 1
        adjacent |= self._similarity[rows] >= self._threshold
        return adjacent.scatter_(1, rows.unsqueeze(1), False)
