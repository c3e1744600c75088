from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import SimilarityGraph
from gprune.graph import (
    BLOCK,
    TILE,
    CosineRows,
    UnitRows,
    confirmed_copies,
    cosine_similarity,
    mean_similarity,
    product,
    token_norms,
)


def features(n, d, seed=0, **options):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("n", [1, 2, 7, TILE, TILE + 1, BLOCK, BLOCK + 3])
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
    x = (features(BLOCK + 5, 24) + shared).to(dtype)
    x[::50] = 0
    expected = cosine_similarity(x).double().mean()
    mean = mean_similarity(UnitRows(x))
    assert mean.dtype == torch.float64
    assert (mean - expected).abs() < 1e-7


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e30, 3e37])
def test_similarity_of_extreme_norms(scale):
    x = features(9, 40)
    near = cosine_similarity(x * scale)
    assert (near - cosine_similarity(x)).abs().max() < (1e-2 if scale < 1e-38 else 1e-6)


def test_rounding_leaves_no_cosine_beyond_one():
    x = features(40, 33)
    x = torch.cat([x, x, -x])  # products of copies round to above 1 for some, below for others
    whole = cosine_similarity(x)
    every = torch.arange(120)
    for similarity in (whole, CosineRows(x)[every], UnitRows(x).similarity(every, every)):
        assert similarity.max() == 1
        assert similarity.min() == -1
    assert torch.equal(CosineRows(x)[every], whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_is_compared_in_float32_by_float64_norms(dtype):
    x = features(9, 40).to(dtype)
    similarity = cosine_similarity(x)
    assert similarity.dtype == torch.float32
    assert (similarity - cosine_similarity(x.float())).abs().max() < 1e-6
    norms = token_norms(x)
    assert norms.dtype == torch.float64
    assert torch.allclose(norms, x.double().square().sum(1).sqrt(), rtol=1e-14)


def test_what_the_caller_allows_for_products_is_not_used_and_stays(monkeypatch):
    x = features(64, 96)
    expected = cosine_similarity(x)
    matmul = torch.backends.mkldnn.matmul
    mm, used = torch.mm, []

    def watched(*args, **options):
        used.append(matmul.fp32_precision)
        return mm(*args, **options)

    monkeypatch.setattr(torch, "mm", watched)
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        assert torch.equal(cosine_similarity(x), expected)
        assert used == ["ieee"]  # also where a CPU has no units that would show it
        assert matmul.fp32_precision == "bf16"
    finally:
        matmul.fp32_precision = before


def test_products_have_their_shape_at_once():
    left, right = features(7, 5), features(9, 5, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a result that had to be resized
        assert torch.equal(product(left, right.mT), left @ right.mT)


@pytest.mark.parametrize("n", [64, 100, 729])
def test_features_need_no_copy_and_their_place_in_memory_does_not_matter(n):
    """Of rows that a product can read where they are, of copies and of gathered ones: the same."""
    x = features(n, 96)
    unit, whole = UnitRows(x), cosine_similarity(x)
    assert unit.plain.data_ptr() == x.data_ptr()
    beside = torch.empty(n * 96 + 1)[1:].view(n, 96).copy_(x)  # begins elsewhere
    wide = torch.empty(n, 192)[:, ::2].copy_(x)
    for other in (beside, wide, x.T.contiguous().T, x.double()):
        assert torch.equal(cosine_similarity(other), whole)
        assert UnitRows(other).plain.data_ptr() != other.data_ptr()
    every = torch.arange(n)
    off = ~torch.eye(n, dtype=torch.bool)
    for rows in (every, every[32:], every[5:40], every[-1:], every.flip(0), every[:0]):
        for columns in (every, every[32:64], every[::3], every[:0]):
            apart = off[rows[:, None], columns]
            expected = whole[rows[:, None], columns]
            assert torch.equal(unit.similarity(rows, columns)[apart], expected[apart])


def test_tokens_that_follow_each_other_are_read_where_they_lie():
    x = features(200, 96)
    unit, every = UnitRows(x), torch.arange(200)
    for rows in (every[:64], every[32:96], every[40:72], every[40:60], every[168:], every[30:31]):
        tiled = unit._tiled(rows)
        assert tiled.data_ptr() == x[int(rows[0]) :].data_ptr()
        assert len(tiled) == -(-len(rows) // TILE) * TILE
    others = [every[170:], every[:64].flip(0), every[:128:2], every[[3, 5, 5]]]
    for rows in others:  # too near the end for whole tiles, in another order, with gaps
        tiled = unit._tiled(rows)
        assert tiled.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
        assert torch.equal(tiled[: len(rows)], x[rows])
    narrow = features(64, 24)  # rows would begin elsewhere than those of a copy do
    tiled = UnitRows(narrow)._tiled(every[32:64])
    assert tiled.untyped_storage().data_ptr() != narrow.untyped_storage().data_ptr()
    whole = [part.data_ptr() for part in unit._parts(every[:100])]
    assert whole[0] == x.data_ptr()
    assert len(whole) == 2


def test_columns_that_are_gathered_in_several_parts():
    x = features(2 * BLOCK + 100, 24)
    rows, every = torch.tensor([5, 600, 1100]), torch.arange(len(x))
    whole = cosine_similarity(x)
    off = rows[:, None] != every
    assert torch.equal(UnitRows(x).similarity(rows, every)[off], whole[rows][off])


def test_norms_that_only_float64_holds():
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


def test_an_entry_depends_on_its_two_tokens_alone():
    """Not on their places, nor on what else is there, nor on the number of threads."""
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


@given(st.integers(1, 40), st.floats(-1, 1), st.floats(0.01, 2), st.integers(0, 6))
@settings(deadline=None)
def test_transition_is_the_row_softmax_over_edges(n, threshold, temperature, steps):
    x = features(n, 6, seed=n)
    graph = SimilarityGraph.build(x, threshold, temperature)
    similarity = cosine_similarity(x)
    edge = similarity >= threshold
    expected = torch.softmax((similarity.double() / temperature).masked_fill(~edge, -torch.inf), 1)
    assert torch.equal(graph.degree, edge.sum(1))
    assert (graph.transition() - expected).abs().max() < 1e-5
    start = torch.rand(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    power = start.numpy() @ np.linalg.matrix_power(expected.numpy(), steps)
    spread = graph.propagate(start, steps)
    assert np.allclose(spread.numpy(), power, rtol=1e-4)
    assert torch.isclose(spread.sum(), start.sum())  # mass is conserved


def test_more_rows_than_a_block_in_a_batch():
    """The graph by its definition, where it is built in two passes."""
    x = torch.stack([features(BLOCK + 3, 6, seed=seed) for seed in (0, 1)])
    x[1, 4] = x[1, BLOCK + 1]
    graph = SimilarityGraph.build(x, 0.5, 0.1)
    similarity = cosine_similarity(x)
    edge = similarity >= 0.5
    assert torch.equal(graph.degree, edge.sum(-1))
    assert (graph.weights - torch.exp((similarity - 1) / 0.1) * edge).abs().max() < 1e-6
    first = torch.arange(BLOCK + 3).repeat(2, 1)
    first[1, BLOCK + 1] = 4
    assert torch.equal(graph.first_copy, first)


def test_tokens_of_zero_norm_have_no_edge():
    x = features(6, 4)
    x[[1, 4]] = 0
    graph = SimilarityGraph.build(x, -1.0, 0.1)  # every cosine reaches it
    assert graph.degree.tolist() == [4, 0, 4, 4, 0, 4]
    assert not graph.weights[1].any()
    assert not graph.transition()[1].any()
    assert graph.row_sums().dtype == torch.float64
    assert graph.row_sums()[[1, 4]].tolist() == [1, 1]
    assert graph.propagate(torch.ones(6), 0).tolist() == [1, 0, 1, 1, 0, 1]
    assert graph.first_copy.tolist() == [0, 1, 2, 3, 1, 5]


def test_a_cosine_that_equals_the_threshold_is_an_edge():
    assert SimilarityGraph.build(torch.eye(3), 0.0, 0.1).degree.tolist() == [3, 3, 3]
    assert SimilarityGraph.build(torch.eye(3), 1.0, 0.1).degree.tolist() == [1, 1, 1]


def test_norms_do_not_decide_edges():
    x = features(20, 6)
    graph, small = (SimilarityGraph.build(part, 0.2, 0.1) for part in (x, x * 2.0**-20))
    assert torch.equal(graph.weights, small.weights)
    assert torch.equal(graph.degree, small.degree)
    assert torch.equal(graph.norms, small.norms * 2.0**20)
    assert torch.equal(CosineRows(x * 2.0**-20)[torch.arange(20)], cosine_similarity(x))


@pytest.mark.parametrize("threshold", [0.2, -1.0])
def test_ragged_groups_in_a_padded_batch(threshold):
    groups = [features(n, 12, seed=n) for n in (7, 3, 11)]
    groups[0][2] = 0
    groups[2] *= 1e-3  # to norms below 1
    padded = torch.zeros(3, 11, 12)
    valid = torch.zeros(3, 11, dtype=torch.bool)
    for row, group in enumerate(groups):
        padded[row, : len(group)] = group
        padded[row, len(group) :] = 100.0  # padding may hold anything finite
        valid[row, : len(group)] = True
    batch = SimilarityGraph.build(padded, threshold, 0.1, valid)
    spread = batch.propagate(batch.norms, 4)
    for row, group in enumerate(groups):
        n = len(group)
        alone = SimilarityGraph.build(group, threshold, 0.1)
        assert torch.equal(batch.weights[row, :n, :n], alone.weights)
        assert torch.equal(batch.degree[row, :n], alone.degree)
        assert (batch.degree[row, n:] == 0).all()
        assert (spread[row, n:] == 0).all()
        assert torch.allclose(spread[row, :n], alone.propagate(alone.norms, 4), rtol=1e-12)
        assert torch.allclose(batch.transition()[row, :n, :n], alone.transition(), rtol=1e-6)


def test_suspected_copies_are_confirmed_one_by_one():
    x = features(4, 3)
    x[3] = x[0]
    assert confirmed_copies(x, torch.tensor([0, 0, 2, 0])).tolist() == [0, 1, 2, 0]


def test_first_copy_is_exact():
    x = features(600, 24)
    x[5] = x[590]
    x[7] = x[590]
    x[100] = x[99] * 2  # parallel, no copy
    x[300] = x[299]
    x[300, 0] = torch.nextafter(x[300, 0], torch.tensor(torch.inf))
    first = SimilarityGraph.build(x, 0.5, 0.03).first_copy
    expected = torch.arange(600)
    expected[7] = expected[590] = 5
    assert torch.equal(first, expected)


def test_a_copy_of_padding_or_of_a_multiple_is_none():
    x = features(6, 8)
    x[1] = 2 * x[2]  # parallel, and before
    x[4] = x[2]
    x[5] = x[3]
    valid = torch.tensor([True, True, True, False, True, True])
    first = SimilarityGraph.build(x, 0.5, 0.03, valid).first_copy
    assert first.tolist() == [0, 1, 2, 3, 2, 5]


def test_ties_of_neighbours_go_to_the_lowest_index():
    graph = SimilarityGraph.build(torch.ones(300, 2), 0.5, 0.03)
    assert graph.neighbours(7, 400).tolist() == [*range(7), *range(8, 300)]


def test_neighbours():
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.3], [0.0, 1.0], [0.9, 0.1]])
    graph = SimilarityGraph.build(x, 0.5, 0.03)
    assert graph.neighbours(0, 5).tolist() == [1, 4, 2]
    assert graph.neighbours(0, 2).tolist() == [1, 4]
    assert graph.neighbours(3, 5).tolist() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"threshold": -1.5}, "threshold=-1.5"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": float("inf")}, "temperature=inf"),
    ],
)
def test_bad_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        SimilarityGraph.build(features(3, 3), **{"threshold": 0.5, "temperature": 0.1, **options})


@pytest.mark.parametrize("iterations", [-1, 1.5, True])
def test_bad_iterations(iterations):
    graph = SimilarityGraph.build(features(3, 3), 0.5, 0.1)
    with pytest.raises(ValueError, match=f"iterations={iterations}"):
        graph.propagate(torch.ones(3), iterations)
