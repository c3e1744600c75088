"""VidCom²: more tokens for unusual frames, and in each frame the unusual tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
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
    Video Large Language Models", EMNLP 2025, arXiv 2505.14454. Source of the facts: the observed
    behaviour of the released code (xuyang-liu16/VidCom2, commit 944a17d, Apache-2.0).

    On the half of the channels that vary least, tokens at unit length are compared with the mean
    of the video and with that of their frame: ``s = Σ exp(-‖x - mean‖² / 2a)`` over the widths a of
    1/8, 1/4, 1/2, 1 and 2. A frame is the more unique, the less its tokens resemble the video:
    u = -mean s_video. With the retention ratio R of the video, frame t gets the share
    ``R (1 + p_t - mean p)``, at most 1, where p is the softmax of u / 0.01, and keeps the tokens
    with the least s_video + s_frame.

    **The sum can miss the budget.** As in the released code, each frame rounds its own
    share · n, half to even and to at least 1, and the sum is not corrected. The t frames together
    keep up to t/2 tokens more or less than R t n; more than that where shares are below one token,
    and less where a frame's share exceeds 1. ``exact=True`` corrects the counts, so that they sum
    to ⌊R t n⌋, or to t if that is more.

    Mended: ``keep=1.0`` keeps everything; the formula would drop tokens of the common frames.

    Attributes:
        keep: share of the video's tokens to keep, R, in (0, 1], or a count >= 1 a frame, which is a
            share of it; shared among the frames.
        exact: whether the frames' counts sum to the budget.
    """

    exact: bool = False

    name: ClassVar[str] = "vidcom2"

    def choose_frames(self, frames: Tensor, wanted: Fraction) -> list[Tensor]:
        t, n, d = frames.shape
        if wanted == t * n:
            return [torch.arange(n, device=frames.device)] * t
        wide = frames.double()
        variance = wide.flatten(0, 1).var(0, unbiased=False)
        steady = highest(-variance, max(1, int(d * STEADY_CHANNEL_SHARE)))
        unit = F.normalize(wide[..., steady], dim=-1)
        to_video = resemblance(unit, unit.mean((0, 1), keepdim=True))  # [t, n]
        to_frame = resemblance(unit, unit.mean(1, keepdim=True))
        uniqueness = -to_video.mean(1)
        softmax = torch.softmax(uniqueness / FRAME_TEMPERATURE, 0)
        scale = 1 + softmax - softmax.mean()
        ratio = float(wanted / (t * n))
        if self.exact:
            total = max(t, math.floor(wanted))
            counts = rounded_counts((scale * (ratio * n)).tolist(), n, total)
        else:
            # In float32, so that equal frames round alike.
            shares = (ratio * scale).clamp(max=1).float()
            counts = (shares * n).round().clamp(min=1).long().tolist()
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
