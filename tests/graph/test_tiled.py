"""The graph in tiles against the dense one, entry by entry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import GPrune, SimilarityGraph, VisualTokens, tiles
from gprune.graph import BLOCK, CosineRows, UnitRows, cosine_similarity, token_norms
from gprune.graph.tiled import Screen, TiledGraph

# With bfloat16 screening, where this machine has units for it or not, and without.
SCREENS = (True, False)


def clustered(n, d, size=12, seed=0, noise=0.7):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(1, n // size), d, generator=generator)
    which = torch.randint(0, len(centres), (n,), generator=generator)
    return centres[which] + noise * torch.randn(n, d, generator=generator)


@pytest.fixture
def screened(monkeypatch):
    """Switches the screen on or off, whatever this machine has."""

    def switch(on: bool) -> None:
        monkeypatch.setattr(tiles, "has_bfloat16", lambda device: on)

    return switch


def dense(graph: TiledGraph) -> torch.Tensor:
    """The weights [n, n] that the tiles stand for; every pair lies in one tile at most."""
    n = len(graph.degree)
    lower = torch.zeros(n, n)
    held = torch.zeros(n, n, dtype=torch.long)
    for tile in graph.tiles:
        place = (tile.rows[:, None], tile.columns)
        weights = graph._weights_of(tile)
        lower[place] += weights.float()
        held[place] += weights > 0
    listed = graph.listed
    lower[listed.rows, listed.columns] += listed.weights.float()
    held.index_put_((listed.rows, listed.columns), torch.tensor(1), accumulate=True)
    assert held.max() <= 1
    assert not lower.triu().any()
    return lower + lower.T + torch.diag((graph.degree > 0).float())


def assert_the_same(x: torch.Tensor, threshold: float, temperature: float = 0.03) -> None:
    expected = SimilarityGraph.build(x, threshold, temperature)
    actual = TiledGraph.build(x, threshold, temperature)
    assert torch.equal(dense(actual), expected.weights)
    assert torch.equal(actual.degree, expected.degree)
    assert torch.equal(actual.first_copy, expected.first_copy)
    assert torch.equal(actual.norms, expected.norms)
    assert torch.allclose(actual.row_sums, expected.row_sums(), rtol=1e-14)
    for steps in (0, 1, 5):
        spread = expected.propagate(expected.norms, steps)
        assert torch.allclose(actual.propagate(actual.norms, steps), spread, rtol=1e-12)


@pytest.mark.parametrize("on", SCREENS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.0, -1.0, 1.0])
@pytest.mark.parametrize("n", [3, tiles.SCREENED + 1, BLOCK + 40])
def test_the_dense_graph_bit_for_bit(screened, on, dtype, threshold, n):
    screened(on)
    assert_the_same(clustered(n, 96).to(dtype), threshold)


@pytest.mark.parametrize("on", SCREENS)
@pytest.mark.parametrize("threshold", [0.5, -0.5])
def test_copies_and_zeros(screened, on, threshold):
    screened(on)
    x = clustered(400, 48)
    x[50:300] = x[torch.randint(0, 50, (250,), generator=torch.Generator().manual_seed(1))]
    x[::9] = 0
    assert_the_same(x, threshold)


@pytest.mark.parametrize("on", SCREENS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["alike", "apart", "extreme", "large", "small", "uneven"])
def test_kinds_of_features(screened, on, dtype, kind):
    screened(on)
    x = clustered(300, 64)
    if kind == "alike":
        x = x + 4
    elif kind == "apart":
        x = torch.eye(300)
    elif kind == "extreme":
        x = x * torch.logspace(-37, 36, 300)[:, None]
    elif kind == "uneven":  # about all that a product of two tokens can hold
        x = x * torch.logspace(-11, 16, 300)[:, None]
    else:
        x = x * (2.0**90 if kind == "large" else 2.0**-100)
    assert_the_same(x.to(dtype), 0.5)


def test_panels(screened, monkeypatch):
    screened(True)
    monkeypatch.setattr(tiles, "PANEL", 150)
    assert_the_same(clustered(400, 64), 0.5)
    assert_the_same(clustered(400, 64) + 3, 0.5)


def test_weights_computed_anew_are_the_same(monkeypatch):
    x = clustered(300, 64)
    monkeypatch.setattr(tiles, "SOME", -1)  # nothing is listed
    stored = TiledGraph.build(x, 0.5, 0.03)
    monkeypatch.setattr(tiles, "STORED", 1000)
    monkeypatch.setattr(tiles, "WIDE", 500)
    anew = TiledGraph.build(x, 0.5, 0.03)
    assert any(tile.weights is None for tile in anew.tiles)
    assert torch.equal(stored.propagate(stored.norms, 4), anew.propagate(anew.norms, 4))


def test_edges_are_listed_where_they_are_few(screened, monkeypatch):
    screened(False)
    x = clustered(400, 64)
    x[70] = x[3]
    few = TiledGraph.build(x, 0.5, 0.03)
    assert not few.tiles
    assert 2 * len(few.listed.rows) + 400 == few.degree.sum()
    assert few.first_copy[70] == 3
    # Where most pairs have one, or many in a row, where zero norms might and where copies need not.
    runs = torch.eye(3).repeat_interleave(130, 0)
    for features, threshold in ((x + 4, 0.5), (runs, 0.5), (x, 0.0), (x, 1.0)):
        graph = TiledGraph.build(features, threshold, 0.03)
        assert graph.tiles
        assert not len(graph.listed.rows)
    monkeypatch.setattr(tiles, "STORED", -1)  # no room for lists either
    assert TiledGraph.build(x, 0.5, 0.03).tiles
    assert_the_same(x, 0.5)


@given(
    n=st.integers(tiles.SCREENED, 200),
    d=st.integers(1, 70),
    seed=st.integers(0, 10_000),
    threshold=st.floats(-1, 1),
    noise=st.floats(0.01, 2),
)
@settings(deadline=None, max_examples=60)
def test_the_same_selection_with_and_without_the_screen(n, d, seed, threshold, noise):
    tokens = VisualTokens(clustered(n, d, seed=seed, noise=noise))
    scores = []
    has = tiles.has_bfloat16
    try:
        for on in SCREENS:
            tiles.has_bfloat16 = lambda device, on=on: on
            scores.append(GPrune(0.3, threshold=threshold).score(tokens))
    finally:
        tiles.has_bfloat16 = has
    graph = SimilarityGraph.build(tokens.features, threshold, 0.03)
    spread = graph.propagate(graph.norms, 5) / graph.degree.clamp(min=1)
    expected = torch.where(graph.degree > 0, spread, -torch.inf)[graph.first_copy].float()
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], expected)


@pytest.mark.parametrize("d", [1, 7, 64, 4096])
def test_the_screen_stays_within_its_bound(d):
    """On vectors that round as badly as any: every channel half-way between bfloat16 numbers."""
    generator = torch.Generator().manual_seed(d)
    worst = 1 + 2.0**-8 + torch.zeros(64, d)
    worst *= torch.randint(0, 2, (64, d), generator=generator) * 2.0 - 1
    worst[32:] = worst[:32]
    every = slice(None)
    for x in (worst, worst.bfloat16(), clustered(256, d), clustered(256, d).bfloat16()):
        unit = UnitRows(x)
        exact = unit[:].double() @ unit[:].double().T
        screen = Screen.of(unit, 0.0)
        assert (screen.lengths is not None) == (x.dtype == torch.bfloat16)
        product = screen.rows.double() @ screen.rows.double().T
        if screen.lengths is not None:
            product /= torch.outer(unit.norms, unit.norms)
        assert (product - exact).abs().max() <= -screen.cutoff
        # What the screen lets through holds everything that reaches the threshold.
        for threshold in (-0.5, 0.0, 0.5, 0.9, 1.0):
            candidates = Screen.of(unit, threshold).candidates(every, every)
            assert candidates[cosine_similarity(x) >= threshold].all()


def test_bfloat16_features_are_screened_as_they_are_where_their_products_fit():
    x = clustered(200, 16).bfloat16()
    assert Screen.of(UnitRows(x), 0.5).rows is x
    for scale in (2.0**-60, 2.0**70):
        assert Screen.of(UnitRows(x * scale), 0.5).lengths is None
    x[3] = 0
    assert Screen.of(UnitRows(x), 0.5).lengths is None


def test_groups_that_fit_share_a_tile():
    assert tiles._packed([]) == []
    assert tiles._packed([20, 20, 20, 20]) == [60, 20]
    assert tiles._packed([60, 4, 1]) == [64, 1]
    assert tiles._packed([150, 40, 128, 3]) == [64, 64, 62, 64, 64, 3]


def test_a_tile_of_tokens_with_themselves():
    x = clustered(300, 40)
    unit, whole = UnitRows(x), cosine_similarity(x)
    columns = torch.arange(7, 70)
    for rows in (columns.flip(0), columns[::2], torch.cat([columns[1:], torch.tensor([299])])):
        off = rows[:, None] != columns
        assert torch.equal(unit.similarity(rows, columns)[off], whole[rows[:, None], columns][off])


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_callers_precision_does_not_matter(precision):
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


def test_permuted_tokens_are_selected_alike():
    x = clustered(500, 128)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(3))
    scores = GPrune(0.3).score(VisualTokens(x))
    assert torch.equal(GPrune(0.3).score(VisualTokens(x[order])), scores[order])


def test_rows_of_the_similarity_matrix():
    x = clustered(70, 40)
    x[5] = 0
    rows, whole = CosineRows(x), cosine_similarity(x)
    some = torch.tensor([5, 69, 0])
    assert torch.equal(rows[some], whole[some])
    assert torch.equal(rows[torch.tensor(5)], whole[5])
    assert torch.equal(torch.cat([block for _, block in rows.blocks()]), whole)
    off = ~torch.eye(70, dtype=torch.bool)
    every = torch.arange(70)
    assert torch.equal(UnitRows(x).similarity(every, every)[off], whole[off])


def test_norms_are_float64_and_depend_on_their_row_alone():
    x = clustered(65, 33)
    wide = x.double().square().sum(1).sqrt()
    assert torch.allclose(token_norms(x), wide, rtol=1e-14)
    assert torch.equal(token_norms(x[[64, 3]]), token_norms(x)[[64, 3]])
    assert torch.equal(token_norms(x.view(5, 13, 33)), token_norms(x).view(5, 13))


@pytest.mark.parametrize("options", [{"threshold": 2.0}, {"temperature": 0.0}])
def test_bad_parameters(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TiledGraph.build(torch.ones(3, 3), **{"threshold": 0.5, "temperature": 0.1, **options})
    with pytest.raises(ValueError, match="iterations=-1"):
        TiledGraph.build(torch.ones(3, 3), 0.5, 0.1).propagate(torch.ones(3), -1)
