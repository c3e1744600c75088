"""HoloV against plain loops: the released form with its loss, its mended default, the paper's."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gprune import HoloV, VisualTokens
from tests.parity.vectors_io import load
from tests.pruners.signals import with_signals

SIZES = {
    "rows": st.integers(1, 7),
    "columns": st.integers(1, 9),
    "seed": st.integers(0, 9999),
    "share": st.floats(0.01, 1),
}
VECTORS = [
    pair
    for pair in load(Path(__file__).parents[1] / "parity" / "vectors")
    if pair[0].method == "holov"
]


def group(rows: int, columns: int, seed: int) -> VisualTokens:
    x = np.random.default_rng(seed).standard_normal((rows * columns, 6))
    return with_signals(torch.from_numpy(x).float(), grid=(rows, columns), seed=seed)


def ranked(values: list[float]) -> list[int]:
    """Indices from the highest, ties from the lowest index."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


def runs_of(n: int, crops: int) -> list[list[int]]:
    """The sequence in runs, the first n mod crops of them longer by one; no empty runs."""
    runs, start = [], 0
    for number in range(crops):
        size = n // crops + (number < n % crops)
        runs.append(list(range(start, start + size)))
        start += size
    return [run for run in runs if run]


def run_weight(x: np.ndarray, a: np.ndarray, context_weight: float) -> float:
    """The mean score of a run of tokens x [m, d] with attention a [m]."""
    m = len(x)
    if m == 1:
        return float(a[0])
    y = [row / (math.sqrt(sum(v * v for v in row)) + 1e-6) for row in x]
    v = []
    for i in range(m):
        s = [0.0 if i == j else float(y[i] @ y[j]) for j in range(m)]
        mean = sum(s) / (m - 1)
        v.append(sum((value - mean) ** 2 for value in s) / (m - 1))
    b = [1000 * value for value in a]
    scale = context_weight * (sum(map(abs, b)) / m) / (sum(map(abs, v)) / m + 1e-6)
    return sum(b[i] + scale * v[i] for i in range(m)) / m


def released(tokens: VisualTokens, k: int, pruner: HoloV) -> tuple[list[list[int]], list[int]]:
    """Runs whose tokens are in the order of attention, and how many each is given."""
    x = tokens.features.double().numpy()
    a = tokens.attention.double().numpy()
    runs = runs_of(len(x), pruner.crops)
    weights = np.array([run_weight(x[run], a[run], pruner.context_weight) for run in runs])
    wanted = weights / (weights.sum() + 1e-6) * k
    # Rounding must decide nothing.
    assume(len(runs) == 1 or (abs(wanted - wanted.round()) > 1e-4).all())
    assume(len(set(wanted.round(5))) == len(runs))
    counts = [math.floor(value) for value in wanted]
    for run in ranked(list(wanted))[: k - sum(counts)]:
        counts[run] += 1
    return [[run[i] for i in ranked(list(a[run]))] for run in runs], counts


@given(**SIZES, crops=st.sampled_from([1, 2, 5, 16]), context_weight=st.sampled_from([0, 0.09, 3]))
@settings(deadline=None, max_examples=100)
def test_the_released_form(rows, columns, seed, share, crops, context_weight):
    tokens = group(rows, columns, seed)
    k = max(1, int(len(tokens) * share))
    lossy = HoloV(k, crops=crops, context_weight=context_weight, lose_surplus=True)
    runs, counts = released(tokens, k, lossy)
    kept = sorted(i for run, count in zip(runs, counts, strict=True) for i in run[:count])
    found = lossy.reduce(tokens)
    assert found.kept.tolist() == kept
    assert len(found) == k
    zero_rows = found.appended_features(tokens.features)
    assert len(zero_rows) == k - len(kept)
    assert not zero_rows.any()
    mended = HoloV(k, crops=crops, context_weight=context_weight).select(tokens).tolist()
    assert len(mended) == k
    assert set(mended) >= set(kept)
    if len(kept) == k:
        assert mended == kept


