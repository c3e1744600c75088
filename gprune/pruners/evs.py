"""EVS: tokens that differ from the previous frame."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gprune.pruners.ranking import highest
from gprune.pruners.registry import register
from gprune.pruners.video import VideoPruner


@register
@dataclass(frozen=True)
class EVS(VideoPruner):
    """Efficient Video Sampling: the first frame and the tokens that change most after it.

    Bagrov et al.: "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM
    Inference", 2025, arXiv 2510.14624. Source of the facts: the observed behaviour of vLLM's
    implementation (vllm-project/vllm, commit 094f117, Apache-2.0 with a restriction of NVIDIA's).

    A token's score is 1 - cosine of its features and those at the same position one frame earlier;
    the highest of the whole video are kept, ties going to the earlier token. The first frame has no
    predecessor and stays whole, so max(n, ⌊t n · keep⌋) tokens of t frames of n are kept: at least
    one frame's worth, even if ``keep`` is less.

    Mended: ⌊t n · keep⌋ is integer arithmetic in parts per million. vLLM is told the share q to
    drop and computes ⌊t n (1 − q)⌋ in floating point, where 1 − 0.8 is a little below 0.2, so it
    can keep one token less. ``float_count=True`` computes that, with q = 1 − keep.

    Attributes:
        keep: share of the video's tokens to keep, in (0, 1], or a count >= 1 a frame; shared among
            the frames.
        float_count: whether the count is computed in floating point, as vLLM does.
    """

    float_count: bool = False

    name: ClassVar[str] = "evs"

    def choose_frames(self, frames: Tensor, wanted: Fraction) -> list[Tensor]:
        t, n, _ = frames.shape
        total = math.floor(wanted)
        if self.float_count:
            dropped = float(1 - wanted / (t * n))  # the decimal number that vLLM is told
            total = int(t * n * (1 - dropped))
        wide = frames.double()
        # Rounded to float32 before the subtraction, so that tokens that do not change tie at 0.
        changed = 1 - F.cosine_similarity(wide[1:], wide[:-1], dim=-1).float()  # [t - 1, n]
        first = changed.new_full((1, n), torch.inf)
        scores = torch.cat([first, changed]).flatten()
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[highest(scores, max(total, n))] = True
        return [frame.nonzero().squeeze(1) for frame in kept.view(-1, n)]
