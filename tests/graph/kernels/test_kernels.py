"""The Triton kernels in Triton's interpreter, beside the torch form and the reference.

The interpreter runs a kernel's own source on the CPU, one program after another. It shows that the
results are right. `test_compiling` shows that they compile; only a GPU can show how fast they are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import GPrune, ThumbnailGuided, VisualTokens, WeightedGPrune, kept_count
from gprune.evaluation.bench import selection_times
from gprune.graph import SimilarityGraph, triton_kernels
from gprune.graph import triton as kernels
from gprune.proof.batches import make_batch
from gprune.proof.models import SPECIMENS
from tests.graph import reference
from tests.graph.test_half import overlapping
from tests.pruners.test_gprune import KINDS, make_features

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTERPRETED = triton.knobs.runtime.interpret


def test_the_interpreter_is_on():
    assert INTERPRETED, "run by `make test-triton`, which sets TRITON_INTERPRET=1"


@triton.jit
def _positions(out, count: tl.constexpr):
    tile = tl.arange(0, count) * 37
    row, column = triton_kernels.tile_position(tile)
    tl.store(out + tl.arange(0, count), row)
    tl.store(out + count + tl.arange(0, count), column)


def test_tiles_are_numbered_row_by_row():
    """Up to the tiles of 100,000 tokens, where a float32 square root rounds."""
    count = 2**15
    out = torch.zeros(2, count, dtype=torch.int32)
    _positions[(1,)](out, count)
    tile = torch.arange(count) * 37
    row, column = out.long()
    assert torch.equal(row * (row + 1) // 2 + column, tile)
    assert ((column >= 0) & (column <= row)).all()
    assert row.max() * kernels.BLOCK > 90_000


def mixed_groups(counts: list[int], d: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Returns groups of all kinds, concatenated, with copies and tokens of zero norm."""
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
    x = mixed_groups(counts, d, dtype, seed=len(counts))
    graph = kernels.KernelGraph.build(x, counts, 0.5, 0.03)
    result = graph.propagate(graph.norms, 5)
    start = 0
    for count in counts:
        part = slice(start, start + count)
        expected = SimilarityGraph.build(x[part], 0.5, 0.03)
        assert torch.equal(graph.degree[part], expected.degree)
        assert torch.equal(graph.first_copy[part] - start, expected.first_copy)
        torch.testing.assert_close(graph.norms[part], expected.norms, rtol=1e-12, atol=0)
        connected = expected.degree > 0
        sums = expected.row_sums()[connected]
        torch.testing.assert_close(graph.row_sums[part][connected], sums, rtol=1e-5, atol=0)
        dense = expected.propagate(expected.norms, 5)
        # Norms differ by 1e50: a small value may be off by the rounding of a huge neighbour's.
        torch.testing.assert_close(result[part], dense, rtol=1e-4, atol=1e-8 * float(dense.max()))
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


@pytest.mark.parametrize("counts", [[150], [70, 1, 130]])
def test_degrees_in_float16(counts):
    """They count what the kernels' own weights say, and almost always what torch's say."""
    x = torch.cat([overlapping(n, 48, seed=n) for n in counts])
    x[3] = 0
    graph = kernels.KernelGraph.build(x, counts, 0.5, 0.03)
    half = graph.float16_degree()
    start = 0
    for count in counts:
        part = slice(start, start + count)
        expected = SimilarityGraph.build(x[part], 0.5, 0.03).float16_degree()
        # Weights differ by 1e-5 of themselves, so that one at the very bound may be counted.
        assert (half[part] - expected).abs().sum() <= 2
        start += count
    assert (half < graph.degree).any()
    assert half[3] == 0
    for degree in ("float32", "float16"):
        pruner = GPrune(0.4, degree=degree)
        kept = replace(pruner, backend="triton").select(VisualTokens(x))
        assert torch.equal(kept, pruner.select(VisualTokens(x)))


