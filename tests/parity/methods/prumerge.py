"""How PruMerge and PruMerge+ are asked."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from gprune import PruMerge, PruMergePlus, VisualTokens
from tests.parity.vectors_io import Outcome, Vector


def group(vector: Vector) -> VisualTokens:
    """Returns the tokens before the projector, with the attention of all heads as one."""
    keys, query = vector.tensors["keys"], vector.tensors["cls_query"]
    attention = torch.softmax(query @ keys.T * keys.shape[1] ** -0.5, 0)
    return VisualTokens(
        vector.tensors["vision"], grid=vector.grid, attention=attention[1:], keys=keys[1:]
    )


def outcome(pruner: PruMerge, tokens: VisualTokens, order: Tensor | None) -> Outcome:
    """Reduces the tokens; kept rows are apart from the additional one."""
    found = pruner.reduce(tokens)
    assert found.weights is not None
    merged = found.weights @ tokens.features
    facts = {} if order is None else {"order": order.tolist()}
    return Outcome(found.kept.tolist(), merged, found.appended_features(tokens.features), facts)


def count_of(vector: Vector, tokens: VisualTokens) -> int:
    """Returns a vector's count; of a ratio such as 1/8 the count rounded down."""
    if isinstance(vector.k, int):
        return vector.k
    return int(len(tokens) * Fraction(str(vector.k)))


def prumerge(vector: Vector) -> Outcome:
    """Asks for one row more than the vector's count, which leaves out the additional row."""
    tokens = group(vector)
    assert tokens.attention is not None
    if vector.k == "adaptive":
        pruner = PruMerge("adaptive")
        count = pruner.adaptive_count(tokens) - 1
        return outcome(pruner, tokens, pruner.order(tokens.attention, count))
    return outcome(PruMerge(count_of(vector, tokens) + 1), tokens, None)


def prumerge_plus(vector: Vector) -> Outcome:
    """Asks for the adaptive form, or for the variant for training with a share such as 1/8."""
    tokens = group(vector)
    assert tokens.attention is not None
    if vector.k == "adaptive":
        adaptive = PruMergePlus("adaptive")
        return outcome(adaptive, tokens, adaptive.order(tokens.attention, 0))
    count = count_of(vector, tokens)
    fixed = PruMergePlus(count, sampling="fixed")
    return outcome(fixed, tokens, fixed.order(tokens.attention, count))


METHODS = {"prumerge": prumerge, "prumerge_plus": prumerge_plus}
