"""PyramidDrop: fewer visual tokens the deeper the layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gprune.pruners.decoder import DecoderPruner, check_layers
from gprune.pruners.registry import register


@register
@dataclass(frozen=True)
class PyramidDrop(DecoderPruner):
    """The visual tokens that the last token attends to most, fewer at each of several layers.

    Xing, Huang, Dong, Lu, Zhang, Zang, Cao, He, Wang, Wu, Lin: "PyramidDrop: Accelerating Your
    Large Vision-Language Models via Pyramid Visual Redundancy Reduction", CVPR 2025,
    arXiv 2410.17247.

    Between two stages the tokens are ranked by the attention of the prompt's last token, with the
    queries and keys of the layer that they are about to enter. Each stage keeps the same share of
    the stage before: stage s of S starts with the share ``keep ** (s / S)``. The paper's 50%, 25%
    and 12.5% after a quarter, a half and three quarters of the layers are
    ``PyramidDrop(keep=0.125)``.

    Attributes:
        keep: share of the visual tokens that reaches the last stage, or a count.
        layers: layers before which tokens are dropped, ascending from 1; None: at each quarter.

    Raises:
        ValueError: when applied to a model that does not have these layers.
    """

    layers: tuple[int, ...] | None = None

    name: ClassVar[str] = "pyramiddrop"
    ranks_ahead: ClassVar[bool] = True

    def stages(self, depth: int) -> tuple[int, ...]:
        if self.layers is not None:
            return check_layers(self.layers, depth)
        quarters = {depth * quarter // 4 for quarter in (1, 2, 3)}
        return check_layers(sorted(quarters - {0}), depth)

    def planned(self, stage: int, stages: int, total: int) -> int:
        final = self.final_count(total)
        return max(final, round(total * (final / total) ** ((stage + 1) / stages)))
