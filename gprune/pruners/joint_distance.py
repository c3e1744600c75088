"""Distance of tokens in features and positions together, as `GraphCover` defines it."""

from __future__ import annotations

import torch
from torch import Tensor

from gprune.graph import (
    BLOCK_ROWS,
    CosineRows,
    UnitRows,
    dense_fits,
    mean_similarity,
    row_blocks,
    similarity_matrix,
)
from gprune.tokens import VisualTokens

# Weight of positions against features, chosen on validation pictures of the tiny VLM, see
# docs/methods/graph_cover.md.
POSITION_WEIGHT = 1.0

# At a mean cosine distance of at least this, features count fully. Below it the distance can be
# rounding, of bf16 features at the latest, which a blank image must not amplify until it tells
# tokens apart.
FULL_CONFIDENCE_DISTANCE = 1e-4
# At or below this it can only be rounding, and features count for nothing. Rounded to bf16, equal
# tokens differ by at most one step in a channel, 2**-7 of its value or less: squared and averaged
# over all pairs by at most 2**-15 of their squared length, of which the cosine distance is half.
NO_CONFIDENCE_DISTANCE = 2.0**-16


def position_weight(tokens: VisualTokens, place: float) -> float:
    """Returns ``place``, or 0 for tokens without grid and positions."""
    return 0.0 if tokens.grid is None and tokens.positions is None else place


def joint_distance(tokens: VisualTokens, place: float = POSITION_WEIGHT) -> Tensor:
    """Returns D² of every pair of tokens, see `GraphCover`, float32 [n, n]."""
    # Unit vectors: ‖u − u'‖² = 2 − 2 cos. In place, because memory for n by n is the cost.
    unit = UnitRows(tokens.features)
    distance = similarity_matrix(unit, unit.features.shape).neg_().add_(1)
    zero_norm = distance.diagonal().clone()  # 1 for tokens of zero norm, else 0
    distance.addr_(zero_norm, zero_norm, alpha=-1)
    weight = position_weight(tokens, place)
    distance /= feature_scale(mean_cosine_distance(unit, zero_norm), weight != 0)
    if weight:
        positions = PositionDistance(tokens.coordinates())
        for rows in row_blocks(len(tokens)):
            distance[rows] += weight * positions[rows]
    return distance


def joint_distances(
    tokens: VisualTokens, place: float = POSITION_WEIGHT
) -> Tensor | JointDistanceRows:
    """Returns `joint_distance` if the matrix fits in memory, else an object with its rows."""
    if dense_fits(len(tokens)):
        return joint_distance(tokens, place)
    return JointDistanceRows(tokens, place)


def distance_sums(distance: Tensor | JointDistanceRows) -> Tensor:
    """Returns the sum of each token's distances to all tokens, float64 [n]."""
    if not isinstance(distance, Tensor):
        return distance.sums()
    # In blocks, because a CPU copies what it sums into float64.
    blocks = row_blocks(len(distance))
    return torch.cat([distance[rows].sum(1, dtype=torch.float64) for rows in blocks])


def nearest_members(distance: Tensor | JointDistanceRows, kept: Tensor) -> Tensor:
    """Returns `Reduction.members` with every dropped token averaged into the nearest kept one.

    Args:
        distance: what `joint_distances` returns.
        kept: int64 [k], ascending; ties go to the first.
    """
    members = (  # [n]
        distance[kept].argmin(0) if isinstance(distance, Tensor) else distance.nearest(kept)
    )
    # Else a kept token could go into another that is a copy of it.
    members[kept] = torch.arange(len(kept), device=kept.device)
    return members


def mean_cosine_distance(unit: UnitRows, zero_norm: Tensor) -> Tensor:
    """Returns the mean cosine distance over all pairs of tokens, float64 [].

    Args:
        unit: the tokens.
        zero_norm: 1 for tokens of zero norm, which have distance 0 from each other, else 0; [n].
    """
    mean = 1 - mean_similarity(unit) - zero_norm.double().mean().square()
    return mean.clamp(min=0)


