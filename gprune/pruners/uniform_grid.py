"""The uniform baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gprune.device import to_device
from gprune.pruners.base import Pruner
from gprune.pruners.raster import cells_per_line, spread
from gprune.pruners.registry import register
from gprune.tokens import VisualTokens


@register
@dataclass(frozen=True)
class UniformGridPruner(Pruner):
    """Tokens spaced evenly over the raster; without a grid, evenly over the sequence.

    Takes evenly spaced rows, as many as give nearly square cells; splits the budget evenly among
    them, and spaces each row's tokens evenly along it.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
    """

    name: ClassVar[str] = "uniform_grid"

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        rows, columns = tokens.grid or (1, len(tokens))
        counts = cells_per_line(rows, columns, k)
        indices = [
            row * columns + column
            for row, count in zip(spread(len(counts), rows), counts, strict=True)
            for column in spread(count, columns)
        ]
        return to_device(indices, tokens.features.device)
