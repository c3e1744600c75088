"""VisionZip: the tokens that get the attention, and averages of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import CosineRows
from gprune.pruners.base import MergingPruner, check_share, highest, into_kept, unchosen
from gprune.tokens import VisualTokens


@dataclass(frozen=True)
class VisionZip(MergingPruner):
    """Dominant tokens by attention, and contextual tokens that average the others.

    Yang, Chen, Tian, Wang, Li, Yu, Jia: "VisionZip: Longer is Better but Not Necessary in Vision
    Language Models", CVPR 2025, arXiv 2412.04467.

    Dominant tokens are those with the most attention in the vision encoder: from its CLS token,
    averaged over heads, or where there is none the mean that a token receives from all. Of the
    others, evenly spaced ones become targets; each of the rest goes into the target whose key in
    that layer is most similar (cosine), and a target becomes the mean of its members.

    The paper merges before the projector and keeps the CLS token as one of the dominant; here
    projected features are averaged, and the CLS token is no token of the models.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        contextual: share of the kept tokens that are contextual, in [0, 1), rounded down; 10 of 64
            as in the paper.

    Raises:
        ValueError: ``contextual`` is out of range.
    """

    contextual: float = 10 / 64

    name: ClassVar[str] = "visionzip"
    signals: ClassVar[tuple[str, ...]] = ("attention", "keys")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("contextual", self.contextual, "[0, 1)")

    def partition(self, tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor | None]:
        assert tokens.attention is not None  # by `signals`
        assert tokens.keys is not None
        n = len(tokens)
        targets = int(k * self.contextual)
        dominant = highest(tokens.attention.float(), k - targets)
        if targets == 0:
            return dominant, None
        rest = unchosen(dominant, n)
        step = len(rest) // targets
        target = rest[: step * targets : step]
        kept = torch.cat([dominant, target]).sort().values
        nearest = CosineRows(tokens.keys)[target].argmax(0)  # the first of several
        return kept, into_kept(kept, target[nearest])
