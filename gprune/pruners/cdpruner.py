"""CDPruner: diverse and relevant tokens, by a determinantal point process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gprune.graph import CosineRows, cosine_similarity, dense_fits
from gprune.pruners.base import Pruner
from gprune.pruners.greedy import RowReader
from gprune.pruners.registry import register
from gprune.pruners.relevance import relevance
from gprune.tokens import VisualTokens

# ε: keeps the weight of the least relevant token above 0, as in the released code.
RELEVANCE_FLOOR = 1e-6
# If less than this share of a token's variance is left after conditioning, the token is a linear
# combination of those chosen, up to the rounding of float32 similarities.
EXHAUSTED_SHARE = 1e-6


@register
@dataclass(frozen=True)
class CDPruner(Pruner):
    """Diverse tokens that are relevant to the question (conditional determinantal process).

    Zhang, Liu, Li, Lu, Zhang, Pan, She, Zhang: "Beyond Attention or Similarity: Maximizing
    Conditional Diversity for Token Pruning in MLLMs", NeurIPS 2025, arXiv 2506.10967.

        kernel = diag(r) · S · diag(r),   S the cosine similarity of projected features,
        r = (relevance − min + ε) / (max − min + ε),   ε = 10⁻⁶

    Greedy MAP inference adds, k times, the token that raises the determinant of the set's kernel
    most (Chen, Zhang, Zhou: "Fast Greedy MAP Inference for Determinantal Point Process", NeurIPS
    2018).

    With a CLIP text tower this is the released code (Theia-4869/CDPruner, commit 9541616,
    Apache-2.0), as described by its observed behaviour: relevance is **minus** the mean cosine of a
    patch with the embedding of each question text in CLIP's joint space, because CLIP's patches are
    less similar to a text the more they show of it. The paper's exponent that weighs relevance
    against diversity is not used there, and not here. Without a tower relevance is the mean cosine
    of a token's features with the language model's embeddings of the question, which is this
    project's form for models that have no CLIP.

    Differs on purpose: the released code has max − min without ε under the fraction, which scales
    the whole kernel and changes no choice. Its inference is in float32 without a floor, so that
    beyond the rank of S, which is at most the width of the features, rounding chooses. Here it is
    in float64, and a token of which less than 10⁻⁶ is left adds nothing; beyond the rank the lowest
    indices follow. If all tokens are equally relevant, r is 1, where the released code divides by
    0.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        text_tower: a `gprune.hf.CLIPTextTower`, or None.
    """

    text_tower: Any = None

    name: ClassVar[str] = "cdpruner"
    signals: ClassVar[tuple[str, ...]] = ("text",)

    def weights(self, tokens: VisualTokens) -> Tensor:
        """Returns r of every token, float64 [n]."""
        weights = relevance(tokens).double()
        weights = weights - weights.min() + RELEVANCE_FLOOR
        return weights / weights.max()

    def kernel(self, tokens: VisualTokens) -> Tensor:
        """Returns the kernel of the process, float64 [n, n]."""
        weights = self.weights(tokens)
        similarity = cosine_similarity(tokens.features).double()
        return weights[:, None] * similarity * weights

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        if not dense_fits(len(tokens)):
            kernel = KernelRows(CosineRows(tokens.features), self.weights(tokens))
            return greedy_map(kernel, k)[0].sort().values
        return greedy_map(self.kernel(tokens), k)[0].sort().values


class KernelRows:
    """Rows of `CDPruner.kernel`, for more tokens than `gprune.graph.dense_fits` allows.

    Indexed by tokens [r] it gives the matrix's own entries, float64 [r, n].
    """

    def __init__(self, similarity: CosineRows, weights: Tensor) -> None:
        self.similarity = similarity
        self.weights = weights

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        return self.weights[rows].unsqueeze(1) * self.similarity[rows].double() * self.weights

    def diagonal(self) -> Tensor:
        """Returns the diagonal of the kernel, [n]."""
        return self.weights * self.similarity.diagonal().double() * self.weights


def greedy_map(kernel: Tensor | KernelRows, k: int) -> tuple[Tensor, Tensor]:
    """Chooses ``k`` tokens greedily so that the determinant of their kernel is large.

    Args:
        kernel: positive semidefinite, float64 [n, n], or an object with its rows; k rows are read,
            and a factor of [k, n] is held.
        k: how many to choose, 1 to n. Beyond the kernel's rank the lowest indices follow.

    Returns:
        chosen: int64 [k] in the order of choice.
        gains: the factor by which each multiplied the determinant, [k].
    """
    rows = RowReader(kernel, prefetch=not isinstance(kernel, Tensor))
    left = kernel.diagonal().clone()  # the gain of each token if it were chosen next
    factor = left.new_zeros(k, len(left))  # the first rows of the Cholesky factor
    least = EXHAUSTED_SHARE * left
    chosen, gains = [], []
    for step in range(k):
        following = left.argmax(keepdim=True)  # the first of ties
        gain = left.index_select(0, following)
        known = factor[:step]
        row = rows.row(following, left)
        row = row - known.index_select(1, following).mT[0] @ known
        row = torch.where(gain > 0, row / gain.sqrt(), 0)
        factor[step] = row
        after = left - row.square()
        after = torch.where(after > least, after, 0)
        # Chosen tokens stay at -1, below every gain.
        left = torch.where(left < 0, -1, after).index_fill(0, following, -1)
        chosen.append(following)
        gains.append(gain)
    return torch.cat(chosen), torch.cat(gains)
