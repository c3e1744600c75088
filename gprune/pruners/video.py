"""The contract of methods that choose among all frames of a video."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from gprune.budget import MILLION, Budget, PartBudgets, budgets, parts_per_million
from gprune.pruners.base import Pruner
from gprune.pruners.reduction import Reduction
from gprune.tokens import VisualTokens


@dataclass(frozen=True)
class VideoPruner(Pruner):
    """A method that chooses among the tokens of all frames of a video; implements `choose_frames`.

    The frames share one budget: the sum of what each asks for, rounded once for the whole video and
    not for each frame. A frame is what the model encodes of one picture, or of two with Qwen's
    encoders.

    Attributes:
        keep: share of the video's tokens to keep, in (0, 1], or a count >= 1 a frame (see
            `Pruner`).
    """

    scope: ClassVar[str] = "video"

    @torch.no_grad()
    def reduce_groups(self, groups: Sequence[VisualTokens]) -> list[Reduction]:
        """Reduces all frames of one video, see `Pruner.reduce_groups`.

        Raises:
            TypeError, ValueError: see `Pruner.select`; or the groups are not frames of one size, or
                have protected tokens.
        """
        self.check_frames(groups)
        pairs = zip(groups, budgets(self.keep, groups), strict=True)
        wanted = sum((wanted_tokens(len(tokens), keep) for tokens, keep in pairs), Fraction())
        frames = torch.stack([tokens.features for tokens in groups])  # [t, n, d]
        return [Reduction(kept) for kept in self.choose_frames(frames, wanted)]

    def check_frames(self, groups: Sequence[VisualTokens]) -> None:
        """Checks that the groups are frames of one size, without protected tokens.

        Raises:
            ValueError: they are not, or a value is not finite.
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

    @abstractmethod
    def choose_frames(self, frames: Tensor, wanted: Fraction) -> list[Tensor]:
        """Chooses tokens of a video.

        Args:
            frames: features of each frame in order, [t, n, d].
            wanted: how many tokens of the video to keep, not rounded, above 0 and at most t · n. A
                method rounds it down, to at least 1, unless its documentation says otherwise.

        Returns:
            for each frame the indices of its kept tokens, int64, ascending.
        """

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        return self.choose_frames(tokens.features[None], Fraction(k))[0]


def wanted_tokens(n: int, budget: Budget | PartBudgets) -> Fraction:
    """Returns how many of a frame's ``n`` tokens a budget asks for, not rounded, at most ``n``."""
    if isinstance(budget, PartBudgets):
        return Fraction(sum(budget.counts))
    if isinstance(budget, int):
        return Fraction(min(n, budget))
    assert budget != "adaptive"  # which no video method offers
    return Fraction(n * max(1, parts_per_million(budget)), MILLION)
