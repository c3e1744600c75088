"""Average pooling of the raster, a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gprune.device import to_device
from gprune.pruners.base import Pruner
from gprune.pruners.raster import raster_cells
from gprune.pruners.reduction import Reduction
from gprune.pruners.registry import register
from gprune.tokens import VisualTokens


@register
@dataclass(frozen=True)
class AveragePooling(Pruner):
    """The mean of each of k nearly equal cells of the raster.

    A baseline. Rows and columns are split evenly, so that cells are nearly square; a cell gets the
    position of its middle token. Without a grid the sequence is split evenly.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
    """

    name: ClassVar[str] = "average_pooling"

    def choose(self, tokens: VisualTokens, k: int) -> Reduction:
        rows, columns = tokens.grid or (1, len(tokens))
        members = torch.empty(rows, columns, dtype=torch.int64)
        kept: list[int] = []
        for cell in raster_cells(rows, columns, k):
            members[cell.rows, cell.columns] = len(kept)
            row, column = cell.centre
            kept.append(row * columns + column)
        device = tokens.features.device
        return Reduction(to_device(kept, device), to_device(members.flatten(), device))
