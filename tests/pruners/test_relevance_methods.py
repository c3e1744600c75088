"""CDPruner and SCOPE against naive implementations; missing signals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gprune
from gprune import SCOPE, TRIM, CDPruner, VisualTokens
from gprune.graph import CosineRows, cosine_similarity
from gprune.pruners.cdpruner import KernelRows, greedy_map
from gprune.pruners.scope import greedy_cover
from gprune.tokens import SIGNALS
from tests.pruners.signals import with_signals
from tests.pruners.test_attention_methods import SIZES, cosines, group, ranked


def similarity_to_text(tokens: VisualTokens, space: torch.Tensor) -> np.ndarray:
    unit = torch.nn.functional.normalize(space.double(), dim=1)
    text = torch.nn.functional.normalize(tokens.text.double(), dim=1)
    return (unit @ text.T).mean(1).numpy()


@given(rows=st.integers(1, 4), columns=st.integers(1, 5), seed=st.integers(0, 9999))
@settings(deadline=None, max_examples=60)
def test_cdpruner_raises_the_determinant_most(rows, columns, seed):
    x = np.random.default_rng(seed).standard_normal((rows * columns, 24))
    tokens = with_signals(torch.from_numpy(x).float(), grid=(rows, columns), seed=seed)
    n = len(tokens)
    relevance = similarity_to_text(tokens, tokens.features)
    relevance = (relevance - relevance.min() + 1e-6) / np.ptp(relevance + 0) if n > 1 else [1.0]
    kernel = np.outer(relevance, relevance) * cosines(tokens.features)
    k = max(1, n // 2)
    chosen: list[int] = []
    while len(chosen) < k:
        rest = [i for i in range(n) if i not in chosen]
        volume = {i: np.linalg.det(kernel[np.ix_([*chosen, i], [*chosen, i])]) for i in rest}
        chosen.append(max(rest, key=lambda i: (volume[i], -i)))
    assert CDPruner(k).select(tokens).tolist() == sorted(chosen)


@given(n=st.integers(1, 20), d=st.integers(1, 8), seed=st.integers(0, 9999))
@settings(deadline=None, max_examples=60)
def test_gains_do_not_increase(n, d, seed):
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d)))
    kernel = x @ x.T
    order, gains = greedy_map(kernel, n)
    assert sorted(order.tolist()) == list(range(n))
    assert (gains.diff() <= 1e-9 * kernel.diagonal().max()).all()
    assert (gains[d:] == 0).all()  # beyond its rank the kernel has no volume
    first = order[: min(n, d, 3)]
    volume = torch.linalg.det(kernel[first][:, first])
    assert math.isclose(float(volume), float(gains[: len(first)].prod()), rel_tol=1e-6)


@pytest.mark.parametrize("d", [6, 60])  # a kernel that k exhausts, and one that it does not
def test_cdpruner_without_the_whole_kernel(d, monkeypatch):
    x = torch.randn(300, d, generator=torch.Generator().manual_seed(d))
    x[::50] = 0
    x[200:240] = x[:40]
    tokens = VisualTokens(x, text=x[7:9])
    whole = CDPruner(50).kernel(tokens)
    expected = CDPruner(50).select(tokens)
    monkeypatch.setattr("gprune.graph.cosine.MAX_DENSE_TOKENS", 100)
    assert torch.equal(CDPruner(50).select(tokens), expected)
    rows = KernelRows(CosineRows(x), CDPruner(50).weights(tokens))
    assert torch.equal(rows[torch.arange(300)], whole)
    assert torch.equal(rows.diagonal(), whole.diagonal())


def test_cdpruner_with_a_text_tower_negates_relevance():
    tokens = group(4, 5, 3)
    generator = torch.Generator().manual_seed(1)
    aligned, text = (torch.randn(size, 3, generator=generator) for size in (20, 2))
    with_clip = VisualTokens(tokens.features, aligned=aligned, text=text)
    diagonal = CDPruner(0.5).kernel(with_clip).diagonal()
    assert ranked(diagonal) == ranked(-torch.from_numpy(similarity_to_text(with_clip, aligned)))


def test_the_token_that_the_question_asks_about_is_kept():
    x = torch.eye(12)
    for relevant in (2, 9):
        tokens = VisualTokens(x, text=x[relevant : relevant + 1])
        assert relevant in CDPruner(1).select(tokens)
        assert relevant in TRIM(3).select(tokens)


@example(rows=2, columns=3, seed=0, share=0.5, power=0.0)  # two tokens with equal gains
@example(rows=5, columns=7, seed=6, share=0.984375, power=2.0)  # saliency of 1e-10
@given(**SIZES, power=st.sampled_from([0.0, 1.0, 2.0]))
@settings(deadline=None, max_examples=60)
def test_scope(rows, columns, seed, share, power):
    tokens = group(rows, columns, seed)
    n = len(tokens)
    k = max(1, int(n * share))
    similarity = cosines(tokens.features)
    saliency = tokens.attention.double().numpy() ** power
    chosen: list[int] = []

    def coverage(kept: list[int]) -> float:
        return sum(max([0.0, *(similarity[i, j] for j in kept)]) for i in range(n))

    while len(chosen) < k:
        base = coverage(chosen)
        rest = [i for i in range(n) if i not in chosen]
        score = {i: round(coverage([*chosen, i]) - base, 9) * saliency[i] for i in rest}
        chosen.append(max(rest, key=lambda i: (score[i], -i)))
    assert SCOPE(k, power=power).select(tokens).tolist() == sorted(chosen)


@given(
    n=st.integers(1, 90),
    d=st.integers(1, 5),
    seed=st.integers(0, 10_000),
    share=st.floats(0.01, 1),
    copies=st.booleans(),
    silent=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_lazy_coverage_is_the_same(n, d, seed, share, copies, silent):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    saliency = torch.rand(n, generator=generator, dtype=torch.float64)
    if copies:
        x = x[torch.randint(0, n, (n,), generator=generator) // 2]
        saliency = (saliency * 3).round()
    if silent:
        saliency[::2] = 0
    similarity, k = cosine_similarity(x), max(1, int(n * share))
    lazy, eager = (greedy_cover(similarity, saliency, k, lazy) for lazy in (True, False))
    assert torch.equal(lazy[0], eager[0])
    assert torch.equal(lazy[1], eager[1])


def test_coverage_grows_less_and_less():
    """Greedy coverage is submodular: gains do not increase, and it is near the best set's."""
    similarity = torch.from_numpy(cosines(group(3, 4, 5).features)).float().clamp(-1, 1)
    chosen, covered = greedy_cover(similarity, torch.ones(12, dtype=torch.float64), 12, lazy=True)
    gains = torch.cat([covered[:1], covered.diff()])
    assert (gains.diff() <= 1e-5).all()
    best = max(
        float(similarity[list(subset)].clamp(min=0).amax(0).sum())
        for subset in itertools.combinations(range(12), 3)
    )
    assert float(covered[2]) >= (1 - 1 / math.e) * best
    assert sorted(chosen.tolist()) == list(range(12))


