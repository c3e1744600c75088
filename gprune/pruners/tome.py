"""ToMe: merging of the most similar tokens by bipartite soft matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import BLOCK_ROWS, UnitRows
from gprune.pruners.base import Pruner
from gprune.pruners.reduction import Reduction, mean_features
from gprune.pruners.registry import register
from gprune.tokens import VisualTokens


@register
@dataclass(frozen=True)
class ToMe(Pruner):
    """The means left when the most similar tokens are merged by bipartite soft matching.

    Bolya, Fu, Dai, Zhang, Feichtenhofer, Hoffman: "Token Merging: Your ViT But Faster", ICLR 2023,
    arXiv 2210.09461 (section 3). Source of the facts: the observed behaviour of the released code
    (facebookresearch/ToMe, commit af95e4b, CC BY-NC 4.0).

    In a round, the t remaining tokens alternate between two sets. Each token of the first is
    matched with the most similar of the second (cosine, the first of several), and the
    min(t − k, ⌊t/2⌋) most similar pairs merge into the mean of all their members, at the position
    of the second. The next round alternates over the first set's unmerged tokens, in the order of
    falling similarity, and then the second set: where t is odd, this order decides the sets. All
    of this is the released code's merging without a class token.

    Differs on purpose: the paper and its code merge r tokens in every layer of a ViT, by the
    similarity of keys. Here, before the language model, features are matched in rounds until k
    tokens are left; the order of a round is not that of the result, which ascends.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
    """

    name: ClassVar[str] = "tome"

    def choose(self, tokens: VisualTokens, k: int) -> Reduction:
        device = tokens.features.device
        order = torch.arange(len(tokens), device=device)  # the token that each mean is at, [t]
        members = order.clone()
        while len(order) > k:
            means = mean_features(tokens.features.float(), members, len(order))
            best, match = most_similar(means)
            merged = min(len(order) - k, len(order) // 2)
            ranked = torch.sort(best, descending=True, stable=True).indices
            merging, left = ranked[:merged], ranked[merged:]
            second = torch.arange(1, len(order), 2, device=device)
            following = torch.cat([2 * left, second])
            place = torch.empty_like(order)  # of each mean in the next round
            place[following] = torch.arange(len(following), device=device)
            place[2 * merging] = len(left) + match[merging]
            members = place[members]
            order = order[following]
        kept, by_index = order.sort()
        return Reduction(kept, by_index.argsort()[members])


def most_similar(features: Tensor) -> tuple[Tensor, Tensor]:
    """Matches each token at an even index with the most similar one at an odd index, by cosine.

    Args:
        features: [n, d].

    Returns:
        best: similarity of each match, float32 [⌈n/2⌉].
        match: position among the tokens at odd indices, int64 [⌈n/2⌉]; ties go to the first.
    """
    unit = UnitRows(features)
    every = torch.arange(len(unit), device=features.device)
    best, match = [], []
    for rows in torch.split(every[::2], BLOCK_ROWS):
        similarity = unit.similarity(rows, every[1::2])
        best.append(similarity.amax(1))
        match.append(similarity.argmax(1))
    return torch.cat(best), torch.cat(match)
