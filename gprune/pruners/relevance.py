"""Relevance of each token to the question."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gprune.tokens import VisualTokens


def text_similarity(tokens: VisualTokens) -> Tensor:
    """Returns the mean cosine of each token with the question's embeddings, float32 [n]."""
    assert tokens.text is not None  # by `signals`
    # In float64, so that the order of summation does not change the float32 result.
    visual = F.normalize(tokens.in_text_space().double(), dim=1)
    question = F.normalize(tokens.text.double(), dim=1).mean(0)
    return (visual @ question).float()


def text_product(tokens: VisualTokens) -> Tensor:
    """Returns the mean dot product of each token with the question's embeddings, float32 [n].

    Neither side is brought to unit length. Products beyond float32's range become its limits.
    """
    assert tokens.text is not None  # by `signals`
    # In float64, as in `text_similarity`.
    product = tokens.in_text_space().double() @ tokens.text.double().mean(0)
    limits = torch.finfo(torch.float32)
    return product.clamp(limits.min, limits.max).float()


def relevance(tokens: VisualTokens) -> Tensor:
    """Returns the relevance of each token to the question, float32 [n]; only its order counts.

    `text_similarity`, or its negative in the space of a CLIP text tower, as in CDPruner's released
    code: CLIP's patches are less similar to a text the more they show of it.
    """
    similarity = text_similarity(tokens)
    return similarity if tokens.aligned is None else -similarity
