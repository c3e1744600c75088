"""How much each token has to do with the question."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gprune.tokens import VisualTokens


def text_similarity(tokens: VisualTokens) -> Tensor:
    """The mean cosine of each token with the question's embeddings, float32 [n]."""
    assert tokens.text is not None  # by `signals`
    # In float64, so that the order of summation is below what float32 resolves.
    own = F.normalize(tokens.in_text_space().double(), dim=1)
    question = F.normalize(tokens.text.double(), dim=1).mean(0)
    return (own @ question).float()


def relevance(tokens: VisualTokens) -> Tensor:
    """How much each token has to do with the question, float32 [n]; any scale.

    `text_similarity`, but its negative in the space of a CLIP text tower: patches of CLIP are the
    less similar to a text the more they show of it, as CDPruner's released code has it.
    """
    similarity = text_similarity(tokens)
    return similarity if tokens.aligned is None else -similarity
