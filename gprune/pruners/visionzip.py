"""VisionZip: the most attended tokens, and averages of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gprune.graph import CosineRows
from gprune.pruners.base import Pruner
from gprune.pruners.ranking import highest, unchosen
from gprune.pruners.reduction import Reduction, members_of
from gprune.pruners.registry import register
from gprune.pruners.validation import check_share
from gprune.tokens import VisualTokens


@register
@dataclass(frozen=True)
class VisionZip(Pruner):
    """The tokens with the most attention, and contextual tokens that average the others.

    Yang, Chen, Tian, Wang, Li, Yu, Jia: "VisionZip: Longer is Better but Not Necessary in Vision
    Language Models", CVPR 2025, arXiv 2412.04467.

    Dominant tokens are those with the most attention in the vision encoder: from its CLS token,
    averaged over heads, or if there is none the mean that a token receives from all. Of the others,
    evenly spaced ones become targets; each of the rest goes into the target whose key in that layer
    is most similar (cosine), and a target becomes the mean of its members.

    The paper merges before the projector and keeps the CLS token as a dominant one; here projected
    features are averaged, and there is no CLS token, because the models drop it.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        contextual: share of the kept tokens that are contextual, in [0, 1), rounded down; 10 of 64
            in the paper.

    Raises:
        ValueError: ``contextual`` is out of range.
    """

    contextual: float = 10 / 64

    name: ClassVar[str] = "visionzip"
    signals: ClassVar[tuple[str, ...]] = ("attention", "keys")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("contextual", self.contextual, "[0, 1)")

    def choose(self, tokens: VisualTokens, k: int) -> Reduction:
        assert tokens.attention is not None  # by `signals`
        n = len(tokens)
        targets = int(k * self.contextual)
        dominant = highest(tokens.attention.float(), k - targets)
        if targets == 0:
            return Reduction(dominant)
        rest = unchosen(dominant, n)
        step = len(rest) // targets
        target = rest[: step * targets : step]
        kept = torch.cat([dominant, target]).sort().values
        nearest = CosineRows(tokens.joint_keys())[target].argmax(0)  # ties to the first
        return Reduction(kept, members_of(kept, target[nearest]))
