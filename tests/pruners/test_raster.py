"""Cells of a raster: they tile it, and are nearly equal and nearly square."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gprune.pruners.raster import cells_per_line, raster_cells, spread


@given(rows=st.integers(1, 30), columns=st.integers(1, 30), share=st.floats(0, 1))
def test_cells_tile_the_raster(rows, columns, share):
    k = max(1, int(rows * columns * share))
    cells = list(raster_cells(rows, columns, k))
    assert len(cells) == k == sum(cells_per_line(rows, columns, k))
    covered = [
        (row, column)
        for cell in cells
        for row in range(cell.rows.start, cell.rows.stop)
        for column in range(cell.columns.start, cell.columns.stop)
    ]
    assert sorted(covered) == [(row, column) for row in range(rows) for column in range(columns)]
    centres = [cell.centre for cell in cells]
    assert centres == sorted(set(centres))
    for cell in cells:
        assert cell.rows.start <= cell.centre[0] < cell.rows.stop
        assert cell.columns.start - 1 <= cell.centre[1] <= cell.columns.stop


@given(rows=st.integers(1, 30), columns=st.integers(1, 30), share=st.floats(0, 1))
def test_lines_of_cells_are_nearly_equal(rows, columns, share):
    k = max(1, int(rows * columns * share))
    counts = cells_per_line(rows, columns, k)
    assert len(counts) <= rows
    assert max(counts) <= columns
    assert max(counts) - min(counts) <= 1


def test_cells_of_a_square_raster_are_square():
    sides = {
        (c.rows.stop - c.rows.start, c.columns.stop - c.columns.start)
        for c in raster_cells(24, 24, 64)
    }
    assert sides == {(3, 3)}


@given(length=st.integers(1, 200), share=st.floats(0, 1))
def test_spread_is_even(length, share):
    count = max(1, int(length * share))
    indices = spread(count, length)
    assert len(indices) == count
    assert indices == sorted(set(indices))
    assert indices[0] >= 0
    assert indices[-1] < length
    gaps = {b - a for a, b in itertools.pairwise(indices)}
    assert len(gaps) <= 2
