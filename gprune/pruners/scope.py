"""SCOPE: greedy coverage weighted by saliency."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import cosine_similarity
from gprune.pruners.base import Pruner
from gprune.pruners.registry import register
from gprune.pruners.validation import check_number, check_weight
from gprune.tokens import VisualTokens

# Gains that are computed together, which takes about as long as computing one.
GAINS_PER_BATCH = 32


COMBINATIONS = ("multiply", "add")


@register
@dataclass(frozen=True)
class SCOPE(Pruner):
    """Salient tokens that together are similar to all others (greedy coverage).

    Deng, Li, Zhou, He: "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel
    LLMs", NeurIPS 2025, arXiv 2510.24214. Source of the facts: the observed behaviour of the
    released code (kinredon/SCOPE, commit 6bf7306, no licence stated at the top).

    A set K covers token i by the largest similarity to it, c(i) = max over j in K of S(i, j), which
    starts at 0, so that negative similarities count for nothing. The next token is the one with the
    largest

        Σ over i of max(0, S(i, j) − c(i))   ·   aⱼ^power

    that is, its gain in coverage times its saliency, where S is the cosine of features before the
    projector (signal ``vision``; of projected features where a model or caller does not give it),
    and a the attention of the vision encoder's CLS token. This and ``power=1`` is the default of
    the released code.

    ``combine="add"``, an option of the released code, adds gain and saliency. The released code
    sums a over heads. Here a is the mean over heads, which changes no product's order; a sum takes
    it times ``heads``.

    Gains are computed in float64 from float32 similarities, while the released code computes in the
    dtype of the features, so a choice in float16 can differ there by rounding. The released code
    divides its budget by the number of images; here ``keep`` applies to each.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        power: weight of saliency against coverage, >= 0; 0 is coverage alone. ALPHA in the released
            code.
        combine: how gain and saliency are combined, ``multiply`` or ``add``.
        heads: heads of the encoder's attention, >= 1; read by ``combine="add"`` alone. The CLIP
            encoder of LLaVA-1.5 has 16.

    Raises:
        ValueError: a parameter is out of range.
    """

    power: float = 1.0
    combine: str = "multiply"
    heads: int = 16

    name: ClassVar[str] = "scope"
    signals: ClassVar[tuple[str, ...]] = ("cls_attention",)
    optional_signals: ClassVar[tuple[str, ...]] = ("vision",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight("power", self.power)
        check_number("heads", self.heads, 1)
        if self.combine not in COMBINATIONS:
            raise ValueError(f"combine={self.combine!r} must be {' or '.join(COMBINATIONS)}")

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        assert tokens.attention is not None  # by `signals`
        attention = tokens.attention.double().clamp(min=0)
        add = self.combine == "add"
        saliency = (attention * self.heads if add else attention) ** self.power
        similarity = cosine_similarity(tokens.before_projector())
        lazy = similarity.device.type == "cpu"
        return greedy_cover(similarity, saliency, k, lazy, add)[0].sort().values


def greedy_cover(
    similarity: Tensor, saliency: Tensor, k: int, lazy: bool, add: bool = False
) -> tuple[Tensor, Tensor]:
    """Chooses ``k`` tokens, each by the largest coverage gain times, or plus, saliency.

    Args:
        similarity: symmetric, [n, n].
        saliency: float64 [n], >= 0.
        k: how many to choose, 1 to n.
        lazy: whether to compute only the gains that can be the largest. A token's gain never grows,
            so an earlier gain is an upper bound (Minoux, 1978). Finding out which can be the
            largest synchronises an accelerator.
        add: whether saliency is added to the gain instead of multiplied with it.

    Returns:
        chosen: int64 [k] in the order of choice, ties to the lowest index.
        coverage: total coverage after each choice, float64 [k].
    """
    combine = torch.add if add else torch.mul
    covered = torch.zeros_like(similarity[0])
    score = torch.full_like(saliency, torch.inf)
    chosen, coverage = [], []
    for _ in range(k):
        if lazy:
            _refresh(score, similarity, saliency, covered, combine)
        else:
            score = torch.where(score < 0, -1, combine(_gain(similarity, covered), saliency))
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


def _refresh(
    score: Tensor,
    similarity: Tensor,
    saliency: Tensor,
    covered: Tensor,
    combine: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Recomputes upper bounds of the score [n] in place until the largest is exact."""
    stale = score >= 0  # chosen tokens are below 0
    while stale[first := score.argmax(keepdim=True)]:
        batch = torch.where(stale, score, -1).topk(min(GAINS_PER_BATCH, len(score))).indices
        batch = torch.cat([first, batch[stale[batch]]])
        score[batch] = combine(_gain(similarity[batch], covered), saliency[batch])
        stale[batch] = False
