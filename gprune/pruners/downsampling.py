"""Downsampling: the baseline that gives the model a smaller picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gprune.budget import kept_count
from gprune.pruners.base import Pruner
from gprune.pruners.registry import register
from gprune.tokens import VisualTokens


@register
@dataclass(frozen=True)
class Downsampling(Pruner):
    """All tokens of a smaller picture: the image is resized before the vision encoder.

    The baseline of Liao et al.: "Are We Using the Right Benchmark: An Evaluation Framework for
    Visual Token Compression Methods" (VTC-Bench), ACL 2026, arXiv 2510.07143, which beats many
    methods at an equal number of tokens.

    Every image is resized (bicubic, antialiased) to the raster that Qwen's processor would use for
    a budget of that many tokens: the aspect ratio is kept and both sides are rounded down, so at
    most ``keep`` of the tokens are left: 14 · 14 = 196 for 207 of 24 · 24. A vision tower of fixed
    resolution (CLIP, SigLIP) interpolates its position embeddings. Position ids are those of a
    prompt with the smaller picture, whatever ``positions`` is. Supports images, not videos, in
    LLaVA-1.5, Qwen2-VL and Qwen2.5-VL.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 an image.

    Raises:
        TypeError: ``keep`` is not a number.
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
        """Returns the (rows, columns) of tokens after resizing an image of ``rows`` by ``columns``.

        >>> Downsampling(0.36).raster(24, 24), Downsampling(64).raster(10, 40)
        ((14, 14), (4, 16))
        """
        assert isinstance(self.keep, float | int)  # checked in __post_init__
        k = kept_count(rows * columns, self.keep)
        # If everything is kept, the square roots are exact.
        high = max(1, math.isqrt(k * rows // columns))
        wide = max(1, math.isqrt(k * columns // rows))
        return min(high, k), min(wide, k)

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        raise ValueError(
            f"{self.name} resizes images before they are encoded, so features alone are too late; "
            f"use it as `with {type(self).__name__}(keep)(model):`"
        )
