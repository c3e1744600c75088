"""SCOPE: what a token covers that is not yet covered, weighed by its saliency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import cosine_similarity
from gprune.pruners.base import Pruner, check_weight
from gprune.tokens import VisualTokens

# Gains that are computed together: about as fast as one.
AT_ONCE = 32


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
        similarity = cosine_similarity(tokens.features)
        lazy = similarity.device.type == "cpu"
        return greedy_cover(similarity, saliency, k, lazy)[0].sort().values


def greedy_cover(similarity: Tensor, saliency: Tensor, k: int, lazy: bool) -> tuple[Tensor, Tensor]:
    """Greedy maximisation of coverage gain times saliency.

    Args:
        similarity: symmetric, [n, n].
        saliency: float64 [n], >= 0.
        k: how many to choose, 1 to n.
        lazy: whether a gain is computed only where it can be the largest. What a token gains never
            grows, so an earlier gain is a bound (Minoux, 1978); but which ones can be the largest
            has to be read, for which an accelerator would stall.

    Returns:
        int64 [k] in the order of choice, ties to the lowest index; and the coverage of all tokens
        after each, float64 [k].
    """
    covered = torch.zeros_like(similarity[0])
    score = torch.full_like(saliency, torch.inf)
    chosen, coverage = [], []
    for _ in range(k):
        if lazy:
            _refresh(score, similarity, saliency, covered)
        else:
            gain = _gain(similarity, covered)
            score = torch.where(score < 0, -1, gain * saliency)
        following = score.argmax(keepdim=True)
        covered = torch.maximum(covered, similarity.index_select(0, following)[0])
        score = score.index_fill(0, following, -1)  # below all others
        chosen.append(following)
        coverage.append(covered.sum(dtype=torch.float64))
    return torch.cat(chosen), torch.stack(coverage)


def _gain(similarity: Tensor, covered: Tensor) -> Tensor:
    """What tokens, by their rows of the similarity [r, n], add to the coverage, float64 [r]."""
    # In float64, which holds such sums exactly: tokens that gain alike tie. S is symmetric.
    after = torch.maximum(similarity, covered).sum(1, dtype=torch.float64)
    return (after - covered.sum(dtype=torch.float64)).clamp(min=0)


def _refresh(score: Tensor, similarity: Tensor, saliency: Tensor, covered: Tensor) -> None:
    """Brings bounds of the score [n] up to date, in place, until the first of the largest is."""
    stale = score >= 0  # not those that were chosen
    while stale[first := score.argmax(keepdim=True)]:
        some = torch.where(stale, score, -1).topk(min(AT_ONCE, len(score))).indices
        some = torch.cat([first, some[stale[some]]])
        score[some] = _gain(similarity[some], covered) * saliency[some]
        stale[some] = False
