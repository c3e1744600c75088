"""PyramidDrop: fewer visual tokens the deeper the layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gprune.budget import kept_count
from gprune.pruners.decoder import DecoderPruner, check_layers
from gprune.pruners.registry import register
from gprune.pruners.validation import check_share


@register
@dataclass(frozen=True)
class PyramidDrop(DecoderPruner):
    """The visual tokens that the last token attends to most, fewer at each of several layers.

    Xing, Huang, Dong, Lu, Zhang, Zang, Cao, He, Wang, Wu, Lin: "PyramidDrop: Accelerating Your
    Large Vision-Language Models via Pyramid Visual Redundancy Reduction", CVPR 2025,
    arXiv 2410.17247. Released code: Cooperx521/PyramidDrop, commit 6444f30, MIT; this class follows
    its observed behaviour.

    Before a layer of a stage the tokens are ranked with the queries and keys of the layer that they
    are about to enter: the attention of the prompt's last token, a float32 softmax over the whole
    sequence, averaged over heads. Stage s of S keeps a share of the prompt's original n visual
    tokens, rounded down: ``floor(n * keep ** (s / S))``. The paper's and the released code's 50%,
    25% and 12.5% before layers 8, 16 and 24 of 32 are ``PyramidDrop(keep=0.125)``; ``shares`` gives
    other shares. After each stage positions are numbered anew without gaps, as in the released code
    (``positions="compact"``); models with M-RoPE keep their positions, since theirs are rows and
    columns.

    Attributes:
        keep: share of the visual tokens that reaches the last stage, or a count.
        layers: layers before which tokens are dropped, ascending from 1; None: at each quarter.
        shares: shares of the original tokens that stay at the stages before the last, one each,
            falling; None: ``keep ** (s / S)``. With a ``keep`` that is a count, none of them can
            keep fewer.

    Raises:
        ValueError: ``shares`` rise or are no shares above 0; or, when applied to a model, it does
            not have these layers, or the number of stages is not that of ``shares`` and one.
    """

    layers: tuple[int, ...] | None = None
    shares: tuple[float, ...] | None = None

    name: ClassVar[str] = "pyramiddrop"
    ranks_ahead: ClassVar[bool] = True
    default_positions: ClassVar[str] = "compact"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shares is None:
            return
        for share in self.shares:
            check_share("shares", share, "(0, 1]")
        ends = (*self.shares, self.keep) if isinstance(self.keep, float) else self.shares
        if sorted(ends, reverse=True) != list(ends):
            raise ValueError(
                f"shares={self.shares} must fall from stage to stage, down to keep={self.keep}: "
                "they are shares of the original tokens"
            )

    def stages(self, depth: int) -> tuple[int, ...]:
        if self.layers is not None:
            layers = check_layers(self.layers, depth)
        else:
            quarters = {depth * quarter // 4 for quarter in (1, 2, 3)}
            layers = check_layers(sorted(quarters - {0}), depth)
        if self.shares is not None and len(self.shares) != len(layers) - 1:
            raise ValueError(
                f"shares has {len(self.shares)} entries, expected {len(layers) - 1}: one for each "
                f"of the stages before layers {layers} but the last, whose share is keep"
            )
        return layers

    def planned(self, stage: int, stages: int, total: int) -> int:
        final = self.final_count(total)
        if stage == stages - 1:
            return final
        if self.shares is not None:
            return max(final, kept_count(total, float(self.shares[stage])))
        share = self.keep if isinstance(self.keep, float) else final / total
        return max(final, kept_count(total, float(share ** ((stage + 1) / stages))))
