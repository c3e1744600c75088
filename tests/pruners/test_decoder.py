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
    for pruner in (FastV(keep, layer=1), PyramidDrop(keep), SparseVLM(keep)):
        counts = pruner.schedule(total, depth)
        assert len(counts) == depth
        assert counts[0] == total
        assert counts == sorted(counts, reverse=True)
        if pruner.name != "sparsevlm":
            assert counts[-1] == kept_count(total, keep)
        elif len(pruner.stages(depth)) == 3:
            assert counts[-1] == pruner.final_count(total)


@given(total=st.integers(1, 3000), shares=st.lists(st.floats(0.01, 1), min_size=1, max_size=5))
def test_pyramiddrop_rounds_every_stage_down(total, shares):
    """Each stage keeps a share of the original tokens, not of those that are left."""
    shares = [round(share, 4) for share in sorted(shares, reverse=True)]
    pruner = PyramidDrop(shares[-1], shares=tuple(shares[:-1]))
    counts = [pruner.planned(stage, len(shares), total) for stage in range(len(shares))]
    exact = [total * round(share * 10_000) // 10_000 for share in shares]
    assert counts == [max(1, count) for count in exact]


def test_the_papers_schedules():
    assert FastV(0.5).schedule(576, 32) == [576] * 2 + [288] * 30
    quarters = [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8
    assert PyramidDrop(0.125).schedule(576, 32) == quarters
    assert PyramidDrop(0.125, layers=(8, 16, 24)).schedule(576, 32) == quarters
    assert PyramidDrop(0.125).schedule(91, 32)[::8] == [91, 45, 22, 11]
    assert PyramidDrop(72).schedule(576, 32) == quarters
    assert PyramidDrop(0.15, shares=(0.6, 0.3)).schedule(150, 32)[::8] == [150, 90, 45, 22]
    assert PyramidDrop(0.2).stages(3) == (1, 2)


def test_sparsevlm_stages_come_after_its_layers():
    assert SparseVLM(0.36).stages(32) == (3, 7, 16)
    assert SparseVLM(0.36).stages(64) == (5, 13, 31)
    assert SparseVLM(0.36).stages(4) == (1, 2, 3)
    assert SparseVLM(0.36).stages(3) == (1, 2)
    assert SparseVLM(0.36).stages(2) == (1,)
    assert SparseVLM(0.36, layers=(0, 4)).stages(8) == (1, 5)


# What the released code keeps of 576 tokens, and the rows that come out with its clusters.
PUBLISHED = {
    192: ([300, 200, 110], [309, 204, 113]),
    128: ([303, 110, 36], [312, 117, 39]),
    96: ([238, 48, 26], [249, 55, 27]),
    64: ([66, 30, 17], [82, 32, 18]),
}


@pytest.mark.parametrize("setting", list(PUBLISHED))
def test_sparsevlm_reads_numbers_off_its_table(setting):
    own, rows = PUBLISHED[setting]
    pruner = SparseVLM(setting)
    schedule = pruner.schedule(576, 32)
    assert schedule == [576] * 3 + [rows[0]] * 4 + [rows[1]] * 9 + [rows[2]] * 16
    before = [576, *rows]
    for stage, count in enumerate(own):
        assert pruner.own_count(stage, 3, before[stage], 576) == count
    # The same share of another number of tokens.
    assert SparseVLM(setting / 2 / 576).own_count(0, 3, 288, 288) <= own[0] // 2
    twice = [SparseVLM(2 * setting).own_count(stage, 3, 1152, 1152) for stage in range(3)]
    assert twice == [2 * count for count in own]


@given(
    total=st.integers(1, 1200),
    setting=st.one_of(st.integers(1, 700), st.floats(0.01, 1)),
    stages=st.integers(1, 3),
)
@settings(deadline=None)
def test_sparsevlm_between_the_rows_of_its_table(total, setting, stages):
    """Counts are those of a line between the rows, and never all of the tokens."""
    pruner = SparseVLM(setting)
    share = min(1, setting / total if isinstance(setting, int) else round(setting, 6))
    rows = [0, 64, 96, 128, 192, 576]
    columns = ([66, 238, 303, 300], [30, 48, 110, 200], [17, 26, 36, 110])
    n = total
    for stage, column in enumerate(columns[3 - stages :]):
        exact = np.interp(share * 576, rows, [0, *column, 576]) * total / 576
        own = pruner.own_count(stage, stages, n, total)
        if share == 1:
            assert own == n
        elif abs(exact - round(exact)) > 1e-6:
            assert own == max(1, min(int(exact), n - 1))
        n = pruner.planned(stage, stages, total)
        assert own <= n


def released(scores, hidden, own, recycle=0.3, share=0.1):
    """Implements a stage of SparseVLM with loops; returns kept tokens and the appended rows."""
    n = len(scores)
    ranked = sorted(range(n), key=lambda i: (-scores[i], i))
    kept, dropped = sorted(ranked[:own]), ranked[own:]
    recycled = sorted(dropped[: int(recycle * len(dropped)) + 1])
    k = int(share * len(recycled)) + 1
    points = hidden[recycled]
    apart = np.array([[np.sqrt(((a - b) ** 2).mean()) for b in points] for a in points])
    density = [np.exp(-np.mean(sorted(row**2)[:k])) for row in apart]
    size = len(recycled)
    product = []
    for i in range(size):
        nearer = [apart[i, j] for j in range(size) if (density[j], -j) > (density[i], -i)]
        product.append(density[i] * min(nearer, default=apart.max()))
    centres = sorted(range(size), key=lambda i: (-product[i], i))[:k]
    home = [min(range(k), key=lambda c: (apart[i, centres[c]], c)) for i in range(size)]
    for cluster, centre in enumerate(centres):
        home[centre] = cluster
    rows = [points[[i for i in range(size) if home[i] == c]].mean(0) for c in range(k)]
    return kept, np.array(rows)


@given(n=st.integers(2, 70), raters=st.integers(1, 6), seed=st.integers(0, 999), data=st.data())
@settings(deadline=None, max_examples=60)
def test_sparsevlm_equals_its_description(n, raters, seed, data):
    own = data.draw(st.integers(1, n - 1))
    given = tokens(n, raters, seed=seed)
    found = SparseVLM(0.3).keep_and_recycle(given, own)
    kept, rows = released(given.scores().tolist(), given.hidden.double().numpy(), own)
    assert found.kept.tolist() == kept
    appended = found.appended_features(given.hidden)
    assert np.abs(appended.double().numpy() - rows).max() <= 1e-5
    assert found.weights is found.members is None


@given(
    n=st.integers(1, 60),
    keep=st.floats(0.05, 1),
    raters=st.integers(1, 6),
    recycle=st.floats(0, 1),
    clusters=st.floats(0, 1),
    form=st.sampled_from(["released", "paper"]),
    seed=st.integers(0, 999),
)
@settings(deadline=None)
def test_sparsevlm_gives_the_rows_that_it_counts(n, keep, raters, recycle, clusters, form, seed):
    pruner = SparseVLM(keep, recycle=recycle, clusters=clusters, form=form)
    given = tokens(n, raters, seed=seed)
    for stage in range(3):
        total, left = given.total, len(given)
        k = pruner.count(stage, 3, given)
        found = pruner.at_stage(stage, 3, given)
        if form == "paper":
            final = kept_count(total, keep)
            rank = np.linalg.matrix_rank(given.attention.numpy())
            early = min(left, max(final, int(13.5 * rank)))
            assert k == (final if stage == 2 else early)
        else:
            assert k == pruner.planned(stage, 3, total)
        if found is None:
            assert k >= left
            continue
        assert len(found) == k < left
        check_recycling(found, given.scores(), pruner)
        if form == "paper" or not recycle:
            continue
        given = DecoderTokens(found.features(given.hidden), torch.rand(raters, k), given.total)


def check_recycling(found, scores, pruner):
    """Checks that the best stay, the next best are recycled, each into one mean."""
    kept = found.kept.tolist()
    assert kept == sorted(set(kept))
    dropped = torch.tensor([i for i in range(len(scores)) if i not in kept], dtype=torch.long)
    assert scores[kept].min() >= scores[dropped].max()
    if found.appended is None:
        assert not pruner.recycle or len(found) == 1 or pruner.form == "paper"
        return
    assert torch.allclose(found.appended.sum(1), torch.ones(len(found.appended)))
    used = (found.appended > 0).sum(0)
    assert used[kept].max() == 0
    assert used.max() == 1
    lost = dropped[used[dropped] == 0]
    if len(lost):
        assert scores[used > 0].min() >= scores[lost].max()


@given(n=st.integers(2, 60), k=st.integers(1, 60), seed=st.integers(0, 99))
@settings(deadline=None)
def test_sparsevlm_drops_to_any_number(n, k, seed):
    given = tokens(n, 2, seed=seed)
    found = SparseVLM(0.3).drop(given, min(k, n - 1))
    assert len(found) == min(k, n - 1)


def test_sparsevlm_without_recycling_keeps_the_highest_scores():
    given = tokens(30, 4)
    found = SparseVLM(0.3, recycle=0.0).drop(given, 9)
    scores = given.attention.mean(0).tolist()
    assert not found.merges
    assert found.kept.tolist() == sorted(sorted(range(30), key=lambda i: (-scores[i], i))[:9])


def test_sparsevlm_uses_text_that_is_relevant_to_the_image():
    visual = torch.tensor([[4.0, 0.0], [3.0, 0.0]])
    text = torch.tensor([[0.0, 5.0], [2.0, 0.0], [-2.0, 0.0], [2.0, 1.0]])
    assert SparseVLM(0.5).raters(visual, text).tolist() == [1, 3]
    assert FastV(0.5).raters(visual, text).tolist() == [3]


@pytest.mark.parametrize("m", [1, 7, 11])
def test_sparsevlm_lets_all_text_rate_if_none_stands_out(m):
    visual = torch.tensor([[4.0, 0.1], [3.0, 0.7]])
    assert SparseVLM(0.5).raters(visual, torch.ones(m, 2)).tolist() == list(range(m))


@given(n=st.integers(1, 14), k=st.integers(1, 14), seed=st.integers(0, 999))
@settings(deadline=None)
def test_clusters_are_around_their_nearest_centre(n, k, seed):
    points = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 3)))
    k = min(k, n)
    centres, cluster = density_peaks(points, k)
    assert len(set(centres.tolist())) == k
    apart = torch.cdist(points, points[centres])
    assert torch.equal(cluster, apart.argmin(1))
    assert cluster[centres].tolist() == list(range(k))


