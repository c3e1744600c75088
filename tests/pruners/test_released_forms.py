"""DivPrune and CDPruner beside the released rules, in plain loops and float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import CDPruner, DivPrune, VisualTokens

# The same examples on every run: of many random ones, some would hinge on a near tie.
SIZES = {
    "n": st.integers(2, 24),
    "d": st.integers(8, 24),
    "seed": st.integers(0, 10_000),
    "share": st.floats(0.05, 0.8),
}


def random_rows(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def cosine(a: list[float], b: list[float]) -> float:
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def released_divprune(rows: list[list[float]], k: int) -> list[int]:
    """Chosen tokens stay candidates, at a distance of 0 from themselves."""
    n = len(rows)
    distance = [
        [0.0 if i == j else 1 - cosine(rows[i], rows[j]) for j in range(n)] for i in range(n)
    ]
    nearest = [sorted(column)[1] for column in distance]
    chosen = [nearest.index(max(nearest))]
    while len(chosen) < k:
        to_chosen = [min(distance[i][c] for c in chosen) for i in range(n)]
        chosen.append(to_chosen.index(max(to_chosen)))
    return sorted(chosen)


@given(**SIZES)
@settings(deadline=None, max_examples=100, derandomize=True)
def test_divprune(n, d, seed, share):
    x, k = random_rows(n, d, seed), max(1, int(n * share))
    assert DivPrune(k).select(VisualTokens(x)).tolist() == released_divprune(x.double().tolist(), k)


def test_divprune_chooses_no_token_twice():
    """The released rule does, where only copies of chosen tokens are left."""
    x = random_rows(3, 8, 0).repeat(2, 1)
    assert len(set(released_divprune(x.double().tolist(), 5))) < 5
    assert DivPrune(5).select(VisualTokens(x)).tolist() == [0, 1, 2, 3, 4]


def released_cdpruner(
    rows: list[list[float]], aligned: list[list[float]], texts: list[list[float]], k: int
) -> list[int]:
    """Minus the mean cosine; maximum 1 plus a hair; no floor."""
    n = len(rows)
    away = [-sum(cosine(row, text) for text in texts) / len(texts) for row in aligned]
    low, high = min(away), max(away)
    r = [(value - low + 1e-6) / (high - low) for value in away]
    kernel = [[r[i] * cosine(rows[i], rows[j]) * r[j] for j in range(n)] for i in range(n)]
    left = [kernel[i][i] for i in range(n)]
    chosen: list[int] = []
    factors: list[list[float]] = []
    for _ in range(k):
        best = left.index(max(left))
        root = math.sqrt(left[best])
        factor = [(kernel[best][i] - sum(f[best] * f[i] for f in factors)) / root for i in range(n)]
        factors.append(factor)
        left = [value - f * f for value, f in zip(left, factor, strict=True)]
        chosen.append(best)
        for c in chosen:
            left[c] = -math.inf
    return sorted(chosen)


@given(**SIZES, texts=st.integers(1, 4))
@settings(deadline=None, max_examples=100, derandomize=True)
def test_cdpruner_in_clips_space(n, d, seed, share, texts):
    x, aligned = random_rows(n, d, seed), random_rows(n, 12, seed + 1)
    text = 3 * random_rows(texts, 12, seed + 2)
    k = max(1, min(int(n * share), d - 1))  # beyond the rank of the features rounding would choose
    tokens = VisualTokens(x, text=text, aligned=aligned)
    rows = (part.double().tolist() for part in (x, aligned, text))
    assert CDPruner(k).select(tokens).tolist() == released_cdpruner(*rows, k)


@pytest.mark.parametrize("k", [3, 5, 9])
def test_cdpruner_beyond_the_rank_and_without_relevance(k):
    """Equal relevance weighs nothing, and beyond the rank the lowest indices follow."""
    x = torch.eye(3).repeat(4, 1)
    tokens = VisualTokens(x, text=torch.ones(1, 3))
    assert CDPruner(k).weights(tokens).tolist() == [1] * 12
    assert CDPruner(k).select(tokens).tolist() == list(range(k))
