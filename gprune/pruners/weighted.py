"""Methods whose kept tokens count for those that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gprune.pruners.base import highest
from gprune.pruners.cover import GraphCover, into_nearest
from gprune.pruners.gprune import GPrune
from gprune.tokens import VisualTokens


@dataclass(frozen=True)
class WeightedCover(GraphCover):
    """`GraphCover` whose tokens count for as many as they stand for. A method of this project.

    The tokens are those of `GraphCover`. Every dropped token is averaged into the kept one nearest
    to it, and inside the language model attention to a kept token is multiplied by the number s of
    tokens that are in it: softmax(QKᵀ/√d + log s), the proportional attention of ToMe (Bolya et
    al., ICLR 2023, arXiv 2210.09461, equation 1), here where the tokens are read. Without it a
    large region that is covered by few tokens has few votes, and what a model does by shares of
    attention, such as counting, goes wrong.

    It needs attention that takes an additive mask: SDPA or eager, in transformers. Where features
    alone can be handed on, as in vLLM, take `GraphCover`.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        place: weight of where tokens lie against what they show, >= 0.
        merge: always true: what counts for others is their mean.

    Raises:
        ValueError: ``place`` is negative or not finite, or ``merge`` is false.
    """

    merge: bool = True

    name: ClassVar[str] = "weighted_cover"
    proportional: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.merge:
            raise ValueError(
                "merge=False leaves a kept token nothing to stand for; take graph_cover"
            )


@dataclass(frozen=True)
class WeightedGPrune(GPrune):
    """G-Prune's tokens, each of which counts for those that are nearest to it. Of this project.

    Exactly the tokens of `GPrune`. As in `WeightedCover`, every dropped token is averaged into the
    kept one nearest to it, by the distance of `GraphCover`, and attention to a kept token is
    multiplied by how many are in it. The regions that G-Prune's scores lose are heard through what
    is nearest to them.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        threshold: s, least cosine similarity of an edge, in [-1, 1].
        temperature: T of the row softmax, > 0.
        iterations: t, propagation steps, >= 0.
    """

    name: ClassVar[str] = "weighted_gprune"
    proportional: ClassVar[bool] = True

    def partition(self, tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor | None]:
        return self.ranked(tokens, self.score(tokens), k)

    def ranked(self, tokens: VisualTokens, scores: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
        kept = highest(scores, k)
        return kept, into_nearest(GraphCover(k).rows(tokens), kept)
