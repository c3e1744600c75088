"""Covering the image in what tokens show and in where they lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune import graph
from gprune.graph import BLOCK, CosineRows, UnitRows, _similarity, blocks, mean_similarity
from gprune.pruners.base import MergingPruner
from gprune.pruners.diversity import farthest_first
from gprune.tokens import VisualTokens

# A mean cosine distance below this can be rounding, of bf16 features at the latest: on a blank
# image it must not be stretched until it tells tokens apart.
ROUNDING = 1e-4
# Below this it can be nothing else. Rounded to bf16, equal tokens differ by at most one step in a
# channel, 2**-7 of its value or less: by no more than 2**-15 of their length on average over all
# pairs, squared, of which the cosine distance is half.
NOTHING = 2.0**-16


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

    Where a blank image's features differ by little more than rounding, they count for less against
    places, and by no more than rounding, for nothing. Tokens of zero norm are alike and unlike all
    others, as if they shared a direction of their own.

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

    place: float = 1.0
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
        # Unit vectors: ‖u − u'‖² = 2 − 2 cos. In place: memory for n by n is what costs.
        unit = UnitRows(tokens.features)
        distance = _similarity(unit, unit.features.shape).neg_().add_(1)
        zero = distance.diagonal().clone()  # 1 for tokens of zero norm
        distance.addr_(zero, zero, alpha=-1)
        placed = self.placed(tokens)
        distance /= feature_scale(mean_distance(unit, zero), placed)
        if not placed:
            return distance
        places = Places(tokens.coordinates())
        for rows in blocks(len(tokens)):
            distance[rows] += self.place * places[rows]
        return distance

    def placed(self, tokens: VisualTokens) -> bool:
        """Whether it matters where these tokens lie."""
        return self.place != 0 and not (tokens.grid is None and tokens.positions is None)

    def rows(self, tokens: VisualTokens) -> JointRows:
        """What gives rows of `distance`."""
        return JointRows(tokens, self.place if self.placed(tokens) else 0.0)

    def joint(self, tokens: VisualTokens) -> tuple[Tensor | JointRows, Tensor]:
        """D² of every pair, or what gives its rows, and its sum for every token, float64 [n]."""
        if len(tokens) > graph.WHOLE:
            rows = self.rows(tokens)
            return rows, rows.sums()
        distance = self.distance(tokens)
        return distance, row_sums(distance)

    def centres(self, tokens: VisualTokens, k: int) -> tuple[Tensor | JointRows, Tensor]:
        """D² of every pair, or what gives its rows, and ``k`` centres in the order of choice."""
        distance, sums = self.joint(tokens)
        ahead = not isinstance(distance, Tensor)
        return distance, farthest_first(distance, sums.argmin(), k, ahead)

    def partition(self, tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor | None]:
        distance, order = self.centres(tokens, k)
        kept = order.sort().values
        return kept, into_nearest(distance, kept) if self.merge else None


def into_nearest(distance: Tensor | JointRows, kept: Tensor) -> Tensor:
    """The members, see `Pruner.partition`, where a dropped token goes into the nearest kept one.

    Args:
        distance: what `GraphCover.joint` gives.
        kept: int64 [k], ascending; of several as near the first.
    """
    members = (  # [n]
        distance.nearest(kept) if isinstance(distance, JointRows) else distance[kept].argmin(0)
    )
    members[kept] = torch.arange(len(kept), device=kept.device)  # a copy stays out of its twin
    return members


def mean_distance(unit: UnitRows, zero: Tensor) -> Tensor:
    """The mean cosine distance of all pairs of tokens, float64 [].

    ``zero`` [n] is 1 for tokens of zero norm, which are alike.
    """
    mean = 1 - mean_similarity(unit) - zero.double().mean().square()
    return mean.clamp(min=0)


def say(mean: Tensor) -> Tensor:
    """How much features mean that differ by ``mean``, in [0, 1]: 1 unless it can be rounding.

    Args:
        mean: cosine distance of all pairs of an image, float64 [].
    """
    return ((mean - NOTHING) / (ROUNDING - NOTHING)).clamp(0, 1)


def feature_scale(mean: Tensor, placed: bool) -> Tensor:
    """What to divide the cosine distances of an image by, float32 []: their mean, if it says much.

    Args:
        mean: see `say`.
        placed: whether places count too, to which features that say little leave the decision.
    """
    if not placed:
        return mean.clamp(min=ROUNDING).float()
    return (mean.clamp(min=NOTHING) / say(mean)).float()  # infinite where they say nothing


def row_sums(matrix: Tensor) -> Tensor:
    """The sum of each row in float64; by blocks, as a CPU copies what it sums into float64."""
    return torch.cat([matrix[rows].sum(1, dtype=torch.float64) for rows in blocks(len(matrix))])


class Places:
    """How far apart tokens lie: squared distances, of which the mean over all pairs is 1.

    Indexed by tokens [...] or a slice it gives float32 [..., n].
    """

    def __init__(self, points: Tensor) -> None:
        self.points = points.double()
        self.length = self.points.square().sum(1)
        # Over all pairs it is twice what it is between tokens and their mean.
        spread = (self.points - self.points.mean(0)).square().sum(1).mean()
        self.mean = (2 * spread).clamp(min=1e-12)

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor:
        squared = (self.points[rows] @ self.points.mT).mul_(-2)
        squared += self.length[rows].unsqueeze(-1) + self.length
        return squared.clamp_(min=0).div_(self.mean).float()


class JointRows:
    """`GraphCover.distance` row by row, for more tokens than the whole matrix has memory for.

    Indexed by a token [] or tokens [r] it gives float32 [n] or [r, n]. With ``place=0`` features
    alone count.
    """

    def __init__(self, tokens: VisualTokens, place: float) -> None:
        self.similarity = CosineRows(tokens.features)
        self.zero = 1 - self.similarity.diagonal()
        self.place = place
        self.places = Places(tokens.coordinates()) if place else None
        mean = mean_distance(self.similarity.unit, self.zero)
        self.scale = feature_scale(mean, self.places is not None)

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        return self._joint(rows, self.similarity[rows])

    def _joint(self, rows: Tensor, similarity: Tensor) -> Tensor:
        different = 1 - similarity - self.zero[rows].unsqueeze(-1) * self.zero
        distance = different / self.scale
        if self.places is None:
            return distance
        return distance + self.place * self.places[rows]

    def sums(self) -> Tensor:
        """Sum of every token's distances, float64 [n]."""
        parts = [
            self._joint(rows, similarity).sum(1, dtype=torch.float64)
            for rows, similarity in self.similarity.blocks()
        ]
        return torch.cat(parts)

    def nearest(self, kept: Tensor) -> Tensor:
        """For every token the position in ``kept`` [k] of the nearest, the first of several."""
        best = self.zero.new_full(self.zero.shape, torch.inf)
        member = torch.zeros_like(best, dtype=torch.long)
        for start, some in zip(range(0, len(kept), BLOCK), torch.split(kept, BLOCK), strict=True):
            distance = self[some]  # as symmetric as the whole
            first = distance.argmin(0, keepdim=True)
            nearest = distance.gather(0, first)[0]
            member = torch.where(nearest < best, start + first[0], member)
            best = torch.minimum(best, nearest)
        return member
