"""Baselines that every method has to beat: random, a uniform grid, and the L2 norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.device import uploaded
from gprune.graph import token_norms
from gprune.pruners.base import Pruner, ScorePruner
from gprune.tokens import VisualTokens


@dataclass(frozen=True)
class RandomPruner(Pruner):
    """A random subset, the same for the same seed and number of tokens on every device.

    Subsets are nested: what a smaller ``keep`` keeps, a larger one keeps too.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1.
        seed: of the random generator, a whole number; average over several for an expectation.

    Raises:
        ValueError: ``seed`` is no whole number of 64 bits.
    """

    seed: int = 0

    name: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = isinstance(self.seed, int) and not isinstance(self.seed, bool)
        if not whole or not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed!r} must be a whole number of 64 bits, such as 0")

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        # A generator of its own, on the CPU: the caller's random state stays as it is, and every
        # device draws the same tokens.
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(tokens), generator=generator)
        return uploaded(order[:k].sort().values, tokens.features.device)


@dataclass(frozen=True)
class UniformGridPruner(Pruner):
    """Tokens spread evenly over the raster; without a grid, evenly over the sequence.

    As many evenly spaced rows as give roughly square cells, the budget split evenly between them,
    and each row's share evenly spaced along it.
    """

    name: ClassVar[str] = "uniform_grid"

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        rows, columns = tokens.grid or (1, len(tokens))
        cells = cells_a_line(rows, columns, k)
        indices = [
            row * columns + column
            for row, count in zip(spread(len(cells), rows), cells, strict=True)
            for column in spread(count, columns)
        ]
        return uploaded(indices, tokens.features.device)


def cells_a_line(rows: int, columns: int, k: int) -> list[int]:
    """How many of ``k`` cells of a raster stand in each line of them, roughly square cells."""
    fitting = round(math.sqrt(k * rows / columns))
    lines = min(max(fitting, math.ceil(k / columns)), rows, k)
    return [(line + 1) * k // lines - line * k // lines for line in range(lines)]


def spread(count: int, length: int) -> list[int]:
    """``count`` distinct whole numbers below ``length``, ascending, the centres of equal parts."""
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]


@dataclass(frozen=True)
class L2NormPruner(ScorePruner):
    """The tokens with the largest L2 norm of their features."""

    name: ClassVar[str] = "l2_norm"

    def score(self, tokens: VisualTokens) -> Tensor:
        """The L2 norm of every token, float32 [n]."""
        return token_norms(tokens.features).float()
