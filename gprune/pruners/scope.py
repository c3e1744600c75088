"""SCOPE: what a token covers that is not yet covered, weighed by its saliency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import cosine_similarity
from gprune.pruners.base import Pruner, check_weight
from gprune.tokens import VisualTokens


@dataclass(frozen=True)
class SCOPE(Pruner):
    """Greedy coverage of all tokens by salient ones.

    Deng, Li, Zhou, He: "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel
    LLMs", NeurIPS 2025, arXiv 2510.24214.

    A set S covers token i by its largest similarity to it, c(i) = max over j in S of S(i, j), which
    begins at 0. The next token is the one with the largest

        Σ over i of max(0, S(i, j) − c(i))   ·   aⱼ^power

    its gain in coverage times its saliency, where S is the cosine of features and a the attention
    of the vision encoder's CLS token, averaged over heads. ``power`` is this project's choice.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        power: weight of saliency against coverage, >= 0; 0 is coverage alone.

    Raises:
        ValueError: ``power`` is negative or not finite.
    """

    power: float = 1.0

    name: ClassVar[str] = "scope"
    signals: ClassVar[tuple[str, ...]] = ("cls_attention",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight("power", self.power)

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        assert tokens.attention is not None  # by `signals`
        saliency = tokens.attention.double().clamp(min=0) ** self.power
        return greedy_cover(cosine_similarity(tokens.features), saliency, k)[0].sort().values


def greedy_cover(similarity: Tensor, saliency: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Greedy maximisation of coverage gain times saliency.

    Args:
        similarity: symmetric, [n, n].
        saliency: float64 [n], >= 0.
        k: how many to choose, 1 to n.

    Returns:
        int64 [k] in the order of choice, ties to the lowest index; and the coverage of all tokens
        after each, float64 [k].
    """
    covered = torch.zeros_like(similarity[0])
    free = torch.ones_like(saliency, dtype=torch.bool)
    chosen, coverage = [], []
    for _ in range(k):
        # In float64, which holds such sums exactly: tokens that gain alike tie. S is symmetric.
        gain = torch.maximum(similarity, covered).sum(1, dtype=torch.float64)
        gain = gain - covered.sum(dtype=torch.float64)
        score = torch.where(free, gain * saliency, -1)
        following = score.argmax(keepdim=True)
        covered = torch.maximum(covered, similarity.index_select(0, following)[0])
        free = free.index_fill(0, following, False)
        chosen.append(following)
        coverage.append(covered.sum(dtype=torch.float64))
    return torch.cat(chosen), torch.stack(coverage)
