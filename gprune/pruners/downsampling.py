"""Downsampling: the baseline that shows the model a smaller picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gprune.budget import kept_count
from gprune.pruners.base import Pruner
from gprune.tokens import VisualTokens


@dataclass(frozen=True)
class Downsampling(Pruner):
    """Fewer pixels in, so that the vision encoder makes fewer tokens.

    The baseline of Liao et al.: "Are We Using the Right Benchmark: An Evaluation Framework for
    Visual Token Compression Methods" (VTC-Bench), ACL 2026, arXiv 2510.07143, which beats many
    methods at an equal number of tokens.

    Every image is resized (bicubic, antialiased) before the vision encoder to the raster that
    Qwen's processor takes for a budget of as many tokens: its shape is kept and both sides are
    rounded down, so that at most ``keep`` of the tokens are left: 14 · 14 = 196 for 207 of 24 · 24.
    A tower of one resolution (CLIP, SigLIP) interpolates its position embeddings. The smaller
    picture's tokens are numbered as if the prompt had been made for it, whatever ``positions``
    says. Serves LLaVA-1.5, Qwen2-VL and Qwen2.5-VL; images alone, no videos.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 an image.

    Raises:
        TypeError: ``keep`` is no number.
        ValueError: ``keep`` is out of range.
    """

    name: ClassVar[str] = "downsampling"
    scope: ClassVar[str] = "pixels"

    def __post_init__(self) -> None:
        if callable(self.keep) or isinstance(self.keep, dict):
            raise TypeError(
                f"keep={self.keep!r} must be a ratio or a count: {self.name} resizes whole images "
                "before there are groups"
            )
        super().__post_init__()

    def raster(self, rows: int, columns: int) -> tuple[int, int]:
        """The (rows, columns) of tokens that stand for an image of ``rows`` by ``columns``.

        >>> Downsampling(0.36).raster(24, 24), Downsampling(64).raster(10, 40)
        ((14, 14), (4, 16))
        """
        assert isinstance(self.keep, float | int)  # checked at the door
        k = kept_count(rows * columns, self.keep)
        # At a keep of 1 the roots are whole numbers.
        high = max(1, math.isqrt(k * rows // columns))
        wide = max(1, math.isqrt(k * columns // rows))
        return min(high, k), min(wide, k)

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        raise ValueError(
            f"{self.name} resizes images before they are encoded, so features alone are too late; "
            f"use it as `with {type(self).__name__}(keep)(model):`"
        )
