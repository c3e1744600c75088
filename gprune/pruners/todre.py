"""ToDRE's first stage: greedy k-centre on features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import cosine_similarity, dense_fits
from gprune.pruners.base import Pruner
from gprune.pruners.greedy import CosineDistance, farthest_first
from gprune.pruners.registry import register
from gprune.tokens import VisualTokens


@register
@dataclass(frozen=True)
class ToDRE(Pruner):
    """Greedy k-centres of the features, the most distant token first.

    Li, Yang, Lu: "ToDRE: Visual Token Pruning via Diversity and Task Awareness for Efficient Large
    Vision-Language Models", 2025, arXiv 2505.18757v1. Reads features only. This is the stage before
    the language model. The second stage, which drops all visual tokens in late layers of the
    language model, is not implemented, nor is the max-sum form that replaces k-centre in the
    paper's second version.

    No released code could be found (November 2026): this class follows the paper alone, and nothing
    shows that it selects what its authors' program does.

    Distance is 1 - cosine. The first centre is the token with the largest total distance to all
    others; each next one is the token farthest from its nearest centre (`farthest_first`), so no
    token ends up farther from a centre, in the metric sqrt(2 - 2 cos), than twice the least radius
    possible. DivPrune differs only in its first token.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
    """

    name: ClassVar[str] = "todre"

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        if not dense_fits(len(tokens)):
            return self._choose_by_rows(tokens, k)
        distance = 1 - cosine_similarity(tokens.features)
        # In float64: the order of summation must not decide between near equals.
        first = distance.sum(1, dtype=torch.float64).argmax()
        return farthest_first(distance, first, k).sort().values

    @staticmethod
    def _choose_by_rows(tokens: VisualTokens, k: int) -> Tensor:
        """Chooses the same tokens without the n-by-n matrix."""
        distance = CosineDistance(tokens.features)
        sums = [
            (1 - similarity).sum(1, dtype=torch.float64)
            for _, similarity in distance.similarity.blocks()
        ]
        return farthest_first(distance, torch.cat(sums).argmax(), k, prefetch=True).sort().values
