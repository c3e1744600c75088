"""Methods inside the language model, tested without a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import FastV, PyramidDrop, SparseVLM, VisualTokens, kept_count
from gprune.pruners.decoder import DecoderTokens
from gprune.pruners.sparsevlm import density_peaks

METHODS = [FastV, PyramidDrop, SparseVLM]


def tokens(n, raters, total=None, seed=0, d=6):
    rng = np.random.default_rng(seed)
    attention = torch.from_numpy(rng.random((raters, n))).float()
    hidden = torch.from_numpy(rng.standard_normal((n, d))).float()
    return DecoderTokens(hidden, attention, n if total is None else total)


@given(n=st.integers(1, 40), k=st.integers(1, 40), seed=st.integers(0, 999))
@settings(deadline=None)
def test_fastv_keeps_the_most_attended(n, k, seed):
    k = min(k, n)
    given = tokens(n, 1, seed=seed)
    scores = given.attention[0].tolist()
    expected = sorted(sorted(range(n), key=lambda i: (-scores[i], i))[:k])
    found = FastV(0.5).drop(given, k)
    assert found.kept.tolist() == expected
    assert found.members is None
    assert not found.merges


@given(total=st.integers(1, 3000), keep=st.floats(0.01, 1), depth=st.integers(2, 48))
def test_schedules_never_rise_and_end_at_the_budget(total, keep, depth):
    for pruner in (FastV(keep, layer=1), PyramidDrop(keep)):
        counts = pruner.schedule(total, depth)
        assert len(counts) == depth
        assert counts[0] == total
        assert counts[-1] == kept_count(total, keep)
        assert counts == sorted(counts, reverse=True)


def test_the_papers_schedules():
    assert FastV(0.5).schedule(576, 32) == [576] * 2 + [288] * 30
    quarters = [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8
    assert PyramidDrop(0.125).schedule(576, 32) == quarters
    assert PyramidDrop(0.125, layers=(8, 16, 24)).schedule(576, 32) == quarters
    assert SparseVLM(0.36).stages(32) == (2, 6, 15)
    assert SparseVLM(0.36).stages(64) == (4, 12, 30)
    assert SparseVLM(0.36).stages(4) == (1, 2)
    assert PyramidDrop(0.2).stages(3) == (1, 2)


@given(
    n=st.integers(2, 60),
    keep=st.floats(0.05, 0.95),
    raters=st.integers(1, 6),
    recycle=st.floats(0, 1),
    clusters=st.floats(0, 1),
    seed=st.integers(0, 999),
)
@settings(deadline=None)
def test_sparsevlm_meets_its_budget_and_recycles_within_it(
    n, keep, raters, recycle, clusters, seed
):
    pruner = SparseVLM(keep, recycle=recycle, clusters=clusters)
    given = tokens(n, raters, seed=seed)
    early, last = (pruner.count(stage, 3, given) for stage in (0, 2))
    assert last == kept_count(n, keep)
    assert last <= early <= n
    rank = np.linalg.matrix_rank(given.attention.numpy())
    assert early == min(n, max(last, int(13.5 * rank)))
    found = pruner.drop(given, last)
    kept, members = found.kept, found.members
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert len(kept) == last
    if members is None:
        return
    # Each kept token is a member of itself, and no token is a member of two.
    assert members[kept].tolist() == list(range(last))
    sizes = torch.bincount(members[members >= 0], minlength=last)
    single = given.attention.mean(0)[kept[sizes == 1]]
    recycled = (members >= 0).nonzero().squeeze(1)
    lost = given.attention.mean(0)[members < 0]
    if len(lost):
        assert given.attention.mean(0)[recycled].min() >= lost.max()
        assert not len(single) or single.min() >= lost.max()


def test_sparsevlm_without_recycling_keeps_the_highest_scores():
    given = tokens(30, 4)
    found = SparseVLM(0.3, recycle=0.0).drop(given, 9)
    scores = given.attention.mean(0).tolist()
    assert found.members is None
    assert found.kept.tolist() == sorted(sorted(range(30), key=lambda i: (-scores[i], i))[:9])


def test_sparsevlm_uses_text_that_is_relevant_to_the_image():
    visual = torch.tensor([[4.0, 0.0], [3.0, 0.0]])
    text = torch.tensor([[0.0, 5.0], [2.0, 0.0], [-2.0, 0.0], [2.0, 1.0]])
    assert SparseVLM(0.5).raters(visual, text).tolist() == [1, 3]
    assert SparseVLM(0.5).raters(visual, torch.ones(7, 2)).tolist() == list(range(7))
    assert FastV(0.5).raters(visual, text).tolist() == [3]


@given(n=st.integers(1, 14), k=st.integers(1, 14), seed=st.integers(0, 999))
@settings(deadline=None)
def test_clusters_are_around_their_nearest_centre(n, k, seed):
    points = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 3)))
    k = min(k, n)
    centres, cluster = density_peaks(points, k)
    assert centres.tolist() == sorted(set(centres.tolist()))
    assert len(centres) == k
    apart = torch.cdist(points, points[centres])
    assert torch.equal(cluster, apart.argmin(1))
    assert cluster[centres].tolist() == list(range(k))


def test_density_peaks_find_two_clusters():
    points = torch.tensor([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]])
    _, cluster = density_peaks(points, 2)
    assert cluster.tolist() == [0, 0, 0, 1, 1, 1]
    copies = density_peaks(torch.zeros(4, 2), 2)
    assert copies[0].tolist() == [0, 1]  # ties go to the lowest index


@pytest.mark.parametrize("method", METHODS)
def test_features_alone_are_not_enough(method):
    with pytest.raises(ValueError, match=rf"with {method.__name__}\(keep\)\(model\)"):
        method(0.5).select(VisualTokens(torch.ones(4, 2)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [{"image": 0.5}, lambda groups: [0.5]])
def test_budgets_for_groups_are_refused(method, keep):
    with pytest.raises(TypeError, match="all visual tokens of a prompt together"):
        method(keep)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FastV(0.5, layer=0), "layer=0 must be at least 1"),
        (lambda: FastV(0.5, layer=9).stages(4), r"layers=\(9,\)"),
        (lambda: FastV(0.5, layer=2.5).stages(4), r"layers=\(2.5,\) must be .*whole"),
        (lambda: FastV(0.5).stages(2), "from 1 to 1"),
        (lambda: PyramidDrop(0.5, layers=(3, 2)).stages(8), "ascending"),
        (lambda: PyramidDrop(0.5, layers=()).stages(8), r"layers=\(\)"),
        (lambda: PyramidDrop(0.5).stages(1), "from 1 to 0"),
        (lambda: SparseVLM(0.5, layers=(0, 2)).stages(8), r"layers=\(0, 2\)"),
        (lambda: SparseVLM(0.5, scale=0), "scale=0"),
        (lambda: SparseVLM(0.5, recycle=1.5), "recycle=1.5"),
        (lambda: SparseVLM(0.5, clusters=-1), "clusters=-1"),
        (lambda: SparseVLM(0.5).schedule(10, 4), "read pruned.visual_by_layer"),
        (lambda: FastV(1.5), "keep=1.5"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
