"""FastV: after a few layers, the visual tokens that the last token attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gprune.pruners.decoder import DecoderPruner, check_layers
from gprune.pruners.registry import register


@register
@dataclass(frozen=True)
class FastV(DecoderPruner):
    """The visual tokens that the prompt's last token attends to most, from layer K on.

    Chen, Zhao, Liu, Bai, Lin, Zhou, Chang: "An Image is Worth 1/2 Tokens After Layer 2:
    Plug-and-Play Inference Acceleration for Large Vision-Language Models", ECCV 2024,
    arXiv 2403.06764. Released code: pkunlp-icler/FastV, commit d165972, without a licence of its
    own; this class follows its observed behaviour.

    Layers 0 to K - 1 process every token. The last token's attention in layer K - 1, a softmax over
    the whole sequence, averaged over heads, ranks the visual tokens; the highest stay for layers K
    and later, with their positions. Tokens are removed; the released code also has a variant that
    masks them, and one that prunes the KV cache alone.

    Attributes:
        keep: share of the visual tokens from layer K on, 1 - R in the paper, rounded down as in the
            released file for lmms-eval; or a count, R₁ of the released configuration.
        layer: K >= 1; 2 is the paper's setting, 3 that of the file for lmms-eval.

    Raises:
        ValueError: ``layer`` is below 1; or, when applied to a model, not below its number of
            layers.
    """

    layer: int = 2

    name: ClassVar[str] = "fastv"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < 1:
            raise ValueError(
                f"layer={self.layer} must be at least 1: the layer before it ranks the tokens"
            )

    def stages(self, depth: int) -> tuple[int, ...]:
        return check_layers([self.layer], depth)
