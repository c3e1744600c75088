"""DivPrune, ToDRE and GraphCover against naive implementations and their guarantees."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import (
    D2Pruner,
    DivPrune,
    GraphCover,
    RandomPruner,
    ToDRE,
    VisualTokens,
    graph,
)
from gprune.pruners.greedy import CosineDistance, farthest_first
from tests.pruners.reductions import assert_same_reduction

SIZES = {"n": st.integers(1, 30), "d": st.integers(1, 6), "seed": st.integers(0, 2**31 - 1)}


def features(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d)))


def greedy(distance: list[list[float]], first: int, k: int) -> list[int]:
    """Follows the definition; recomputes everything in each step."""
    chosen = [first]
    while len(chosen) < k:
        rest = [i for i in range(len(distance)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: (min(distance[i][j] for j in chosen), -i)))
    return chosen


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


@given(**SIZES, k=st.integers(1, 30))
@settings(deadline=None)
def test_divprune_is_the_algorithm_of_the_paper(n, d, seed, k):
    x = features(n, max(d, 3), seed)
    k = min(k, n)
    distance = [[1 - cosine(a, b) for b in x.numpy()] for a in x.numpy()]
    nearest = [min((distance[i][j] for j in range(n) if j != i), default=0) for i in range(n)]
    # Two tokens that are each other's nearest tie by definition, whatever rounding gives.
    first = max(range(n), key=lambda i: (round(nearest[i], 6), -i))
    assert DivPrune(k).select(VisualTokens(x)).tolist() == sorted(greedy(distance, first, k))


@given(**SIZES, k=st.integers(1, 30))
@settings(deadline=None)
def test_todre_takes_k_centres_starting_at_the_most_distant(n, d, seed, k):
    x = features(n, max(d, 3), seed)
    k = min(k, n)
    distance = [[1 - cosine(a, b) for b in x.numpy()] for a in x.numpy()]
    # Two tokens have the same distance from each other.
    first = max(range(n), key=lambda i: (round(sum(distance[i]), 6), -i))
    assert ToDRE(k).select(VisualTokens(x)).tolist() == sorted(greedy(distance, first, k))


@given(n=st.integers(2, 9), seed=st.integers(0, 2**31 - 1), k=st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_todre_covers_within_twice_the_best_radius(n, seed, k):
    x = features(n, 4, seed)
    k = min(k, n)
    unit = x / x.norm(dim=1, keepdim=True)
    distance = torch.cdist(unit, unit)

    def radius(centres) -> float:
        return float(distance[list(centres)].amin(0).max())

    best = min(radius(centres) for centres in itertools.combinations(range(n), k))
    assert radius(ToDRE(k).select(VisualTokens(x)).tolist()) <= 2 * best + 1e-3


@given(**SIZES, k=st.integers(2, 6))
@settings(deadline=None, max_examples=50)
def test_divprune_is_at_least_as_diverse_as_random(n, d, seed, k):
    x = features(n + k, d, seed)
    distance = [[1 - cosine(a, b) for b in x.numpy()] for a in x.numpy()]

    def smallest(kept: torch.Tensor) -> float:
        return min(distance[i][j] for i, j in itertools.combinations(kept.tolist(), 2))

    chosen = smallest(DivPrune(k).select(VisualTokens(x)))
    # Half of the largest possible in the metric sqrt(2 - 2 cos): a quarter of it squared.
    best = max(
        min(distance[i][j] for i, j in itertools.combinations(rest, 2))
        for rest in [RandomPruner(k, seed=s).select(VisualTokens(x)).tolist() for s in range(20)]
    )
    assert chosen >= best / 4 - 1e-6


@given(n=st.integers(2, 9), seed=st.integers(0, 2**31 - 1), k=st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_farthest_first_covers_within_twice_the_best_radius(n, seed, k):
    points = features(n, 2, seed)
    k = min(k, n)
    distance = torch.cdist(points, points)

    def radius(centres) -> float:
        return float(distance[list(centres)].amin(0).max())

    best = min(radius(centres) for centres in itertools.combinations(range(n), k))
    chosen = farthest_first(distance, torch.tensor(0), k).tolist()
    assert len(set(chosen)) == k
    assert radius(chosen) <= 2 * best + 1e-9


def test_ties_go_to_the_lowest_index():
    same = torch.ones(6, 4)
    assert DivPrune(3).select(VisualTokens(same)).tolist() == [0, 1, 2]
    assert ToDRE(3).select(VisualTokens(same)).tolist() == [0, 1, 2]
    assert GraphCover(3).select(VisualTokens(same)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("k", [1, 4, 11])
def test_graph_cover_is_greedy_in_its_joint_distance(place, k):
    rows, columns = 3, 5
    x = features(rows * columns, 7, 3).numpy()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    positions = np.array([(row, column) for row in range(rows) for column in range(columns)], float)

    def squares(points: np.ndarray) -> np.ndarray:
        found = np.array([[((a - b) ** 2).sum() for b in points] for a in points])
        return found / found.mean()

    joint = squares(unit) + place * squares(positions)
    expected = greedy(joint.tolist(), int(joint.sum(1).argmin()), k)
    tokens = VisualTokens(torch.from_numpy(x), grid=(rows, columns))
    assert GraphCover(k, place=place).select(tokens).tolist() == sorted(expected)


def test_graph_cover_does_not_depend_on_scales():
    x = features(24, 5, 1)
    tokens = VisualTokens(x, grid=(4, 6))
    scaled = VisualTokens(x * 1000, positions=tokens.coordinates() * 0.01)
    assert torch.equal(GraphCover(7).select(tokens), GraphCover(7).select(scaled))


def test_graph_cover_reaches_every_region():
    """On a plain image only positions differ, so the kept tokens spread over all of it."""
    rounding = 1e-5 * torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    for plain in (torch.ones(64, 3), 1 + rounding):
        kept = GraphCover(16).select(VisualTokens(plain, grid=(8, 8)))
        places = torch.stack([kept // 8, kept % 8], 1).float()
        every = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0))
        assert torch.cdist(every, places).amin(1).max() <= 2  # a grid of 2x2 cells has 1.41


def test_without_a_grid_only_features_count():
    x = features(20, 4, 2)
    alone = GraphCover(5, place=0.0).select(VisualTokens(x, grid=(4, 5)))
    assert torch.equal(GraphCover(5).select(VisualTokens(x)), alone)


@pytest.mark.parametrize("place", [-1.0, float("nan"), float("inf")])
def test_place_out_of_range(place):
    with pytest.raises(ValueError, match="place="):
        GraphCover(0.5, place=place)


@pytest.mark.parametrize("method", [DivPrune, ToDRE, GraphCover])
def test_threads_and_dtypes(method):
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = method(0.2).select(VisualTokens(x, grid=(15, 20)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, method(0.2).select(VisualTokens(x, grid=(15, 20))))
    half = VisualTokens(x.bfloat16(), grid=(15, 20))
    wide = VisualTokens(x.bfloat16().float(), grid=(15, 20))
    assert torch.equal(method(0.2).select(half), method(0.2).select(wide))


@pytest.mark.parametrize("method", [DivPrune, ToDRE, GraphCover])
def test_tokens_of_zero_norm(method):
    x = torch.cat([torch.zeros(3, 4), torch.randn(5, 4)])
    assert method(8).select(VisualTokens(x)).tolist() == list(range(8))
    assert len(method(4).select(VisualTokens(x))) == 4
    assert method(2).select(VisualTokens(torch.zeros(4, 3))).tolist() == [0, 1]


@pytest.mark.parametrize(
    "method",
    [DivPrune, GraphCover, partial(GraphCover, merge=True), ToDRE, D2Pruner],
)
@pytest.mark.parametrize("grid", [(12, 25), None])
def test_the_same_without_the_whole_matrix(method, grid, monkeypatch):
    x = features(300, 24, 7).float()
    x[::50] = 0
    attention = features(300, 1, 8).float().abs().round(decimals=1).squeeze(1)  # with ties
    tokens = VisualTokens(x, grid=grid, attention=attention)
    pruner = method(0.2)
    whole = pruner.reduce_groups([tokens])[0]
    monkeypatch.setattr("gprune.graph.cosine.MAX_DENSE_TOKENS", 100)
    assert_same_reduction(pruner.reduce_groups([tokens])[0], whole)


@pytest.mark.parametrize("n", [5, 300])
def test_prefetched_rows(n):
    """The choice is the same, and each product serves several choices."""
    x = features(n, 24, 7).float()
    x[n - n // 2 :] = x[: n // 2]  # ties
    dense, reads = 1 - graph.cosine_similarity(x), []

    class Counted(CosineDistance):
        def __getitem__(self, rows):
            reads.append(len(rows))
            return super().__getitem__(rows)

    k = (n + 1) // 2
    expected = farthest_first(dense, torch.tensor(3), k)
    assert torch.equal(farthest_first(Counted(x), torch.tensor(3), k), expected)
    unprefetched = len(reads)
    assert torch.equal(farthest_first(Counted(x), torch.tensor(3), k, prefetch=True), expected)
    assert unprefetched == k
    assert len(reads) - unprefetched <= 2 + k // 4
