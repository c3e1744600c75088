"""The order of tokens inside Qwen2.5-VL's encoder, against transformers' own."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.vision_utils import get_vision_window_index

from gprune.layouts.windows import window_order

PATCH = 14

# (frames, rows, columns) in tokens
token_grids = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=4
)


@settings(deadline=None)
@given(token_grids, st.integers(1, 3), st.integers(1, 6))
def test_window_order_is_the_one_of_transformers(
    shapes: list[tuple[int, int, int]], merge: int, side: int
) -> None:
    grids = torch.tensor(
        [(frames, rows * merge, columns * merge) for frames, rows, columns in shapes]
    )
    window = side * merge * PATCH
    expected, _ = get_vision_window_index(grids, merge, window, PATCH)
    order = window_order(grids, merge, window, PATCH)
    assert torch.equal(order, expected)
    assert torch.equal(order.sort().values, torch.arange(len(order)))


def test_window_order_of_a_small_image() -> None:
    grids = torch.tensor([[1, 6, 6]])  # 3 x 3 tokens in windows of 2 x 2
    order = window_order(grids, 2, 4 * PATCH, PATCH)
    assert order.tolist() == [0, 1, 3, 4, 2, 5, 6, 7, 8]


def test_images_and_frames_follow_one_another() -> None:
    grids = torch.tensor([[2, 4, 4], [1, 2, 4]])
    order = window_order(grids, 2, 2 * PATCH, PATCH)  # windows of one token
    assert order.tolist() == list(range(2 * 4 + 2))
