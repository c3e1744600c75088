"""LLaVA-PruMerge: tokens with high CLS attention, and sums of tokens with similar keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import CosineRows
from gprune.pruners.base import Pruner
from gprune.pruners.outliers import outlier_count
from gprune.pruners.reduction import Reduction
from gprune.pruners.registry import register
from gprune.pruners.validation import check_number
from gprune.tokens import VisualTokens

FORMS = ("released", "paper")


@register
@dataclass(frozen=True)
class PruMerge(Pruner):
    """The tokens with the most CLS attention, each with tokens of similar keys added to it.

    Shang, Cai, Xu, Lee, Yan: "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large
    Multimodal Models", ICCV 2025, arXiv 2403.15388. Where paper and released code differ, this is
    the code (repository 42Shawn/LLaVA-PruMerge, commit 097c041), as its observed behaviour was
    described; selected tokens and merged rows are tested against what it gave.

    a is the attention of the CLS token in the last layer of the vision encoder, with all heads as
    one: softmax(q Kᵀ / √w), where q and K hold all heads side by side and w is their width. The
    CLS token's attention to itself is left out and nothing is renormalised. For a budget of k rows,
    the k − 1 tokens with the most attention are kept, and each becomes

        yᵢ = xᵢ + Σ aⱼ xⱼ    over the ``neighbours`` other tokens nearest to i,

    nearest by the cosine of their keys in the last layer, kept tokens too. The token's own weight
    is 1, and the sum is not divided by the weights. The k-th row is no token's own: Σ aⱼ xⱼ over
    all tokens that are not kept. It takes the position of the last of them. x are the features of
    the encoder's layer that the model takes, and the rows are projected after merging, where the
    model has a projector that works row by row; elsewhere projected features are merged.

    The code's budgets count without the additional row: its 64 tokens are ``keep=65`` here. With
    ``keep=1`` that row is the only one, and ``keep=1.0`` changes nothing. In the code the number of
    tokens varies: ``keep="adaptive"`` keeps the outliers of a by the interquartile rule,
    a > Q3 + 1.5 (Q3 − Q1), and the additional row. (The code rounds n · (outliers / n) down, which
    can lose one at some n; it loses none at 576. If there is no outlier, one token is kept here.)
    The code puts rows out by descending attention; here they stay in raster order, because inside
    a model they keep their positions.

    ``form="paper"`` is the paper's text: k tokens are kept, each becomes the mean of itself and its
    nearest *dropped* tokens, weighted by a, and there is no additional row.

    In a canvas of several tiles each tile has its own softmax.

    Attributes:
        keep: retention ratio in (0, 1], a count >= 1, or ``"adaptive"`` (see `Pruner`).
        neighbours: number of tokens added to each kept one, >= 0.
        form: ``released`` or ``paper``.

    Raises:
        ValueError: ``neighbours`` is negative, or ``form`` is unknown.
    """

    neighbours: int = 32
    form: str = "released"

    name: ClassVar[str] = "prumerge"
    signals: ClassVar[tuple[str, ...]] = ("joint_cls_attention", "last_keys")
    optional_signals: ClassVar[tuple[str, ...]] = ("vision",)
    merges_before_projector: ClassVar[bool] = True
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("neighbours", self.neighbours, 0)
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r} must be {' or '.join(FORMS)}")

    @property
    def appends(self) -> bool:
        """Whether there is a row that is no token's own."""
        return self.form == "released"

    def adaptive_count(self, tokens: VisualTokens) -> int:
        assert tokens.attention is not None  # by `signals`
        return min(outlier_count(tokens.attention.float()) + self.appends, len(tokens))

    def order(self, attention: Tensor, count: int) -> Tensor:
        """Returns the tokens to keep in the order of the released code, int64 [count].

        Args:
            attention: float32 [n].
            count: number of tokens, the additional row not counted.
        """
        return torch.sort(attention, descending=True, stable=True).indices[:count]

    def choose(self, tokens: VisualTokens, k: int) -> Reduction:
        assert tokens.attention is not None  # by `signals`
        n, attention = len(tokens), tokens.attention.float()
        if k == n:
            return Reduction(torch.arange(n, device=attention.device))
        kept = self.order(attention, k - self.appends).sort().values
        return self.merge(tokens, attention, kept)

    def merge(self, tokens: VisualTokens, attention: Tensor, kept: Tensor) -> Reduction:
        """Merges tokens into the kept ones, int64 [m], ascending and unique; m may be 0 or n."""
        if self.form == "paper":
            return Reduction(kept, weights=self.mean_weights(tokens, attention, kept))
        weights = self.sum_weights(tokens, attention, kept)
        if len(kept) == len(tokens):
            return Reduction(kept, weights=weights)
        rest = attention.index_fill(0, kept, 0)
        return Reduction(kept, weights=weights, appended=rest[None])

    def sum_weights(self, tokens: VisualTokens, attention: Tensor, kept: Tensor) -> Tensor:
        """Returns the weights of the released code, float32 [m, n]."""
        if not len(kept):
            return attention.new_zeros(0, len(tokens))
        near = CosineRows(tokens.joint_keys())[kept]  # [m, n]
        own = kept[:, None]
        near.scatter_(1, own, -2)  # a token is not its own neighbour
        count = min(self.neighbours, len(tokens) - 1)
        order = torch.sort(near, dim=1, descending=True, stable=True).indices[:, :count]
        return torch.zeros_like(near).scatter_(1, order, attention[order]).scatter_(1, own, 1)

    def mean_weights(self, tokens: VisualTokens, attention: Tensor, kept: Tensor) -> Tensor:
        """Returns the weights of the paper, float32 [m, n]; each row sums to 1."""
        near = CosineRows(tokens.joint_keys())[kept]  # [m, n]
        near[:, kept] = -2  # kept tokens are no neighbours of each other
        near.scatter_(1, kept[:, None], 2)  # each is its own nearest
        count = 1 + min(self.neighbours, len(tokens) - len(kept))
        order = torch.sort(near, dim=1, descending=True, stable=True).indices[:, :count]
        share = attention.clamp(min=torch.finfo(torch.float32).tiny)[order]
        weights = torch.zeros_like(near).scatter_(1, order, share)
        return weights / weights.sum(1, keepdim=True)
