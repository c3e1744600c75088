"""TRIM: the tokens that the question ranks highest, and the mean of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gprune.pruners.base import Pruner
from gprune.pruners.outliers import outlier_count
from gprune.pruners.ranking import highest
from gprune.pruners.reduction import Reduction
from gprune.pruners.registry import register
from gprune.pruners.relevance import text_product, text_similarity
from gprune.tokens import VisualTokens

FORMS = ("released", "paper")


@register
@dataclass(frozen=True)
class TRIM(Pruner):
    """The tokens that the question ranks highest in CLIP's space, and the mean of all others.

    Song, Wang, Chen, Wang, Guan, Wang: "Less is More: A Simple yet Effective Token Reduction Method
    for Efficient Multi-modal LLMs", COLING 2025, arXiv 2409.10994. Where paper and released code
    differ, this is the code (repository FreedomIntelligence/TRIM, commit f5a232d), as its observed
    behaviour was described; selected tokens and the mean are tested against what it gave.

    The score of a token is the softmax over tokens of *minus* its dot product with the question's
    embedding, both in CLIP's joint space and neither of unit length: CLIP's patches are less
    similar to a text the more they show of it. For a budget of k rows, the k − 1 tokens of the
    highest score are kept, and the k-th row is the mean of all others. It takes the position of the
    last of them. With ``keep=1`` it is the only row, and ``keep=1.0`` changes nothing.

    CLIP's joint space needs ``text_tower``. Without it, which is no form of the authors, projected
    features are compared with the language model's embeddings of the prompt, and the score rises
    with the dot product; a text in several parts counts with the mean of their embeddings.

    Like the code, ``keep="adaptive"`` keeps the outliers of the score by the interquartile rule,
    above Q3 + 1.5 (Q3 − Q1), and the mean. Where there is no outlier the code fails; here the token
    of the highest score is kept. The code casts all rows to float16; here they keep their dtype.
    The mean is taken before the projector, where the model has one that works row by row; elsewhere
    it is a mean of projected features.

    ``form="paper"`` is the paper's text: the score rises with the cosine.

    Attributes:
        keep: retention ratio in (0, 1], a count >= 1, or ``"adaptive"`` (see `Pruner`).
        text_tower: a `gprune.hf.CLIPTextTower`, or None.
        form: ``released`` or ``paper``.

    Raises:
        ValueError: ``form`` is unknown.
    """

    text_tower: Any = None
    form: str = "released"

    name: ClassVar[str] = "trim"
    signals: ClassVar[tuple[str, ...]] = ("text",)
    optional_signals: ClassVar[tuple[str, ...]] = ("vision",)
    merges_before_projector: ClassVar[bool] = True
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r} must be {' or '.join(FORMS)}")

    def logits(self, tokens: VisualTokens) -> Tensor:
        """Returns the score before the softmax, which keeps the order, float32 [n]."""
        if self.form == "paper":
            return text_similarity(tokens)
        product = text_product(tokens)
        return product if tokens.aligned is None else -product

    def adaptive_count(self, tokens: VisualTokens) -> int:
        score = self.logits(tokens).double().softmax(0)
        return min(outlier_count(score) + 1, len(tokens))

    def choose(self, tokens: VisualTokens, k: int) -> Reduction:
        n, logits = len(tokens), self.logits(tokens)
        if k == n:
            return Reduction(torch.arange(n, device=logits.device))
        kept = highest(logits, k - 1)
        mean = torch.full_like(logits, 1 / (n - len(kept))).index_fill(0, kept, 0)
        return Reduction(kept, appended=mean[None])
