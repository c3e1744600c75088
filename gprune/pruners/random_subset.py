"""The random baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.device import to_device
from gprune.pruners.base import Pruner
from gprune.pruners.registry import register
from gprune.tokens import VisualTokens


@register
@dataclass(frozen=True)
class RandomPruner(Pruner):
    """A random subset, the same for the same seed and number of tokens on every device.

    Subsets are nested: a larger ``keep`` also keeps all tokens of a smaller one.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1.
        seed: of the random generator, an integer; average over several for an expectation.

    Raises:
        ValueError: ``seed`` is not a 64-bit integer.
    """

    seed: int = 0

    name: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = isinstance(self.seed, int) and not isinstance(self.seed, bool)
        if not whole or not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed!r} must be a whole number of 64 bits, such as 0")

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        # A separate generator on the CPU leaves the global random state alone and gives the same
        # tokens on every device.
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(tokens), generator=generator)
        return to_device(order[:k].sort().values, tokens.features.device)
