"""TextCover against its definition, the best of all subsets, and GraphCover."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import GraphCover, TextCover, VisualTokens
from tests.pruners.reductions import assert_same_reduction

SIZES = {
    "rows": st.integers(1, 4),
    "columns": st.integers(1, 6),
    "seed": st.integers(0, 2**31 - 1),
}
WEIGHTS = st.sampled_from([0.1, 0.5, 1.0, 4.0, 50.0])


def group(rows: int, columns: int, seed: int, d: int = 6) -> VisualTokens:
    """Returns random tokens on a raster, and a question of three embeddings."""
    normal = np.random.default_rng(seed).standard_normal
    x, text = normal((rows * columns, d)), normal((3, d))
    return VisualTokens(torch.from_numpy(x), grid=(rows, columns), text=torch.from_numpy(text))


def definition(tokens: VisualTokens, place: float, text_weight: float) -> tuple:
    """Returns distances (not squared) and weights, pair by pair and token by token."""
    x, text = tokens.features.numpy(), tokens.text.numpy()
    n = len(x)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    words = text / np.linalg.norm(text, axis=1, keepdims=True)
    places = tokens.coordinates().double().numpy()

    def squares(points: np.ndarray) -> np.ndarray:
        found = np.array([[((a - b) ** 2).sum() for b in points] for a in points])
        return found / found.mean() if n > 1 else found

    distance = np.sqrt(squares(unit) + place * squares(places))
    relevance = [sum(float(u @ word) for word in words) / len(words) for u in unit]
    less = [sum(other < own - 1e-4 for other in relevance) for own in relevance]
    return distance, np.array([1 + text_weight * count / max(n - 1, 1) for count in less])


def greedy(distance: np.ndarray, weights: np.ndarray, k: int) -> list[int]:
    """Follows the definition; recomputes everything in each step."""
    total = (distance**2).sum(1)
    heaviest = [i for i in range(len(weights)) if weights[i] == weights.max()]
    chosen = [min(heaviest, key=lambda i: (round(total[i], 6), i))]
    while len(chosen) < k:
        rest = [i for i in range(len(weights)) if i not in chosen]
        cost = {i: round(weights[i] * min(distance[i, j] for j in chosen), 6) for i in rest}
        chosen.append(max(rest, key=lambda i: (cost[i], -i)))
    return chosen


@given(**SIZES, share=st.floats(0.05, 1), place=st.sampled_from([0.5, 2.0]), text_weight=WEIGHTS)
@settings(deadline=None, max_examples=100)
def test_greedy_in_the_weighted_distance(rows, columns, seed, share, place, text_weight):
    tokens = group(rows, columns, seed)
    k = max(1, int(len(tokens) * share))
    distance, weights = definition(tokens, place, text_weight)
    pruner = TextCover(k, place=place, text_weight=text_weight)
    assert np.allclose(pruner.weights(tokens).numpy(), weights)
    assert pruner.select(tokens).tolist() == sorted(greedy(distance, weights, k))


@given(n=st.integers(2, 9), seed=st.integers(0, 2**31 - 1), k=st.integers(1, 4), weight=WEIGHTS)
@settings(deadline=None, max_examples=150)
def test_the_guarantee(n, seed, k, weight):
    """The radius is at most min(3, 2 + text_weight) times that of the best of all subsets."""
    tokens = group(1, n, seed, d=3)
    k = min(k, n)
    distance, weights = definition(tokens, 2.0, weight)

    def radius(centres) -> float:
        return float((weights * distance[:, list(centres)].min(1)).max())

    best = min(radius(centres) for centres in itertools.combinations(range(n), k))
    chosen = TextCover(k, text_weight=weight).select(tokens).tolist()
    assert radius(chosen) <= min(3, 2 + weight) * best + 1e-3


@given(**SIZES, share=st.floats(0.05, 1), merge=st.booleans())
@settings(deadline=None, max_examples=60)
def test_without_weight_it_is_graph_cover(rows, columns, seed, share, merge):
    tokens = group(rows, columns, seed)
    k = max(1, int(len(tokens) * share))
    cover = GraphCover(k, merge=merge).reduce(tokens)
    found = TextCover(k, merge=merge, text_weight=0.0).reduce(tokens)
    assert_same_reduction(found, cover)
    assert torch.equal(found.features(tokens.features), cover.features(tokens.features))


@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_equally_relevant_tokens_weigh_the_same(noise):
    """On a plain picture relevance differs by rounding, which plain ranks would amplify."""
    generator = torch.Generator().manual_seed(0)
    x = 1 + noise * torch.randn(64, 3, generator=generator)
    tokens = VisualTokens(x, grid=(8, 8), text=torch.randn(2, 3, generator=generator))
    assert torch.equal(TextCover(9).select(tokens), GraphCover(9).select(tokens))


@given(**SIZES, weight=WEIGHTS)
@settings(deadline=None, max_examples=60)
def test_weights_follow_relevance_whatever_its_scale(rows, columns, seed, weight):
    tokens = group(rows, columns, seed)
    pruner = TextCover(0.4, text_weight=weight)
    weights = pruner.weights(tokens)
    assert weights.min() == 1
    assert weights.max() <= 1 + weight
    unit = torch.nn.functional.normalize(tokens.features, dim=1)
    words = torch.nn.functional.normalize(tokens.text, dim=1)
    relevance = (unit @ words.T).mean(1)
    assert (weights[relevance.argsort()].diff() >= 0).all()
    scaled = VisualTokens(1000 * tokens.features, grid=tokens.grid, text=0.001 * tokens.text)
    assert torch.equal(pruner.select(tokens), pruner.select(scaled))


def test_relevant_regions_are_covered_more_closely():
    """Of two similar regions, the one that the question is about keeps more, the other some."""
    x = torch.randn(128, 16, generator=torch.Generator().manual_seed(0))
    left = (torch.arange(128) % 16 < 8).float()
    x[:, 0], x[:, 1] = 3 * left, 3 * (1 - left)
    for word, side in ((0, left), (1, 1 - left)):
        tokens = VisualTokens(x, grid=(8, 16), text=torch.eye(16)[word : word + 1])
        shares = [
            float(side[TextCover(24, text_weight=weight).select(tokens)].mean())
            for weight in (0.0, 0.5, 1.0)
        ]
        assert shares[0] < shares[1] < shares[2] < 1


def test_the_most_relevant_token_is_kept():
    x = torch.eye(12)
    for relevant in (2, 9):
        for k in (1, 4):
            tokens = VisualTokens(x, grid=(3, 4), text=x[relevant : relevant + 1])
            assert relevant in TextCover(k, text_weight=0.01).select(tokens)


def test_ties_go_to_the_lowest_index():
    tokens = VisualTokens(torch.ones(6, 4), text=torch.ones(1, 4))
    assert TextCover(3).select(tokens).tolist() == [0, 1, 2]
    # Two copies of the relevant token: the first of them, then the farthest of the others.
    x = torch.tensor([[0.0, 1], [1, 0], [0, 1], [1, 0]])
    tokens = VisualTokens(x, text=torch.tensor([[1.0, 0]]))
    assert TextCover(1).select(tokens).tolist() == [1]
    assert TextCover(2).select(tokens).tolist() == [0, 1]


@pytest.mark.parametrize("weight", [1e19, 1e30, 1.7e308])
def test_the_largest_weights_stay_finite(weight):
    tokens = group(3, 4, 0)
    kept = TextCover(5, text_weight=weight).select(tokens)
    assert len(set(kept.tolist())) == 5
    assert int(TextCover(5).weights(tokens).argmax()) in kept


def test_a_text_tower_negates_relevance():
    """In CLIP's space, as in CDPruner, the least similar tokens are the most relevant."""
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    near = VisualTokens(x, grid=(3, 4), aligned=torch.eye(12), text=torch.eye(12)[7:8])
    far = VisualTokens(x, grid=(3, 4), aligned=-torch.eye(12), text=torch.eye(12)[7:8])
    weights = TextCover(1, text_weight=1.0).weights(near).tolist()
    assert weights == pytest.approx([1.0 if i == 7 else 1 + 1 / 11 for i in range(12)])
    assert TextCover(1).select(far).tolist() == [7]


