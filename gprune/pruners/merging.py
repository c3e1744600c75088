"""Methods that merge tokens instead of dropping them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.device import uploaded
from gprune.graph import BLOCK, UnitRows
from gprune.pruners.base import MergingPruner, highest, merged, unchosen
from gprune.pruners.baselines import cells_a_line, spread
from gprune.tokens import VisualTokens


@dataclass(frozen=True)
class AveragePooling(MergingPruner):
    """The raster in k cells of nearly equal size, each kept as the mean of its tokens.

    A baseline. Rows and columns are split evenly, so that cells are about as wide as high; a cell
    stands where its middle token stood. Without a grid the sequence is split evenly.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
    """

    name: ClassVar[str] = "average_pooling"

    def partition(self, tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor | None]:
        rows, columns = tokens.grid or (1, len(tokens))
        bands = cells_a_line(rows, columns, k)
        members = torch.empty(rows, columns, dtype=torch.int64)
        kept: list[int] = []
        for band, cells in enumerate(bands):
            top, bottom = band * rows // len(bands), (band + 1) * rows // len(bands)
            middle = (top + bottom) // 2
            for cell, column in enumerate(spread(cells, columns)):
                left, right = cell * columns // cells, (cell + 1) * columns // cells
                members[top:bottom, left:right] = len(kept)
                kept.append(middle * columns + column)
        device = tokens.features.device
        return uploaded(kept, device), uploaded(members.flatten(), device)


@dataclass(frozen=True)
class ToMe(MergingPruner):
    """Token merging by bipartite soft matching, before the language model.

    Bolya, Fu, Dai, Zhang, Feichtenhofer, Hoffman: "Token Merging: Your ViT But Faster", ICLR 2023,
    arXiv 2210.09461 (section 3). The paper merges r tokens in every layer of a ViT, by the
    similarity of keys; here features are matched, round after round, until k tokens are left.

    In a round the tokens left are dealt out in turn to two sets; each of the first is matched with
    the most similar of the second (cosine), and the most similar pairs merge into the mean of all
    tokens that they stand for, at the place of the second.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
    """

    name: ClassVar[str] = "tome"

    def partition(self, tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor | None]:
        device = tokens.features.device
        kept = torch.arange(len(tokens), device=device)
        members = kept.clone()
        while len(kept) > k:
            means = merged(tokens.features.float(), members, len(kept))
            best, match = most_similar(means)
            merging = highest(best, min(len(kept) - k, len(best)))
            into = torch.arange(len(kept), device=device)
            into[2 * merging] = 2 * match[merging] + 1
            left = unchosen(2 * merging, len(kept))
            place = torch.arange(len(left), device=device)
            place = torch.zeros_like(into).index_copy_(0, left, place)
            members = place[into[members]]
            kept = kept[left]
        return kept, members


def most_similar(features: Tensor) -> tuple[Tensor, Tensor]:
    """For every other of n tokens, from the first, the most similar of those between.

    Returns:
        that similarity, float32 [⌈n/2⌉], and the position among those between, int64 [⌈n/2⌉]; the
        first of several.
    """
    unit = UnitRows(features)
    every = torch.arange(len(unit), device=features.device)
    best, match = [], []
    for rows in torch.split(every[::2], BLOCK):
        similarity = unit.similarity(rows, every[1::2])
        best.append(similarity.amax(1))
        match.append(similarity.argmax(1))
    return torch.cat(best), torch.cat(match)
