"""SCOPE: greedy coverage weighted by saliency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import cosine_similarity
from gprune.pruners.base import Pruner
from gprune.pruners.registry import register
from gprune.pruners.validation import check_weight
from gprune.tokens import VisualTokens

# Gains that are computed together, which takes about as long as computing one.
GAINS_PER_BATCH = 32


@register
@dataclass(frozen=True)
class SCOPE(Pruner):
    """Salient tokens that together are similar to all others (greedy coverage).

    Deng, Li, Zhou, He: "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel
    LLMs", NeurIPS 2025, arXiv 2510.24214.

    A set K covers token i by the largest similarity to it, c(i) = max over j in K of S(i, j), which
    starts at 0. The next token is the one with the largest

        Σ over i of max(0, S(i, j) − c(i))   ·   aⱼ^power

    that is, its gain in coverage times its saliency, where S is the cosine of features and a the
    attention of the vision encoder's CLS token, averaged over heads. ``power`` is this project's
    choice.

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
    """Chooses ``k`` tokens, each by the largest coverage gain times saliency.

    Args:
        similarity: symmetric, [n, n].
        saliency: float64 [n], >= 0.
        k: how many to choose, 1 to n.
        lazy: whether to compute only the gains that can be the largest. A token's gain never grows,
            so an earlier gain is an upper bound (Minoux, 1978). Finding out which can be the
            largest synchronises an accelerator.

    Returns:
        chosen: int64 [k] in the order of choice, ties to the lowest index.
        coverage: total coverage after each choice, float64 [k].
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
        score = score.index_fill(0, following, -1)  # below all others, so it is never chosen again
        chosen.append(following)
        coverage.append(covered.sum(dtype=torch.float64))
    return torch.cat(chosen), torch.stack(coverage)


def _gain(similarity: Tensor, covered: Tensor) -> Tensor:
    """Returns the coverage that tokens would add, float64 [r].

    Args:
        similarity: rows of the tokens, [r, n].
        covered: coverage of every token so far, [n].
    """
    # Such sums are exact in float64, so equal gains tie. The similarity is symmetric.
    after = torch.maximum(similarity, covered).sum(1, dtype=torch.float64)
    return (after - covered.sum(dtype=torch.float64)).clamp(min=0)


def _refresh(score: Tensor, similarity: Tensor, saliency: Tensor, covered: Tensor) -> None:
    """Recomputes upper bounds of the score [n] in place until the largest is exact."""
    stale = score >= 0  # chosen tokens are below 0
    while stale[first := score.argmax(keepdim=True)]:
        batch = torch.where(stale, score, -1).topk(min(GAINS_PER_BATCH, len(score))).indices
        batch = torch.cat([first, batch[stale[batch]]])
        score[batch] = _gain(similarity[batch], covered) * saliency[batch]
        stale[batch] = False
