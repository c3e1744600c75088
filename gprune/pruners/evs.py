"""EVS: tokens that differ from the previous frame."""

from __future__ import annotations

from dataclasses import dataclass
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
    Inference", 2025, arXiv 2510.14624.

    A token's score is 1 - cosine of its features and those at the same position one frame earlier;
    the highest of the whole video are kept. The first frame has no predecessor and stays whole, so
    a video keeps at least one frame's worth of tokens, even if ``keep`` is less.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 a frame; shared among the frames.
    """

    name: ClassVar[str] = "evs"

    def choose_frames(self, frames: Tensor, total: int) -> list[Tensor]:
        n = frames.shape[1]
        wide = frames.double()
        # Rounded to float32 before the subtraction, so that tokens that do not change tie at 0.
        changed = 1 - F.cosine_similarity(wide[1:], wide[:-1], dim=-1).float()  # [t - 1, n]
        first = changed.new_full((1, n), torch.inf)
        scores = torch.cat([first, changed]).flatten()
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[highest(scores, max(total, n))] = True
        return [frame.nonzero().squeeze(1) for frame in kept.view(-1, n)]
