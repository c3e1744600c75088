"""LLaVA-PruMerge+: PruMerge with evenly spaced tokens added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.budget import ADAPTIVE
from gprune.device import to_device
from gprune.pruners.outliers import outlier_count
from gprune.pruners.prumerge import PruMerge
from gprune.pruners.ranking import unchosen
from gprune.pruners.raster import spread
from gprune.pruners.reduction import Reduction
from gprune.pruners.registry import register
from gprune.pruners.validation import check_share
from gprune.tokens import VisualTokens

SAMPLINGS = ("share", "fixed")


@register
@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """The tokens with the most CLS attention and evenly spaced ones, merged as in PruMerge.

    Shang, Cai, Xu, Lee, Yan: "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large
    Multimodal Models", ICCV 2025, arXiv 2403.15388 (PruMerge+). Attention, keys, merging and the
    additional row are those of `PruMerge`, with the same source for the released code; only the
    list of kept tokens is longer.

    ``keep="adaptive"`` is what the released code runs, and what the authors' results stand on. With
    o outliers of n tokens, added are the tokens 0, s, 2s… below n − 1 that are no outliers, where
    s = ⌊⌊n / o⌋ / 3⌋: about three for each outlier. (The last token is never added. The code has
    575 for n − 1, and fails where s is 0, which would need outliers in more than a third of the
    tokens; here s is at least 1.) A budget sets the number of rows: of the k − 1 kept tokens the
    share ``outliers`` are those with the most attention, and the others are evenly spaced among the
    remaining tokens, in raster order. The default share is that of ``adaptive``.

    ``sampling="fixed"`` is a variant in the released code for training, where ``keep`` is the share
    r of tokens chosen by attention: the m = ⌊rn⌋ with the most attention, and
    ⌊s/2⌋, ⌊s/2⌋ + s… below n − 1, with s = ⌊n/m⌋. So it keeps up to twice as many tokens as the
    budget, and the additional row. In the code a token that is chosen both ways comes out twice
    (`order` has its list); then it counts itself as its nearest neighbour, and another token is
    lost. Here it comes out once. The code also fails unless both parts have the same size, which is
    not needed here.

    Attributes:
        keep: retention ratio in (0, 1], a count >= 1, or ``"adaptive"`` (see `Pruner`).
        neighbours: see `PruMerge`.
        form: see `PruMerge`.
        outliers: share of the kept tokens chosen by attention, in (0, 1], rounded up.
        sampling: ``share``, or ``fixed`` for the variant for training.

    Raises:
        ValueError: a parameter is out of range, or ``fixed`` has ``keep="adaptive"``.
    """

    outliers: float = 0.25
    sampling: str = "share"

    name: ClassVar[str] = "prumerge_plus"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("outliers", self.outliers, "(0, 1]")
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling={self.sampling!r} must be {' or '.join(SAMPLINGS)}")
        if self.sampling == "fixed" and self.keep == ADAPTIVE:
            raise ValueError(
                "keep='adaptive' finds the number of tokens itself, and sampling='fixed' needs it; "
                "pass a share such as keep=0.125, or leave sampling out"
            )

    def adaptive_count(self, tokens: VisualTokens) -> int:
        assert tokens.attention is not None  # by `signals`
        kept = self.adaptive_order(tokens.attention.float())
        return min(len(kept) + self.appends, len(tokens))

    def order(self, attention: Tensor, count: int) -> Tensor:
        """Returns the tokens to keep in the order of the released code.

        Args:
            attention: float32 [n].
            count: number of tokens, the additional row not counted; ignored for
                ``keep="adaptive"``.

        Returns:
            int64 [count], the most attended first; more for ``sampling="fixed"``, where tokens can
            be repeated.
        """
        if self.keep == ADAPTIVE:
            return self.adaptive_order(attention)
        if self.sampling == "fixed":
            return self.fixed_order(attention, count)
        best = super().order(attention, -int(-count * self.outliers // 1))
        rest = unchosen(best, len(attention))
        even = to_device(spread(count - len(best), len(rest)), rest.device)
        return torch.cat([best, rest[even]])

    def adaptive_order(self, attention: Tensor) -> Tensor:
        """Returns the outliers of attention [n], then evenly spaced others, int64 [m]."""
        n, count = len(attention), outlier_count(attention)
        best = super().order(attention, count)
        # Rounded as in the released code, which divides twice.
        spacing = max(int(1 / (count / n)) // 3, 1)
        even = torch.arange(0, n - 1, spacing, device=best.device)
        return torch.cat([best, even[~torch.isin(even, best)]])

    def fixed_order(self, attention: Tensor, count: int) -> Tensor:
        """Returns ``count`` tokens of attention [n], then evenly spaced ones, with repetitions."""
        n = len(attention)
        best = super().order(attention, count)
        step = n // max(count, 1)
        even = torch.arange(step // 2, n - 1, step, device=best.device)
        return torch.cat([best, even])

    def choose(self, tokens: VisualTokens, k: int) -> Reduction:
        assert tokens.attention is not None  # by `signals`
        attention = tokens.attention.float()
        if self.keep == ADAPTIVE:
            return self.merge(tokens, attention, self.adaptive_order(attention).sort().values)
        if self.sampling == "fixed" and k < len(tokens):
            return self.merge(tokens, attention, torch.unique(self.fixed_order(attention, k)))
        return super().choose(tokens, k)
