"""Rasters read off position ids."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune.layouts.grids import grids_from_coordinates, grids_from_row_breaks, leading_run

shapes = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("values", "length"), [([5], 1), ([5, 6, 7], 3), ([5, 6, 8], 2), ([5, 5], 1), ([5, 4, 5], 1)]
)
def test_leading_run(values: list[int], length: int) -> None:
    assert leading_run(torch.tensor(values)) == length


@settings(deadline=None)
@given(shapes, st.integers(1, 3))
def test_grids_from_coordinates(images: list[tuple[int, int]], frames: int) -> None:
    columns = []
    for start, (height, width) in enumerate(images):
        for frame in range(frames):
            # As where text stands between frames: each starts anew.
            row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            origin = 10 * start + 20 * frame
            columns.append(torch.stack([row.flatten(), column.flatten()]) + origin)
    coordinates = torch.cat(columns, 1)
    text = torch.zeros(2, 3, dtype=torch.int64)
    positions = torch.cat([text, coordinates, text], 1)
    positions = torch.cat([positions[:1], positions])[:, None]  # [3, 1, L]
    placeholder = torch.zeros(1, positions.shape[-1], dtype=torch.bool)
    placeholder[:, 3:-3] = True
    lengths = [frames * height * width for height, width in images]
    grids = grids_from_coordinates(positions, placeholder, lengths)
    # A frame of one row, or one column, cannot be told from its neighbours in every case.
    for grid, (height, width) in zip(grids, images, strict=True):
        assert grid is not None
        assert grid[0] * grid[1] * grid[2] == frames * height * width
        if height > 1 and width > 1:
            assert grid == (frames, height, width)


@settings(deadline=None)
@given(shapes)
def test_grids_from_row_breaks(images: list[tuple[int, int]]) -> None:
    mask = [False]
    for height, width in images:
        mask += ([True] * width + [False]) * height
    placeholder = torch.tensor([mask])
    positions = torch.arange(len(mask))[None]
    lengths = [height * width for height, width in images]
    grids = grids_from_row_breaks(positions, placeholder, lengths)
    assert grids == [(1, height, width) for height, width in images]


def test_uneven_rows_are_no_raster() -> None:
    placeholder = torch.tensor([[True, True, False, True, False, True, True]])
    positions = torch.arange(7)[None]
    assert grids_from_row_breaks(positions, placeholder, [5]) == [None]
