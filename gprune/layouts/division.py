"""Divides an image's tokens into groups, from counts alone.

The hook in transformers and the vLLM plugin both call these functions. The plugin's frontend calls
them before the image is encoded, so they see no features.
"""

from __future__ import annotations

import math

import torch

from gprune.tokens import Group


def one_raster(
    tokens: int,
    rows: int,
    columns: int,
    kind: str = "image",
    device: torch.device | None = None,
) -> list[Group]:
    """Groups the raster at the end of an image; tokens before it (a CLS token) are in no group."""
    return [
        Group(torch.arange(tokens - rows * columns, tokens, device=device), (rows, columns), kind)
    ]


def equal_rasters(
    tokens: int, rows: int, columns: int, kind: str, device: torch.device | None = None
) -> list[Group]:
    """Groups tiles or frames of one size, one after another."""
    parts = torch.split(torch.arange(tokens, device=device), rows * columns)
    return [Group(part, (rows, columns), kind) for part in parts]


def thumbnail_and_canvas(
    tokens: int, rows: int, columns: int, device: torch.device | None = None
) -> list[Group]:
    """Groups a square thumbnail and the canvas of tiles behind it.

    Each canvas row ends with a newline token, which is in no group.

    Args:
        tokens: of thumbnail, canvas and newlines.
        rows: of the canvas.
        columns: of the canvas, without newlines. 0 for a picture so narrow that unpadding leaves
            nothing of its canvas; the thumbnail is then the only group.
        device: of the groups' indices.
    """
    index = torch.arange(tokens, device=device)
    thumbnail = tokens - rows * (columns + 1)
    side = math.isqrt(thumbnail)
    groups = [Group(index[:thumbnail], (side, side), "thumbnail")]
    if rows * columns:
        canvas = index[thumbnail:].view(rows, columns + 1)[:, :-1]
        groups.append(Group(canvas.flatten(), (rows, columns), "canvas"))
    return groups


def video_frames(tokens: int, side: int, newlines: int, device: torch.device) -> list[Group]:
    """Groups the square frames of a video; the newlines at its end are in no group.

    Raises:
        ValueError: the tokens are no whole number of frames.
    """
    frame = side * side
    if tokens <= newlines or (tokens - newlines) % frame:
        raise ValueError(
            f"video features have {tokens} rows, expected frames of {frame} rows and then "
            f"{newlines} newlines: they are part of a video or come from another model"
        )
    return equal_rasters(tokens - newlines, side, side, "frame", device)
