"""Merging methods against naive implementations, and properties of merged features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import AveragePooling, GPrune, GraphCover, ToMe, VisualTokens, kept_count
from gprune.pruners import reduction

MERGING = [ToMe(0.4), AveragePooling(0.4), GraphCover(0.4, merge=True)]


def features(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d))).float()


@pytest.mark.parametrize("pruner", MERGING, ids=lambda pruner: pruner.name)
@given(rows=st.integers(1, 8), columns=st.integers(1, 8), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_the_weighted_mean_is_unchanged(pruner, rows, columns, seed):
    x = features(rows * columns, 5, seed)
    tokens = VisualTokens(x, grid=(rows, columns))
    found = pruner.reduce_groups([tokens])[0]
    kept, members = found.kept, found.members
    k = kept_count(len(x), 0.4)
    assert len(kept) == k
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert members.tolist() == [m for m in members.tolist() if 0 <= m < k]
    sizes = torch.bincount(members, minlength=k)
    assert sizes.min() >= 1
    again = pruner.reduce(tokens)
    assert torch.equal(again.kept, kept)
    means = again.features(x)
    assert torch.equal(again.member_counts(), sizes.float())
    weighted = (means * sizes[:, None]).sum(0) / len(x)
    assert torch.allclose(weighted, x.mean(0), atol=1e-5)


@pytest.mark.parametrize("pruner", MERGING, ids=lambda pruner: pruner.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeping_everything_changes_nothing(pruner, dtype):
    x = features(20, 6, 0).to(dtype)
    everything = type(pruner)(1.0)
    found = everything.reduce(VisualTokens(x, grid=(4, 5)))
    assert found.kept.tolist() == list(range(20))
    assert torch.equal(found.features(x), x)


def test_average_pooling_of_a_divisible_raster_is_average_pooling():
    x = features(64, 3, 1)
    found = AveragePooling(16).reduce(VisualTokens(x, grid=(8, 8)))
    expected = torch.nn.functional.avg_pool2d(x.T.view(1, 3, 8, 8), 2).flatten(2)[0].T
    assert torch.allclose(found.features(x), expected, atol=1e-6)
    assert found.kept.tolist() == [
        row * 8 + column for row in (1, 3, 5, 7) for column in (1, 3, 5, 7)
    ]


def test_graph_cover_merges_into_the_nearest():
    x = features(30, 4, 2)
    tokens = VisualTokens(x, grid=(5, 6))
    pruner = GraphCover(7, merge=True)
    found = pruner.reduce_groups([tokens])[0]
    kept = found.kept
    assert torch.equal(kept, GraphCover(7).select(tokens))
    distance = pruner.distance(tokens)
    for token, member in enumerate(found.members.tolist()):
        if token not in kept:
            assert distance[token, kept[member]] == distance[token, kept].min()
        else:
            assert kept[member] == token


def test_protected_tokens_are_unchanged():
    x = features(12, 4, 3)
    protected = torch.zeros(12, dtype=torch.bool)
    protected[[2, 9]] = True
    found = ToMe(3).reduce(VisualTokens(x, protected=protected))
    kept, means = found.kept, found.features(x)
    assert len(kept) == 5
    for token in (2, 9):
        assert torch.equal(means[kept.tolist().index(token)], x[token])
    others = [i for i, token in enumerate(kept.tolist()) if token not in (2, 9)]
    alone = ToMe(3).reduce(VisualTokens(x[~protected]))
    assert torch.equal(means[others], alone.features(x[~protected]))
    assert len(alone.kept) == 3


def test_a_method_that_only_drops_leaves_features_unchanged():
    x = features(10, 3, 4)
    found = GPrune(4).reduce(VisualTokens(x))
    assert not found.merges
    assert torch.equal(found.features(x), x[found.kept])


def test_merging_in_blocks_changes_nothing(monkeypatch):
    x = torch.randn(120, 9, generator=torch.Generator().manual_seed(4))
    members = torch.arange(120) % 36
    means = reduction.mean_by_product(x, members, 36)
    monkeypatch.setattr(reduction, "MATRIX_ENTRIES", 1000)
    assert torch.allclose(reduction.mean_by_product(x, members, 36), means, rtol=1e-6)


@pytest.mark.parametrize("means_of", [reduction.mean_by_index, reduction.mean_by_product])
@given(n=st.integers(1, 1200), k=st.integers(1, 40), seed=st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=30)
def test_means_of_members(means_of, n, k, seed):
    k = min(k, n)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 7, generator=generator)
    members = torch.randint(-1, k, (n,), generator=generator)
    members[torch.randperm(n, generator=generator)[:k]] = torch.arange(k)
    means = means_of(x, members, k)
    for index, mean in enumerate(means):
        own = x[members == index]
        expected = own.double().mean(0)
        assert torch.equal(mean, own[0]) if len(own) == 1 else (mean - expected).abs().max() < 1e-6


@pytest.mark.parametrize("means_of", [reduction.mean_by_index, reduction.mean_by_product])
def test_means_of_huge_features_are_finite(means_of):
    """Their sum overflows float32, their mean does not."""
    huge = torch.full((6, 3), 3e38)
    torch.testing.assert_close(means_of(huge, torch.zeros(6, dtype=torch.long), 1), huge[:1])
    features = ToMe(keep=1).reduce(VisualTokens(huge)).features(huge)
    torch.testing.assert_close(features, huge[:1])
