"""Budgets for the tiles of a picture that depend on its thumbnail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gprune.budget import (
    MILLION,
    Budget,
    PartBudgets,
    apportion,
    budgets,
    check_rule,
    kept_count,
)
from gprune.device import require
from gprune.tokens import VisualTokens

# What the importance of a thumbnail's tokens can be computed from.
IMPORTANCE_SOURCES = ("features", "attention")


@dataclass(frozen=True)
class ThumbnailGuided:
    """A ``keep`` for any-resolution models that keeps more of tiles important in the thumbnail.

    Liu et al.: "Global Compression Commander: Plug-and-Play Inference Acceleration for
    High-Resolution Large Vision-Language Models", AAAI 2026, arXiv 2501.05179: its budgets, with
    any method. The thumbnail shows what the n tiles show. s_j is the share of the thumbnail's
    signal that lies in the area of tile j, sigma the softmax of s over the tiles, and tile j keeps
    the share r (1 + sigma_j - 1/n) of its tokens. Two things differ from the paper: counts are
    integers that sum to exactly the canvas's own ``kept_count``, so a budget means the same with
    and without guidance; and the default of `temperature` is this project's.

    Examples:
        >>> with GPrune(keep=ThumbnailGuided(0.25))(model):  # doctest: +SKIP
        ...     model.generate(**inputs)

    After unpadding, the canvas shows the picture from edge to edge, as the thumbnail does. It is
    divided into equal tiles, as many per side as its size in thumbnails, rounded up (if much
    padding was cut, the vision tower's own tile borders lie slightly elsewhere). The pruner chooses
    in each tile separately. A thumbnail without a canvas, and frames of a video, get the plain
    budget.

    Attributes:
        keep: retention ratio or count of the thumbnail and of the whole canvas, or one for each
            kind of group (see `gprune.Pruner`).
        signal: what s is computed from. ``attention``: the attention of the vision encoder's CLS
            token to the thumbnail's tokens, as in the paper; for groups that have it.
            ``features``: distance of a token from the mean of the thumbnail, 1 - cosine: this
            project's substitute for models that provide features only.
        temperature: of the softmax over the shares s_j, which sum to 1; lower is sharper.

    Raises:
        TypeError, ValueError: ``keep`` is a function or out of range (see `gprune.kept_count`), or
            another value is out of range.
    """

    keep: Budget | Mapping[str, Budget]
    signal: str = "features"
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if callable(self.keep):
            raise TypeError(
                f"keep={self.keep!r} is a function, and so is ThumbnailGuided: pass it a ratio, a "
                "count or a mapping"
            )
        object.__setattr__(self, "keep", check_rule(self.keep))
        if self.signal not in IMPORTANCE_SOURCES:
            raise ValueError(
                f"signal={self.signal!r} must be one of {', '.join(IMPORTANCE_SOURCES)}"
            )
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} must be a finite number > 0")

    def __call__(self, groups: Sequence[VisualTokens]) -> list[Budget | PartBudgets]:
        """Returns the budget of each group of one image; the canvas's is divided among its tiles.

        Raises:
            ValueError: the groups are not a thumbnail with a canvas, or the signal is missing.
        """
        kinds = [group.kind for group in groups]
        video = set(kinds) == {"frame"}
        if not video and kinds not in (["thumbnail"], ["thumbnail", "canvas"]):
            raise ValueError(
                "keep=ThumbnailGuided(...) needs a thumbnail and a canvas of tiles, got groups of "
                f"kind {', '.join(kinds)}: LLaVA-NeXT and LLaVA-OneVision have them, give other "
                "models a ratio"
            )
        plain = budgets(self.keep, groups)
        if "canvas" not in kinds:
            return plain
        thumbnail, canvas = groups
        _, keep = plain
        assert not isinstance(keep, PartBudgets)  # `keep` is not a function
        return [plain[0], self._tile_budgets(thumbnail, canvas, keep)]

    def _tile_budgets(
        self, thumbnail: VisualTokens, canvas: VisualTokens, keep: Budget
    ) -> Budget | PartBudgets:
        """Divides the budget of a canvas among its tiles; synchronises an accelerator once."""
        if thumbnail.grid is None or canvas.grid is None:
            raise ValueError("grid is missing: thumbnail and canvas both need (rows, columns)")
        pairs = zip(canvas.grid, thumbnail.grid, strict=True)
        down, across = (-(-cells // side) for cells, side in pairs)
        parts = tiles(canvas, down, across)
        free = torch.ones(len(canvas)) if canvas.protected is None else ~canvas.protected
        sizes = [int(free[rows].sum()) for rows, _ in parts]
        if not any(sizes):
            return keep  # all tokens are protected
        softmax = self.importance(thumbnail, down, across).flatten()
        # Integers, so that the arithmetic after this is exact.
        retention = [MILLION + round(MILLION * (s - 1 / len(parts))) for s in softmax.tolist()]
        weights = [size * ratio for size, ratio in zip(sizes, retention, strict=True)]
        return PartBudgets(parts, apportion(kept_count(sum(sizes), keep), weights, sizes))

    def importance(self, thumbnail: VisualTokens, down: int, across: int) -> Tensor:
        """Returns the softmax over tiles of their shares of the signal, float64 [down, across].

        Raises:
            ValueError: the signal is missing or negative.
        """
        assert thumbnail.grid is not None
        signal = self._signal(thumbnail).cpu().view(thumbnail.grid)
        areas = overlap(down, len(signal)) @ signal @ overlap(across, signal.shape[1]).T
        total = areas.sum()
        shares = areas / total if total > 0 else areas
        return torch.softmax(shares.flatten() / self.temperature, 0).view(down, across)

    def _signal(self, thumbnail: VisualTokens) -> Tensor:
        """Returns the importance of each of the thumbnail's tokens, >= 0, float64 [n]."""
        if self.signal == "features":
            unit = torch.nn.functional.normalize(thumbnail.features.double(), dim=1)
            return 1 - torch.cosine_similarity(unit, unit.mean(0, keepdim=True))
        if thumbnail.attention is None:
            raise ValueError(
                "attention of the thumbnail is missing, which signal='attention' needs; pass "
                "signal='features' to go by the features alone"
            )
        require((thumbnail.attention >= 0).all(), "attention must not be negative")
        return thumbnail.attention.double()


def tiles(canvas: VisualTokens, down: int, across: int) -> list[tuple[Tensor, tuple[int, int]]]:
    """Returns rows and grid of each of ``down * across`` nearly equal tiles, line by line."""
    assert canvas.grid is not None
    rows, columns = canvas.grid
    raster = torch.arange(rows * columns, device=canvas.features.device).view(rows, columns)
    return [
        (tile.flatten(), (tile.shape[0], tile.shape[1]))
        for line in torch.tensor_split(raster, down)
        for tile in torch.tensor_split(line, across, 1)
    ]


def overlap(parts: int, cells: int) -> Tensor:
    """Returns how much of each cell lies in each of equal parts of a line.

    Returns:
        float64 [parts, cells], columns sum to 1.
    """
    start = torch.arange(cells, dtype=torch.float64)
    edges = torch.arange(parts + 1, dtype=torch.float64)[:, None] * cells / parts
    return (edges[1:].minimum(start + 1) - edges[:-1].maximum(start)).clamp(min=0)
