"""Budgets for the tiles of a picture by what its thumbnail finds in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gprune.budget import PARTS, Budget, Shares, apportion, budgets, check_rule, kept_count
from gprune.device import require
from gprune.tokens import VisualTokens

SIGNALS = ("features", "attention")


@dataclass(frozen=True)
class ThumbnailGuided:
    """A ``keep`` for any-resolution models: tiles in which the thumbnail finds more keep more.

    Liu et al.: "Global Compression Commander: Plug-and-Play Inference Acceleration for
    High-Resolution Large Vision-Language Models", AAAI 2026, arXiv 2501.05179: its budgets, under
    any method of choosing tokens. The thumbnail shows what the n tiles show. s_j is how much of the
    thumbnail's signal lies in the area of tile j, sigma the softmax of s over the tiles, and tile j
    keeps the share r (1 + sigma_j - 1/n) of its tokens. Two things are this project's: counts are
    whole and add up to exactly the canvas's own ``kept_count``, so a budget means the same with and
    without guidance; and `temperature`, of which the default is no number of the paper's.

    >>> with GPrune(keep=ThumbnailGuided(0.25))(model):  # doctest: +SKIP
    ...     model.generate(**inputs)

    What is left of a canvas after unpadding shows the picture from edge to edge, as the thumbnail
    does; it divides into as many equal tiles as it has begun widths and heights of a thumbnail
    (where much padding was cut, the vision tower's own borders lay a little elsewhere). The pruner
    chooses in each tile by itself. A thumbnail without a canvas, and frames of a video, get the
    plain budget.

    Attributes:
        keep: retention ratio or count of the thumbnail and of the whole canvas, or one for each
            kind of group (see `gprune.Pruner`).
        signal: what s is made of. ``attention``: the attention that the thumbnail's tokens receive
            from CLS in the vision encoder, as in the paper; for groups that come with it.
            ``features``: how far a token is from the mean of the thumbnail, 1 - cosine: a stand-in
            of this project for models of which only features are at hand.
        temperature: of the softmax over the shares s_j, which add up to 1; lower is sharper.

    Raises:
        TypeError, ValueError: ``keep`` is a function or out of range (see `gprune.kept_count`), or
            another value is.
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
        if self.signal not in SIGNALS:
            raise ValueError(f"signal={self.signal!r} must be one of {', '.join(SIGNALS)}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} must be a finite number > 0")

    def __call__(self, groups: Sequence[VisualTokens]) -> list[Budget | Shares]:
        """The budget of each group of one image; the canvas's is dealt out to its tiles.

        Raises:
            ValueError: the groups are no thumbnail with a canvas, or the signal is missing.
        """
        kinds = [group.kind for group in groups]
        video = set(kinds) == {"frame"}
        if not video and kinds not in (["thumbnail"], ["thumbnail", "canvas"]):
            raise ValueError(
                "keep=ThumbnailGuided(...) needs a thumbnail and a canvas of tiles, got groups of "
                f"kind {', '.join(kinds)}: LLaVA-NeXT and LLaVA-OneVision have them, give other "
                "models a ratio"
            )
        given = budgets(self.keep, groups)
        if "canvas" in kinds:
            given[1] = self._share(groups[0], groups[1], given[1])
        return given

    def _share(self, thumbnail: VisualTokens, canvas: VisualTokens, keep: Any) -> Budget | Shares:
        """Deals the budget of a canvas out to its tiles; reads the signal from its device, once."""
        if thumbnail.grid is None or canvas.grid is None:
            raise ValueError("grid is missing: thumbnail and canvas both need (rows, columns)")
        pairs = zip(canvas.grid, thumbnail.grid, strict=True)
        down, across = (-(-cells // side) for cells, side in pairs)
        parts = tiles(canvas, down, across)
        free = torch.ones(len(canvas)) if canvas.protected is None else ~canvas.protected
        sizes = [int(free[rows].sum()) for rows, _ in parts]
        if not any(sizes):
            return keep  # everything is protected
        softmax = self.importance(thumbnail, down, across).flatten()
        # Whole numbers, so that what follows is exact.
        retention = [PARTS + round(PARTS * (one - 1 / len(parts))) for one in softmax.tolist()]
        weights = [size * one for size, one in zip(sizes, retention, strict=True)]
        return Shares(parts, apportion(kept_count(sum(sizes), keep), weights, sizes))

    def importance(self, thumbnail: VisualTokens, down: int, across: int) -> Tensor:
        """Softmax over the tiles of their shares of the thumbnail's signal, float64 [down, across].

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
        """What the thumbnail finds in each of its tokens, >= 0, float64 [n]."""
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
    """Rows and grid of each of ``down * across`` nearly equal tiles of a canvas, line by line."""
    assert canvas.grid is not None
    rows, columns = canvas.grid
    raster = torch.arange(rows * columns, device=canvas.features.device).view(rows, columns)
    return [
        (tile.flatten(), (tile.shape[0], tile.shape[1]))
        for line in torch.tensor_split(raster, down)
        for tile in torch.tensor_split(line, across, 1)
    ]


def overlap(parts: int, cells: int) -> Tensor:
    """How much of each cell lies in each of equal parts of a line, float64 [parts, cells]."""
    start = torch.arange(cells, dtype=torch.float64)
    edges = torch.arange(parts + 1, dtype=torch.float64)[:, None] * cells / parts
    return (edges[1:].minimum(start + 1) - edges[:-1].maximum(start)).clamp(min=0)
