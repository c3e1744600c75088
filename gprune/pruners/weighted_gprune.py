"""WeightedGPrune: G-Prune with proportional attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gprune.pruners.gprune import GPrune
from gprune.pruners.joint_distance import JointDistanceRows, nearest_members
from gprune.pruners.ranking import highest
from gprune.pruners.reduction import Reduction
from gprune.pruners.registry import register
from gprune.tokens import VisualTokens


@register
@dataclass(frozen=True)
class WeightedGPrune(GPrune):
    """G-Prune's tokens, weighted by the tokens merged into them. A method of this project.

    Exactly the tokens of `GPrune`. As in `WeightedCover`, every dropped token is averaged into the
    kept one nearest to it, by the distance of `GraphCover`, and attention to a kept token is
    multiplied by its member count. Regions that G-Prune's scores drop still contribute through the
    nearest kept tokens.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        threshold: s, least cosine similarity of an edge, in [-1, 1].
        temperature: T of the row softmax, > 0.
        iterations: t, propagation steps, >= 0.
    """

    name: ClassVar[str] = "weighted_gprune"
    proportional: ClassVar[bool] = True

    def reduce_scored(self, tokens: VisualTokens, scores: Tensor, k: int) -> Reduction:
        kept = highest(scores, k)
        return Reduction(kept, nearest_members(JointDistanceRows(tokens), kept))
