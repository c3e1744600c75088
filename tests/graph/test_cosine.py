"""Cosine similarity of all pairs and of chosen tokens, and the products and norms beneath it."""

from __future__ import annotations

import pytest
import torch

from gprune.graph import (
    BLOCK_ROWS,
    ROW_MULTIPLE,
    CosineRows,
    UnitRows,
    cosine_similarity,
    mean_similarity,
    token_norms,
)
from tests.graph.features import clustered, features


@pytest.mark.parametrize("n", [1, 2, 7, ROW_MULTIPLE, ROW_MULTIPLE + 1, BLOCK_ROWS, BLOCK_ROWS + 3])
def test_cosine_similarity(n):
    x = features(n, 33)
    actual = cosine_similarity(x)
    wide = x.double() / x.double().norm(dim=1, keepdim=True)
    assert actual.dtype == torch.float32
    assert (actual - wide @ wide.T).abs().max() < 1e-6
    assert torch.equal(actual, actual.T)
    assert (actual.diagonal() == 1).all()
    assert actual.abs().max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [0, 30])
def test_mean_similarity(dtype, shared):
    x = (features(BLOCK_ROWS + 5, 24) + shared).to(dtype)
    x[::50] = 0
    expected = cosine_similarity(x).double().mean()
    mean = mean_similarity(UnitRows(x))
    assert mean.dtype == torch.float64
    assert (mean - expected).abs() < 1e-7


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e30, 3e37])
def test_similarity_of_extreme_norms(scale):
    x = features(9, 40)
    scaled = cosine_similarity(x * scale)
    assert (scaled - cosine_similarity(x)).abs().max() < (1e-2 if scale < 1e-38 else 1e-6)


def test_similarity_of_norms_that_need_float64():
    x = features(9, 40).double()
    scale = torch.logspace(-140, 37, 9, dtype=torch.float64).unsqueeze(1)
    assert (cosine_similarity(x * scale) - cosine_similarity(x)).abs().max() < 1e-6


def test_similarity_of_zero_is_zero():
    x = features(5, 8)
    x[2] = 0
    similarity = cosine_similarity(x)
    assert (similarity[2] == 0).all()
    assert (similarity[:, 2] == 0).all()
    assert torch.isfinite(similarity).all()