def feature_confidence(mean: Tensor) -> Tensor:
    """Returns how much features count, in [0, 1]: 1 unless their differences can be rounding.

    Args:
        mean: mean cosine distance over all pairs of an image, float64 [].
    """
    span = FULL_CONFIDENCE_DISTANCE - NO_CONFIDENCE_DISTANCE
    return ((mean - NO_CONFIDENCE_DISTANCE) / span).clamp(0, 1)


def feature_scale(mean: Tensor, with_positions: bool) -> Tensor:
    """Returns the divisor of an image's cosine distances, float32 [].

    It is their mean, divided by `feature_confidence` if positions can decide instead, so infinite
    at confidence 0.

    Args:
        mean: see `feature_confidence`.
        with_positions: whether positions count too.
    """
    if not with_positions:
        return mean.clamp(min=FULL_CONFIDENCE_DISTANCE).float()
    return (mean.clamp(min=NO_CONFIDENCE_DISTANCE) / feature_confidence(mean)).float()


class PositionDistance:
    """Squared distances between positions, divided by their mean over all pairs.

    Indexed by int64 [r] or a slice, it gives rows, float32 [r, n].

    Args:
        points: (row, column) of each token, [n, 2].
    """

    def __init__(self, points: Tensor) -> None:
        self.points = points.double()
        self.length = self.points.square().sum(1)
        # The mean over all pairs is twice the mean squared distance from the centre.
        spread = (self.points - self.points.mean(0)).square().sum(1).mean()
        self.mean = (2 * spread).clamp(min=1e-12)

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor:
        squared = (self.points[rows] @ self.points.mT).mul_(-2)
        squared += self.length[rows].unsqueeze(-1) + self.length
        return squared.clamp_(min=0).div_(self.mean).float()


class JointDistanceRows:
    """Rows of `joint_distance`, for more tokens than `gprune.graph.dense_fits` allows.

    Indexed by a token [] or by tokens [r], it gives float32 [n] or [r, n].
    """

    def __init__(self, tokens: VisualTokens, place: float = POSITION_WEIGHT) -> None:
        self.similarity = CosineRows(tokens.features)
        self.zero_norm = 1 - self.similarity.diagonal()
        self.weight = position_weight(tokens, place)
        self.positions = PositionDistance(tokens.coordinates()) if self.weight else None
        mean = mean_cosine_distance(self.similarity.unit, self.zero_norm)
        self.scale = feature_scale(mean, self.positions is not None)

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        return self._joint(rows, self.similarity[rows])

    def _joint(self, rows: Tensor, similarity: Tensor) -> Tensor:
        """Returns rows of the distance from the same rows of the cosine similarity."""
        different = 1 - similarity - self.zero_norm[rows].unsqueeze(-1) * self.zero_norm
        distance = different / self.scale
        if self.positions is None:
            return distance
        return distance + self.weight * self.positions[rows]

    def sums(self) -> Tensor:
        """Returns the sum of every token's distances, float64 [n]."""
        parts = [
            self._joint(rows, similarity).sum(1, dtype=torch.float64)
            for rows, similarity in self.similarity.blocks()
        ]
        return torch.cat(parts)

    def nearest(self, kept: Tensor) -> Tensor:
        """Returns for every token the position in ``kept`` [k] of the nearest, ties to the first.

        Holds `BLOCK_ROWS` rows at a time.
        """
        best = self.zero_norm.new_full(self.zero_norm.shape, torch.inf)
        member = torch.zeros_like(best, dtype=torch.long)
        blocks = torch.split(kept, BLOCK_ROWS)
        for start, block in zip(range(0, len(kept), BLOCK_ROWS), blocks, strict=True):
            distance = self[block]  # [r, n]; exactly symmetric, so rows serve as columns
            first = distance.argmin(0, keepdim=True)
            nearest = distance.gather(0, first)[0]
            member = torch.where(nearest < best, start + first[0], member)
            best = torch.minimum(best, nearest)
        return member
