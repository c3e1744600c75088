"""TextCover: covers the image, and more closely what the question is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gprune.pruners.graph_cover import GraphCover
from gprune.pruners.greedy import MatrixRows, farthest_first
from gprune.pruners.joint_distance import (
    JointDistanceRows,
    distance_sums,
    feature_confidence,
    joint_distances,
)
from gprune.pruners.registry import register
from gprune.pruners.relevance import relevance
from gprune.pruners.validation import check_weight
from gprune.tokens import VisualTokens

# Relevances that differ by less than this count as equal: the difference can be rounding.
RELEVANCE_TOLERANCE = 1e-4


@register
@dataclass(frozen=True)
class TextCover(GraphCover):
    """Tokens that cover all others, more closely those relevant to the question. Of this project.

    The weighted k-centre problem on the metric D of `GraphCover`:

        minimise over S, |S| = k:   max over i of  wᵢ · min over j in S of  D(i, j)
        wᵢ = 1 + text_weight · qᵢ,   qᵢ the share of the other tokens that are less relevant

    so relevant regions are covered more closely, and the rest is still covered. Relevance is
    CDPruner's (`relevance`); only its ranks count, because its spread depends on the encoder. If
    all tokens are equally relevant up to rounding, and with ``text_weight=0``, it is `GraphCover`.

    Greedy: the first token is the one with the largest weight, of several the one nearest to all
    others; each next one has the largest wᵢ · D(i, S). The result is at most min(3, 2 +
    text_weight) times the best possible (Dyer and Frieze, "A simple heuristic for the p-centre
    problem", Operations Research Letters 3, 1985). O(n²d + kn), and O((n + m)·e) for relevance.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        place: weight of positions against features, >= 0.
        merge: whether to average every dropped token into the kept token nearest to it.
        text_weight: additional weight of the most relevant token over the least, >= 0.
        text_tower: a `gprune.hf.CLIPTextTower`, or None for the language model's own embeddings.

    Raises:
        ValueError: ``place`` or ``text_weight`` is negative or not finite.
    """

    text_weight: float = 0.5
    text_tower: Any = None

    name: ClassVar[str] = "text_cover"
    signals: ClassVar[tuple[str, ...]] = ("text",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight("text_weight", self.text_weight)

    def weights(self, tokens: VisualTokens) -> Tensor:
        """Returns w of every token, float64 [n], in [1, 1 + text_weight]."""
        values = relevance(tokens).double()
        # With a tolerance, because plain ranks would separate values that differ by rounding.
        less = torch.searchsorted(values.sort().values, values - RELEVANCE_TOLERANCE)
        share = less.double() / max(len(tokens) - 1, 1)
        # Rounding changes the cosine of a token with the text far more than the cosine of equal
        # tokens with each other, so the latter shows whether tokens are equal.
        # E ‖u − u'‖² / 2 = E ‖u‖² − ‖E u‖².
        unit = F.normalize(tokens.in_text_space().double(), dim=1)
        mean = unit.square().sum(1).mean() - unit.mean(0).square().sum()
        return 1 + self.text_weight * feature_confidence(mean) * share

    def centres(self, tokens: VisualTokens, k: int) -> tuple[Tensor | JointDistanceRows, Tensor]:
        distance = joint_distances(tokens, self.place)
        weights = self.weights(tokens)
        weights = weights / weights.max()  # chooses the same, and no square becomes infinite
        first = distance_sums(distance).masked_fill(weights < 1, torch.inf).argmin()
        weighted = ColumnWeightedRows(distance, weights.square().float())
        prefetch = not isinstance(distance, Tensor)
        return distance, farthest_first(weighted, first, k, prefetch)


class ColumnWeightedRows:
    """Rows of a matrix [n, n] whose columns are multiplied by ``weights`` [n]."""

    def __init__(self, matrix: Tensor | MatrixRows, weights: Tensor) -> None:
        self.matrix = matrix
        self.weights = weights

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        return self.matrix[rows] * self.weights
