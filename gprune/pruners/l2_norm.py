"""The norm baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gprune.graph import token_norms
from gprune.pruners.base import ScorePruner
from gprune.pruners.registry import register
from gprune.tokens import VisualTokens


@register
@dataclass(frozen=True)
class L2NormPruner(ScorePruner):
    """The tokens with the largest L2 norm of their features.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
    """

    name: ClassVar[str] = "l2_norm"

    def score(self, tokens: VisualTokens) -> Tensor:
        """Returns the L2 norm of every token, float32 [n]."""
        return token_norms(tokens.features).float()
