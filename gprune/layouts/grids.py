"""Reads the raster of an image off the position ids of its placeholders."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def leading_run(values: Tensor) -> int:
    """Returns the length of the longest prefix of ``values`` [n] that counts up by 1."""
    breaks = (values.diff() != 1).nonzero()
    return int(breaks[0]) + 1 if len(breaks) else len(values)


def grids_from_coordinates(
    positions: Tensor, placeholder: Tensor, lengths: Sequence[int]
) -> list[tuple[int, int, int] | None]:
    """Reads (frames, rows, columns) of each image off M-RoPE position ids.

    The last two rows of position ids are (row, column). Where text stands between the frames of a
    video (Qwen3-VL, GLM-4V), each frame counts from another start.

    Args:
        positions: [..., b, L]; the others as in `Family.grids`.
        placeholder: bool [b, L].
        lengths: number of visual tokens of each image.
    """
    coordinates = positions[-2:].expand(2, *placeholder.shape)[:, placeholder].cpu()  # [2, total]
    grids: list[tuple[int, int, int] | None] = []
    for rows, columns in torch.split(coordinates, list(lengths), 1):
        width = leading_run(columns)
        height = leading_run(rows[::width])
        grids.append((len(rows) // (height * width), height, width))
    return grids


def grids_from_row_breaks(
    positions: Tensor, placeholder: Tensor, lengths: Sequence[int]
) -> list[tuple[int, int, int] | None]:
    """Reads (1, rows, columns) of images whose raster rows each end with a text token.

    A Pixtral tower takes images of any shape. The break after each raster row is a text token, so
    it is never pruned, and the placeholders' position ids have a gap after each row.

    Args:
        positions: [..., b, L]; the others as in `Family.grids`.
        placeholder: bool [b, L].
        lengths: number of visual tokens of each image.

    Returns:
        None for an image whose gaps are not evenly spaced.
    """
    counted = positions.expand(placeholder.shape)[placeholder].cpu()  # [total]
    grids: list[tuple[int, int, int] | None] = []
    for part in torch.split(counted, list(lengths)):
        columns = leading_run(part)
        ends = (part.diff() != 1).nonzero().squeeze(1) + 1
        evenly_spaced = torch.equal(ends, torch.arange(columns, len(part), columns))
        is_raster = evenly_spaced and len(part) % columns == 0
        grids.append((1, len(part) // columns, columns) if is_raster else None)
    return grids
