"""PruMerge and PruMerge+: the released forms and the paper's, their counts and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import PruMerge, PruMergePlus, VisualTokens, kept_count
from gprune.budget import PartBudgets
from gprune.pruners.outliers import outlier_count
from tests.pruners import released_merging as released

SIZES = {
    "rows": st.integers(1, 6),
    "columns": st.integers(1, 7),
    "seed": st.integers(0, 9999),
    "share": st.floats(0.01, 1),
}
METHODS = [PruMerge, PruMergePlus]


def group(rows: int, columns: int, seed: int) -> VisualTokens:
    """Returns tokens whose attention has outliers, and keys of two heads."""
    generator = torch.Generator().manual_seed(seed)
    n = rows * columns

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return VisualTokens(
        normal(n, 6),
        grid=(rows, columns),
        attention=(2 * normal(n)).softmax(0) * 0.9,
        keys=normal(n, 2, 4),
        vision=normal(n, 3),
    )


def as_numbers(tokens: VisualTokens) -> tuple[np.ndarray, list[float], np.ndarray]:
    assert tokens.attention is not None
    return (
        tokens.features.double().numpy(),
        tokens.attention.tolist(),
        tokens.joint_keys().double().numpy(),
    )


def check_rows(found, tokens, expected: released.Rows) -> None:
    """Compares a reduction with the reference: kept tokens, merged rows, the additional row."""
    kept, rows, extra = expected
    x = tokens.features
    assert found.kept.tolist() == kept
    assert len(found) == len(kept) + (extra is not None)
    if kept:
        merged = found.weights @ x
        assert np.allclose(merged.numpy(), np.stack(rows), atol=1e-5)
    if extra is None:
        assert found.appended is None
        return
    assert np.allclose(found.appended_features(x)[0].numpy(), extra, atol=1e-5)
    # The additional row stands at the last token that is not kept.
    last = max(i for i in range(len(x)) if i not in kept)
    assert found.positions(len(x)).tolist() == sorted([*kept, last])
    place = sorted([*kept, last]).index(last)
    assert np.allclose(found.features(x)[place].numpy(), extra, atol=1e-5)


@given(**SIZES, neighbours=st.sampled_from([0, 1, 5, 32]))
@settings(deadline=None, max_examples=60)
def test_prumerge(rows, columns, seed, share, neighbours):
    tokens = group(rows, columns, seed)
    x, attention, keys = as_numbers(tokens)
    k = kept_count(len(x), share)
    found = PruMerge(k, neighbours=neighbours).reduce(tokens)
    assert len(found) == k
    if k == len(x):
        assert not found.merges
        return
    kept = sorted(released.ranked(attention)[: k - 1])
    check_rows(found, tokens, released.prumerge(x, attention, keys, kept, neighbours))


@given(rows=st.integers(2, 7), columns=st.integers(2, 8), seed=st.integers(0, 9999))
@settings(deadline=None, max_examples=60)
def test_adaptive(rows, columns, seed):
    tokens = group(rows, columns, seed)
    x, attention, keys = as_numbers(tokens)
    n = len(x)
    best = released.ranked(attention)[: released.outliers(attention)]
    kept = sorted(best)
    found = PruMerge("adaptive").reduce(tokens)
    check_rows(found, tokens, released.prumerge(x, attention, keys, kept, 32))
    more = sorted([*best, *released.evenly_added(best, n)])
    found = PruMergePlus("adaptive").reduce(tokens)
    check_rows(found, tokens, released.prumerge(x, attention, keys, more, 32))


def test_the_order_of_the_released_code():
    tokens = group(6, 7, 3)
    _, attention, _ = as_numbers(tokens)
    best = released.ranked(attention)[: released.outliers(attention)]
    assert PruMerge("adaptive").order(tokens.attention, len(best)).tolist() == best
    order = PruMergePlus("adaptive").order(tokens.attention, 0).tolist()
    assert order == [*best, *released.evenly_added(best, 42)]


@given(**SIZES)
@settings(deadline=None, max_examples=60)
def test_prumerge_plus(rows, columns, seed, share):
    """A budget counts all rows; a quarter of the kept tokens are the most attended."""
    tokens = group(rows, columns, seed)
    x, attention, keys = as_numbers(tokens)
    n, k = len(x), kept_count(len(x), share)
    found = PruMergePlus(k).reduce(tokens)
    assert len(found) == k
    if k == n:
        assert not found.merges
        return
    best = released.ranked(attention)[: math.ceil((k - 1) / 4)]
    rest = [i for i in range(n) if i not in best]
    count = k - 1 - len(best)
    even = [rest[(2 * i + 1) * len(rest) // (2 * count)] for i in range(count)]
    kept = sorted([*best, *even])
    check_rows(found, tokens, released.prumerge(x, attention, keys, kept, 32))


@given(rows=st.integers(2, 6), columns=st.integers(2, 7), seed=st.integers(0, 9999))
@settings(deadline=None, max_examples=60)
def test_fixed_sampling(rows, columns, seed):
    """Repetitions come out once; `order` has the released code's list with them."""
    tokens = group(rows, columns, seed)
    x, attention, keys = as_numbers(tokens)
    n = len(x)
    for count in {1, n // 8, n // 4, n // 2} - {0}:
        pruner = PruMergePlus(count, sampling="fixed")
        step = n // count
        best = released.ranked(attention)[:count]
        even = list(range(step // 2, n - 1, step))
        assert pruner.order(tokens.attention, count).tolist() == best + even
        kept = sorted({*best, *even})
        assert len(kept) <= 2 * count + 1
        found = pruner.reduce(tokens)
        check_rows(found, tokens, released.prumerge(x, attention, keys, kept, 32))


@given(**SIZES, neighbours=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_the_papers_form(rows, columns, seed, share, neighbours):
    """A weighted mean with dropped tokens only, and no additional row."""
    tokens = group(rows, columns, seed)
    x, attention, keys = as_numbers(tokens)
    n, k = len(x), kept_count(len(x), share)
    found = PruMerge(k, neighbours=neighbours, form="paper").reduce(tokens)
    kept = sorted(released.ranked(attention)[:k])
    assert found.kept.tolist() == kept
    assert found.appended is None
    for i, row in zip(kept, found.features(tokens.features), strict=True):
        others = [j for j in range(n) if j not in kept]
        near = sorted(others, key=lambda j: (-released.cosine(keys[i], keys[j]), j))[:neighbours]
        part = [i, *near]
        weights = np.array([attention[j] for j in part])
        expected = (weights[:, None] * x[part]).sum(0) / weights.sum()
        assert np.allclose(row.numpy(), expected, atol=1e-4)
    count = released.outliers(attention)
    adaptive = PruMerge("adaptive", form="paper").reduce(tokens)
    assert adaptive.kept.tolist() == sorted(released.ranked(attention)[:count])


@given(n=st.integers(1, 200), seed=st.integers(0, 9999), sharp=st.sampled_from([0.0, 0.3, 3.0]))
@settings(deadline=None, max_examples=100)
def test_outliers(n, seed, sharp):
    values = (sharp * torch.randn(n, generator=torch.Generator().manual_seed(seed))).exp()
    expected = released.outliers(values.tolist())
    numbers = values.double().numpy()
    first, third = np.percentile(numbers, [25, 75])
    assert expected == max(1, int((numbers > third + 1.5 * (third - first)).sum()))
    assert outlier_count(values) == expected
    assert 1 <= expected <= max(1, n // 4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_budgets_at_both_ends(method, dtype):
    tokens = group(3, 4, 1)
    x = tokens.features.to(dtype)
    tokens = VisualTokens(x, attention=tokens.attention, keys=tokens.keys)
    everything = method(1.0).reduce(tokens)
    assert everything.kept.tolist() == list(range(12))
    assert torch.equal(everything.features(x), x)
    one = method(1).reduce(tokens)
    assert one.kept.tolist() == []
    assert one.positions(12).tolist() == [11]
    expected = (tokens.attention[:, None] * x.float()).sum(0).to(dtype)
    assert one.features(x).dtype == dtype
    assert torch.allclose(one.features(x)[0], expected, rtol=0.02)
    single = VisualTokens(x[:1], attention=tokens.attention[:1], keys=tokens.keys[:1])
    assert torch.equal(method("adaptive").reduce(single).features(x[:1]), x[:1])


def test_no_outlier_keeps_the_highest():
    attention = torch.full((16,), 1 / 16)
    attention[5] += 1e-6  # the quartiles are equal, so any higher value is an outlier
    tokens = VisualTokens(torch.randn(16, 3), attention=attention, keys=torch.randn(16, 3))
    assert PruMerge("adaptive").reduce(tokens).kept.tolist() == [5]
    flat = VisualTokens(tokens.features, attention=torch.linspace(1, 2, 16), keys=tokens.keys)
    assert PruMerge("adaptive").reduce(flat).kept.tolist() == [15]
    assert len(PruMerge("adaptive").reduce(flat)) == 2


def test_ties_of_keys_and_attention_go_to_the_lowest_index():
    tokens = VisualTokens(torch.eye(6), attention=torch.full((6,), 0.1), keys=torch.ones(6, 2))
    found = PruMerge(3, neighbours=2).reduce(tokens)
    assert found.kept.tolist() == [0, 1]
    assert torch.allclose(
        found.weights,
        torch.tensor([[1, 0.1, 0.1, 0, 0, 0], [0.1, 1, 0.1, 0, 0, 0]]),
    )
    assert torch.allclose(found.appended, torch.tensor([[0, 0, 0.1, 0.1, 0.1, 0.1]]))


@pytest.mark.parametrize("method", METHODS)
def test_protected_tokens_are_unchanged(method):
    tokens = group(4, 5, 2)
    protected = torch.zeros(20, dtype=torch.bool)
    protected[[0, 7]] = True
    marked = VisualTokens(
        tokens.features, attention=tokens.attention, keys=tokens.keys, protected=protected
    )
    found = method(4).reduce(marked)
    positions, rows = found.positions(20).tolist(), found.features(marked.features)
    assert len(positions) == 6
    for token in (0, 7):
        assert torch.equal(rows[positions.index(token)], tokens.features[token])
    rest = marked.subset((~protected).nonzero().squeeze(1))
    alone = method(4).reduce(rest)
    others = [i for i, token in enumerate(positions) if token not in (0, 7)]
    assert torch.allclose(rows[others], alone.features(rest.features))
    assert len(alone) == 4


def test_parts_are_merged_apart():
    tokens = group(4, 6, 3)
    left = torch.tensor([row * 6 + column for row in range(4) for column in range(3)])
    right = torch.tensor([row * 6 + column for row in range(4) for column in range(3, 6)])
    budget = PartBudgets([(left, (4, 3)), (right, (4, 3))], [4, 3])
    whole = PruMerge(lambda groups: [budget]).reduce(tokens)
    assert len(whole) == 7
    kept = dict(zip(whole.kept.tolist(), whole.weights @ tokens.features, strict=True))
    appended = whole.appended_features(tokens.features)
    for part, (rows, count) in enumerate(((left, 4), (right, 3))):
        alone = tokens.subset(rows, (4, 3))
        own = PruMerge(count).reduce(alone)
        merged = own.weights @ alone.features
        for token, row in zip(rows[own.kept].tolist(), merged, strict=True):
            assert torch.allclose(kept[token], row, atol=1e-6)
        assert torch.allclose(appended[part], own.appended_features(alone.features)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PruMerge(0.5, neighbours=-1), "neighbours=-1"),
        (lambda: PruMerge(0.5, form="code"), "form='code' must be released or paper"),
        (lambda: PruMergePlus(0.5, outliers=0.0), "outliers=0.0"),
        (lambda: PruMergePlus(0.5, form=""), "form='' must be"),
        (lambda: PruMergePlus(0.5, sampling="even"), "sampling='even' must be share or fixed"),
        (lambda: PruMergePlus("adaptive", sampling="fixed"), "pass a share such as keep=0.125"),
    ],
)
def test_parameters_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("missing", ["attention", "keys"])
def test_a_missing_signal_is_named(method, missing):
    tokens = group(2, 3, 0)
    given = {name: getattr(tokens, name) for name in ("attention", "keys") if name != missing}
    for keep in (0.5, "adaptive"):
        with pytest.raises(ValueError, match=f"{missing} is missing: {method.name} needs"):
            method(keep).reduce(VisualTokens(tokens.features, **given))
