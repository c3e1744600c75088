"""Tiles of an image of any resolution, against transformers' own count."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches
from transformers.models.llava_onevision import modeling_llava_onevision

from gprune.layouts.anyres import best_resolution, tile_count

# LLaVA-NeXT's pinpoints and LLaVA-OneVision's.
NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]

sizes = st.tuples(st.integers(1, 4000), st.integers(1, 4000))
pinpoint_lists = st.sampled_from([NEXT, ONEVISION]) | st.lists(
    st.tuples(st.integers(1, 1500), st.integers(1, 1500)), min_size=1, max_size=12
)


@settings(deadline=None)
@given(sizes, pinpoint_lists)
def test_best_resolution_is_the_one_of_transformers(
    size: tuple[int, int], pinpoints: list[Any]
) -> None:
    expected = select_best_resolution(size, pinpoints)
    assume(expected is not None)  # transformers finds none for an image that shrinks to nothing
    assert best_resolution(size, pinpoints) == tuple(expected)


@settings(deadline=None)
@given(sizes, pinpoint_lists, st.integers(1, 500))
def test_tile_count_is_the_one_of_transformers(
    size: tuple[int, int], pinpoints: list[Any], tile: int
) -> None:
    assume(select_best_resolution(size, pinpoints) is not None)
    count = tile_count(size, pinpoints, tile)
    assert count == image_size_to_num_patches(size, pinpoints, tile)
    assert count == modeling_llava_onevision.image_size_to_num_patches(size, pinpoints, tile)


@pytest.mark.parametrize(
    ("size", "best"),
    [
        ((336, 672), (336, 672)),  # fits exactly
        ((100, 100), (336, 672)),  # a tie in pixels and padding goes to the first
        ((2000, 500), (1008, 336)),
        ((2000, 2000), (672, 672)),
    ],
)
def test_best_resolution_of_known_sizes(size: tuple[int, int], best: tuple[int, int]) -> None:
    assert best_resolution(size, NEXT) == best


def test_tile_count_has_the_thumbnail_in_it() -> None:
    assert tile_count((336, 672), NEXT, 336) == 3
    assert tile_count((2000, 2000), NEXT, 336) == 5


def test_an_image_that_shrinks_to_nothing_gets_a_resolution() -> None:
    assert best_resolution((10_000, 1), NEXT) in [tuple(pinpoint) for pinpoint in NEXT]