def test_information_is_conserved():
    x = mixed_groups([90, 40], 32, torch.float32, seed=1)
    graph = kernels.KernelGraph.build(x, [90, 40], 0.5, 0.03)
    information = torch.rand(130, dtype=torch.float64) * (graph.degree > 0)
    for part in (slice(0, 90), slice(90, 130)):
        result = graph.propagate(information, 5)[part]
        torch.testing.assert_close(result.sum(), information[part].sum(), rtol=1e-6, atol=0)
    assert torch.equal(graph.propagate(information, 0), information)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_selects_what_the_reference_selects(kind, dtype):
    x = make_features(kind, 150, 40, 5, dtype)
    scores = reference.scores(x.float().numpy(), 0.5, 0.03, 5)
    for keep in (0.1, 0.36, 0.9):
        k = kept_count(150, keep)
        kept = GPrune(keep, backend="triton").select(VisualTokens(x)).tolist()
        if kept != reference.top(scores, k):
            near_threshold = reference.margin(x.float().numpy(), 0.5) < 1e-6
            assert near_threshold or reference.gap_at(scores, k) < 1e-5


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
    kept = GPrune(keep, backend="triton").select(VisualTokens(x)).tolist()
    expected = GPrune(keep).select(VisualTokens(x)).tolist()
    if kept != expected:
        scores = reference.scores(x.numpy(), 0.5, 0.03, 5)
        near_threshold = reference.margin(x.numpy(), 0.5) < 1e-6
        assert near_threshold or reference.gap_at(scores, len(expected)) < 1e-5


def make_groups() -> list[VisualTokens]:
    """Returns groups of several images: with protected tokens, and of several widths and dtypes."""
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


def equal(first, second) -> bool:
    """Returns whether two lists of reductions keep and merge the same tokens."""
    return all(
        torch.equal(ours.kept, theirs.kept)
        and (ours.members is None) == (theirs.members is None)
        and (ours.members is None or torch.equal(ours.members, theirs.members))
        for ours, theirs in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("make", [GPrune, WeightedGPrune])
def test_many_images_equal_single_images_and_torch(make, monkeypatch):
    groups = make_groups()
    images = [groups[:2], groups[2:3], groups[3:]]
    pruner = make(0.3, backend="triton")
    reduced = pruner.reduce_images(images)
    for image, result in zip(images, reduced, strict=True):
        assert equal(result, make(0.3).reduce_groups(image))
        assert equal(result, [pruner.reduce_groups([tokens])[0] for tokens in image])
    # One launch sequence per group gives the same.
    monkeypatch.setattr(kernels, "MAX_WEIGHTS", 1)
    for result, again in zip(reduced, pruner.reduce_images(images), strict=True):
        assert equal(result, again)


def test_scores_do_not_depend_on_the_rest_of_the_batch():
    """They are equal bit for bit."""
    groups = [tokens for tokens in make_groups() if tokens.features.shape[1] == 16]
    pruner = GPrune(0.3, backend="triton")
    for tokens, scores in zip(groups, pruner.kernel_scores(groups), strict=True):
        assert torch.equal(pruner.score(tokens), scores)


@pytest.fixture
def launches(monkeypatch):
    """Records the counts of each launch sequence."""
    recorded = []
    build = kernels.KernelGraph.build
    monkeypatch.setattr(
        kernels.KernelGraph,
        "build",
        lambda x, counts, *a: recorded.append(counts) or build(x, counts, *a),
    )
    return recorded


def test_one_launch_sequence_for_all_images(launches):
    images = [[VisualTokens(make_features("random", n, 8, n))] for n in (20, 30, 10)]
    GPrune(0.5, backend="triton").reduce_images(images)
    assert launches == [[20, 30, 10]]


@torch.no_grad()
def test_inside_a_model(launches):
    """A batch of images in groups of several sizes keeps what torch keeps, in one sequence."""
    specimen = SPECIMENS["llava_next"]
    model = specimen.build()
    batch = make_batch(specimen, model, [2, 1])
    with GPrune(0.4, backend="triton")(model) as pruned:
        logits = model(**batch.inputs).logits
        kept = pruned.kept
    assert len(launches) == 1
    assert len(launches[0]) == 6
    with GPrune(0.4)(model) as pruned:
        assert torch.equal(logits, model(**batch.inputs).logits)
        assert len(kept) == len(pruned.kept)
    for ours, theirs in zip(kept, pruned.kept, strict=True):
        assert [group.indices.tolist() for group in ours] == [g.indices.tolist() for g in theirs]


def test_a_budget_that_divides_a_group():
    groups = make_groups()[:2]
    policy = ThumbnailGuided(0.3)
    assert equal(
        GPrune(policy, backend="triton").reduce_groups(groups), GPrune(policy).reduce_groups(groups)
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
    with pytest.raises(ValueError, match="needs features on a GPU, got features on the CPU"):
        GPrune(0.5, backend="triton").select(VisualTokens(torch.rand(8, 4)))


def test_the_benchmark_times_the_kernels_too():
    """In the interpreter the times mean nothing, but all forms must select the same tokens."""
    row = selection_times(100, 16, ["gprune"], repeats=1, dtype=torch.bfloat16, kernels=True)
    assert set(row["milliseconds"]) == {"product", "matrix_power", "gprune", "gprune_triton"}
