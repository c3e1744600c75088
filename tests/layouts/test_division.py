"""Groups of an image's tokens, from counts alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune.layouts.division import (
    equal_rasters,
    one_raster,
    thumbnail_and_canvas,
    video_frames,
)
from gprune.tokens import Group

sides = st.integers(1, 12)


def rows_of(groups: list[Group]) -> list[int]:
    return torch.cat([group.rows for group in groups]).tolist()


def require_consistent(groups: list[Group]) -> None:
    for group in groups:
        assert group.rows.dtype == torch.int64
        assert group.grid is not None
        assert len(group.rows) == group.grid[0] * group.grid[1]
    rows = rows_of(groups)
    assert rows == sorted(set(rows))


@settings(deadline=None)
@given(sides, sides, st.integers(0, 2))
def test_tokens_before_the_raster_are_in_no_group(rows: int, columns: int, prefix: int) -> None:
    groups = one_raster(prefix + rows * columns, rows, columns)
    require_consistent(groups)
    assert [(group.grid, group.kind) for group in groups] == [((rows, columns), "image")]
    assert rows_of(groups) == list(range(prefix, prefix + rows * columns))


@settings(deadline=None)
@given(sides, sides, st.integers(1, 5), st.sampled_from(["tile", "frame", "image"]))
def test_equal_rasters_follow_one_another(rows: int, columns: int, count: int, kind: str) -> None:
    groups = equal_rasters(count * rows * columns, rows, columns, kind)
    require_consistent(groups)
    assert [(group.grid, group.kind) for group in groups] == [((rows, columns), kind)] * count
    assert rows_of(groups) == list(range(count * rows * columns))


@settings(deadline=None)
@given(sides, sides, sides)
def test_newlines_of_the_canvas_are_in_no_group(side: int, rows: int, columns: int) -> None:
    tokens = side * side + rows * (columns + 1)
    groups = thumbnail_and_canvas(tokens, rows, columns)
    require_consistent(groups)
    assert [group.kind for group in groups] == ["thumbnail", "canvas"]
    assert [group.grid for group in groups] == [(side, side), (rows, columns)]
    newlines = {side * side + (row + 1) * (columns + 1) - 1 for row in range(rows)}
    assert set(range(tokens)) - set(rows_of(groups)) == newlines


@settings(deadline=None)
@given(sides, st.integers(0, 8))
def test_an_empty_canvas_is_no_group(side: int, rows: int) -> None:
    (group,) = thumbnail_and_canvas(side * side + rows, rows, 0)
    assert (group.kind, group.grid) == ("thumbnail", (side, side))
    assert rows_of([group]) == list(range(side * side))


@settings(deadline=None)
@given(sides, st.integers(1, 6), st.integers(0, 2))
def test_newlines_of_a_video_are_in_no_group(side: int, frames: int, newlines: int) -> None:
    tokens = frames * side * side + newlines
    groups = video_frames(tokens, side, newlines, torch.device("cpu"))
    require_consistent(groups)
    assert [group.kind for group in groups] == ["frame"] * frames
    assert rows_of(groups) == list(range(frames * side * side))


@pytest.mark.parametrize("tokens", [0, 1, 8, 9, 16])
def test_part_of_a_video_is_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match=f"video features have {tokens} rows"):
        video_frames(tokens, 3, 1, torch.device("cpu"))


def test_groups_are_made_on_the_device_asked_for() -> None:
    device = torch.device("meta")
    groups = [
        *one_raster(4, 2, 2, device=device),
        *equal_rasters(8, 2, 2, "tile", device),
        *thumbnail_and_canvas(4 + 6, 2, 2, device),
        *video_frames(9, 2, 1, device),
    ]
    assert all(group.rows.device == device for group in groups)