WITH_SIGNALS = [name for name in gprune.methods() if gprune.make(name, keep=1.0).signals]


@pytest.mark.parametrize("name", WITH_SIGNALS)
def test_a_missing_signal_is_named(name):
    whole = with_signals(torch.randn(12, 5), grid=(3, 4))
    pruner = gprune.make(name, keep=0.5)
    for signal in pruner.signals:
        field, _ = SIGNALS[signal]
        given = {
            other: getattr(whole, other)
            for other in ("attention", "object_attention", "keys", "text")
            if other != field
        }
        with pytest.raises(ValueError, match=f"{field} is missing: {name} needs"):
            pruner.select(VisualTokens(whole.features, grid=(3, 4), **given))


@pytest.mark.parametrize("name", WITH_SIGNALS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ties_threads_and_dtypes(name, dtype):
    same = VisualTokens(
        torch.ones(9, 4, dtype=dtype),
        grid=(3, 3),
        attention=torch.full((9,), 1 / 9),
        object_attention=torch.full((9,), 1 / 9),
        keys=torch.ones(9, 2),
        text=torch.ones(1, 4, dtype=dtype),
    )
    kept = gprune.make(name, keep=4).select(same)
    assert kept[0] == 0  # ties go to the lowest index
    tokens = with_signals(torch.randn(300, 64).to(dtype), grid=(15, 20))
    threads = torch.get_num_threads()
    pruner = gprune.make(name, keep=0.2)
    try:
        torch.set_num_threads(1)
        one = pruner.reduce(tokens)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one.kept, pruner.select(tokens))
    assert one.features(tokens.features).dtype == dtype
    assert len(gprune.make(name, keep=0.5).reduce(with_signals(torch.zeros(8, 3)))) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SCOPE(0.5, power=-1.0), "power=-1.0"),
    ],
)
def test_parameters_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