@given(**SIZES)
@settings(deadline=None, max_examples=100)
def test_the_surplus_goes_to_other_runs_in_turns(rows, columns, seed, share):
    tokens = group(rows, columns, seed)
    k = max(1, int(len(tokens) * share))
    pruner = HoloV(k)
    runs, counts = released(tokens, k, pruner)
    # The shares come first, then one token of each run in the order of its share, and again.
    x, a = tokens.features.double().numpy(), tokens.attention.double().numpy()
    weights = [run_weight(x[sorted(run)], a[sorted(run)], 0.09) for run in runs]
    queues = [list(run) for run in runs]
    kept = []
    for queue, weight in zip(queues, weights, strict=True):
        share = math.floor(weight / (sum(weights) + 1e-6) * k)
        kept += queue[:share]
        del queue[:share]
    while len(kept) < k:
        for run in ranked(weights):
            if queues[run] and len(kept) < k:
                kept.append(queues[run].pop(0))
    assert sum(counts) <= k
    assert pruner.select(tokens).tolist() == sorted(kept)


@pytest.mark.parametrize(("vector", "expected"), VECTORS, ids=[v.label for v, _ in VECTORS])
def test_the_default_keeps_all_that_the_released_code_keeps(vector, expected):
    """And the same where the released code loses nothing."""
    attention = vector.tensors["cls_attention"].mean(0)
    tokens = VisualTokens(vector.tensors["features"], grid=vector.grid, attention=attention)
    kept = HoloV(vector.k).select(tokens).tolist()
    assert len(kept) == vector.k
    assert set(kept) >= set(expected.kept)
    assert (kept == expected.kept) == (vector.raw["zero_rows"] == 0)


@given(**SIZES, crops=st.integers(1, 9))
@settings(deadline=None, max_examples=60)
def test_the_form_of_the_paper(rows, columns, seed, share, crops):
    tokens = group(rows, columns, seed)
    k = max(1, int(len(tokens) * share))
    pruner = HoloV(k, crops=crops, form="paper")
    x = tokens.features.double().numpy()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity = unit @ unit.T
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
    # Where there is one crop, its share is everything.
    share_of = [int(w * k) if len(parts) > 1 else k for w in means / means.sum()]
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


def test_the_released_form_cuts_the_sequence_and_the_paper_the_picture():
    tokens = group(4, 8, 0)
    alone = VisualTokens(tokens.features, attention=tokens.attention)
    assert [crop.tolist() for crop in HoloV(8, crops=2).crops_of(tokens)] == [
        list(range(16)),
        list(range(16, 32)),
    ]
    assert torch.equal(HoloV(8).select(tokens), HoloV(8).select(alone))
    left = [i for i in range(32) if i % 8 < 4]
    crops = HoloV(8, crops=2, form="paper").crops_of(tokens)
    assert [crop.tolist() for crop in crops] == [left, [i for i in range(32) if i % 8 >= 4]]


def test_attention_alone_decides_inside_a_run():
    """A token of no attention is dropped, however much its similarities vary."""
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    attention = torch.linspace(1, 2, 20)
    pruner = HoloV(10, crops=1, context_weight=50.0)
    kept = pruner.select(VisualTokens(x, attention=attention)).tolist()
    assert kept == list(range(10, 20))


@pytest.mark.parametrize("form", ["released", "paper"])
def test_uniform_attention_gives_each_crop_the_same_share(form):
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    tokens = VisualTokens(x, grid=(8, 8), attention=torch.full((64,), 1 / 64))
    pruner = HoloV(16, crops=16, context_weight=0.0, form=form)
    kept = set(pruner.select(tokens).tolist())
    assert [len(kept & set(crop.tolist())) for crop in pruner.crops_of(tokens)] == [1] * 16


@pytest.mark.parametrize("lose_surplus", [False, True])
def test_without_any_attention(lose_surplus):
    """Runs are then equal, and each gives the same number, from its first token on."""
    tokens = VisualTokens(torch.randn(32, 4), attention=torch.zeros(32))
    found = HoloV(8, crops=4, lose_surplus=lose_surplus).reduce(tokens)
    first = [0, 1, 8, 9, 16, 17, 24, 25]
    assert found.kept.tolist() == (first if not lose_surplus else first[::2])
    assert len(found) == 8


def test_bad_input():
    with pytest.raises(ValueError, match="lose_surplus=True needs form='released'"):
        HoloV(0.5, form="paper", lose_surplus=True)
    with pytest.raises(ValueError, match="form='nosuch'"):
        HoloV(0.5, form="nosuch")
    with pytest.raises(ValueError, match="crops=0"):
        HoloV(0.5, crops=0)
    with pytest.raises(ValueError, match="context_weight=nan"):
        HoloV(0.5, context_weight=math.nan)
    with pytest.raises(ValueError, match="attention is missing: holov needs"):
        HoloV(0.5).select(VisualTokens(torch.ones(4, 2)))
