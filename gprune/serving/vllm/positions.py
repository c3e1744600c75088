"""Position ids of the unpruned prompt, for a pruned one.

vLLM asks for the positions of a prompt before its images are encoded, and again when their
embeddings are available. So the first answer carries more columns behind the positions: for each
placeholder, where its image starts and how wide its raster is. The second answer reads them to give
each kept token its original position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows of position ids: time, row, column. Models with 1-D positions read the first.
AXES = 3
# Marks text tokens in the additional columns.
NO_IMAGE = -1


@dataclass(frozen=True, eq=False)
class PromptImage:
    """An image in a prompt.

    Attributes:
        placeholders: indices of its kept tokens in the prompt, int64 [k], adjacent.
        tokens: visual tokens before pruning.
        raster: (rows, columns) that M-RoPE numbers; None for 1-D positions.
    """

    placeholders: Tensor
    tokens: int
    raster: tuple[int, int] | None = None

    @property
    def advance(self) -> int:
        """Returns the distance from the image's first position to that of the text after it."""
        return self.tokens if self.raster is None else max(self.raster)


def plan_positions(length: int, images: Sequence[PromptImage]) -> Tensor:
    """Returns the positions of a prompt of ``length`` tokens whose images are not encoded yet.

    Text is numbered as in the unpruned prompt. Kept tokens have the position of their image's start
    until `fill_positions` moves them.

    Returns:
        int64 [3, 2 * length + 1]: the positions, ``length`` columns; the position of the first
        generated token, 1 column; for each token its image's start and the columns of its raster (0
        for 1-D positions), or -1 for text, ``length`` columns.

    Raises:
        ValueError: the kept tokens of an image are not adjacent, or images overlap.
    """
    positions = torch.empty(AXES, 2 * length + 1, dtype=torch.int64)
    positions[:, length + 1 :] = NO_IMAGE
    index = position = 0
    for image in images:
        start, end = int(image.placeholders[0]), int(image.placeholders[-1]) + 1
        if start < index or end - start != len(image.placeholders):
            raise ValueError(
                f"an image's {len(image.placeholders)} placeholders span {start} to {end}, after "
                f"{index}: they must be adjacent and follow those of the image before"
            )
        positions[:, index:start] = torch.arange(position, position + start - index)
        position += start - index
        positions[:, start:end] = position
        columns = 0 if image.raster is None else image.raster[1]
        marks = torch.tensor([position, columns, columns])[:, None]
        positions[:, length + 1 + start : length + 1 + end] = marks
        index, position = end, position + image.advance
    text = length - index
    positions[:, index : length + 1] = torch.arange(position, position + text + 1)
    return positions


def fill_positions(positions: Tensor, rows: Tensor, computed: int) -> Tensor:
    """Gives kept tokens their original positions, now that it is known which rows they are.

    Args:
        positions: from `plan_positions`, or of an earlier call, [3, 2 * length + 1].
        rows: row of each embedding in its image, int64 [k], in prompt order.
        computed: number of prompt tokens computed before; the embeddings belong to the first
            placeholders after them.

    Returns:
        a copy of ``positions`` with these ``k`` tokens changed. Repeating a call is a no-op.

    Raises:
        RuntimeError: there are more embeddings than placeholders.
    """
    filled = positions.clone()
    length = (positions.shape[1] - 1) // 2
    starts, columns = positions[0, length + 1 :], positions[1, length + 1 :]
    indices = (starts[computed:] != NO_IMAGE).nonzero().squeeze(1)[: len(rows)] + computed
    if len(indices) != len(rows):
        raise RuntimeError(
            f"{len(rows)} embeddings came for {len(indices)} placeholders after token {computed}"
        )
    width = columns[indices]
    divisor = width.clamp(min=1)
    raster = torch.stack([torch.zeros_like(rows), rows // divisor, rows % divisor])  # [3, k]
    offsets = torch.where(width == 0, rows, raster)
    filled[:, indices] = starts[indices] + offsets
    return filled


def generated_offset(positions: Tensor) -> int:
    """Returns by how much the position of a generated token exceeds its index."""
    length = (positions.shape[1] - 1) // 2
    return int(positions[0, length]) - length
