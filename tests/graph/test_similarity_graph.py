"""The dense graph: edges, weights, transition, propagation, copies and neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import SimilarityGraph
from gprune.graph import BLOCK_ROWS, CosineRows, confirm_copies, cosine_similarity
from tests.graph.features import features


@given(st.integers(1, 40), st.floats(-1, 1), st.floats(0.01, 2), st.integers(0, 6))
@settings(deadline=None)
def test_transition_is_the_row_softmax_over_edges(n, threshold, temperature, steps):
    x = features(n, 6, seed=n)
    graph = SimilarityGraph.build(x, threshold, temperature)
    similarity = cosine_similarity(x)
    edges = similarity >= threshold
    logits = (similarity.double() / temperature).masked_fill(~edges, -torch.inf)
    expected = torch.softmax(logits, 1)
    assert torch.equal(graph.degree, edges.sum(1))
    assert (graph.transition() - expected).abs().max() < 1e-5
    start = torch.rand(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    power = start.numpy() @ np.linalg.matrix_power(expected.numpy(), steps)
    result = graph.propagate(start, steps)
    assert np.allclose(result.numpy(), power, rtol=1e-4)
    assert torch.isclose(result.sum(), start.sum())  # the sum is conserved


def test_a_batch_of_more_rows_than_one_block():
    """The graph follows its definition where it is built in two passes."""
    x = torch.stack([features(BLOCK_ROWS + 3, 6, seed=seed) for seed in (0, 1)])
    x[1, 4] = x[1, BLOCK_ROWS + 1]
    graph = SimilarityGraph.build(x, 0.5, 0.1)
    similarity = cosine_similarity(x)
    edges = similarity >= 0.5
    assert torch.equal(graph.degree, edges.sum(-1))
    assert (graph.weights - torch.exp((similarity - 1) / 0.1) * edges).abs().max() < 1e-6
    first = torch.arange(BLOCK_ROWS + 3).repeat(2, 1)
    first[1, BLOCK_ROWS + 1] = 4
    assert torch.equal(graph.first_copy, first)


def test_tokens_of_zero_norm_have_no_edge():
    x = features(6, 4)
    x[[1, 4]] = 0
    graph = SimilarityGraph.build(x, -1.0, 0.1)  # every cosine reaches -1
    assert graph.degree.tolist() == [4, 0, 4, 4, 0, 4]
    assert not graph.weights[1].any()
    assert not graph.transition()[1].any()
    assert graph.row_sums().dtype == torch.float64
    assert graph.row_sums()[[1, 4]].tolist() == [1, 1]
    assert graph.propagate(torch.ones(6), 0).tolist() == [1, 0, 1, 1, 0, 1]
    assert graph.first_copy.tolist() == [0, 1, 2, 3, 1, 5]


def test_a_cosine_equal_to_the_threshold_is_an_edge():
    assert SimilarityGraph.build(torch.eye(3), 0.0, 0.1).degree.tolist() == [3, 3, 3]
    assert SimilarityGraph.build(torch.eye(3), 1.0, 0.1).degree.tolist() == [1, 1, 1]


def test_norms_do_not_affect_edges():
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
    groups[2] *= 1e-3  # norms below 1
    padded = torch.zeros(3, 11, 12)
    valid = torch.zeros(3, 11, dtype=torch.bool)
    for row, group in enumerate(groups):
        padded[row, : len(group)] = group
        padded[row, len(group) :] = 100.0  # padding may hold any finite value
        valid[row, : len(group)] = True
    batch = SimilarityGraph.build(padded, threshold, 0.1, valid)
    result = batch.propagate(batch.norms, 4)
    for row, group in enumerate(groups):
        n = len(group)
        single = SimilarityGraph.build(group, threshold, 0.1)
        assert torch.equal(batch.weights[row, :n, :n], single.weights)
        assert torch.equal(batch.degree[row, :n], single.degree)
        assert (batch.degree[row, n:] == 0).all()
        assert (result[row, n:] == 0).all()
        assert torch.allclose(result[row, :n], single.propagate(single.norms, 4), rtol=1e-12)
        assert torch.allclose(batch.transition()[row, :n, :n], single.transition(), rtol=1e-6)


def test_suspected_copies_are_confirmed_one_by_one():
    x = features(4, 3)
    x[3] = x[0]
    assert confirm_copies(x, torch.tensor([0, 0, 2, 0])).tolist() == [0, 1, 2, 0]


def test_first_copy_is_exact():
    x = features(600, 24)
    x[5] = x[590]
    x[7] = x[590]
    x[100] = x[99] * 2  # parallel, but no copy
    x[300] = x[299]
    x[300, 0] = torch.nextafter(x[300, 0], torch.tensor(torch.inf))
    first = SimilarityGraph.build(x, 0.5, 0.03).first_copy
    expected = torch.arange(600)
    expected[7] = expected[590] = 5
    assert torch.equal(first, expected)


def test_padding_and_parallel_tokens_are_no_copies():
    x = features(6, 8)
    x[1] = 2 * x[2]  # parallel, and before it
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
