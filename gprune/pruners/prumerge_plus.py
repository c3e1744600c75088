"""LLaVA-PruMerge+: PruMerge with evenly spaced tokens added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.device import to_device
from gprune.pruners.prumerge import PruMerge
from gprune.pruners.ranking import highest, unchosen
from gprune.pruners.raster import spread
from gprune.pruners.registry import register
from gprune.pruners.validation import check_share


@register
@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """The tokens with the most CLS attention and evenly spaced ones, averaged as in PruMerge.

    Shang, Cai, Xu, Lee, Yan: "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large
    Multimodal Models", ICCV 2025, arXiv 2403.15388 (PruMerge+).

    As `PruMerge`, but only the share ``outliers`` of the kept tokens are those with the most CLS
    attention; the others are evenly spaced among the remaining tokens, in raster order. In the
    paper the number of tokens varies; the released code takes three evenly spaced tokens for each
    outlier, which is the default share here.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        neighbours: see `PruMerge`.
        outliers: share of the kept tokens chosen by attention, in (0, 1], rounded up.

    Raises:
        ValueError: a parameter is out of range.
    """

    outliers: float = 0.25

    name: ClassVar[str] = "prumerge_plus"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("outliers", self.outliers, "(0, 1]")

    def centres(self, attention: Tensor, k: int) -> Tensor:
        count = -int(-k * self.outliers // 1)
        best = highest(attention, count)
        rest = unchosen(best, len(attention))
        even = to_device(spread(k - count, len(rest)), rest.device)
        return torch.cat([best, rest[even]]).sort().values
