"""VLM-Pruner: pivots, then the least redundant tokens, near ones before far ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import CosineRows, cosine_similarity, dense_fits, token_norms
from gprune.pruners.base import Pruner
from gprune.pruners.greedy import RowReader, farthest_first
from gprune.pruners.reduction import Reduction
from gprune.pruners.registry import register
from gprune.pruners.validation import check_number, check_weight
from gprune.tokens import VisualTokens


@register
@dataclass(frozen=True)
class VLMPruner(Pruner):
    """Pivots far from each other, and the least redundant tokens near them, by features.

    Wu, Ma, Ni, Zhang, Shu, Jiang, Chen: "VLM-Pruner: Buffering for Spatial Sparsity in an Efficient
    VLM Centrifugal Token Pruning Paradigm", arXiv 2512.02700.

    The first pivot has the largest L1 norm, each next one is the farthest (L2) from those before.
    Then, one by one, the token i with the least redundancy joins the set S; redundancy is

        max over j in S of max(0, cos(i, j))  ·  (1 + buffering · dᵢ / max d)

    where dᵢ is the distance in the raster to the nearest token of S, so far tokens count as more
    redundant and are chosen later. Finally each dropped token is merged into the kept one most
    similar to it, weighted by that similarity; the kept token itself has weight 1.

    The paper works inside the language model, on the channels of its keys and hidden states that
    vary most, and adds several tokens at a time under a growing threshold. Here projected features
    replace both, and tokens are added one at a time, which meets the budget exactly. The number of
    pivots and ``buffering`` are this project's choice.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        pivots: number of pivots, >= 1.
        buffering: weight of the distance in the raster, >= 0.
        fuse: whether to merge dropped tokens into kept ones.

    Raises:
        ValueError: a parameter is out of range.
    """

    pivots: int = 8
    buffering: float = 0.5
    fuse: bool = True

    name: ClassVar[str] = "vlm_pruner"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("pivots", self.pivots, 1)
        check_weight("buffering", self.buffering)

    def choose(self, tokens: VisualTokens, k: int) -> Reduction:
        dense = dense_fits(len(tokens))
        cosine = cosine_similarity(tokens.features) if dense else CosineRows(tokens.features)
        longest = tokens.features.abs().sum(1, dtype=torch.float64).argmax()
        squares = SquaredDistance(cosine, token_norms(tokens.features))
        pivots = farthest_first(squares, longest, min(self.pivots, k), prefetch=not dense)
        kept = self._grow(pivots, cosine, RasterDistance(tokens), k)
        if not self.fuse:
            return Reduction(kept)
        return Reduction(kept, weights=fusion_weights(cosine[kept].clamp(min=0), kept))

    def _grow(
        self, pivots: Tensor, cosine: Tensor | CosineRows, distance: RasterDistance, k: int
    ) -> Tensor:
        """Adds the least redundant tokens to the pivots; returns int64 [k], ascending."""
        rows = RowReader(cosine, prefetch=not isinstance(cosine, Tensor))
        chosen = [pivots]
        redundancy = cosine[pivots].amax(0).clamp(min=0)  # [n]
        nearest = distance[pivots].amin(0)  # [n], in the raster
        free = torch.ones_like(redundancy, dtype=torch.bool).index_fill(0, pivots, False)
        for _ in range(k - len(pivots)):
            penalty = 1 + self.buffering * nearest / nearest.amax().clamp(min=1)
            score = (redundancy * penalty).masked_fill(~free, torch.inf)
            following = score.argmin(keepdim=True)
            free = free.index_fill(0, following, False)
            redundancy = torch.maximum(redundancy, rows.row(following, -score))
            nearest = torch.minimum(nearest, distance[following][0])
            chosen.append(following)
        return torch.cat(chosen).sort().values


class SquaredDistance:
    """Squared L2 distances, computed from cosines and norms: rows of a matrix, float64 [r, n]."""

    def __init__(self, cosine: Tensor | CosineRows, norms: Tensor) -> None:
        self._cosine = cosine
        self._norms = norms

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        own, norms = self._norms[rows].unsqueeze(-1), self._norms
        return own.square() + norms.square() - 2 * own * norms * self._cosine[rows]


class RasterDistance:
    """Distances in the raster, 0 without positions: rows of a matrix, float32 [r, n]."""

    def __init__(self, tokens: VisualTokens) -> None:
        if tokens.grid is None and tokens.positions is None:
            coordinates = tokens.features.new_zeros(len(tokens), 2)
        else:
            coordinates = tokens.coordinates()
        self._coordinates = coordinates.double().unbind(1)

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        down, across = (x[rows].unsqueeze(1) - x for x in self._coordinates)
        return torch.hypot(down, across).float()


def fusion_weights(similarity: Tensor, kept: Tensor) -> Tensor:
    """Returns the weight of each token in each kept one, float32 [k, n], rows sum to 1.

    Args:
        similarity: of kept tokens with all tokens, >= 0, [k, n].
        kept: int64 [k].
    """
    nearest = similarity.argmax(0, keepdim=True)  # ties to the first
    weights = torch.zeros_like(similarity).scatter_(0, nearest, similarity.gather(0, nearest))
    weights[:, kept] = torch.eye(len(kept), device=kept.device)
    return weights / weights.sum(1, keepdim=True)
