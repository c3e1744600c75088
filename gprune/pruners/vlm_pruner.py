"""VLM-Pruner: from a few pivots outwards, near tokens before far ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune import graph
from gprune.graph import CosineRows, cosine_similarity, token_norms
from gprune.pruners.base import MergingPruner, check_number, check_weight
from gprune.pruners.diversity import RowReader, farthest_first
from gprune.tokens import VisualTokens


@dataclass(frozen=True)
class VLMPruner(MergingPruner):
    """Pivots far from each other, then the least redundant tokens near them; looks at features.

    Wu, Ma, Ni, Zhang, Shu, Jiang, Chen: "VLM-Pruner: Buffering for Spatial Sparsity in an Efficient
    VLM Centrifugal Token Pruning Paradigm", arXiv 2512.02700.

    The first pivot has the largest L1 norm, each next one is the farthest (L2) from those before.
    Then, one by one, the token of the least redundancy joins the set S,

        max over j in S of max(0, cos(i, j))  ·  (1 + buffering · dᵢ / max d)

    where dᵢ is the distance in the raster to the nearest token of S: what is far counts as more
    redundant and waits. At last each dropped token goes into the kept one most similar to it, with
    that similarity as weight against 1 of the kept token itself.

    The paper works inside the language model, with its keys and hidden states, of which it takes
    the channels that vary most, and adds several tokens at a time under a growing threshold. Here
    projected features stand for both, and tokens are added one at a time, which meets the budget
    exactly. The number of pivots and ``buffering`` are this project's choice.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        pivots: how many, >= 1.
        buffering: how much distance counts, >= 0.
        fuse: whether dropped tokens go into kept ones.

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

    def partition(self, tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor | None]:
        many = len(tokens) > graph.WHOLE
        cosine = CosineRows(tokens.features) if many else cosine_similarity(tokens.features)
        longest = tokens.features.abs().sum(1, dtype=torch.float64).argmax()
        squares = SquaredDistance(cosine, token_norms(tokens.features))
        pivots = farthest_first(squares, longest, min(self.pivots, k), ahead=many)
        apart = RasterDistance(tokens)
        similar = RowReader(cosine, ahead=many)
        chosen = [pivots]
        redundancy, far = cosine[pivots].amax(0).clamp(min=0), apart[pivots].amin(0)
        free = torch.ones_like(redundancy, dtype=torch.bool).index_fill(0, pivots, False)
        for _ in range(k - len(pivots)):
            waiting = 1 + self.buffering * far / far.amax().clamp(min=1)
            score = (redundancy * waiting).masked_fill(~free, torch.inf)
            following = score.argmin(keepdim=True)
            free = free.index_fill(0, following, False)
            redundancy = torch.maximum(redundancy, similar.row(following, -score))
            far = torch.minimum(far, apart[following][0])
            chosen.append(following)
        kept = torch.cat(chosen).sort().values
        return kept, fusion(cosine[kept].clamp(min=0), kept) if self.fuse else None


class SquaredDistance:
    """Squared L2 distances, from cosines and norms; rows of a matrix, float64 [r, n]."""

    def __init__(self, cosine: Tensor | CosineRows, norms: Tensor) -> None:
        self._cosine = cosine
        self._norms = norms

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        own, norms = self._norms[rows].unsqueeze(-1), self._norms
        return own.square() + norms.square() - 2 * own * norms * self._cosine[rows]


class RasterDistance:
    """Distances in the raster, 0 where there is none; rows of a matrix, float32 [r, n]."""

    def __init__(self, tokens: VisualTokens) -> None:
        if tokens.grid is None and tokens.positions is None:
            place = tokens.features.new_zeros(len(tokens), 2)
        else:
            place = tokens.coordinates()
        self._place = place.double().unbind(1)

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        down, across = (x[rows].unsqueeze(1) - x for x in self._place)
        return torch.hypot(down, across).float()


def fusion(near: Tensor, kept: Tensor) -> Tensor:
    """What part each token has in each kept one, float32 [k, n], rows of sum 1.

    ``near`` [k, n] is how similar they are, >= 0.
    """
    nearest = near.argmax(0, keepdim=True)  # the first of several
    weights = torch.zeros_like(near).scatter_(0, nearest, near.gather(0, nearest))
    weights[:, kept] = torch.eye(len(kept), device=kept.device)
    return weights / weights.sum(1, keepdim=True)
