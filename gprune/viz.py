"""Pictures of what pruning does: kept tokens, scores, and the graph around a token.

The functions take an image and a grid of (rows, columns) and divide the image into that many cells,
whatever its size. So they work for the groups of every model family.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from gprune.graph import SimilarityGraph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The colour that pruned patches fade to: it differs from black, white and most photographs.
FADE = (24, 26, 32)
KEPT_OUTLINE = (255, 196, 0)
GRAPH_TOKEN = (255, 0, 110)
GRAPH_EDGE = (0, 120, 255)
# The format needs a LaTeX installation.
UNSUPPORTED_FORMATS = frozenset({"pgf"})


def cells(size: tuple[int, int], grid: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Returns the box (left, top, right, bottom) in pixels of every cell, row by row.

    Args:
        size: (width, height) of the image.
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
    """Enlarges an image by the least whole factor that makes its shorter side ``least`` pixels.

    Returns:
        The image in RGB.
    """
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
    """Dims the patches of pruned tokens and leaves those of kept tokens as they are.

    Args:
        image: the part of an image that the group's tokens show.
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
    """Draws a heat map of scores over an image, bright where a token ranks high.

    Colours show ranks, not values: the order alone decides which tokens are kept, and a few large
    values would leave all others in one colour.

    Args:
        image: the part of an image that the group's tokens show.
        scores: one for each token, [n]; -inf ranks last.
        grid: (rows, columns) of the group.

    Raises:
        ValueError: the number of scores differs from the number of cells.
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
    """Draws lines from a token to its strongest neighbours, thicker for stronger edges.

    Args:
        image: the part of an image that the group's tokens show.
        graph: the graph of the same group.
        token: index of the token.
        grid: (rows, columns) of the group.
        most: number of neighbours to draw at most.

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
    for index in (token, *neighbours):
        result.paste(base.crop(boxes[index]), boxes[index])
    draw_edges(result, boxes, token, [(index, float(weights[index])) for index in neighbours])
    return result


def draw_edges(
    image: Image.Image,
    boxes: Sequence[tuple[int, int, int, int]],
    token: int,
    edges: Sequence[tuple[int, float]],
) -> None:
    """Draws edges and a token into an image, in place.

    Args:
        image: the image to draw into.
        boxes: see `cells`.
        token: index of the token.
        edges: the other end and the weight of each edge, strongest first.
    """
    pen = ImageDraw.Draw(image)

    def centre(index: int) -> tuple[float, float]:
        left, top, right, bottom = boxes[index]
        return (left + right) / 2, (top + bottom) / 2

    # Weakest first, so that strong edges are drawn on top.
    for index, weight in reversed(edges):
        width = 1 + round(4 * weight / edges[0][1])
        pen.line([centre(token), centre(index)], fill=GRAPH_EDGE, width=width)
        x, y = centre(index)
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=GRAPH_EDGE)
    x, y = centre(token)
    pen.ellipse((x - 7, y - 7, x + 7, y + 7), fill=GRAPH_TOKEN, outline=(255, 255, 255), width=2)


def figure_path(path: Path, name: str | None = None) -> Path:
    """Returns the path that ``savefig`` writes to: .png is appended to a name without suffix.

    Args:
        path: a file, or a folder if there is a ``name``.
        name: of the file in a folder that exists.

    Raises:
        ValueError: the suffix names no format that can be written, or the path is a folder and
            there is no name.
    """
    from matplotlib.figure import Figure

    if name is not None and path.is_dir():
        path = path / name
    if not path.suffix:
        path = path.with_name(f"{path.name}.png")
    formats = sorted(set(Figure().canvas.get_supported_filetypes()) - UNSUPPORTED_FORMATS)
    if path.suffix[1:].lower() not in formats:
        raise ValueError(
            f"out={str(path)!r} has the suffix {path.suffix}, which cannot be written; use .png "
            f"or another of {', '.join(formats)}"
        )
    if path.is_dir():
        raise ValueError(f"out={str(path)!r} is a folder; name a file such as {path / 'out.png'}")
    return path


def panel(pictures: Sequence[tuple[str, Image.Image]], title: str = "", columns: int = 4) -> Figure:
    """Arranges pictures with captions side by side in a matplotlib figure.

    Args:
        pictures: (caption, picture) pairs; a caption may have two lines.
        title: a line above all pictures.
        columns: pictures in a row at most.

    Returns:
        A figure, which its ``savefig`` writes to a file.
    """
    # The object interface: pyplot keeps global state and picks a window system.
    from matplotlib.figure import Figure

    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    lines = 1 + max(caption.count("\n") for caption, _ in pictures)
    tallest = max(picture.height / picture.width for _, picture in pictures)
    width, caption_height = 3.4, 0.05 + 0.18 * lines  # inches
    height = rows * (width * tallest + caption_height) + (0.3 if title else 0.0)
    figure = Figure(figsize=(width * columns, height), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, (caption, picture) in zip(axes, pictures, strict=False):
        axis.imshow(np.asarray(picture))
        axis.set_title(caption, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=13)
    return figure
