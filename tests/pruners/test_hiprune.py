"""HiPrune against plain loops, with neighbours by clamped index and in the raster."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import HiPrune, VisualTokens

SIZES = {
    "rows": st.integers(1, 7),
    "columns": st.integers(1, 8),
    "seed": st.integers(0, 9999),
    "share": st.floats(0.01, 1),
    "buffered": st.sampled_from([0.0, 0.1, 0.4, 0.5, 1.0]),
}


def group(rows: int, columns: int, seed: int, grid: bool = True) -> VisualTokens:
    generator = torch.Generator().manual_seed(seed)
    n = rows * columns
    return VisualTokens(
        torch.randn(n, 4, generator=generator),
        grid=(rows, columns) if grid else None,
        attention=torch.rand(n, generator=generator),
        object_attention=torch.rand(n, generator=generator),
    )


def ranked(values: torch.Tensor) -> list[int]:
    """Indices from the highest, ties from the lowest index."""
    numbers = values.tolist()
    return sorted(range(len(numbers)), key=lambda i: (-numbers[i], i))


def filled(tokens: VisualTokens, kept: set[int], k: int) -> list[int]:
    """The anchors and buffers, and registers up to the budget."""
    assert len(kept) <= k
    for register in ranked(tokens.attention):
        if len(kept) < k:
            kept.add(register)
    return sorted(kept)


@given(**SIZES, grid=st.booleans())
@settings(deadline=None, max_examples=100)
def test_neighbours_by_index(rows, columns, seed, share, buffered, grid):
    tokens = group(rows, columns, seed, grid)
    n = len(tokens)
    k = max(1, int(n * share))
    anchors = ranked(tokens.object_attention)[: min(round(k * buffered / 5), k // 5)]
    steps = (0, 1, -1, columns, -columns) if grid else (0, 1, -1)
    kept = {min(max(anchor + step, 0), n - 1) for anchor in anchors for step in steps}
    assert HiPrune(k, buffered=buffered).select(tokens).tolist() == filled(tokens, kept, k)


@given(**SIZES)
@settings(deadline=None, max_examples=60)
def test_neighbours_in_the_raster(rows, columns, seed, share, buffered):
    tokens = group(rows, columns, seed)
    k = max(1, int(len(tokens) * share))
    anchors = ranked(tokens.object_attention)[: min(round(k * buffered / 5), k // 5)]
    kept = set()
    for anchor in anchors:
        row, column = divmod(anchor, columns)
        for down, right in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
            if 0 <= row + down < rows and 0 <= column + right < columns:
                kept.add((row + down) * columns + column + right)
    pruner = HiPrune(k, buffered=buffered, neighbours="raster")
    assert pruner.select(tokens).tolist() == filled(tokens, kept, k)


@pytest.mark.parametrize(
    ("anchor", "by_index", "in_raster"),
    [
        (12, [7, 11, 12, 13, 17], [7, 11, 12, 13, 17]),  # inside, both agree
        (10, [5, 9, 10, 11, 15], [5, 10, 11, 15]),  # 9 is at the end of the row above
        (14, [9, 13, 14, 15, 19], [9, 13, 14, 19]),  # 15 is at the start of the row below
        (2, [0, 1, 2, 3, 7], [1, 2, 3, 7]),  # the top row brings in token 0
        (22, [17, 21, 22, 23, 24], [17, 21, 22, 23]),  # the bottom row the last token
        (0, [0, 1, 5], [0, 1, 5]),
    ],
)
def test_neighbours_at_the_edges(anchor, by_index, in_raster):
    """A 5 x 5 raster with one anchor; registers are the tokens of the highest index."""
    attention = torch.arange(25.0)
    objects = torch.zeros(25).index_fill(0, torch.tensor(anchor), 1)
    tokens = VisualTokens(
        torch.ones(25, 2), grid=(5, 5), attention=attention, object_attention=objects
    )

    def rest(buffered: list[int]) -> list[int]:
        free = [i for i in range(24, -1, -1) if i not in buffered]
        return sorted(buffered + free[: 5 - len(buffered)])

    assert HiPrune(5, buffered=1.0).select(tokens).tolist() == rest(by_index)
    raster = HiPrune(5, buffered=1.0, neighbours="raster")
    assert raster.select(tokens).tolist() == rest(in_raster)


def test_a_share_of_the_budget_is_rounded_half_to_even():
    """At alpha = 0.1, 25 tokens have round(0.5) = 0 anchors, 26 tokens have one."""
    objects = torch.zeros(100).index_fill(0, torch.tensor(45), 1)
    attention = torch.arange(100.0)
    tokens = VisualTokens(
        torch.ones(100, 2), grid=(10, 10), attention=attention, object_attention=objects
    )
    assert HiPrune(25).select(tokens).tolist() == list(range(75, 100))
    assert HiPrune(26).select(tokens).tolist() == [35, 44, 45, 46, 55, *range(79, 100)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buffered": -0.1}, "buffered=-0.1"),
        ({"object_depth": 0.0}, "object_depth=0.0"),
        ({"neighbours": "nearest"}, "neighbours='nearest'"),
    ],
)
def test_parameters_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        HiPrune(0.5, **options)
