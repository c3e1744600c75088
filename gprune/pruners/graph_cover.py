"""GraphCover: k centres that cover an image in features and positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gprune.pruners.base import Pruner
from gprune.pruners.greedy import farthest_first
from gprune.pruners.joint_distance import (
    POSITION_WEIGHT,
    JointDistanceRows,
    distance_sums,
    joint_distance,
    joint_distances,
    nearest_members,
)
from gprune.pruners.reduction import Reduction
from gprune.pruners.registry import register
from gprune.tokens import VisualTokens


@register
@dataclass(frozen=True)
class GraphCover(Pruner):
    """Tokens that cover all others in features and position (k-centre). A method of this project.

    Every pair of tokens has the squared distance

        D²(i, j) = ‖uᵢ − uⱼ‖² / mean ‖u − u'‖²  +  place · ‖pᵢ − pⱼ‖² / mean ‖p − p'‖²

    where u are the unit features and p the (row, column) of the tokens. Both terms are divided by
    their mean over all pairs of the image, so the balance between them depends neither on the
    encoder nor on the image's size. D is a Euclidean metric, so greedy farthest-first selection
    (Gonzalez, 1985) leaves no token farther from a kept one than twice what the best choice of k
    tokens could: no region is lost, and no region is kept twice while another is not kept at all.
    G-Prune's scores do not guarantee that.

    On a blank image, features differ by little more than rounding: they then count less against
    positions, and not at all if they differ by rounding alone. Tokens of zero norm are equal to
    each other and different from all others, as if they had a direction of their own.

    Starts from the token nearest to the mean of all. O(n²d + kn). Reads features and positions, but
    no attention. The number of kept tokens is known beforehand. Without a grid or positions,
    features alone count.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        place: weight of positions against features, >= 0; the default was chosen on validation
            pictures of the tiny VLM, see docs/methods/graph_cover.md.
        merge: whether to average every dropped token into the kept token nearest to it.

    Raises:
        ValueError: ``place`` is negative or not finite.
    """

    place: float = POSITION_WEIGHT
    merge: bool = False

    name: ClassVar[str] = "graph_cover"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.place) and self.place >= 0):
            raise ValueError(
                f"place={self.place} must be a finite number >= 0; 0 compares features alone"
            )

    def distance(self, tokens: VisualTokens) -> Tensor:
        """Returns D² of every pair, float32 [n, n]."""
        return joint_distance(tokens, self.place)

    def centres(self, tokens: VisualTokens, k: int) -> tuple[Tensor | JointDistanceRows, Tensor]:
        """Returns D² (see `joint_distances`) and ``k`` centres, int64 [k], in order of choice."""
        distance = joint_distances(tokens, self.place)
        first = distance_sums(distance).argmin()
        prefetch = not isinstance(distance, Tensor)
        return distance, farthest_first(distance, first, k, prefetch)

    def choose(self, tokens: VisualTokens, k: int) -> Reduction:
        distance, order = self.centres(tokens, k)
        kept = order.sort().values
        return Reduction(kept, nearest_members(distance, kept) if self.merge else None)
