"""HiPrune: objects by the attention of a middle layer, context by that of a deep layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.pruners.base import Pruner
from gprune.pruners.ranking import highest
from gprune.pruners.registry import register
from gprune.pruners.validation import check_share
from gprune.tokens import VisualTokens


@register
@dataclass(frozen=True)
class HiPrune(Pruner):
    """The most attended tokens of a middle layer, their neighbours, and those of a deep layer.

    Liu, Du, Zhu, Lian, Li, Chen: "HiPrune: Training-Free Visual Token Pruning via Hierarchical
    Attention in Vision-Language Models", arXiv 2508.00553.

    Anchors are the tokens that receive the most attention in a middle layer, which attends to
    objects; buffers are the up to four tokens next to each in the raster. Registers, the tokens
    that receive the most attention in the layer of the features, fill the budget. Attention is the
    mean over heads and over all queries, so no CLS token is needed.

    The number of anchors is a fifth of ``buffered`` times the budget, as in the paper, so that
    anchors and buffers fit into it. Without a grid, neighbours are those in the sequence.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        buffered: α, share of the kept tokens that are anchors and buffers, in [0, 1].
        object_depth: the middle layer, as a share of the encoder's layers, in (0, 1]; the paper
            uses the 9th of CLIP's 24.

    Raises:
        ValueError: a parameter is out of range.
    """

    buffered: float = 0.1
    object_depth: float = 9 / 24

    name: ClassVar[str] = "hiprune"
    signals: ClassVar[tuple[str, ...]] = ("mean_attention", "object_attention")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("buffered", self.buffered)
        check_share("object_depth", self.object_depth, "(0, 1]")

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        assert tokens.attention is not None  # by `signals`
        assert tokens.object_attention is not None
        anchors = min(round(k * self.buffered / 5), k // 5)
        flags = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.features.device)
        flags[highest(tokens.object_attention.float(), anchors)] = True
        rows, columns = tokens.grid or (1, len(tokens))
        buffered = with_neighbours(flags.view(rows, columns)).flatten()
        return highest(tokens.attention.float().masked_fill(buffered, torch.inf), k)


def with_neighbours(flags: Tensor) -> Tensor:
    """Returns ``flags`` [rows, columns] with the four neighbours of each flagged cell added."""
    flagged = flags.clone()
    flagged[1:] |= flags[:-1]
    flagged[:-1] |= flags[1:]
    flagged[:, 1:] |= flags[:, :-1]
    flagged[:, :-1] |= flags[:, 1:]
    return flagged
