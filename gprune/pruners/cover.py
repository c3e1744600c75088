"""Covering the image in what tokens show and in where they lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import cosine_similarity
from gprune.pruners.base import MergingPruner
from gprune.pruners.diversity import farthest_first
from gprune.tokens import VisualTokens

# A mean cosine distance below this is rounding, of bf16 features at the latest: on a blank image it
# must not be stretched until it tells tokens apart.
ROUNDING = 1e-4


@dataclass(frozen=True)
class GraphCover(MergingPruner):
    """k centres of a graph whose edges carry both meaning and place. A method of this project.

    Every pair of tokens has the squared distance

        D²(i, j) = ‖uᵢ − uⱼ‖² / mean ‖u − u'‖²  +  place · ‖pᵢ − pⱼ‖² / mean ‖p − p'‖²

    where u are the unit features and p the (row, column) of the tokens; both terms are divided by
    their mean over all pairs of the image, so the balance between them does not depend on the
    encoder or on the image's size. D is a Euclidean metric, so greedy farthest-first selection
    (Gonzalez, 1985) leaves no token farther from a kept one than twice what the best choice of k
    tokens could: no region is lost, and a region is not kept twice while another is not kept at
    all. That is what G-Prune's scores do not promise.

    Starts from the token nearest to the mean of all. O(n²d + kn), features and positions only, no
    attention; the number kept is known beforehand. Without a grid or positions, meaning alone.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        place: weight of where tokens lie against what they show, >= 0; the default was chosen on
            validation pictures of the tiny VLM, see docs/methods/graph_cover.md.
        merge: average every dropped token into the kept token nearest to it.

    Raises:
        ValueError: ``place`` is negative or not finite.
    """

    place: float = 2.0
    merge: bool = False

    name: ClassVar[str] = "graph_cover"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.place) and self.place >= 0):
            raise ValueError(
                f"place={self.place} must be a finite number >= 0; 0 looks at features alone"
            )

    def distance(self, tokens: VisualTokens) -> Tensor:
        """D² of every pair, float32 [n, n]."""
        # Unit vectors: ‖u − u'‖² = 2 − 2 cos.
        distance = over_mean(1 - cosine_similarity(tokens.features), ROUNDING)
        if self.place == 0 or (tokens.grid is None and tokens.positions is None):
            return distance
        points = tokens.coordinates().double()
        length = points.square().sum(1)
        apart = (length[:, None] + length[None] - 2 * points @ points.mT).clamp(min=0)
        return distance + self.place * over_mean(apart, 1e-12).float()

    def partition(self, tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor | None]:
        distance = self.distance(tokens)
        central = distance.sum(1, dtype=torch.float64).argmin()
        kept = farthest_first(distance, central, k).sort().values
        if not self.merge:
            return kept, None
        members = distance[kept].argmin(0)  # [n], the first of several
        members[kept] = torch.arange(k, device=kept.device)  # a copy does not go into its twin
        return kept, members


def over_mean(values: Tensor, least: float) -> Tensor:
    """Values [n, n] divided by their mean, or by ``least`` where that is more."""
    mean = values.mean(dtype=torch.float64).clamp(min=least)
    return values / mean.to(values.dtype)
