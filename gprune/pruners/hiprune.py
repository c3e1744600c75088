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

# How the tokens beside an anchor are found.
NEIGHBOURS = ("index", "raster")


@register
@dataclass(frozen=True)
class HiPrune(Pruner):
    """The most attended tokens of a middle layer, their neighbours, and those of a deep layer.

    Liu, Du, Zhu, Lian, Li, Chen: "HiPrune: Training-Free Visual Token Pruning via Hierarchical
    Attention in Vision-Language Models", arXiv 2508.00553. Source of the facts: the observed
    behaviour of the released code (Danielement321/HiPrune, commit 6e83a12, MIT).

    Anchors are the round(k · ``buffered`` / 5) tokens (half to even) that receive the most
    attention in a middle layer, which attends to objects; buffers are four neighbours of each.
    Registers, the tokens that receive the most attention in the layer of the features, fill the
    budget. Attention is the mean over heads and over all queries, so no CLS token is needed. The
    middle layer is the 9th of CLIP's 24, counted from 1, and the 16th of the 32 of Qwen's encoder;
    in other families the same share of the depth as CLIP's.

    The default is that code, which finds neighbours by index: i ± 1 and i ± columns, **clamped** to
    0 … n − 1. So at the left and right edge a buffer lies in the row above or below, an anchor in
    the top row brings in token 0, and one in the bottom row the last token. Without a grid the
    buffers are i ± 1 alone. ``neighbours="raster"`` takes the up to four tokens beside an anchor in
    the raster instead, so that no buffer lies elsewhere in the picture.

    Mended: there are at most ⌊k/5⌋ anchors, so that anchors and buffers fit into the budget; the
    released number is larger for some k if ``buffered`` is above 0.62.

    Differs on purpose: the released code divides its budget by the number of images; here ``keep``
    applies to each.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        buffered: α, share of the kept tokens that are anchors and buffers, in [0, 1].
        object_depth: the middle layer, as a share of the encoder's layers, in (0, 1]; None takes
            the one of the model's family.
        neighbours: ``index`` or ``raster``.

    Raises:
        ValueError: a parameter is out of range.
    """

    buffered: float = 0.1
    object_depth: float | None = None
    neighbours: str = "index"

    name: ClassVar[str] = "hiprune"
    signals: ClassVar[tuple[str, ...]] = ("mean_attention", "object_attention")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("buffered", self.buffered)
        if self.object_depth is not None:
            check_share("object_depth", self.object_depth, "(0, 1]")
        if self.neighbours not in NEIGHBOURS:
            raise ValueError(f"neighbours={self.neighbours!r} must be {' or '.join(NEIGHBOURS)}")

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        assert tokens.attention is not None  # by `signals`
        assert tokens.object_attention is not None
        count = min(round(k * self.buffered / 5), k // 5)
        anchors = highest(tokens.object_attention.float(), count)
        if self.neighbours == "raster":
            buffered = raster_neighbours(anchors, tokens.grid or (1, len(tokens)))
        else:
            buffered = index_neighbours(anchors, len(tokens), tokens.grid)
        return highest(tokens.attention.float().masked_fill(buffered, torch.inf), k)


def index_neighbours(anchors: Tensor, n: int, grid: tuple[int, int] | None) -> Tensor:
    """Returns a mask of anchors and their neighbours by clamped index, bool [n].

    Args:
        anchors: indices, int64 [a].
        n: number of tokens.
        grid: (rows, columns); None has no neighbours above and below.
    """
    steps = (0, 1, -1) if grid is None else (0, 1, -1, grid[1], -grid[1])
    near = torch.cat([anchors + step for step in steps]).clamp(0, n - 1)
    flags = torch.zeros(n, dtype=torch.uint8, device=anchors.device)
    return flags.index_fill(0, near, 1).bool()


def raster_neighbours(anchors: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns a mask of anchors and the up to four tokens beside each in a raster, bool [n].

    Args:
        anchors: indices, int64 [a].
        grid: (rows, columns).
    """
    rows, columns = grid
    flags = torch.zeros(rows * columns, dtype=torch.uint8, device=anchors.device)
    flags = flags.index_fill(0, anchors, 1).bool().view(rows, columns)
    flagged = flags.clone()
    flagged[1:] |= flags[:-1]
    flagged[:-1] |= flags[1:]
    flagged[:, 1:] |= flags[:, :-1]
    flagged[:, :-1] |= flags[:, 1:]
    return flagged.flatten()
