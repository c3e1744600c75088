"""ToDRE's first stage: the centres that leave no token far away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune import graph
from gprune.graph import cosine_similarity
from gprune.pruners.base import Pruner
from gprune.pruners.diversity import CosineDistance, farthest_first
from gprune.tokens import VisualTokens


@dataclass(frozen=True)
class ToDRE(Pruner):
    """Greedy k-center on features: the stage before the language model.

    Li, Yang, Lu: "ToDRE: Visual Token Pruning via Diversity and Task Awareness for Efficient Large
    Vision-Language Models", 2025, arXiv 2505.18757v1. Needs features only. Its second stage, which
    drops all visual tokens in late layers of the language model, is not part of this method, nor
    is the max-sum form that the paper's second version puts in the place of k centres.

    Distance is 1 - cosine. The first centre is the token with the largest total distance to all
    others; each next one is the token farthest from its nearest centre (`farthest_first`), so no
    token ends up farther from a centre, in the metric sqrt(2 - 2 cos), than twice the least radius
    possible. DivPrune differs in where it starts alone.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
    """

    name: ClassVar[str] = "todre"

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        if len(tokens) > graph.WHOLE:
            return self._choose_by_rows(tokens, k)
        distance = 1 - cosine_similarity(tokens.features)
        # Summed in float64: the order of summation must not decide between near equals.
        first = distance.sum(1, dtype=torch.float64).argmax()
        return farthest_first(distance, first, k).sort().values

    @staticmethod
    def _choose_by_rows(tokens: VisualTokens, k: int) -> Tensor:
        """The same tokens without the n-by-n matrix."""
        distance = CosineDistance(tokens.features)
        sums = [
            (1 - similarity).sum(1, dtype=torch.float64)
            for _, similarity in distance.similarity.blocks()
        ]
        return farthest_first(distance, torch.cat(sums).argmax(), k, ahead=True).sort().values
