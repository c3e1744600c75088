"""TRIM: the tokens most similar to the question, and the mean of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from gprune.pruners.base import Pruner
from gprune.pruners.reduction import Reduction, members_of
from gprune.pruners.registry import register
from gprune.pruners.relevance import text_similarity
from gprune.tokens import VisualTokens


@register
@dataclass(frozen=True)
class TRIM(Pruner):
    """The tokens most similar to the question, and one that is the mean of all others.

    Song, Wang, Chen, Wang, Guan, Wang: "Less is More: A Simple yet Effective Token Reduction Method
    for Efficient Multi-modal LLMs", COLING 2025, arXiv 2409.10994.

    A token's score is its mean cosine with the question's embeddings. The paper compares in the
    space of the vision encoder's own CLIP, which ``text_tower`` provides; by default the language
    model's embeddings of the question are compared with projected features.

    In the paper the number of tokens varies: it keeps the outliers of the (softmax of the) score by
    the interquartile rule. Here the k − 1 tokens of the highest score are kept, and the mean of all
    others takes the position of the next; the softmax does not change the order.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        text_tower: a `gprune.hf.CLIPTextTower`, or None.
    """

    text_tower: Any = None

    name: ClassVar[str] = "trim"
    signals: ClassVar[tuple[str, ...]] = ("text",)

    def choose(self, tokens: VisualTokens, k: int) -> Reduction:
        order = torch.sort(text_similarity(tokens), descending=True, stable=True).indices
        kept = order[:k].sort().values
        target = order[k - 1 : k].expand(len(tokens))  # all others go into the k-th
        return Reduction(kept, members_of(kept, target))
