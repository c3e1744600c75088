"""Divides a raster of tokens into nearly square cells, and spaces tokens evenly along a line."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A rectangle of a raster.

    Attributes:
        rows: from its first row to its last.
        columns: from its first column to its last.
        centre: (row, column) of the token that represents it. Its column follows `spread`, so it
            can lie one beside the cell if the columns do not divide evenly.
    """

    rows: slice
    columns: slice
    centre: tuple[int, int]


def raster_cells(rows: int, columns: int, k: int) -> Iterator[Cell]:
    """Yields ``k`` nearly square cells of nearly equal size that tile a raster, line by line."""
    counts = cells_per_line(rows, columns, k)
    for line, count in enumerate(counts):
        top, bottom = line * rows // len(counts), (line + 1) * rows // len(counts)
        for cell, column in enumerate(spread(count, columns)):
            left, right = cell * columns // count, (cell + 1) * columns // count
            yield Cell(slice(top, bottom), slice(left, right), ((top + bottom) // 2, column))


def cells_per_line(rows: int, columns: int, k: int) -> list[int]:
    """Returns how many of ``k`` cells each line of cells gets, so that cells are nearly square.

    Examples:
        >>> cells_per_line(8, 8, 16), cells_per_line(3, 6, 5)
        ([4, 4, 4, 4], [2, 3])
    """
    fitting = round(math.sqrt(k * rows / columns))
    lines = min(max(fitting, math.ceil(k / columns)), rows, k)
    return [(line + 1) * k // lines - line * k // lines for line in range(lines)]


def spread(count: int, length: int) -> list[int]:
    """Returns ``count`` distinct integers below ``length``: centres of equal parts, ascending.

    Examples:
        >>> spread(3, 9)
        [1, 4, 7]
    """
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]
