"""The Triton kernels in Triton's interpreter, beside the torch form and the obvious one.

The interpreter runs a kernel's own source on the CPU, one program after another. It shows that what
is computed is right; that it compiles, and how fast it is, only a GPU can show.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import GPrune, ThumbnailGuided, VisualTokens, WeightedGPrune, kept_count, kernels
from gprune.evaluation.bench import selection_times
from gprune.graph import SimilarityGraph
from tests import reference
from tests.hf.batches import make_batch
from tests.hf.models import SPECIMENS
from tests.pruners.test_gprune import KINDS, make_features

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTERPRETED = triton.knobs.runtime.interpret


def test_the_interpreter_is_on():
    assert INTERPRETED, "run by `make test-triton`, which sets TRITON_INTERPRET=1"


@triton.jit
def _places(out, count: tl.constexpr):
    tile = tl.arange(0, count) * 37
    row, column = kernels._place(tile)
    tl.store(out + tl.arange(0, count), row)
    tl.store(out + count + tl.arange(0, count), column)


def test_tiles_are_numbered_row_by_row():
    """Up to those of 100,000 tokens, where the root of a float32 rounds."""
    count = 2**15
    out = torch.zeros(2, count, dtype=torch.int32)
    _places[(1,)](out, count)
    tile = torch.arange(count) * 37
    row, column = out.long()
    assert torch.equal(row * (row + 1) // 2 + column, tile)
    assert ((column >= 0) & (column <= row)).all()
    assert row.max() * kernels.BLOCK > 90_000


def together(counts: list[int], d: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Groups of all kinds, one after another, with copies and tokens of zero norm."""
    parts = [
        make_features(KINDS[(i + seed) % 4], n, d, seed + i, torch.float32)
        for i, n in enumerate(counts)
    ]
    x = torch.cat(parts)
    x[seed % len(x)] = 0
    x[-1] = x[len(x) // 2]
    if dtype != torch.float16:
        x[0] *= 1e25
        x[len(x) // 3] *= 1e-25
    return x.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("counts", "d"), [([70, 1, 130, 64], 48), ([65], 3), ([128, 200], 200), ([1], 1)]
)
def test_the_graphs_of_several_groups(counts, d, dtype):
    x = together(counts, d, dtype, seed=len(counts))
    graph = kernels.KernelGraph.build(x, counts, 0.5, 0.03)
    held = graph.propagate(graph.norms, 5)
    start = 0
    for count in counts:
        part = slice(start, start + count)
        expected = SimilarityGraph.build(x[part], 0.5, 0.03)
        assert torch.equal(graph.degree[part], expected.degree)
        assert torch.equal(graph.first_copy[part] - start, expected.first_copy)
        torch.testing.assert_close(graph.norms[part], expected.norms, rtol=1e-12, atol=0)
        alive = expected.degree > 0
        sums = expected.row_sums()[alive]
        torch.testing.assert_close(graph.row_sums[part][alive], sums, rtol=1e-5, atol=0)
        theirs = expected.propagate(expected.norms, 5)
        # Norms differ by 1e50: relative to each, but not below what a huge neighbour rounds to.
        torch.testing.assert_close(held[part], theirs, rtol=1e-4, atol=1e-8 * float(theirs.max()))
        start += count


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.7, 1.0])
@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_thresholds_and_temperatures(threshold, temperature):
    x = make_features("clustered", 100, 24, seed=3)
    x[7] = 0
    graph = kernels.KernelGraph.build(x, [100], threshold, temperature)
    expected = SimilarityGraph.build(x, threshold, temperature)
    assert torch.equal(graph.degree, expected.degree)
    torch.testing.assert_close(
        graph.propagate(graph.norms, 3), expected.propagate(expected.norms, 3), rtol=1e-4, atol=1e-9
    )


def test_information_is_conserved():
    x = together([90, 40], 32, torch.float32, seed=1)
    graph = kernels.KernelGraph.build(x, [90, 40], 0.5, 0.03)
    information = torch.rand(130, dtype=torch.float64) * (graph.degree > 0)
    for part in (slice(0, 90), slice(90, 130)):
        held = graph.propagate(information, 5)[part]
        torch.testing.assert_close(held.sum(), information[part].sum(), rtol=1e-6, atol=0)
    assert torch.equal(graph.propagate(information, 0), information)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_selects_what_the_reference_selects(kind, dtype):
    x = make_features(kind, 150, 40, 5, dtype)
    scores = reference.scores(x.float().numpy(), 0.5, 0.03, 5)
    for keep in (0.1, 0.36, 0.9):
        k = kept_count(150, keep)
        chosen = GPrune(keep, backend="triton").select(VisualTokens(x)).tolist()
        if chosen != reference.top(scores, k):
            close = reference.margin(x.float().numpy(), 0.5) < 1e-6
            assert close or reference.gap_at(scores, k) < 1e-5


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 140),
    st.integers(1, 24),
    st.integers(0, 2**31),
    st.sampled_from(KINDS[:4]),
    st.floats(0.05, 1.0),
)
def test_selects_what_torch_selects(n, d, seed, kind, keep):
    x = make_features(kind, n, d, seed)
    chosen = GPrune(keep, backend="triton").select(VisualTokens(x)).tolist()
    expected = GPrune(keep).select(VisualTokens(x)).tolist()
    if chosen != expected:
        scores = reference.scores(x.numpy(), 0.5, 0.03, 5)
        close = reference.margin(x.numpy(), 0.5) < 1e-6
        assert close or reference.gap_at(scores, len(expected)) < 1e-5


