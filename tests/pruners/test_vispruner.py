"""VisPruner against plain loops; which features it reads; odd numbers of tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import VisPruner, VisualTokens
from tests.pruners.signals import with_signals


def ranked(values: torch.Tensor) -> list[int]:
    """Indices from the highest, ties from the lowest index."""
    numbers = values.tolist()
    return sorted(range(len(numbers)), key=lambda i: (-numbers[i], i))


def reference(x: torch.Tensor, attention: torch.Tensor, k: int, important: float) -> list[int]:
    """Follows the rule of the released code; with an odd number, the first set has one more."""
    unit = x.double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    order = ranked(attention)
    first, rest = order[: int(k * important)], order[int(k * important) :]
    wanted = k - len(first)
    while len(rest) > wanted and wanted:
        a, b = rest[::2], rest[1::2]
        nearest = {i: round(max(float(unit[i] @ unit[j]) for j in b), 6) for i in a}
        by_nearest = sorted(a, key=lambda i: -nearest[i])
        rest = by_nearest[min(8, len(rest) - wanted) :] + b
    return sorted(first + (rest if wanted else []))


@given(
    n=st.integers(1, 42),
    seed=st.integers(0, 9999),
    share=st.floats(0.01, 1),
    important=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    before=st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_vispruner(n, seed, share, important, before):
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, n, 6))).float()
    tokens = with_signals(x[0], seed=seed)
    if before:
        tokens = VisualTokens(x[0], attention=tokens.attention, vision=x[1])
    k = max(1, int(n * share))
    expected = reference(x[int(before)], tokens.attention, k, important)
    assert VisPruner(k, important=important).select(tokens).tolist() == expected


@pytest.mark.parametrize("n", [48, 49])
@pytest.mark.parametrize("k", [10, 11, 14, 47])
def test_odd_numbers(n, k):
    """The released code raises an error where the others are odd in number."""
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(n))
    attention = torch.rand(n, generator=torch.Generator().manual_seed(k))
    kept = VisPruner(k).select(VisualTokens(x, attention=attention)).tolist()
    assert kept == reference(x, attention, k, 0.5)
    assert len(kept) == k


def test_copies_are_dropped_first():
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 0)
    tokens = VisualTokens(x, attention=torch.linspace(1, 0.1, 16))
    kept = VisPruner(8, important=0.0).select(tokens)
    assert len({index // 2 for index in kept.tolist()}) == 8


def test_important_out_of_range():
    with pytest.raises(ValueError, match=r"important=1\.5"):
        VisPruner(0.5, important=1.5)
