"""VisionZip, VisPruner, PruMerge, HiPrune, HoloV and D²Pruner against naive implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import (
    D2Pruner,
    HiPrune,
    HoloV,
    PruMerge,
    PruMergePlus,
    VisionZip,
    VisPruner,
    VisualTokens,
)
from gprune.budget import PartBudgets
from tests.pruners.signals import with_signals

SIZES = {
    "rows": st.integers(1, 6),
    "columns": st.integers(1, 7),
    "seed": st.integers(0, 9999),
    "share": st.floats(0.01, 1),
}


def group(rows: int, columns: int, seed: int) -> VisualTokens:
    x = np.random.default_rng(seed).standard_normal((rows * columns, 6))
    return with_signals(torch.from_numpy(x).float(), grid=(rows, columns), seed=seed)


def ranked(values: torch.Tensor) -> list[int]:
    """Indices from the highest, ties from the lowest index."""
    numbers = values.tolist()
    return sorted(range(len(numbers)), key=lambda i: (-numbers[i], i))


def cosines(x: torch.Tensor) -> np.ndarray:
    unit = x.double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    return unit @ unit.T


@given(**SIZES)
@settings(deadline=None, max_examples=60)
def test_visionzip(rows, columns, seed, share):
    tokens = group(rows, columns, seed)
    n = len(tokens)
    k = max(1, int(n * share))
    contextual = k * 10 // 64
    dominant = ranked(tokens.attention)[: k - contextual]
    rest = [i for i in range(n) if i not in dominant]
    targets = rest[:: len(rest) // contextual][:contextual] if contextual else []
    similarity = cosines(tokens.keys)
    groups = {i: [i] for i in [*dominant, *targets]}
    for i in rest:
        if i not in targets and targets:
            groups[max(targets, key=lambda t: (similarity[i, t], -t))].append(i)
    found = VisionZip(k).reduce(tokens)
    kept, means = found.kept, found.features(tokens.features)
    assert kept.tolist() == sorted(groups)
    for i, mean in zip(kept.tolist(), means, strict=True):
        assert torch.allclose(mean, tokens.features[groups[i]].mean(0), atol=1e-5)


def test_visionzip_merges_all_other_tokens():
    """Dominant tokens stay exact; the contextual ones are means of all others."""
    tokens = group(8, 9, 1)
    pruner = VisionZip(20, contextual=0.25)
    found = pruner.reduce_groups([tokens])[0]
    kept, members = found.kept, found.members
    assert members.min() >= 0
    sizes = torch.bincount(members, minlength=20)
    assert (sizes == 1).sum() >= 15
    means = pruner.reduce(tokens).features(tokens.features)
    total = (means * sizes[:, None]).sum(0)
    assert torch.allclose(total, tokens.features.sum(0), atol=1e-4)
    best = set(ranked(tokens.attention)[:15])
    assert best <= set(kept.tolist())


@given(**SIZES, important=st.sampled_from([0.0, 0.5, 1.0]))
@settings(deadline=None, max_examples=60)
def test_vispruner(rows, columns, seed, share, important):
    tokens = group(rows, columns, seed)
    k = max(1, int(len(tokens) * share))
    similarity = cosines(tokens.features)
    order = ranked(tokens.attention)
    first = order[: int(k * important)]
    rest = order[len(first) :]
    while len(rest) > k - len(first):
        a, b = rest[::2], rest[1::2]
        if k == len(first):
            rest = []
            break
        leaving = min(8, len(rest) - (k - len(first)), len(a))
        by_nearest = sorted(
            range(len(a)), key=lambda i: -round(max(similarity[a[i], j] for j in b), 6)
        )
        rest = [a[i] for i in by_nearest[leaving:]] + b
    kept = VisPruner(k, important=important).select(tokens).tolist()
    assert kept == sorted(first + rest)


def test_vispruner_drops_copies_first():
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 0)
    tokens = VisualTokens(x, attention=torch.linspace(1, 0.1, 16))
    kept = VisPruner(8, important=0.0).select(tokens)
    assert len({index // 2 for index in kept.tolist()}) == 8


@given(**SIZES, neighbours=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_prumerge(rows, columns, seed, share, neighbours):
    tokens = group(rows, columns, seed)
    n = len(tokens)
    k = max(1, int(n * share))
    similarity = cosines(tokens.keys)
    centres = sorted(ranked(tokens.attention)[:k])
    found = PruMerge(k, neighbours=neighbours).reduce(tokens)
    kept, means = found.kept, found.features(tokens.features)
    assert kept.tolist() == centres
    for centre, mean in zip(centres, means, strict=True):
        others = [i for i in range(n) if i not in centres]
        near = sorted(others, key=lambda i: (-similarity[centre, i], i))[:neighbours]
        part = [centre, *near]
        weights = tokens.attention[part]
        expected = (weights[:, None] * tokens.features[part]).sum(0) / weights.sum()
        assert torch.allclose(mean, expected, atol=1e-4)


def test_prumerge_keeps_the_papers_outliers():
    """At the paper's own number of tokens, the kept ones are those above Q3 + 1.5 (Q3 - Q1)."""
    attention = torch.rand(100, generator=torch.Generator().manual_seed(0))
    attention[[3, 40, 41, 77]] = torch.tensor([5.0, 4.0, 6.0, 3.0])
    low, high = torch.quantile(attention, torch.tensor([0.25, 0.75]))
    outliers = (attention > high + 1.5 * (high - low)).nonzero().squeeze(1)
    tokens = VisualTokens(torch.randn(100, 4), attention=attention, keys=torch.randn(100, 4))
    assert torch.equal(PruMerge(len(outliers)).select(tokens), outliers)