def groups() -> list[VisualTokens]:
    """Two images' groups: plain, with protected tokens, of other widths and dtypes."""
    grid = (8, 9)
    protected = torch.zeros(72, dtype=torch.bool)
    protected[[3, 40, 71]] = True
    return [
        VisualTokens(make_features("clustered", 72, 16, 0), grid=grid, kind="thumbnail"),
        VisualTokens(make_features("clustered", 72, 16, 1), grid=grid, kind="canvas"),
        VisualTokens(make_features("random", 72, 16, 2), grid=grid, protected=protected),
        VisualTokens(make_features("clustered", 30, 16, 3)),
        VisualTokens(make_features("clustered", 30, 8, 4)),
        VisualTokens(make_features("clustered", 30, 8, 5, torch.bfloat16)),
    ]


def equal(one, other) -> bool:
    return all(
        torch.equal(kept, also)
        and (into is None) == (too is None)
        and (into is None or torch.equal(into, too))
        for (kept, into), (also, too) in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("make", [GPrune, WeightedGPrune])
def test_many_images_as_each_alone_and_as_torch(make, monkeypatch):
    every = groups()
    images = [every[:2], every[2:3], every[3:]]
    pruner = make(0.3, backend="triton")
    reduced = pruner.reduce_images(images)
    for image, found in zip(images, reduced, strict=True):
        assert equal(found, make(0.3).reduce_groups(image))
        assert equal(found, [pruner.reduce_groups([tokens])[0] for tokens in image])
    # A launch sequence for every group: the same.
    monkeypatch.setattr(kernels, "ENTRIES", 1)
    for found, again in zip(reduced, pruner.reduce_images(images), strict=True):
        assert equal(found, again)


def test_scores_do_not_depend_on_what_else_is_in_the_batch():
    """Bit for bit."""
    plain = [tokens for tokens in groups() if tokens.features.shape[1] == 16]
    pruner = GPrune(0.3, backend="triton")
    for tokens, scores in zip(plain, pruner._scores(plain), strict=True):
        assert torch.equal(pruner.score(tokens), scores)


@pytest.fixture
def built(monkeypatch):
    """The counts of each launch sequence."""
    every = []
    build = kernels.KernelGraph.build
    monkeypatch.setattr(
        kernels.KernelGraph,
        "build",
        lambda x, counts, *a: every.append(counts) or build(x, counts, *a),
    )
    return every


def test_one_launch_sequence_for_all_images(built):
    images = [[VisualTokens(make_features("random", n, 8, n))] for n in (20, 30, 10)]
    GPrune(0.5, backend="triton").reduce_images(images)
    assert built == [[20, 30, 10]]


@torch.no_grad()
def test_inside_a_model(built):
    """Batches of images in groups of several sizes: what torch keeps, in one launch sequence."""
    specimen = SPECIMENS["llava_next"]
    model = specimen.build()
    batch = make_batch(specimen, model, [2, 1])
    with GPrune(0.4, backend="triton")(model) as pruned:
        logits = model(**batch.inputs).logits
        kept = pruned.kept
    assert len(built) == 1
    assert len(built[0]) == 6
    with GPrune(0.4)(model) as pruned:
        assert torch.equal(logits, model(**batch.inputs).logits)
        assert len(kept) == len(pruned.kept)
    for one, other in zip(kept, pruned.kept, strict=True):
        assert [group.indices.tolist() for group in one] == [g.indices.tolist() for g in other]


def test_a_budget_that_divides_a_group():
    every = groups()[:2]
    policy = ThumbnailGuided(0.3)
    assert equal(
        GPrune(policy, backend="triton").reduce_groups(every), GPrune(policy).reduce_groups(every)
    )


def test_copies_tie_and_the_first_wins():
    x = make_features("random", 1, 12, 0).expand(150, 12).clone()
    assert GPrune(20, backend="triton").select(VisualTokens(x)).tolist() == list(range(20))


def test_bad_values_are_refused():
    x = torch.ones(8, 4)
    x[2, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        GPrune(0.5, backend="triton").select(VisualTokens(x))
    with pytest.raises(ValueError, match=r"counts=\[3\] must sum to the 8 tokens"):
        kernels.KernelGraph.build(torch.ones(8, 4), [3], 0.5, 0.03)


def test_a_cpu_without_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="is for features on a GPU, got some on the CPU"):
        GPrune(0.5, backend="triton").select(VisualTokens(torch.rand(8, 4)))


def test_the_benchmark_times_them_beside_the_other_forms():
    """In the interpreter the times mean nothing, but what was timed selects the same tokens."""
    row = selection_times(100, 16, ["gprune"], repeats=1, dtype=torch.bfloat16, kernels=True)
    assert set(row["milliseconds"]) == {"product", "matrix_power", "gprune", "gprune_triton"}