def test_dropped_tokens_are_merged_into_the_nearest():
    tokens = group(5, 6, 2)
    found = TextCover(7, merge=True).reduce_groups([tokens])[0]
    kept, members = found.kept, found.members
    assert torch.equal(kept, TextCover(7).select(tokens))
    distance, _ = definition(tokens, TextCover(7).place, 1.0)
    # By distance without weights; a kept token is nearest to itself.
    assert kept[members].tolist() == kept[distance[:, kept].argmin(1)].tolist()


@pytest.mark.parametrize("merge", [False, True])
def test_the_same_without_the_whole_matrix(merge, monkeypatch):
    tokens = group(12, 25, 7, d=24)
    tokens.features[::50] = 0
    pruner = TextCover(0.2, merge=merge)
    whole = pruner.reduce_groups([tokens])[0]
    monkeypatch.setattr("gprune.graph.cosine.MAX_DENSE_TOKENS", 100)
    assert_same_reduction(pruner.reduce_groups([tokens])[0], whole)


def test_protected_tokens_are_not_ranked_or_counted():
    tokens = group(4, 6, 3)
    protected = torch.zeros(24, dtype=torch.bool)
    protected[[0, 5, 17]] = True
    guarded = VisualTokens(tokens.features, grid=tokens.grid, text=tokens.text, protected=protected)
    rest = (~protected).nonzero().squeeze(1)
    alone = rest[TextCover(6).select(tokens.subset(rest))].tolist()
    assert TextCover(6).select(guarded).tolist() == sorted([0, 5, 17, *alone])


@pytest.mark.parametrize("weight", [-0.5, math.nan, math.inf])
def test_text_weight_out_of_range(weight):
    with pytest.raises(ValueError, match="text_weight="):
        TextCover(0.5, text_weight=weight)


def test_place_out_of_range():
    with pytest.raises(ValueError, match="place=-1"):
        TextCover(0.5, place=-1.0)
