"""Covering the image, what the question is about more closely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gprune.pruners.base import check_weight
from gprune.pruners.cover import ROUNDING, GraphCover, JointRows, say
from gprune.pruners.diversity import Rows, farthest_first
from gprune.pruners.relevance import relevance
from gprune.tokens import VisualTokens


@dataclass(frozen=True)
class TextCover(GraphCover):
    """`GraphCover` whose tokens weigh more the more the question is about them. Of this project.

    The weighted k-centre problem on the metric D of `GraphCover`:

        minimise over S, |S| = k:   max over i of  wᵢ · min over j in S of  D(i, j)
        wᵢ = 1 + text_weight · qᵢ,   qᵢ the share of the other tokens that are less relevant

    so what the question is about is covered more closely, and the rest still is. Relevance is
    CDPruner's (`relevance`); its ranks alone count, whose spread no encoder decides. Where tokens
    are as relevant or as good as equal but for rounding, and with ``text_weight=0``, it is
    `GraphCover`.

    Greedy: first the token of the largest weight, of several the one nearest to all others; then
    always the one with the largest wᵢ · D(i, S). The result is at most min(3, 2 + text_weight)
    times the best possible (Dyer and Frieze, "A simple heuristic for the p-centre problem",
    Operations Research Letters 3, 1985). O(n²d + kn), and O((n + m)·e) for relevance.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        place: weight of where tokens lie against what they show, >= 0.
        merge: average every dropped token into the kept token nearest to it.
        text_weight: how much more the most relevant token weighs than the least, >= 0.
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
        """w of every token, float64 [n], within [1, 1 + text_weight]."""
        values = relevance(tokens).double()
        # Not ranks alone: they would tell apart what differs by rounding.
        less = torch.searchsorted(values.sort().values, values - ROUNDING)
        share = less.double() / max(len(tokens) - 1, 1)
        # Rounding moves a cosine with something else by far more than that of copies with each
        # other, so equal tokens show by the latter. E ‖u − u'‖² / 2 = E ‖u‖² − ‖E u‖².
        unit = F.normalize(tokens.in_text_space().double(), dim=1)
        apart = unit.square().sum(1).mean() - unit.mean(0).square().sum()
        return 1 + self.text_weight * say(apart) * share

    def centres(self, tokens: VisualTokens, k: int) -> tuple[Tensor | JointRows, Tensor]:
        distance, sums = self.joint(tokens)
        weights = self.weights(tokens)
        weights = weights / weights.max()  # chooses the same, and no square becomes infinite
        first = sums.masked_fill(weights < 1, torch.inf).argmin()
        weighted = WeightedRows(distance, weights.square().float())
        ahead = not isinstance(distance, Tensor)
        return distance, farthest_first(weighted, first, k, ahead)


class WeightedRows:
    """A matrix [n, n] whose columns are multiplied by ``weights`` [n], row by row."""

    def __init__(self, matrix: Tensor | Rows, weights: Tensor) -> None:
        self.matrix = matrix
        self.weights = weights

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        return self.matrix[rows] * self.weights
