"""Budgets by the covering radius: against trying every count, and their average."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import CoverBudget, GPrune, GraphCover, VisualTokens, kept_count


def plain(seed, side=8):
    """Returns two halves with nearly one feature each."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(2, 16, generator=generator)
    half = (torch.arange(side * side) % side >= side // 2).long()
    noise = torch.randn(side * side, 16, generator=generator)
    return VisualTokens(centres[half] + 0.05 * noise, grid=(side, side))


def busy(seed, side=8):
    generator = torch.Generator().manual_seed(seed)
    return VisualTokens(torch.randn(side * side, 16, generator=generator), grid=(side, side))


def radius_left(tokens, k):
    """Returns the covering radius of GraphCover's own choice, computed pair by pair."""
    method = GraphCover(k)
    distance = method.distance(tokens)
    kept = method.select(tokens).tolist()
    worst = 0.0
    for token in range(len(tokens)):
        if token not in kept:
            worst = max(worst, min(float(distance[token, other]) for other in kept))
    return max(0.0, worst) ** 0.5


@pytest.mark.parametrize("radius", [0.4, 0.8, 1.2])
@pytest.mark.parametrize("make", [plain, busy])
def test_the_smallest_count_that_covers(make, radius):
    tokens = make(3, side=5)
    [count] = CoverBudget(radius)([tokens])
    assert count == 25 or radius_left(tokens, count) <= radius + 1e-6
    assert count == 1 or radius_left(tokens, count - 1) > radius


def test_complex_images_keep_more():
    images = [plain(seed) for seed in range(4)] + [busy(seed) for seed in range(4)]
    budget = CoverBudget.calibrated(0.3, images)
    counts = budget(images)
    assert max(counts[:4]) < min(counts[4:])
    assert min(counts) >= kept_count(64, 0.15)
    assert max(counts) <= kept_count(64, 0.6)


@settings(max_examples=40, deadline=None)
@given(
    average=st.floats(0.05, 0.9),
    seeds=st.lists(st.integers(0, 50), min_size=1, max_size=6),
    wide=st.booleans(),
)
def test_the_average_is_met_and_not_exceeded(average, seeds, wide):
    images = [(plain if seed % 2 else busy)(seed, 6) for seed in seeds]
    bounds = {"least": 0.02, "most": 1.0} if wide else {}
    budget = CoverBudget.calibrated(average, images, **bounds)
    counts = budget(images)
    wanted = 36 * len(images) * average
    least = len(images) * kept_count(36, budget.least)
    assert least <= sum(counts) <= max(wanted, least)
    # Any smaller radius that changes a count would exceed the average.
    smaller = CoverBudget(max(0.0, budget.radius - 1e-7), budget.least, budget.most)
    more = sum(smaller(images))
    assert more == sum(counts) or more > wanted


@pytest.mark.parametrize("method", [GraphCover, GPrune])
def test_it_works_with_any_method(method):
    tokens = busy(1)
    budget = CoverBudget.calibrated(0.25, [tokens])
    assert len(method(keep=budget).select(tokens)) == budget([tokens])[0]


def test_protected_tokens_do_not_count():
    tokens = busy(2)
    protected = torch.zeros(64, dtype=torch.bool)
    protected[::8] = True
    guarded = VisualTokens(tokens.features, grid=tokens.grid, protected=protected)
    budget = CoverBudget(0.9)
    [count] = budget([guarded])
    assert count == budget([tokens.subset((~protected).nonzero().squeeze(1))])[0]
    kept = GraphCover(keep=budget).select(guarded)
    assert len(kept) == count + 8
    everything = VisualTokens(tokens.features, protected=torch.ones(64, dtype=torch.bool))
    assert len(GraphCover(keep=budget).select(everything)) == 64


def test_blank_and_single():
    blank = VisualTokens(torch.ones(16, 4), grid=(4, 4))
    assert 1 <= CoverBudget(0.5)([blank])[0] <= 16
    assert CoverBudget(0.0)([VisualTokens(torch.ones(1, 4))]) == [1]
    # Without positions equal features are covered by one token.
    assert CoverBudget(0.1)([VisualTokens(torch.ones(16, 4))]) == [1]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"radius": -1}, ValueError, "radius=-1 must be a finite number >= 0"),
        ({"radius": float("nan")}, ValueError, "radius=nan"),
        ({"radius": 1, "least": 2}, TypeError, "least=2 must be a share"),
        ({"radius": 1, "most": 1.5}, ValueError, "must lie in"),
        ({"radius": 1, "least": 0.5, "most": 0.2}, ValueError, "must not exceed most=0.2"),
        ({"radius": 1, "place": -2}, ValueError, "place=-2"),
    ],
)
def test_bad_options(options, error, text):
    with pytest.raises(error, match=text):
        CoverBudget(**options)


def test_bad_calibration():
    with pytest.raises(ValueError, match="groups are empty"):
        CoverBudget.calibrated(0.25, [])
    with pytest.raises(TypeError, match="average=3 must be a share"):
        CoverBudget.calibrated(3, [busy(0)])
    with pytest.raises(ValueError, match="must lie between"):
        CoverBudget.calibrated(0.25, [busy(0)], least=0.3, most=0.5)