@given(**SIZES)
@settings(deadline=None, max_examples=60)
def test_prumerge_plus(rows, columns, seed, share):
    tokens = group(rows, columns, seed)
    k = max(1, int(len(tokens) * share))
    best = ranked(tokens.attention)[: math.ceil(k / 4)]
    rest = [i for i in range(len(tokens)) if i not in best]
    count = k - len(best)
    even = [rest[(2 * i + 1) * len(rest) // (2 * count)] for i in range(count)]
    assert PruMergePlus(k).select(tokens).tolist() == sorted(best + even)


def test_weights_leave_protected_tokens_unchanged():
    tokens = group(4, 5, 2)
    protected = torch.zeros(20, dtype=torch.bool)
    protected[[0, 7]] = True
    marked = VisualTokens(
        tokens.features, attention=tokens.attention, keys=tokens.keys, protected=protected
    )
    found = PruMerge(4).reduce(marked)
    kept, means = found.kept, found.features(marked.features)
    assert len(kept) == 6
    for token in (0, 7):
        assert torch.equal(means[kept.tolist().index(token)], tokens.features[token])
    rest = marked.subset((~protected).nonzero().squeeze(1))
    alone = PruMerge(4).reduce(rest)
    others = [i for i, token in enumerate(kept.tolist()) if token not in (0, 7)]
    assert torch.allclose(means[others], alone.features(rest.features))
    assert len(alone.kept) == 4


@given(**SIZES, buffered=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@settings(deadline=None, max_examples=60)
def test_hiprune(rows, columns, seed, share, buffered):
    tokens = group(rows, columns, seed)
    k = max(1, int(len(tokens) * share))
    anchors = ranked(tokens.object_attention)[: min(round(k * buffered / 5), k // 5)]
    kept = set()
    for anchor in anchors:
        row, column = divmod(anchor, columns)
        for down, right in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
            if 0 <= row + down < rows and 0 <= column + right < columns:
                kept.add((row + down) * columns + column + right)
    assert len(kept) <= k
    for register in ranked(tokens.attention):
        if len(kept) < k:
            kept.add(register)
    assert HiPrune(k, buffered=buffered).select(tokens).tolist() == sorted(kept)


@given(**SIZES, crops=st.integers(1, 9))
@settings(deadline=None, max_examples=60)
def test_holov(rows, columns, seed, share, crops):
    tokens = group(rows, columns, seed)
    pruner = HoloV(max(1, int(len(tokens) * share)), crops=crops)
    k = pruner.keep
    similarity = cosines(tokens.features)
    attention = tokens.attention.double().numpy()
    parts = [part.tolist() for part in pruner.crops_of(tokens)]
    assert all(parts)
    assert sorted(i for part in parts for i in part) == list(range(len(tokens)))
    score = {}
    for part in parts:
        variance = {}
        for i in part:
            others = [similarity[i, j] for j in part if j != i]
            variance[i] = float(np.var(others)) if others else 0.0
        spread = np.mean(list(variance.values()))
        scale = attention[part].mean() / spread if spread > 1e-9 / len(part) else 0.0
        score |= {i: attention[i] + 0.09 * variance[i] * scale for i in part}
    means = np.array([np.mean([score[i] for i in part]) for part in parts])
    share_of = [int(w * k + 1e-6) for w in means / means.sum()]
    heaviest = sorted(range(len(parts)), key=lambda c: (-round(means[c], 9), c))
    kept = [[] for _ in parts]
    queues = [sorted(part, key=lambda i: (-score[i], i)) for part in parts]
    for c, count in enumerate(share_of):
        kept[c] = queues[c][:count]
        queues[c] = queues[c][count:]
    while sum(map(len, kept)) < k:
        for c in heaviest:
            if sum(map(len, kept)) < k and queues[c]:
                kept[c].append(queues[c].pop(0))
    assert pruner.select(tokens).tolist() == sorted(i for part in kept for i in part)


def test_holov_keeps_some_of_every_crop():
    """With uniform attention, each crop gets the same share."""
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    tokens = VisualTokens(x, grid=(8, 8), attention=torch.full((64,), 1 / 64))
    kept = HoloV(16, crops=16, context_weight=0.0).select(tokens)
    cells = torch.stack([kept // 8, kept % 8], 1) // 2
    assert len({tuple(cell) for cell in cells.tolist()}) == 16


@given(**SIZES, pivots=st.sampled_from([0.0, 0.5, 1.0]), threshold=st.sampled_from([0.2, 0.9]))
@settings(deadline=None, max_examples=60)
def test_d2pruner(rows, columns, seed, share, pivots, threshold):
    tokens = group(rows, columns, seed)
    n = len(tokens)
    k = max(1, int(n * share))
    raster = tokens.attention.double().view(rows, columns).numpy()
    importance = raster * raster.mean() / raster.mean(1, keepdims=True) / raster.mean(0)
    value = [float(np.float32(v)) for v in importance.ravel()]
    similarity = cosines(tokens.features)

    def neighbours(i: int) -> set[int]:
        beside = {
            j
            for j in range(n)
            if abs(i // columns - j // columns) + abs(i % columns - j % columns) == 1
        }
        return beside | {j for j in range(n) if j != i and similarity[i, j] >= threshold}

    order = sorted(range(n), key=lambda i: (-value[i], i))
    kept = order[: math.ceil(k * pivots)]
    free = set(range(n)) - set(kept)
    while len(kept) < k:
        if not free:
            free = set(range(n)) - set(kept)
        best = min(free, key=lambda i: (-value[i], i))
        kept.append(best)
        free -= {best, *neighbours(best)}
    pruner = D2Pruner(k, pivots=pivots, threshold=threshold)
    if not math.isclose(min(abs(similarity - threshold).ravel()), 0, abs_tol=1e-6) and not near_tie(
        value
    ):
        assert pruner.select(tokens).tolist() == sorted(kept)


def near_tie(values: list[float]) -> bool:
    """Returns whether rounding could change the order of two values."""
    ordered = np.sort(np.array(values))
    return bool((np.diff(ordered) < 1e-6 * ordered[1:]).any())


def test_d2pruner_removes_positional_bias():
    """The attention of the lower edge is positional; an object stands out from its row."""
    edge = torch.ones(8, 8)
    edge[7] = 5.0
    edge[2, 3] = 3.0
    tokens = VisualTokens(torch.eye(64), grid=(8, 8), attention=edge.flatten())
    assert D2Pruner(1, pivots=1.0).select(tokens).tolist() == [2 * 8 + 3]


def test_the_second_half_of_d2pruner_is_independent():
    tokens = group(9, 9, 4)
    pruner = D2Pruner(9, pivots=0.0)
    kept = pruner.select(tokens)
    assert not pruner.neighbours(tokens)[kept][:, kept].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VisionZip(0.5, contextual=1.0), "contextual=1.0"),
        (lambda: VisPruner(0.5, important=1.5), "important=1.5"),
        (lambda: PruMerge(0.5, neighbours=-1), "neighbours=-1"),
        (lambda: PruMergePlus(0.5, outliers=0.0), "outliers=0.0"),
        (lambda: HiPrune(0.5, buffered=-0.1), "buffered=-0.1"),
        (lambda: HiPrune(0.5, object_depth=0.0), "object_depth=0.0"),
        (lambda: HoloV(0.5, crops=0), "crops=0"),
        (lambda: HoloV(0.5, context_weight=math.nan), "context_weight=nan"),
        (lambda: D2Pruner(0.5, pivots=2.0), "pivots=2.0"),
        (lambda: D2Pruner(0.5, threshold=2.0), "threshold=2.0"),
    ],
)
def test_parameters_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_weights_of_parts_stay_within_them():
    """With budgets for parts, a kept token is a weighted mean of tokens of its own part."""
    tokens = group(4, 6, 3)
    left = torch.tensor([row * 6 + column for row in range(4) for column in range(3)])
    right = torch.tensor([row * 6 + column for row in range(4) for column in range(3, 6)])
    budget = PartBudgets([(left, (4, 3)), (right, (4, 3))], [3, 2])
    whole = PruMerge(lambda groups: [budget]).reduce(tokens)
    found = dict(zip(whole.kept.tolist(), whole.features(tokens.features), strict=True))
    assert len(found) == 5
    for rows, count in ((left, 3), (right, 2)):
        part = tokens.subset(rows, (4, 3))
        own = PruMerge(count).reduce(part)
        expected = own.features(part.features)
        for token, mean in zip(rows[own.kept].tolist(), expected, strict=True):
            assert torch.allclose(found[token], mean, atol=1e-6)
