"""VLM-Pruner: from a few pivots outwards, near tokens before far ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import cosine_similarity, token_norms
from gprune.pruners.base import MergingPruner, check_number, check_weight
from gprune.pruners.diversity import farthest_first
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

    def apart(self, tokens: VisualTokens) -> Tensor:
        """The distance in the raster of every pair, float32 [n, n]; 0 where there is no raster."""
        if tokens.grid is None and tokens.positions is None:
            return tokens.features.new_zeros(len(tokens), len(tokens), dtype=torch.float32)
        rows, columns = tokens.coordinates().double().unbind(1)
        return torch.hypot(rows[:, None] - rows, columns[:, None] - columns).float()

    def partition(self, tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor | None]:
        cosine = cosine_similarity(tokens.features)
        norms = token_norms(tokens.features)
        squares = norms.square()[:, None] + norms.square() - 2 * norms[:, None] * norms * cosine
        longest = tokens.features.abs().sum(1, dtype=torch.float64).argmax()
        pivots = farthest_first(squares, longest, min(self.pivots, k))
        similarity = cosine.clamp(min=0)
        apart = self.apart(tokens)
        chosen = [pivots]
        redundancy, far = similarity[pivots].amax(0), apart[pivots].amin(0)
        free = torch.ones_like(redundancy, dtype=torch.bool).index_fill(0, pivots, False)
        for _ in range(k - len(pivots)):
            waiting = 1 + self.buffering * far / far.amax().clamp(min=1)
            score = (redundancy * waiting).masked_fill(~free, torch.inf)
            following = score.argmin(keepdim=True)
            free = free.index_fill(0, following, False)
            redundancy = torch.maximum(redundancy, similarity.index_select(0, following)[0])
            far = torch.minimum(far, apart.index_select(0, following)[0])
            chosen.append(following)
        kept = torch.cat(chosen).sort().values
        return kept, fusion(similarity, kept) if self.fuse else None


def fusion(similarity: Tensor, kept: Tensor) -> Tensor:
    """What part each token has in each kept one, float32 [k, n], rows of sum 1."""
    near = similarity[kept]  # [k, n]
    nearest = near.argmax(0, keepdim=True)  # the first of several
    weights = torch.zeros_like(near).scatter_(0, nearest, near.gather(0, nearest))
    weights[:, kept] = torch.eye(len(kept), device=kept.device)
    return weights / weights.sum(1, keepdim=True)
