"""Degrees in float16 beside a row softmax that is rounded to float16, entry by entry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import SimilarityGraph
from gprune.graph import screening, tiled
from gprune.graph.half import FLOAT16_VANISHES, vanishing_weights
from gprune.graph.tiled import TiledGraph


def overlapping(n: int, d: int, seed: int, spread: float = 1.4) -> torch.Tensor:
    """Returns clusters with a dense middle, whose outer tokens are near G-Prune's threshold."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(1, n // 60), d, generator=generator)
    which = torch.randint(0, len(centres), (n,), generator=generator)
    outward = spread * torch.rand(n, 1, generator=generator).square()
    return centres[which] + outward * torch.randn(n, d, generator=generator)


def reference_degree(graph: SimilarityGraph) -> torch.Tensor:
    """Returns the number of entries above 0 of each row of the softmax in float16, by NumPy."""
    weights = graph.weights.double().numpy()
    sums = weights.sum(1, keepdims=True)
    rows = np.divide(weights, sums, out=np.zeros_like(weights), where=sums > 0)
    return torch.from_numpy((rows.astype(np.float16) > 0).sum(1))


def test_the_bound_is_where_float16_begins():
    just_above = np.nextafter(FLOAT16_VANISHES, 1)
    assert np.float16(FLOAT16_VANISHES) == 0
    assert np.float16(just_above) == 2.0**-24
    assert torch.tensor(FLOAT16_VANISHES).half() == 0


@given(st.floats(1, 1e7), st.integers(-2, 2))
def test_the_comparison_is_exact(row_sum, step):
    """Of a float32 weight with the bound in float64, also one step above and below."""
    vanishing = vanishing_weights(torch.tensor([row_sum], dtype=torch.float64))
    weight = np.float32(FLOAT16_VANISHES * row_sum)
    for _ in range(abs(step)):
        weight = np.nextafter(weight, np.float32(np.sign(step)))
    exact = float(weight) > FLOAT16_VANISHES * row_sum
    assert bool(torch.tensor([float(weight)]) > vanishing) == exact
    assert vanishing.dtype == torch.float32


@pytest.mark.parametrize("screened", [True, False])
@pytest.mark.parametrize("stored", ["float64", "float32", "nothing"])
@pytest.mark.parametrize("threshold", [0.5, 0.7, -1.0])
@pytest.mark.parametrize("n", [5, 300, 700])
def test_dense_and_tiled_count_what_is_above_zero(screened, stored, threshold, n, monkeypatch):
    monkeypatch.setattr(screening, "supports_bfloat16", lambda device: screened)
    if stored != "float64":
        monkeypatch.setattr(tiled, "MAX_FLOAT64", 0)
    if stored == "nothing":
        monkeypatch.setattr(tiled, "MAX_STORED", -1)
    x = overlapping(n, 64, seed=n)
    x[n // 2] = 0
    x[-1] = x[0]
    dense = SimilarityGraph.build(x, threshold, 0.03)
    expected = reference_degree(dense)
    assert torch.equal(dense.float16_degree(), expected)
    assert torch.equal(TiledGraph.build(x, threshold, 0.03).float16_degree(), expected)
    assert expected[n // 2] == 0


def test_edges_vanish_in_clusters_alone():
    """Without this the tests above could pass without any edge that vanishes."""
    x = overlapping(600, 64, seed=0)
    graph = SimilarityGraph.build(x, 0.5, 0.03)
    half = graph.float16_degree()
    assert (half <= graph.degree).all()
    assert 0.2 < (half < graph.degree).float().mean() < 0.9
    assert (half >= 1).all()  # a self-loop of less than 2²⁵ tokens stays
    assert torch.equal(SimilarityGraph.build(x, 0.7, 0.03).float16_degree(), degree_at(x, 0.7))


def degree_at(x: torch.Tensor, threshold: float) -> torch.Tensor:
    return SimilarityGraph.build(x, threshold, 0.03).degree


def test_rows_count_by_their_own_sum():
    """The same edge vanishes in the row of a cluster and stays in that of a lonely token."""
    angle = torch.tensor(np.arccos(0.51))
    lonely = torch.tensor([[torch.cos(angle), torch.sin(angle)]])
    x = torch.cat([torch.tensor([[1.0, 0.0]]).expand(4, 2), lonely]).float()
    graph = SimilarityGraph.build(x, 0.5, 0.03)
    assert graph.degree.tolist() == [5, 5, 5, 5, 5]
    assert graph.float16_degree().tolist() == [4, 4, 4, 4, 5]


def test_padding_of_a_batch_is_not_counted():
    x = torch.stack([overlapping(80, 32, 1), overlapping(80, 32, 2)])
    valid = torch.ones(2, 80, dtype=torch.bool)
    valid[1, 50:] = False
    batch = SimilarityGraph.build(x, 0.5, 0.03, valid).float16_degree()
    assert torch.equal(batch[0], SimilarityGraph.build(x[0], 0.5, 0.03).float16_degree())
    alone = SimilarityGraph.build(x[1, :50], 0.5, 0.03).float16_degree()
    assert torch.equal(batch[1, :50], alone)
    assert not batch[1, 50:].any()


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 150),
    d=st.integers(1, 40),
    seed=st.integers(0, 10_000),
    spread=st.floats(0, 2),
    threshold=st.floats(-1, 1),
    temperature=st.floats(0.005, 1),
)
def test_both_forms_agree(n, d, seed, spread, threshold, temperature):
    x = overlapping(n, d, seed, spread)
    dense = SimilarityGraph.build(x, threshold, temperature)
    expected = reference_degree(dense)
    assert torch.equal(dense.float16_degree(), expected)
    assert torch.equal(TiledGraph.build(x, threshold, temperature).float16_degree(), expected)
