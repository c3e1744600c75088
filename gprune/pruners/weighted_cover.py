"""WeightedCover: GraphCover with proportional attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gprune.pruners.graph_cover import GraphCover
from gprune.pruners.registry import register


@register
@dataclass(frozen=True)
class WeightedCover(GraphCover):
    """`GraphCover`'s tokens, weighted by the tokens merged into them. A method of this project.

    The tokens are those of `GraphCover`. Every dropped token is averaged into the kept one nearest
    to it, and inside the language model attention to a kept token is multiplied by its member count
    s: softmax(QKᵀ/√d + log s), the proportional attention of ToMe (Bolya et al., ICLR 2023,
    arXiv 2210.09461, equation 1), here in the language model. Without it a large region that is
    covered by few tokens gets too little attention, and tasks that depend on shares of attention,
    such as counting, go wrong.

    It needs attention that accepts an additive mask: SDPA or eager, in transformers. Where only
    features can be passed on, as in vLLM, use `GraphCover`.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        place: weight of positions against features, >= 0.
        merge: always true: a weighted token is the mean of its members.

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
                "merge=False leaves kept tokens without members to be weighted by; take graph_cover"
            )
