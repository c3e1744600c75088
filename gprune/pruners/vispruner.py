"""VisPruner: the most attended tokens, and the others without duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import cosine_similarity
from gprune.pruners.base import Pruner
from gprune.pruners.registry import register
from gprune.pruners.validation import check_share
from gprune.tokens import VisualTokens

# Duplicates that are dropped in one round.
DROPPED_PER_ROUND = 8


@register
@dataclass(frozen=True)
class VisPruner(Pruner):
    """The tokens with the most attention in the vision encoder, and others without duplicates.

    Zhang, Cheng, Shi, Lu, Zhang, Pan, She, Zhang: "Beyond Text-Visual Attention: Exploiting Visual
    Cues for Effective Token Pruning in VLMs", ICCV 2025, arXiv 2412.01818. Source of the facts: the
    observed behaviour of the released code (Theia-4869/VisPruner, commit aefa01a, Apache-2.0).

    The first ⌊k · ``important``⌋ tokens of the budget are those with the most attention: from the
    CLS token, averaged over heads, or if there is none the mean received from all. The others, in
    the order of their attention, lose duplicates in rounds: they alternate between two sets, and
    the (at most eight) tokens of the first that are most similar to any of the second, in cosine,
    are dropped, until the rest of the budget is met. In the next round the remaining tokens of the
    first set come first, in the order of similarity, then the second set. Cosines are those of
    features before the projector (signal ``vision``; of projected features where a model or caller
    does not give it). All of this is the released code's default.

    That order decides the next round's sets, so one near tie can change half of the choice: the
    float32 choice of the released code is not reproducible on most inputs of 576 tokens. Here ties
    go to the token with more attention, and the choice is the same on every run.

    Mended: the released code raises an error where the others are odd in number and a round is
    needed. Here the first set then has one token more.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        important: share of the kept tokens chosen by attention, in [0, 1], rounded down.

    Raises:
        ValueError: ``important`` is out of range.
    """

    important: float = 0.5

    name: ClassVar[str] = "vispruner"
    signals: ClassVar[tuple[str, ...]] = ("attention",)
    optional_signals: ClassVar[tuple[str, ...]] = ("vision",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("important", self.important)

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        assert tokens.attention is not None  # by `signals`
        order = torch.sort(tokens.attention.float(), descending=True, stable=True).indices
        important = int(k * self.important)
        rest = order[important:]
        if important < k:
            rest = distinct(cosine_similarity(tokens.before_projector()), rest, k - important)
            return torch.cat([order[:important], rest]).sort().values
        return order[:k].sort().values


def distinct(similarity: Tensor, rest: Tensor, count: int) -> Tensor:
    """Drops duplicates in rounds until ``count`` tokens are left; returns those, int64 [count].

    Args:
        similarity: of every pair of tokens, [n, n].
        rest: the tokens to choose from, int64 [m], in the order of attention.
        count: 1 to m.
    """
    while len(rest) > count:
        first, second = rest[::2], rest[1::2]
        dropped = min(DROPPED_PER_ROUND, len(rest) - count, len(first))
        nearest = similarity[first][:, second].amax(1)
        order = torch.sort(nearest, descending=True, stable=True).indices
        rest = torch.cat([first[order[dropped:]], second])
    return rest
