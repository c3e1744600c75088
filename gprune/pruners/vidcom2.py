"""VidCom²: more tokens for unusual frames, and in each frame the unusual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gprune.pruners.ranking import highest
from gprune.pruners.registry import register
from gprune.pruners.video import VideoPruner

# Constants of the released code: the widths of the Gaussians, the share of channels with the least
# variance that is read, and the softmax temperature of the frame budgets.
GAUSSIAN_WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
STEADY_CHANNEL_SHARE = 0.5
FRAME_TEMPERATURE = 0.01


@register
@dataclass(frozen=True)
class VidCom2(VideoPruner):
    """Video Compression Commander: the most unusual tokens, more of them in unusual frames.

    Liu, Wang, Ma, Zhang: "Video Compression Commander: Plug-and-Play Inference Acceleration for
    Video Large Language Models", EMNLP 2025, arXiv 2505.14454, as the released code computes it.

    On the half of the channels that vary least, tokens at unit length are compared with the mean
    of the video and with that of their frame: ``s = Σ exp(-‖x - mean‖² / 2a)`` over several widths
    a. A frame is the more unique, the less its tokens resemble the video: u = -mean s_video. With
    the retention ratio R of the video, frame t gets the share ``R (1 + p_t - mean p)``, where p is
    the softmax of u at a low temperature, and keeps the tokens with the least s_video + s_frame.
    Shares are rounded so that the frames' counts, of at least one token, sum to the budget.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 a frame; shared among the frames.
    """

    name: ClassVar[str] = "vidcom2"

    def choose_frames(self, frames: Tensor, total: int) -> list[Tensor]:
        t, n, d = frames.shape
        wide = frames.double()
        variance = wide.flatten(0, 1).var(0, unbiased=False)
        steady = highest(-variance, max(1, int(d * STEADY_CHANNEL_SHARE)))
        unit = F.normalize(wide[..., steady], dim=-1)
        to_video = resemblance(unit, unit.mean((0, 1), keepdim=True))  # [t, n]
        to_frame = resemblance(unit, unit.mean(1, keepdim=True))
        uniqueness = -to_video.mean(1)
        softmax = torch.softmax(uniqueness / FRAME_TEMPERATURE, 0)
        shares = total / t * (1 + softmax - softmax.mean())
        counts = rounded_counts(shares.tolist(), n, total)
        scores = -(to_video + to_frame).float()
        return [highest(row, k) for row, k in zip(scores, counts, strict=True)]


def resemblance(tokens: Tensor, centre: Tensor) -> Tensor:
    """Returns the sum of Gaussians of the distance to a centre; [t, n] for [t, n, d]."""
    squared = (tokens - centre).square().sum(-1)
    return torch.stack([torch.exp(-squared / (2 * width)) for width in GAUSSIAN_WIDTHS]).sum(0)


def rounded_counts(shares: Sequence[float], most: int, total: int) -> list[int]:
    """Rounds ``shares`` to integers from 1 to ``most`` that sum to ``total``.

    After rounding, until the sum fits, the count farthest below its share gets one more, or the one
    farthest above it one less. Ties go to the lowest index.
    """
    counts = [min(most, max(1, round(share))) for share in shares]
    while (left := total - sum(counts)) != 0:
        step = 1 if left > 0 else -1
        adjustable = [i for i, count in enumerate(counts) if 1 <= count + step <= most]
        changed = max(adjustable, key=lambda i: (step * (shares[i] - counts[i]), -i))
        counts[changed] += step
    return counts
