"""ToMe: merging of the most similar tokens by bipartite soft matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import BLOCK_ROWS, UnitRows
from gprune.pruners.base import Pruner
from gprune.pruners.ranking import highest, unchosen
from gprune.pruners.reduction import Reduction, mean_features
from gprune.pruners.registry import register
from gprune.tokens import VisualTokens


@register
@dataclass(frozen=True)
class ToMe(Pruner):
    """The means left when the most similar tokens are merged by bipartite soft matching.

    Bolya, Fu, Dai, Zhang, Feichtenhofer, Hoffman: "Token Merging: Your ViT But Faster", ICLR 2023,
    arXiv 2210.09461 (section 3). The paper merges r tokens in every layer of a ViT, by the
    similarity of keys. Here, before the language model, features are matched in rounds until k
    tokens are left.

    In a round, the remaining tokens alternate between two sets. Each token of the first is matched
    with the most similar of the second (cosine), and the most similar pairs merge into the mean of
    all their members, at the position of the second.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
    """

    name: ClassVar[str] = "tome"

    def choose(self, tokens: VisualTokens, k: int) -> Reduction:
        device = tokens.features.device
        kept = torch.arange(len(tokens), device=device)
        members = kept.clone()
        while len(kept) > k:
            means = mean_features(tokens.features.float(), members, len(kept))
            best, match = most_similar(means)
            merging = highest(best, min(len(kept) - k, len(best)))
            target = torch.arange(len(kept), device=device)
            target[2 * merging] = 2 * match[merging] + 1
            left = unchosen(2 * merging, len(kept))
            index = torch.arange(len(left), device=device)
            index = torch.zeros_like(target).index_copy_(0, left, index)  # position in `left`
            members = index[target[members]]
            kept = kept[left]
        return Reduction(kept, members)


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
