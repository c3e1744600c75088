"""Video methods: which frame a kept token comes from is theirs to choose."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gprune.budget import Shares, budgets, kept_count
from gprune.pruners.base import Pruner, highest
from gprune.tokens import VisualTokens

# VidCom2's constants, as its authors released them: the widths of its Gaussians, the share of
# channels that it looks at, and the temperature that its budgets are dealt out with.
WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
STEADY_CHANNELS = 0.5
TEMPERATURE = 0.01


@dataclass(frozen=True)
class VideoPruner(Pruner):
    """A method that sees all frames of a video at once.

    Together the frames keep as many tokens as each would keep alone: what one frame gives up goes
    to another. A frame is what the model makes of one picture, or of two with Qwen's encoders.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 a frame (see `Pruner`).
    """

    scope: ClassVar[str] = "video"

    @torch.no_grad()
    def reduce_groups(self, groups: Sequence[VisualTokens]) -> list[tuple[Tensor, Tensor | None]]:
        """The tokens to keep of each frame of one video, see `Pruner.reduce_groups`.

        Raises:
            TypeError, ValueError: see `Pruner.select`; or the groups are no frames of one size, or
                have protected tokens.
        """
        for tokens in groups:
            tokens.check_values()
            if tokens.kind != "frame":
                raise ValueError(
                    f"{self.name} compares the frames of a video, but got a group of kind "
                    f"{tokens.kind!r}; prune images with another method, such as graph_cover"
                )
            if tokens.protected is not None or tokens.features.shape != groups[0].features.shape:
                raise ValueError(
                    f"{self.name} compares tokens of frames at the same place: all frames need one "
                    "size and no protected tokens"
                )
        given = budgets(self.keep, groups)
        total = sum(
            sum(keep.counts) if isinstance(keep, Shares) else kept_count(len(tokens), keep)
            for tokens, keep in zip(groups, given, strict=True)
        )
        frames = torch.stack([tokens.features for tokens in groups])  # [t, n, d]
        return [(kept, None) for kept in self.choose_frames(frames, total)]

    @abstractmethod
    def choose_frames(self, frames: Tensor, total: int) -> list[Tensor]:
        """The indices of the tokens to keep of each frame, int64, ascending; ``total`` together.

        Args:
            frames: features of each frame in their order, [t, n, d].
            total: 1 to t · n.
        """

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        return self.choose_frames(tokens.features[None], k)[0]


@dataclass(frozen=True)
class EVS(VideoPruner):
    """Efficient Video Sampling: the tokens that differ from the frame before.

    Bagrov et al.: "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM
    Inference", 2025, arXiv 2510.14624.

    A token's score is 1 - cosine of its features and those at the same place one frame earlier; the
    highest of the whole video are kept. The first frame has none before it and stays whole, so a
    video keeps one frame's worth of tokens at least, also where ``keep`` says less.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 a frame; shared among the frames.
    """

    name: ClassVar[str] = "evs"

    def choose_frames(self, frames: Tensor, total: int) -> list[Tensor]:
        n = frames.shape[1]
        wide = frames.double()
        # Rounded to float32 before the difference: what did not change at all ties at 0.
        changed = 1 - F.cosine_similarity(wide[1:], wide[:-1], dim=-1).float()  # [t - 1, n]
        first = changed.new_full((1, n), torch.inf)
        scores = torch.cat([first, changed]).flatten()
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[highest(scores, max(total, n))] = True
        return [frame.nonzero().squeeze(1) for frame in kept.view(-1, n)]


@dataclass(frozen=True)
class VidCom2(VideoPruner):
    """Video Compression Commander: more tokens for unusual frames, and in each the unusual tokens.

    Liu, Wang, Ma, Zhang: "Video Compression Commander: Plug-and-Play Inference Acceleration for
    Video Large Language Models", EMNLP 2025, arXiv 2505.14454, as its authors' code computes it.

    On the half of the channels that vary least, tokens at unit length are compared with the mean
    of the video and with that of their frame: ``s = Σ exp(-‖x - mean‖² / 2a)`` over several widths
    a. A frame is the more unique, the less its tokens resemble the video: u = -mean s_video. With R
    the share kept of the whole, frame t gets the share ``R (1 + p_t - mean p)``, where p is the
    softmax of u at a low temperature, and keeps the tokens with the least s_video + s_frame. Shares
    are rounded so that the frames' counts, of at least one token, sum to the budget.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 a frame; shared among the frames.
    """

    name: ClassVar[str] = "vidcom2"

    def choose_frames(self, frames: Tensor, total: int) -> list[Tensor]:
        t, n, d = frames.shape
        wide = frames.double()
        spread = wide.flatten(0, 1).var(0, unbiased=False)
        steady = highest(-spread, max(1, int(d * STEADY_CHANNELS)))
        unit = F.normalize(wide[..., steady], dim=-1)
        to_video = resemblance(unit, unit.mean((0, 1), keepdim=True))  # [t, n]
        to_frame = resemblance(unit, unit.mean(1, keepdim=True))
        unique = -to_video.mean(1)
        part = torch.softmax(unique / TEMPERATURE, 0)
        shares = total / t * (1 + part - part.mean())
        counts = dealt_out(shares.tolist(), n, total)
        scores = -(to_video + to_frame).float()
        return [highest(row, k) for row, k in zip(scores, counts, strict=True)]


def resemblance(tokens: Tensor, centre: Tensor) -> Tensor:
    """Gaussians of several widths of the distance to a centre, summed; [t, n] for [t, n, d]."""
    apart = (tokens - centre).square().sum(-1)
    return torch.stack([torch.exp(-apart / (2 * width)) for width in WIDTHS]).sum(0)


def dealt_out(shares: Sequence[float], most: int, total: int) -> list[int]:
    """Whole numbers from 1 to ``most`` near ``shares`` that sum to ``total``.

    Rounded first; then the one that is farthest below its share gets one more, or the one farthest
    above it gives one up, until the sum fits. Ties go to the lowest index.
    """
    counts = [min(most, max(1, round(share))) for share in shares]
    while (left := total - sum(counts)) != 0:
        step = 1 if left > 0 else -1
        open_to = [i for i, count in enumerate(counts) if 1 <= count + step <= most]
        changing = max(open_to, key=lambda i: (step * (shares[i] - counts[i]), -i))
        counts[changing] += step
    return counts
