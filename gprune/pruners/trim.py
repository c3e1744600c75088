"""TRIM: the tokens most similar to the question, and one that sums up the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gprune.pruners.base import MergingPruner, into_kept
from gprune.pruners.relevance import text_similarity
from gprune.tokens import VisualTokens


@dataclass(frozen=True)
class TRIM(MergingPruner):
    """The tokens most similar to the question, and the mean of all others as one more.

    Song, Wang, Chen, Wang, Guan, Wang: "Less is More: A Simple yet Effective Token Reduction Method
    for Efficient Multi-modal LLMs", COLING 2025, arXiv 2409.10994.

    A token's score is its cosine with the question, the mean over the question's embeddings. The
    paper compares in the space of the vision encoder's own CLIP, for which ``text_tower`` is; by
    default the language model's embeddings of the question are compared with projected features.

    The paper's number of tokens varies: it keeps the outliers of the (softmax of the) score by the
    interquartile rule. Here k − 1 tokens of the highest score are kept and the mean of all others
    stands in the place of the next; the softmax does not change the order.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        text_tower: a `gprune.hf.CLIPTextTower`, or None.
    """

    text_tower: Any = None

    name: ClassVar[str] = "trim"
    signals: ClassVar[tuple[str, ...]] = ("text",)

    def partition(self, tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor | None]:
        order = torch.sort(text_similarity(tokens), descending=True, stable=True).indices
        kept = order[:k].sort().values
        rest = order[k - 1 : k].expand(len(tokens))  # what stands for all others
        return kept, into_kept(kept, rest)
