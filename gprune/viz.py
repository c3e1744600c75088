"""Pictures of what pruning does: kept tokens, scores, and the graph around a token.

Every function takes a picture and a grid of (rows, columns), so it serves any family and any group:
the picture is cut into that many cells, whatever its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from gprune.graph import SimilarityGraph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Pruned patches fade towards this, which stands apart from black, white and most photographs.
FADE = (24, 26, 32)
KEPT_OUTLINE = (255, 196, 0)
GRAPH_TOKEN = (255, 0, 110)
GRAPH_EDGE = (0, 120, 255)


def cells(size: tuple[int, int], grid: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """The box (left, top, right, bottom) in pixels of every cell, row by row.

    Args:
        size: (width, height) of the picture.
        grid: (rows, columns).
    """
    width, height = size
    rows, columns = grid
    return [
        (
            column * width // columns,
            row * height // rows,
            (column + 1) * width // columns,
            (row + 1) * height // rows,
        )
        for row in range(rows)
        for column in range(columns)
    ]


def enlarged(image: Image.Image, least: int = 448) -> Image.Image:
    """``image`` in RGB, enlarged by a whole factor until its shorter side has ``least`` pixels."""
    factor = max(1, -(-least // min(image.size)))
    size = (image.width * factor, image.height * factor)
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST)


def overlay(
    image: Image.Image,
    kept: Sequence[int] | Tensor,
    grid: tuple[int, int],
    fade: float = 0.82,
    outline: bool = True,
) -> Image.Image:
    """The picture with pruned patches dimmed and kept ones as they are.

    Args:
        image: what the group's tokens show.
        kept: indices of the kept tokens.
        grid: (rows, columns) of the group.
        fade: how far pruned patches fade, 0 to 1.
        outline: whether kept patches get a thin frame.

    Raises:
        ValueError: an index lies outside the grid.
    """
    chosen = {int(index) for index in kept}
    count = grid[0] * grid[1]
    if chosen and not (min(chosen) >= 0 and max(chosen) < count):
        raise ValueError(
            f"kept has indices from {min(chosen)} to {max(chosen)}, but grid={grid} has {count} "
            "cells; pass the grid of the same group"
        )
    result = enlarged(image)
    dimmed = Image.blend(result, Image.new("RGB", result.size, FADE), fade)
    boxes = cells(result.size, grid)
    for index, box in enumerate(boxes):
        if index not in chosen:
            result.paste(dimmed.crop(box), box)
    if outline:
        pen = ImageDraw.Draw(result)
        for index in sorted(chosen):
            left, top, right, bottom = boxes[index]
            pen.rectangle((left, top, right - 1, bottom - 1), outline=KEPT_OUTLINE)
    return result


def score_map(image: Image.Image, scores: Tensor, grid: tuple[int, int]) -> Image.Image:
    """The picture under a heat map of scores, bright where a token ranks high.

    Colours go by rank, not by value: what is kept depends on the order alone, and a few large
    values would leave the rest in one colour.

    Args:
        image: what the group's tokens show.
        scores: one a token, [n]; -inf ranks last.
        grid: (rows, columns) of the group.

    Raises:
        ValueError: there is not one score for each cell.
    """
    if scores.numel() != grid[0] * grid[1]:
        raise ValueError(f"scores has {scores.numel()} values, but grid={grid} has another number")
    import matplotlib

    values = scores.detach().cpu().float().numpy()
    # Equal scores share a rank, so that a tie does not look like a slope.
    _, rank = np.unique(values, return_inverse=True)
    heat = rank.reshape(grid) / max(1, rank.max())
    colors = (matplotlib.colormaps["inferno"](heat)[..., :3] * 255).astype(np.uint8)
    base = enlarged(image)
    result = base.convert("L").convert("RGB")
    for color, box in zip(colors.reshape(-1, 3), cells(base.size, grid), strict=True):
        tint = Image.new("RGB", (box[2] - box[0], box[3] - box[1]), tuple(color.tolist()))
        result.paste(Image.blend(result.crop(box), tint, 0.72), box)
    return result


def graph_picture(
    image: Image.Image,
    graph: SimilarityGraph,
    token: int,
    grid: tuple[int, int],
    most: int = 24,
) -> Image.Image:
    """The picture with a token and lines to its strongest neighbours, thicker where stronger.

    Args:
        image: what the group's tokens show.
        graph: of the same group.
        token: index of the token.
        grid: (rows, columns) of the group.
        most: how many neighbours to draw.

    Raises:
        ValueError: the token lies outside the grid, or the graph has another size.
    """
    count = grid[0] * grid[1]
    if graph.degree.shape != (count,):
        raise ValueError(f"graph has {graph.degree.numel()} tokens, but grid={grid} has {count}")
    if not 0 <= token < count:
        raise ValueError(f"token={token} must lie in [0, {count})")
    base = enlarged(image)
    result = Image.blend(base, Image.new("RGB", base.size, (255, 255, 255)), 0.45)
    boxes = cells(base.size, grid)
    neighbours = graph.neighbours(token, most).tolist()
    weights = graph.weights[token]
    strongest = float(weights[neighbours[0]]) if neighbours else 1.0
    for index in (token, *neighbours):
        result.paste(base.crop(boxes[index]), boxes[index])
    pen = ImageDraw.Draw(result)

    def centre(index: int) -> tuple[float, float]:
        left, top, right, bottom = boxes[index]
        return (left + right) / 2, (top + bottom) / 2

    # Weakest first, so that strong edges lie on top.
    for index in reversed(neighbours):
        width = 1 + round(4 * float(weights[index]) / strongest)
        pen.line([centre(token), centre(index)], fill=GRAPH_EDGE, width=width)
        x, y = centre(index)
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=GRAPH_EDGE)
    x, y = centre(token)
    pen.ellipse((x - 7, y - 7, x + 7, y + 7), fill=GRAPH_TOKEN, outline=(255, 255, 255), width=2)
    return result


def panel(pictures: Sequence[tuple[str, Image.Image]], title: str = "", columns: int = 4) -> Figure:
    """Pictures with captions side by side as a matplotlib figure, which ``savefig`` saves.

    Args:
        pictures: (caption, picture) pairs.
        title: a line above all.
        columns: pictures in a row.
    """
    # The object interface: pyplot keeps global state and picks a window system.
    from matplotlib.figure import Figure

    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(3.1 * columns, 3.5 * rows + (0.5 if title else 0)), dpi=120)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, (caption, picture) in zip(axes, pictures, strict=False):
        axis.imshow(np.asarray(picture))
        axis.set_title(caption, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    return figure
