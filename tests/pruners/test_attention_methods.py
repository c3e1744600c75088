"""D²Pruner against a naive implementation, and tokens that other tests share."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import D2Pruner, VisualTokens
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
        (lambda: D2Pruner(0.5, pivots=2.0), "pivots=2.0"),
        (lambda: D2Pruner(0.5, threshold=2.0), "threshold=2.0"),
    ],
)
def test_parameters_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
