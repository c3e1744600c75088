"""The tiled graph beside the dense one, entry by entry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import GPrune, SimilarityGraph, VisualTokens
from gprune.graph import (
    BLOCK_ROWS,
    CosineRows,
    UnitRows,
    cosine_similarity,
    edge_list,
    screening,
    tiled,
    tiling,
)
from gprune.graph.screening import MIN_SCREENED_TOKENS, Screen
from gprune.graph.tiled import TiledGraph
from gprune.graph.tiling import pack_groups
from tests.graph.features import clustered

# With bfloat16 screening, whether this machine has units for it or not, and without.
SCREENING = (True, False)


@pytest.fixture
def screened(monkeypatch):
    """Returns a function that switches the screen on or off, on any machine."""

    def switch(on: bool) -> None:
        monkeypatch.setattr(screening, "supports_bfloat16", lambda device: on)

    return switch


def dense_weights(graph: TiledGraph) -> torch.Tensor:
    """Returns the weights [n, n] of all tiles and lists; checks that no edge is in two of them."""
    n = len(graph.degree)
    lower = torch.zeros(n, n)
    counts = torch.zeros(n, n, dtype=torch.long)
    for tile in graph.tiles:
        pairs = (tile.rows[:, None], tile.columns)
        weights = graph.tile_weights(tile)
        lower[pairs] += weights.float()
        counts[pairs] += weights > 0
    listed = graph.listed
    lower[listed.rows, listed.columns] += listed.weights.float()
    counts.index_put_((listed.rows, listed.columns), torch.tensor(1), accumulate=True)
    assert counts.max() <= 1
    assert not lower.triu().any()
    return lower + lower.T + torch.diag((graph.degree > 0).float())


def assert_equals_dense(x: torch.Tensor, threshold: float, temperature: float = 0.03) -> None:
    expected = SimilarityGraph.build(x, threshold, temperature)
    actual = TiledGraph.build(x, threshold, temperature)
    assert torch.equal(dense_weights(actual), expected.weights)
    assert torch.equal(actual.degree, expected.degree)
    assert torch.equal(actual.first_copy, expected.first_copy)
    assert torch.equal(actual.norms, expected.norms)
    assert torch.allclose(actual.row_sums, expected.row_sums(), rtol=1e-14)
    for steps in (0, 1, 5):
        result = expected.propagate(expected.norms, steps)
        assert torch.allclose(actual.propagate(actual.norms, steps), result, rtol=1e-12)


@pytest.mark.parametrize("on", SCREENING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.0, -1.0, 1.0])
@pytest.mark.parametrize("n", [3, MIN_SCREENED_TOKENS + 1, BLOCK_ROWS + 40])
def test_equals_the_dense_graph_bit_for_bit(screened, on, dtype, threshold, n):
    screened(on)
    assert_equals_dense(clustered(n, 96).to(dtype), threshold)


@pytest.mark.parametrize("on", SCREENING)
@pytest.mark.parametrize("threshold", [0.5, -0.5])
def test_copies_and_zeros(screened, on, threshold):
    screened(on)
    x = clustered(400, 48)
    x[50:300] = x[torch.randint(0, 50, (250,), generator=torch.Generator().manual_seed(1))]
    x[::9] = 0
    assert_equals_dense(x, threshold)


@pytest.mark.parametrize("on", SCREENING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["alike", "orthogonal", "extreme", "large", "small", "uneven"])
def test_kinds_of_features(screened, on, dtype, kind):
    screened(on)
    x = clustered(300, 64)
    if kind == "alike":
        x = x + 4
    elif kind == "orthogonal":
        x = torch.eye(300)
    elif kind == "extreme":
        x = x * torch.logspace(-37, 36, 300)[:, None]
    elif kind == "uneven":  # about the widest range for which products of two tokens fit
        x = x * torch.logspace(-11, 16, 300)[:, None]
    else:
        x = x * (2.0**90 if kind == "large" else 2.0**-100)
    assert_equals_dense(x.to(dtype), 0.5)


def test_several_panels(screened, monkeypatch):
    screened(True)
    monkeypatch.setattr(tiling, "PANEL_ROWS", 150)
    assert_equals_dense(clustered(400, 64), 0.5)
    assert_equals_dense(clustered(400, 64) + 3, 0.5)


def test_recomputed_weights_are_the_same(monkeypatch):
    x = clustered(300, 64)
    monkeypatch.setattr(edge_list, "MAX_GROUP_SHARE", -1)  # nothing is listed
    stored = TiledGraph.build(x, 0.5, 0.03)
    monkeypatch.setattr(tiled, "MAX_STORED", 1000)
    monkeypatch.setattr(tiled, "MAX_FLOAT64", 500)
    recomputed = TiledGraph.build(x, 0.5, 0.03)
    assert any(tile.weights is None for tile in recomputed.tiles)
    result = recomputed.propagate(recomputed.norms, 4)
    assert torch.equal(stored.propagate(stored.norms, 4), result)


def test_few_edges_are_listed(screened, monkeypatch):
    screened(False)
    x = clustered(400, 64)
    x[70] = x[3]
    sparse = TiledGraph.build(x, 0.5, 0.03)
    assert not sparse.tiles
    assert 2 * len(sparse.listed.rows) + 400 == sparse.degree.sum()
    assert sparse.first_copy[70] == 3
    # Not listed: most pairs are edges; many successive pairs are; thresholds at which tokens of
    # zero norm could have edges, or copies could have none.
    runs = torch.eye(3).repeat_interleave(130, 0)
    for features, threshold in ((x + 4, 0.5), (runs, 0.5), (x, 0.0), (x, 1.0)):
        graph = TiledGraph.build(features, threshold, 0.03)
        assert graph.tiles
        assert not len(graph.listed.rows)
    monkeypatch.setattr(tiled, "MAX_STORED", -1)  # no room for lists either
    assert TiledGraph.build(x, 0.5, 0.03).tiles
    assert_equals_dense(x, 0.5)


@given(
    n=st.integers(MIN_SCREENED_TOKENS, 200),
    d=st.integers(1, 70),
    seed=st.integers(0, 10_000),
    threshold=st.floats(-1, 1),
    noise=st.floats(0.01, 2),
)
@settings(deadline=None, max_examples=60)
def test_same_scores_with_and_without_the_screen(n, d, seed, threshold, noise):
    tokens = VisualTokens(clustered(n, d, seed=seed, noise=noise))
    scores = []
    for on in SCREENING:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(screening, "supports_bfloat16", lambda device, on=on: on)
            scores.append(GPrune(0.3, threshold=threshold).score(tokens))
    graph = SimilarityGraph.build(tokens.features, threshold, 0.03)
    per_edge = graph.propagate(graph.norms, 5) / graph.degree.clamp(min=1)
    expected = torch.where(graph.degree > 0, per_edge, -torch.inf)[graph.first_copy].float()
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], expected)


@pytest.mark.parametrize("d", [1, 7, 64, 4096])
def test_the_screen_stays_within_its_bound(d):
    """The worst vectors to round: every channel half-way between two bfloat16 numbers."""
    generator = torch.Generator().manual_seed(d)
    worst = 1 + 2.0**-8 + torch.zeros(64, d)
    worst *= torch.randint(0, 2, (64, d), generator=generator) * 2.0 - 1
    worst[32:] = worst[:32]
    every = slice(None)
    for x in (worst, worst.bfloat16(), clustered(256, d), clustered(256, d).bfloat16()):
        unit = UnitRows(x)
        exact = unit[:].double() @ unit[:].double().T
        screen = Screen.build(unit, 0.0)
        assert (screen.norms is not None) == (x.dtype == torch.bfloat16)
        product = screen.rows.double() @ screen.rows.double().T
        if screen.norms is not None:
            product /= torch.outer(unit.norms, unit.norms)
        assert (product - exact).abs().max() <= -screen.cutoff
        # The candidates include every pair that reaches the threshold.
        for threshold in (-0.5, 0.0, 0.5, 0.9, 1.0):
            candidates = Screen.build(unit, threshold).candidates(every, every)
            assert candidates[cosine_similarity(x) >= threshold].all()


def test_bfloat16_features_are_screened_without_a_copy_if_their_products_fit():
    x = clustered(200, 16).bfloat16()
    assert Screen.build(UnitRows(x), 0.5).rows is x
    for scale in (2.0**-60, 2.0**70):
        assert Screen.build(UnitRows(x * scale), 0.5).norms is None
    x[3] = 0
    assert Screen.build(UnitRows(x), 0.5).norms is None


def test_groups_that_fit_share_a_tile():
    assert pack_groups([]) == []
    assert pack_groups([20, 20, 20, 20]) == [60, 20]
    assert pack_groups([60, 4, 1]) == [64, 1]
    assert pack_groups([150, 40, 128, 3]) == [64, 64, 62, 64, 64, 3]


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_callers_float32_precision_does_not_matter(precision):
    x = clustered(300, 256)
    before = torch.get_float32_matmul_precision()
    expected = GPrune(0.3).score(VisualTokens(x)), cosine_similarity(x)
    try:
        torch.set_float32_matmul_precision(precision)
        assert torch.equal(GPrune(0.3).score(VisualTokens(x)), expected[0])
        assert torch.equal(cosine_similarity(x), expected[1])
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_matter(dtype):
    x = clustered(300, 256)
    expected = GPrune(0.3).score(VisualTokens(x))
    similarity = cosine_similarity(x), CosineRows(x)[torch.arange(300)]
    with torch.autocast("cpu", dtype):
        assert torch.equal(GPrune(0.3).score(VisualTokens(x)), expected)
        assert torch.equal(cosine_similarity(x), similarity[0])
        assert torch.equal(CosineRows(x)[torch.arange(300)], similarity[1])


def test_scores_do_not_depend_on_the_order_of_tokens():
    x = clustered(500, 128)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(3))
    scores = GPrune(0.3).score(VisualTokens(x))
    assert torch.equal(GPrune(0.3).score(VisualTokens(x[order])), scores[order])


@pytest.mark.parametrize("options", [{"threshold": 2.0}, {"temperature": 0.0}])
def test_bad_parameters(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TiledGraph.build(torch.ones(3, 3), **{"threshold": 0.5, "temperature": 0.1, **options})
    with pytest.raises(ValueError, match="iterations=-1"):
        TiledGraph.build(torch.ones(3, 3), 0.5, 0.1).propagate(torch.ones(3), -1)
