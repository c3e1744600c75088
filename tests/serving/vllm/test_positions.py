"""Original positions of pruned prompts, compared with numbering token by token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gprune.serving.vllm.positions import (
    PromptImage,
    fill_positions,
    generated_offset,
    plan_positions,
)

# A prompt: the length of the text before each image, the image's raster and its kept rows; the
# length of the text at the end.
raster = st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda shape: st.tuples(
        st.just(shape),
        st.sets(st.integers(0, shape[0] * shape[1] - 1), min_size=1).map(sorted),
    )
)
prompt = st.tuples(st.lists(st.tuples(st.integers(0, 3), raster), max_size=4), st.integers(0, 3))


def count_positions(
    images: list[tuple[int, tuple[tuple[int, int], list[int]]]], last: int, by_raster: bool
) -> tuple[list[tuple[int, int, int]], list[int | None], int]:
    """Returns positions and rows of the kept tokens, by counting, and the next position."""
    kept: list[tuple[int, int, int]] = []
    rows: list[int | None] = []  # row in its image, None for text
    position = 0
    for text, ((height, width), kept_rows) in images:
        for _ in range(text):
            kept.append((position, position, position))
            rows.append(None)
            position += 1
        for row in range(height * width):
            if row in kept_rows:
                offsets = (0, row // width, row % width) if by_raster else (row, row, row)
                kept.append(tuple(position + step for step in offsets))
                rows.append(row)
        position += max(height, width) if by_raster else height * width
    for _ in range(last):
        kept.append((position, position, position))
        rows.append(None)
        position += 1
    return kept, rows, position


def planned_positions(images: list, last: int, by_raster: bool) -> torch.Tensor:
    prompt_images, index = [], 0
    for text, ((height, width), kept_rows) in images:
        index += text
        placeholders = torch.arange(index, index + len(kept_rows))
        raster_shape = (height, width) if by_raster else None
        prompt_images.append(PromptImage(placeholders, height * width, raster_shape))
        index += len(kept_rows)
    return plan_positions(index + last, prompt_images)


@given(prompt, st.booleans(), st.data())
def test_chunks_of_any_size_give_the_original_positions(drawn, by_raster, data) -> None:
    images, last = drawn
    kept, rows, next_position = count_positions(images, last, by_raster)
    positions = planned_positions(images, last, by_raster)
    length = len(kept)
    assert generated_offset(positions) == next_position - length
    computed = 0
    while computed < length:
        size = data.draw(st.integers(1, length - computed))
        chunk = [row for row in rows[computed : computed + size] if row is not None]
        if chunk:
            positions = fill_positions(positions, torch.tensor(chunk), computed)
            again = fill_positions(positions, torch.tensor(chunk), computed)  # after a preemption
            assert torch.equal(again, positions)
        computed += size
    assert positions[:, :length].T.tolist() == [list(position) for position in kept]
    assert generated_offset(positions) == next_position - length


def test_a_prompt_without_images_is_numbered_in_order() -> None:
    positions = plan_positions(4, [])
    assert positions[:, :4].tolist() == [[0, 1, 2, 3]] * 3
    assert generated_offset(positions) == 0


def test_placeholders_with_a_gap_are_refused() -> None:
    with pytest.raises(ValueError, match="must be adjacent"):
        plan_positions(6, [PromptImage(torch.tensor([1, 3]), 9)])


def test_embeddings_without_placeholders_are_refused() -> None:
    positions = plan_positions(3, [PromptImage(torch.tensor([1]), 9)])
    with pytest.raises(RuntimeError, match="2 embeddings came for 1 placeholders"):
        fill_positions(positions, torch.tensor([0, 4]), 0)
