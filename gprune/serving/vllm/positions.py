"""Original position ids for pruned prompts.

vLLM asks for a prompt's positions before its images are encoded, and again when their embeddings
are there. So the first answer carries a plan behind the positions: where kept tokens will go, where
their image begins and how wide its raster is. The second fills in what was kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows of position ids: time, row, column. Models with 1-D positions read the first.
ROWS = 3
NO_IMAGE = -1


@dataclass(frozen=True, eq=False)
class Placed:
    """An image in a prompt.

    Attributes:
        places: of its kept tokens in the prompt, int64 [k], adjacent.
        tokens: it had before pruning.
        raster: (rows, columns) that M-RoPE numbers, or None for positions that count tokens.
    """

    places: Tensor
    tokens: int
    raster: tuple[int, int] | None = None

    @property
    def advance(self) -> int:
        """How far the text after the image is from its start."""
        return self.tokens if self.raster is None else max(self.raster)


def plan(length: int, images: Sequence[Placed]) -> Tensor:
    """Positions of a prompt of ``length`` tokens, the next position, and the plan.

    Text counts as if nothing had been removed. Kept tokens stand at their image's start until
    `fill` moves them.

    Returns:
        int64 [3, 2 * length + 1]: positions in the first ``length`` columns; then the position of
        the first generated token; then for each token its image's start and the columns of its
        raster (0 where tokens are counted), or -1 for text.

    Raises:
        ValueError: the kept tokens of an image are not adjacent, or images overlap.
    """
    positions = torch.empty(ROWS, 2 * length + 1, dtype=torch.int64)
    positions[:, length + 1 :] = NO_IMAGE
    place = position = 0
    for image in images:
        start, end = int(image.places[0]), int(image.places[-1]) + 1
        if start < place or end - start != len(image.places):
            raise ValueError(
                f"an image's {len(image.places)} placeholders span {start} to {end}, after "
                f"{place}: they must be adjacent and follow those of the image before"
            )
        positions[:, place:start] = torch.arange(position, position + start - place)
        position += start - place
        positions[:, start:end] = position
        columns = 0 if image.raster is None else image.raster[1]
        marks = torch.tensor([position, columns, columns])[:, None]
        positions[:, length + 1 + start : length + 1 + end] = marks
        place, position = end, position + image.advance
    text = length - place
    positions[:, place : length + 1] = torch.arange(position, position + text + 1)
    return positions


def fill(positions: Tensor, rows: Tensor, computed: int) -> Tensor:
    """Numbers kept tokens whose embeddings have come.

    Args:
        positions: what `plan` returned, [3, 2 * length + 1].
        rows: of those embeddings in their images, int64 [k], in the order of the prompt.
        computed: tokens of the prompt that were computed before; the embeddings are those of the
            first placeholders after them.

    Returns:
        a copy with these ``k`` tokens at their original positions. The same call again changes
        nothing.
    """
    filled = positions.clone()
    length = (positions.shape[1] - 1) // 2
    starts, columns = positions[0, length + 1 :], positions[1, length + 1 :]
    places = (starts[computed:] != NO_IMAGE).nonzero().squeeze(1)[: len(rows)] + computed
    if len(places) != len(rows):
        raise RuntimeError(
            f"{len(rows)} embeddings came for {len(places)} placeholders after token {computed}"
        )
    wide = columns[places]
    counted = wide == 0
    across = wide.clamp(min=1)
    raster = torch.stack([torch.zeros_like(rows), rows // across, rows % across])  # [3, k]
    offsets = torch.where(counted, rows, raster)
    filled[:, places] = starts[places] + offsets
    return filled


def next_offset(positions: Tensor) -> int:
    """By how much the position of a generated token exceeds its index."""
    length = (positions.shape[1] - 1) // 2
    return int(positions[0, length]) - length
