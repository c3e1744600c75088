"""Divides the lower triangle of the graph's matrix into tiles that hold every edge.

A tile is a set of rows and a set of columns. With a screen (see `gprune.graph.screening`), tokens
that have the same neighbours share a tile, so that a tile is a small dense product; without one,
tiles are plain blocks of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gprune.graph.products import ROW_MULTIPLE, round_up
from gprune.graph.rows import UnitRows
from gprune.graph.screening import Screen, useful_screen

# Rows of a gathered tile: enough for a product to run at full speed, few enough to share
# neighbours.
TILE_ROWS = 2 * ROW_MULTIPLE
# Rows of a plain block, whose columns are all tokens up to its last row.
PLAIN_ROWS = 6 * ROW_MULTIPLE
# Rows of the lower triangle that are screened in one product.
SCREEN_ROWS = 128
# Rows whose candidates are held at once: 4 kB of flags for each token of the graph.
PANEL_ROWS = 4096
# If gathered tiles hold more than this share of a panel's plain blocks, the blocks are as fast:
# they need no gathering.
MAX_TILED_SHARE = 0.7


def plan_tiles(unit: UnitRows, threshold: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields tiles of the lower triangle that hold each of its edges once.

    Yields:
        rows, int64 [r], and columns, ascending, int64 [c]: each row's neighbours before it are
        among the columns, which may include other tokens.
    """
    n = len(unit)
    screen = useful_screen(unit, threshold)
    for start in range(0, n, PANEL_ROWS):
        stop = min(start + PANEL_ROWS, n)
        blocks = list(_plain_blocks(start, stop, unit.features.device))
        if screen is None:
            yield from blocks
            continue
        tiles = _gathered_tiles(screen, start, stop)
        yield from tiles if _entries(tiles) < MAX_TILED_SHARE * _entries(blocks) else blocks


def _plain_blocks(start: int, stop: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields rows ``start`` to ``stop`` in blocks, with all tokens up to a block's last row."""
    every = torch.arange(stop, device=device)
    for top in range(start, stop, PLAIN_ROWS):
        bottom = min(top + PLAIN_ROWS, stop)
        yield every[top:bottom], every[:bottom]


def _entries(tiles: Sequence[tuple[Tensor, Tensor]]) -> int:
    """Counts the entries of all tiles."""
    return sum(len(rows) * len(columns) for rows, columns in tiles)


def _gathered_tiles(screen: Screen, start: int, stop: int) -> list[tuple[Tensor, Tensor]]:
    """Returns tiles of the candidates in rows ``start`` to ``stop`` of the lower triangle."""
    flags = torch.zeros(stop - start, stop, dtype=torch.bool)
    for top in range(start, stop, SCREEN_ROWS):
        bottom = min(top + SCREEN_ROWS, stop)
        candidates = screen.candidates(slice(top, bottom), slice(0, bottom))
        flags[top - start : bottom - start, :bottom] = candidates
    flags.tril_(start - 1)
    has_candidate, first = flags.view(torch.uint8).max(1)
    rows = has_candidate.nonzero().squeeze(1)
    # Tokens whose first neighbour is the same have most neighbours in common.
    first = first[rows]
    sizes = first.bincount()
    heights = pack_groups(sizes[sizes > 0].tolist())
    parts = torch.split(rows[first.argsort(stable=True)], heights)
    return [(part + start, _tile_columns(flags[part], part + start)) for part in parts]


def pack_groups(sizes: Sequence[int]) -> list[int]:
    """Returns the rows of each tile, at most `TILE_ROWS`, for groups of these sizes.

    A group stays in one tile if it fits: if two tiles shared it, both would have its columns.
    """
    heights: list[int] = []
    room = 0
    for size in sizes:
        if size <= room:
            heights[-1] += size
            room -= size
            continue
        heights += [TILE_ROWS] * (size // TILE_ROWS)
        rest = size % TILE_ROWS
        room = 0
        if rest:
            heights.append(rest)
            room = TILE_ROWS - rest
    return heights


def _tile_columns(flags: Tensor, rows: Tensor) -> Tensor:
    """Returns the columns of a tile of flags [r, n]: its neighbours, and its rows if that is free.

    It is free if the padded count of the rows is enough for both: `UnitRows.similarity` then
    gathers the tokens once.
    """
    neighbours = flags.view(torch.uint8).amax(0)  # a sixth of the time of `any`
    with_rows = neighbours.index_fill(0, rows, 1).nonzero().squeeze(1)
    if round_up(len(with_rows)) == round_up(len(rows)):
        return with_rows
    return neighbours.nonzero().squeeze(1)
