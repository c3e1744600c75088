"""Original positions of pruned prompts, against transformers-like numbering token by token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gprune.serving.vllm.positions import Placed, fill, next_offset, plan

# A prompt: text lengths between images, each of a raster, with the rows of it that stay.
raster = st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda shape: st.tuples(
        st.just(shape),
        st.sets(st.integers(0, shape[0] * shape[1] - 1), min_size=1).map(sorted),
    )
)
prompt = st.tuples(st.lists(st.tuples(st.integers(0, 3), raster), max_size=4), st.integers(0, 3))


def numbered(
    images: list[tuple[int, tuple[tuple[int, int], list[int]]]], last: int, by_raster: bool
) -> tuple[list[tuple[int, int, int]], list[int | None], int]:
    """The unpruned prompt's positions with the dropped ones left out, by counting."""
    kept: list[tuple[int, int, int]] = []
    rows: list[int | None] = []  # of its image, for a visual token
    position = 0
    for text, ((high, wide), stays) in images:
        for _ in range(text):
            kept.append((position, position, position))
            rows.append(None)
            position += 1
        for row in range(high * wide):
            if row in stays:
                place = (0, row // wide, row % wide) if by_raster else (row, row, row)
                kept.append(tuple(position + step for step in place))
                rows.append(row)
        position += max(high, wide) if by_raster else high * wide
    for _ in range(last):
        kept.append((position, position, position))
        rows.append(None)
        position += 1
    return kept, rows, position


def planned(images: list, last: int, by_raster: bool) -> torch.Tensor:
    placed, place = [], 0
    for text, ((high, wide), stays) in images:
        place += text
        places = torch.arange(place, place + len(stays))
        placed.append(Placed(places, high * wide, (high, wide) if by_raster else None))
        place += len(stays)
    return plan(place + last, placed)


@given(prompt, st.booleans(), st.data())
def test_chunks_of_any_size_give_the_original_positions(drawn, by_raster, data) -> None:
    images, last = drawn
    kept, rows, following = numbered(images, last, by_raster)
    positions = planned(images, last, by_raster)
    length = len(kept)
    assert next_offset(positions) == following - length
    computed = 0
    while computed < length:
        size = data.draw(st.integers(1, length - computed))
        chunk = [row for row in rows[computed : computed + size] if row is not None]
        if chunk:
            positions = fill(positions, torch.tensor(chunk), computed)
            again = fill(positions, torch.tensor(chunk), computed)  # after a preemption
            assert torch.equal(again, positions)
        computed += size
    assert positions[:, :length].T.tolist() == [list(place) for place in kept]
    assert next_offset(positions) == following - length


def test_text_alone_is_counted() -> None:
    positions = plan(4, [])
    assert positions[:, :4].tolist() == [[0, 1, 2, 3]] * 3
    assert next_offset(positions) == 0


def test_placeholders_with_a_gap_are_refused() -> None:
    with pytest.raises(ValueError, match="must be adjacent"):
        plan(6, [Placed(torch.tensor([1, 3]), 9)])


def test_embeddings_without_placeholders_are_refused() -> None:
    positions = plan(3, [Placed(torch.tensor([1]), 9)])
    with pytest.raises(RuntimeError, match="2 embeddings came for 1 placeholders"):
        fill(positions, torch.tensor([0, 4]), 0)