def test_rounded_cosines_are_clamped_to_one():
    x = features(40, 33)
    x = torch.cat([x, x, -x])  # products of copies round to above 1 for some, below for others
    whole = cosine_similarity(x)
    every = torch.arange(120)
    for similarity in (whole, CosineRows(x)[every], UnitRows(x).similarity(every, every)):
        assert similarity.max() == 1
        assert similarity.min() == -1
    assert torch.equal(CosineRows(x)[every], whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_is_compared_in_float32_with_float64_norms(dtype):
    x = features(9, 40).to(dtype)
    similarity = cosine_similarity(x)
    assert similarity.dtype == torch.float32
    assert (similarity - cosine_similarity(x.float())).abs().max() < 1e-6
    norms = token_norms(x)
    assert norms.dtype == torch.float64
    assert torch.allclose(norms, x.double().square().sum(1).sqrt(), rtol=1e-14)


@pytest.mark.parametrize("callers", ["high", "medium"])
def test_the_callers_matmul_precision_is_ignored_and_restored(callers):
    """See `tests.graph.test_products` for the settings of each version of torch."""
    x = features(64, 96)
    expected = cosine_similarity(x)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(callers)
    try:
        assert torch.equal(cosine_similarity(x), expected)
        assert torch.get_float32_matmul_precision() == callers
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("n", [64, 100, 729])
def test_features_are_not_copied_and_memory_layout_does_not_matter(n):
    """Rows read where they are, copied rows and gathered rows give the same cosines."""
    x = features(n, 96)
    unit, whole = UnitRows(x), cosine_similarity(x)
    assert unit.scaled.data_ptr() == x.data_ptr()
    misaligned = torch.empty(n * 96 + 1)[1:].view(n, 96).copy_(x)
    strided = torch.empty(n, 192)[:, ::2].copy_(x)
    for other in (misaligned, strided, x.T.contiguous().T, x.double()):
        assert torch.equal(cosine_similarity(other), whole)
        assert UnitRows(other).scaled.data_ptr() != other.data_ptr()
    every = torch.arange(n)
    off_diagonal = ~torch.eye(n, dtype=torch.bool)
    for rows in (every, every[32:], every[5:40], every[-1:], every.flip(0), every[:0]):
        for columns in (every, every[32:64], every[::3], every[:0]):
            different = off_diagonal[rows[:, None], columns]
            expected = whole[rows[:, None], columns]
            assert torch.equal(unit.similarity(rows, columns)[different], expected[different])


def test_successive_tokens_are_read_without_a_copy():
    x = features(200, 96)
    unit, every = UnitRows(x), torch.arange(200)
    for rows in (every[:64], every[32:96], every[40:72], every[40:60], every[168:], every[30:31]):
        gathered = unit.gather(rows)
        assert gathered.data_ptr() == x[int(rows[0]) :].data_ptr()
        assert len(gathered) == -(-len(rows) // ROW_MULTIPLE) * ROW_MULTIPLE
    # Too near the end to be padded, in another order, with gaps.
    for rows in (every[170:], every[:64].flip(0), every[:128:2], every[[3, 5, 5]]):
        gathered = unit.gather(rows)
        assert gathered.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
        assert torch.equal(gathered[: len(rows)], x[rows])
    narrow = features(64, 24)  # row 32 does not begin at a cache line
    gathered = UnitRows(narrow).gather(every[32:64])
    assert gathered.untyped_storage().data_ptr() != narrow.untyped_storage().data_ptr()
    parts = [part.data_ptr() for part in unit.gather_parts(every[:100])]
    assert parts[0] == x.data_ptr()
    assert len(parts) == 2


def test_columns_that_are_gathered_in_several_parts():
    x = features(2 * BLOCK_ROWS + 100, 24)
    rows, every = torch.tensor([5, 600, 1100]), torch.arange(len(x))
    whole = cosine_similarity(x)
    different = rows[:, None] != every
    actual = UnitRows(x).similarity(rows, every)
    assert torch.equal(actual[different], whole[rows][different])


def test_similarity_of_rows_that_are_among_the_columns():
    x = clustered(300, 40)
    unit, whole = UnitRows(x), cosine_similarity(x)
    columns = torch.arange(7, 70)
    for rows in (columns.flip(0), columns[::2], torch.cat([columns[1:], torch.tensor([299])])):
        different = rows[:, None] != columns
        expected = whole[rows[:, None], columns]
        assert torch.equal(unit.similarity(rows, columns)[different], expected[different])


def test_an_entry_depends_on_its_two_tokens_alone():
    """It depends neither on their positions, nor on other tokens, nor on the number of threads."""
    threads = torch.get_num_threads()
    try:
        for n, d in [(5, 3), (33, 192), (40, 17), (200, 192), (600, 64)]:
            x = features(n, d)
            whole = cosine_similarity(x)
            order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
            assert torch.equal(cosine_similarity(x[order]), whole[order][:, order])
            assert torch.equal(cosine_similarity(x[: n // 2]), whole[: n // 2, : n // 2])
            assert torch.equal(cosine_similarity(torch.stack([x, -x, x * 2]))[0], whole)
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                assert torch.equal(cosine_similarity(x), whole)
    finally:
        torch.set_num_threads(threads)


def test_rows_of_the_similarity_matrix():
    x = clustered(70, 40)
    x[5] = 0
    rows, whole = CosineRows(x), cosine_similarity(x)
    some = torch.tensor([5, 69, 0])
    assert torch.equal(rows[some], whole[some])
    assert torch.equal(rows[torch.tensor(5)], whole[5])
    assert torch.equal(torch.cat([block for _, block in rows.blocks()]), whole)
    different = ~torch.eye(70, dtype=torch.bool)
    every = torch.arange(70)
    assert torch.equal(UnitRows(x).similarity(every, every)[different], whole[different])


def test_norms_are_float64_and_depend_on_their_row_alone():
    x = clustered(65, 33)
    expected = x.double().square().sum(1).sqrt()
    assert torch.allclose(token_norms(x), expected, rtol=1e-14)
    assert torch.equal(token_norms(x[[64, 3]]), token_norms(x)[[64, 3]])
    assert torch.equal(token_norms(x.view(5, 13, 33)), token_norms(x).view(5, 13))
