"""VLM-Pruner against its definition: pivots, passes, rasters, merging."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import VisualTokens, VLMPruner
from gprune.pruners.decoder import DecoderTokens
from gprune.pruners.one_layer import states_of_features
from gprune.pruners.vlm_pruner import fusion_weights, most_varying
from tests.pruners.decoder_references import VLMPrunerReference, decoder_tokens
from tests.pruners.reductions import assert_same_reduction

RASTERS = st.one_of(
    st.none(),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=3),
)


def alike(tokens: DecoderTokens, share: float) -> DecoderTokens:
    """Adds a common part to all hidden states, so that redundancies reach the thresholds."""
    return replace(tokens, hidden=tokens.hidden + share * torch.arange(1.0, 13.0).sin())


def check(pruner: VLMPruner, tokens: DecoderTokens, k: int) -> None:
    """Compares kept and merged tokens with the reference."""
    reference = VLMPrunerReference(tokens, pruner.buffering, pruner.channels)
    expected = reference.kept(k, pruner.pivots, pruner.threshold, pruner.batch, pruner.fill)
    reduction = pruner.reduce_states(tokens, k)
    assert reduction.kept.tolist() == expected
    rows = reduction.features(tokens.hidden).numpy()
    assert np.allclose(rows, reference.merged(expected), atol=1e-3 * np.abs(rows).max())


@given(
    rasters=RASTERS,
    seed=st.integers(0, 2**31 - 1),
    share=st.floats(0, 1),
    likeness=st.sampled_from([0.0, 1.0, 3.0]),
    pivots=st.integers(1, 6),
    threshold=st.sampled_from([0.0, 0.3, 0.8]),
    batch=st.integers(1, 20),
    buffering=st.sampled_from([0.0, 0.5, 3.0]),
    channels=st.sampled_from([5, 256]),
    fill=st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_the_definition(
    rasters, seed, share, likeness, pivots, threshold, batch, buffering, channels, fill
):
    n = 17 if rasters is None else sum(rows * columns for rows, columns in rasters)
    k = max(1, int(n * share))
    tokens = alike(decoder_tokens(n, 0, seed, rasters=rasters), likeness)
    pruner = VLMPruner(
        k,
        pivots=pivots,
        threshold=threshold,
        batch=batch,
        buffering=buffering,
        channels=channels,
        fill=fill,
    )
    check(pruner, tokens, k)


@pytest.mark.parametrize("seed", range(4))
def test_the_defaults(seed):
    tokens = alike(decoder_tokens(80, 0, seed, rasters=[(8, 10)]), 2.0)
    for fill in (True, False):
        for k in (3, 20, 50):
            check(VLMPruner(k, fill=fill), tokens, k)


@given(seed=st.integers(0, 9999), likeness=st.sampled_from([0.0, 1.0, 3.0]), k=st.integers(1, 30))
@settings(deadline=None, max_examples=50)
def test_filling_changes_only_what_ends_early(seed, likeness, k):
    tokens = alike(decoder_tokens(30, 0, seed, rasters=[(5, 6)]), likeness)
    filled = VLMPruner(k).reduce_states(tokens, k)
    released = VLMPruner(k, fill=False).reduce_states(tokens, k)
    assert len(filled) == k
    assert set(released.kept.tolist()) <= set(filled.kept.tolist())
    if len(released) == k:
        assert_same_reduction(filled, released)


def test_the_released_passes_end_early():
    """Where all tokens are alike only the pivots are left."""
    tokens = alike(decoder_tokens(60, 0, 0, rasters=[(6, 10)]), 50.0)
    assert len(VLMPruner(20, fill=False).reduce_states(tokens, 20)) == 4
    assert len(VLMPruner(20).reduce_states(tokens, 20)) == 20


def test_before_the_language_model():
    x = decoder_tokens(30, 0, 3).hidden
    group = VisualTokens(x, grid=(5, 6))
    check(VLMPruner(12, layer=0), states_of_features(group), 12)
    expected = VLMPruner(12).reduce_states(states_of_features(group), 12)
    assert_same_reduction(VLMPruner(12, layer=0).reduce(group), expected)
    assert VLMPruner(12, layer=0).scope == "group"
    with pytest.raises(ValueError, match=r"vlm_pruner reads keys.*VLMPruner\(keep, layer=0\)"):
        VLMPruner(12).select(group)


def test_protected_tokens_keep_their_places():
    x = decoder_tokens(30, 0, 3).hidden
    protected = torch.zeros(30, dtype=torch.bool)
    protected[[0, 17]] = True
    rest = (~protected).nonzero().squeeze(1)
    group = VisualTokens(x, grid=(5, 6), protected=protected)
    reduction = VLMPruner(10, layer=0).reduce(group)
    alone = VisualTokens(x[rest], positions=VisualTokens(x, grid=(5, 6)).coordinates()[rest])
    own = rest[VLMPruner(10, layer=0).select(alone)].tolist()
    assert reduction.kept.tolist() == sorted([0, 17, *own])
    features = reduction.features(x)
    assert torch.equal(features[reduction.kept == 17], x[17:18])


def test_near_tokens_come_first():
    """The more buffering, the nearer the kept tokens lie to the pivot."""
    x = torch.randn(100, 32, generator=torch.Generator().manual_seed(0)) + 1.5
    tokens = VisualTokens(x, grid=(10, 10))

    def reach(buffering: float) -> float:
        pruner = VLMPruner(12, layer=0, pivots=1, buffering=buffering, fuse=False)
        places = tokens.coordinates()[pruner.select(tokens)].float()
        return float(torch.cdist(places, places).mean())

    assert reach(50.0) < reach(0.0)


def test_channels_that_vary_most():
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([1.0, 9.0, 2.0, 0.0, 5.0, 9.0, 3.0, 4.0])
    varied = x * scale + 1e4  # the mean does not matter
    assert torch.equal(most_varying(varied, 4), varied[:, [1, 4, 5, 7]])
    assert most_varying(x, 8) is x
    same = torch.ones(5, 6) * torch.arange(6.0)
    assert most_varying(same, 2).tolist() == [[0.0, 1.0]] * 5  # ties: lowest channel


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_are_left_as_they_are(dtype):
    x = decoder_tokens(30, 0, 3).hidden.to(dtype)
    before = x.clone()
    VLMPruner(12, layer=0, channels=5).reduce(VisualTokens(x, grid=(5, 6)))
    assert torch.equal(x, before)


def test_other_channels_do_not_matter():
    tokens = decoder_tokens(48, 0, 1, rasters=[(6, 8)])
    quiet = torch.cat([tokens.hidden, 1e-3 * tokens.hidden.flip(1)], 1)
    expected = VLMPruner(20, fuse=False).reduce_states(tokens, 20)
    pruner = VLMPruner(20, channels=12, fuse=False)
    assert_same_reduction(pruner.reduce_states(replace(tokens, hidden=quiet), 20), expected)


def test_fusion():
    similarity = torch.tensor(
        [
            [1.0, 0.9, 0.2, 0.0, 0.3],
            [0.2, 0.1, 0.3, 1.0, 0.1],
        ]
    )
    weights = fusion_weights(similarity, torch.tensor([0, 3]))
    expected = torch.tensor([[0.3, 0.7 * 0.75, 0.0, 0.0, 0.7 * 0.25], [0.0, 0.0, 0.7, 0.3, 0.0]])
    assert torch.allclose(weights, expected)
    # What came is opposite, or nothing came.
    similarity = torch.tensor([[1.0, -0.5, 0.1], [0.1, -0.9, 1.0]])
    weights = fusion_weights(similarity, torch.tensor([0, 2]))
    assert weights.tolist() == [[1, 0, 0], [0, 0, 1]]


def test_nothing_is_merged_into_other_tokens_without_fusion():
    tokens = decoder_tokens(30, 0, 3, rasters=[(5, 6)])
    reduction = VLMPruner(12, fuse=False).reduce_states(tokens, 12)
    assert not reduction.merges
    assert torch.equal(reduction.kept, VLMPruner(12).reduce_states(tokens, 12).kept)


@pytest.mark.parametrize("grid", [(12, 25), None])
@pytest.mark.parametrize("fill", [True, False])
def test_the_same_without_the_whole_matrix(grid, fill, monkeypatch):
    x = torch.randn(300, 24, generator=torch.Generator().manual_seed(7))
    x[::50] = 0
    tokens, pruner = VisualTokens(x, grid=grid), VLMPruner(0.2, layer=0, fill=fill)
    whole = pruner.reduce(tokens)
    monkeypatch.setattr("gprune.graph.cosine.MAX_DENSE_TOKENS", 100)
    assert_same_reduction(pruner.reduce(tokens), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ties_threads_and_dtypes(dtype):
    same = VisualTokens(torch.ones(9, 4, dtype=dtype), grid=(3, 3))
    # Of copies, those nearest to the pivots are the least redundant.
    assert VLMPruner(4, layer=0).select(same).tolist() == [0, 1, 2, 3]
    assert VLMPruner(4, layer=0, pivots=1).select(same).tolist() == [0, 1, 3, 4]
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    tokens, pruner = VisualTokens(x, grid=(15, 20)), VLMPruner(0.2, layer=0, channels=40)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = pruner.reduce(tokens)
    finally:
        torch.set_num_threads(threads)
    assert_same_reduction(one, pruner.reduce(tokens))
    assert one.features(x).dtype == dtype
    assert_same_reduction(one, pruner.reduce(VisualTokens(x.float(), grid=(15, 20))))
    assert len(VLMPruner(0.5, layer=0).select(VisualTokens(torch.zeros(8, 3)))) == 4


@pytest.mark.parametrize("buffering", [1e9, 1e30])
def test_distant_redundancies_end(buffering):
    """Steps of 0.1 to a redundancy of 1e30 are not taken one by one."""
    tokens = alike(decoder_tokens(30, 0, 0, rasters=[(5, 6)]), 3.0)
    assert len(VLMPruner(20, buffering=buffering).reduce_states(tokens, 20)) == 20


def test_values_that_are_not_finite_end():
    """Hidden states inside a model are not checked."""
    tokens = decoder_tokens(30, 0, 0, rasters=[(5, 6)])
    broken = replace(tokens, hidden=torch.full_like(tokens.hidden, math.nan))
    assert len(VLMPruner(20).reduce_states(broken, 20)) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pivots": 0}, "pivots=0"),
        ({"batch": 0}, "batch=0"),
        ({"channels": 0}, "channels=0"),
        ({"threshold": math.nan}, "threshold=nan"),
        ({"buffering": math.inf}, "buffering=inf"),
        ({"layer": -1}, "layer=-1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        VLMPruner(0.5, **options)


@pytest.mark.parametrize("options", [{"pivots": 2.0}, {"layer": 0.0}, {"layer": True}])
def test_options_that_are_no_whole_number(options):
    with pytest.raises(TypeError, match="must be a whole number"):
        VLMPruner(0.5, **options)


@pytest.mark.parametrize("field", ["keys", "coordinates", "rasters", "groups"])
def test_a_missing_field_is_named(field):
    tokens = replace(decoder_tokens(12, 0, 0, rasters=[(3, 4)]), **{field: None})
    with pytest.raises(ValueError, match=f"{field} is missing"):
        VLMPruner(8).drop(tokens, 8)