def test_density_peaks_find_two_clusters():
    points = torch.tensor([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]])
    centres, cluster = density_peaks(points, 2)
    assert sorted(cluster.tolist()) == [0, 0, 0, 1, 1, 1]
    assert len(set(cluster[:3].tolist())) == len(set(cluster[3:].tolist())) == 1
    assert cluster[centres].tolist() == [0, 1]
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
        (lambda: PyramidDrop(0.5, shares=(0.5, 0.9)), r"shares=\(0.5, 0.9\) must fall"),
        (lambda: PyramidDrop(0.5, shares=(0.4, 0.2)), "down to keep=0.5"),
        (lambda: PyramidDrop(0.5, shares=(1.2, 0.6)), "shares=1.2"),
        (lambda: PyramidDrop(0.5, shares=(0.9,)).stages(8), "shares has 1 entries, expected 2"),
        (lambda: SparseVLM(0.5, layers=(-1, 2)).stages(8), r"layers=\(-1, 2\)"),
        (lambda: SparseVLM(0.5, layers=(7,)).stages(8), "from 0 to 6: .* the output of a layer"),
        (lambda: SparseVLM(0.5, layers=(0, 1, 2, 3)).stages(8), "are 4, but .* has 3 counts"),
        (lambda: SparseVLM(0.5).stages(1), "from 0 to -1"),
        (lambda: SparseVLM(0.5, form="code"), "form='code' must be one of released, paper"),
        (lambda: SparseVLM(0.5, scale=0), "scale=0"),
        (lambda: SparseVLM(0.5, recycle=1.5), "recycle=1.5"),
        (lambda: SparseVLM(0.5, clusters=-1), "clusters=-1"),
        (lambda: SparseVLM(0.5, form="paper").schedule(10, 4), "read pruned.visual_by_layer"),
        (lambda: FastV(1.5), "keep=1.5"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
