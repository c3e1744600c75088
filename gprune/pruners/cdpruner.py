"""CDPruner: diverse tokens that matter to the question, by a determinantal point process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gprune import graph
from gprune.graph import CosineRows, cosine_similarity
from gprune.pruners.base import Pruner
from gprune.pruners.diversity import RowReader
from gprune.pruners.relevance import relevance
from gprune.tokens import VisualTokens

# Keeps the least relevant token possible, as in the released code.
LEAST = 1e-6
# Share of a token's variance left after conditioning, below which it is a combination of those
# chosen, but for the rounding of float32 similarities.
EXHAUSTED = 1e-6


@dataclass(frozen=True)
class CDPruner(Pruner):
    """Greedy MAP of a determinantal point process that is conditioned on the question.

    Zhang, Liu, Li, Lu, Zhang, Pan, She, Zhang: "Beyond Attention or Similarity: Maximizing
    Conditional Diversity for Token Pruning in MLLMs", NeurIPS 2025, arXiv 2506.10967.

        kernel = diag(r) · S · diag(r),   S the cosine similarity of features,
        r = (relevance − min + ε) / (max − min + ε)

    and the set grows, k times, by the token that raises the determinant of its kernel most (Chen,
    Zhang, Zhou: "Fast Greedy MAP Inference for Determinantal Point Process", NeurIPS 2018).

    Relevance is the mean cosine of a token with the question's embeddings: those of the language
    model itself. With a CLIP text tower, as the paper has it for LLaVA, tokens are compared in
    CLIP's space; there relevance is the negative cosine, as in the released code, because patches
    of CLIP are the less similar to a text the more they show of it.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        text_tower: a `gprune.hf.CLIPTextTower`, or None.
    """

    text_tower: Any = None

    name: ClassVar[str] = "cdpruner"
    signals: ClassVar[tuple[str, ...]] = ("text",)

    def weights(self, tokens: VisualTokens) -> Tensor:
        """r of every token, float64 [n]."""
        weights = relevance(tokens).double()
        weights = weights - weights.min() + LEAST
        return weights / weights.max()

    def kernel(self, tokens: VisualTokens) -> Tensor:
        """The kernel of the process, float64 [n, n]."""
        weights = self.weights(tokens)
        similarity = cosine_similarity(tokens.features).double()
        return weights[:, None] * similarity * weights

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        if len(tokens) > graph.WHOLE:
            kernel = KernelRows(CosineRows(tokens.features), self.weights(tokens))
            return greedy_map(kernel, k)[0].sort().values
        return greedy_map(self.kernel(tokens), k)[0].sort().values


class KernelRows:
    """`CDPruner.kernel` row by row, for more tokens than there is memory for the whole matrix.

    Indexed by tokens [r] it gives float64 [r, n], the entries of the matrix.
    """

    def __init__(self, similarity: CosineRows, weights: Tensor) -> None:
        self.similarity = similarity
        self.weights = weights

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        return self.weights[rows].unsqueeze(1) * self.similarity[rows].double() * self.weights

    def diagonal(self) -> Tensor:
        """Of the kernel, [n]."""
        return self.weights * self.similarity.diagonal().double() * self.weights


def greedy_map(kernel: Tensor | KernelRows, k: int) -> tuple[Tensor, Tensor]:
    """The set of ``k`` whose kernel has the largest determinant, greedily.

    Args:
        kernel: positive semidefinite, float64 [n, n], or what gives its rows; k rows are read, and
            a factor of [k, n] is held.
        k: how many to choose, 1 to n. Beyond the kernel's rank the lowest indices follow.

    Returns:
        int64 [k] in the order of choice, and by what each multiplied the determinant, [k].
    """
    rows = RowReader(kernel, ahead=not isinstance(kernel, Tensor))
    left = kernel.diagonal().clone()  # by what each token would multiply the determinant
    factor = left.new_zeros(k, len(left))  # rows of the Cholesky factor, as far as it is known
    least = EXHAUSTED * left
    chosen, gains = [], []
    for step in range(k):
        following = left.argmax(keepdim=True)  # the first of several
        gain = left.index_select(0, following)
        known = factor[:step]
        row = rows.row(following, left)
        row = row - known.index_select(1, following).mT[0] @ known
        row = torch.where(gain > 0, row / gain.sqrt(), 0)
        factor[step] = row
        after = left - row.square()
        after = torch.where(after > least, after, 0)
        # Those chosen stay at -1, below every gain.
        left = torch.where(left < 0, -1, after).index_fill(0, following, -1)
        chosen.append(following)
        gains.append(gain)
    return torch.cat(chosen), torch.cat(gains)
