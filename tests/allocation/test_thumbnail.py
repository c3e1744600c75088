"""Thumbnail-guided budgets, against sums over a fine common raster and exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import exp

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import GPrune, ThumbnailGuided, ToMe, VisualTokens, kept_count, make
from gprune.budget import PartBudgets, apportion, budgets
from gprune.pruners import group_methods


def group(kind: str, rows: int, columns: int, seed: int = 0, **fields) -> VisualTokens:
    values = np.random.default_rng(seed).standard_normal((rows * columns, 6))
    return VisualTokens(torch.from_numpy(values).float(), (rows, columns), kind=kind, **fields)


def quotas(total: int, weights: list[int], sizes: list[int]) -> list[Fraction]:
    """Returns each part's exact quota, ``min(size, level * weight)``, as if filled with water."""
    level = Fraction(0)
    for part in sorted(range(len(sizes)), key=lambda i: Fraction(sizes[i], weights[i])):
        level = Fraction(sizes[part], weights[part])
        if sum(min(Fraction(s), level * w) for s, w in zip(sizes, weights, strict=True)) >= total:
            break
    filled = [s for s, w in zip(sizes, weights, strict=True) if Fraction(s, w) < level]
    rest = sum(w for s, w in zip(sizes, weights, strict=True) if Fraction(s, w) >= level)
    level = Fraction(total - sum(filled), rest)
    return [min(Fraction(s), level * w) for s, w in zip(sizes, weights, strict=True)]


@given(st.data())
def test_apportion_is_proportional_whole_and_exact(data):
    n = data.draw(st.integers(1, 7))
    weights = data.draw(st.lists(st.integers(1, 2_000_000), min_size=n, max_size=n))
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=n, max_size=n))
    total = data.draw(st.integers(0, sum(sizes)))
    counts = apportion(total, weights, sizes)
    assert sum(counts) == total
    exact = quotas(total, weights, sizes)
    assert all(
        0 <= count <= size and quota - 1 < count < quota + 1
        for count, size, quota in zip(counts, sizes, exact, strict=True)
    )
    down = [int(quota) for quota in exact]
    order = sorted(range(n), key=lambda i: (-(exact[i] - down[i]), i))
    for part in order[: total - sum(down)]:
        down[part] += 1
    assert counts == down


@pytest.mark.parametrize(
    ("total", "weights", "sizes"), [(5, [1, 1], [2, 2]), (-1, [1], [2]), (1, [0, 1], [1, 1])]
)
def test_what_cannot_be_apportioned(total, weights, sizes):
    with pytest.raises(ValueError, match="cannot be divided by weights"):
        apportion(total, weights, sizes)


@pytest.mark.parametrize(("weights", "sizes"), [([1], [2, 2]), ([1, 1], [2])])
def test_every_size_needs_a_weight(weights, sizes):
    with pytest.raises(ValueError, match="zip"):
        apportion(2, weights, sizes)


def expected_counts(signal: np.ndarray, canvas: tuple[int, int], keep, temperature) -> list[int]:
    """Returns counts by the paper's ratios, for tiles that divide a canvas evenly."""
    down, across = (-(-cells // side) for cells, side in zip(canvas, signal.shape, strict=True))
    # Each token of the thumbnail as down x across points, so that no point crosses tiles.
    fine = np.kron(signal, np.ones((down, across))) / (down * across)
    areas = [
        tile.sum() for line in np.split(fine, down, 0) for tile in np.split(line, across, axis=1)
    ]
    shares = [area / sum(areas) for area in areas]
    raised = [exp(share / temperature) for share in shares]
    n = len(shares)
    ratios = [1 + one / sum(raised) - 1 / n for one in raised]
    tile = canvas[0] * canvas[1] // n
    weights = [round(1_000_000 * ratio) for ratio in ratios]
    total = kept_count(canvas[0] * canvas[1], keep)
    exact = quotas(total, weights, [tile] * n)
    down_to = [int(quota) for quota in exact]
    order = sorted(range(n), key=lambda i: (-(exact[i] - down_to[i]), i))
    for part in order[: total - sum(down_to)]:
        down_to[part] += 1
    return down_to


@pytest.mark.parametrize("canvas", [(8, 8), (8, 6), (4, 12), (12, 3), (3, 4), (10, 10)])
@pytest.mark.parametrize("keep", [0.25, 0.9, 1.0, 3])
@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
def test_counts_are_those_of_the_paper(canvas, keep, temperature):
    attention = torch.rand(16, generator=torch.Generator().manual_seed(3))
    thumbnail = group("thumbnail", 4, 4, attention=attention)
    policy = ThumbnailGuided(keep, signal="attention", temperature=temperature)
    given_thumbnail, shares = policy([thumbnail, group("canvas", *canvas, seed=1)])
    assert given_thumbnail == keep
    signal = attention.double().view(4, 4).numpy()
    if canvas == (10, 10):  # three tiles a side: 4, 3 and 3 tokens
        assert [grid for _, grid in shares.parts][::4] == [(4, 4), (3, 3), (3, 3)]
        assert sum(shares.counts) == kept_count(100, keep)
        return
    assert list(shares.counts) == expected_counts(signal, canvas, keep, temperature)


def test_a_token_that_differs_gets_its_tile_more():
    """All tokens of the thumbnail are equal except one, in the second of four tiles."""
    features = torch.ones(16, 4)
    features[3] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    thumbnail = VisualTokens(features, (4, 4), kind="thumbnail")
    (_, shares) = ThumbnailGuided(0.5)([thumbnail, group("canvas", 8, 8)])
    assert sum(shares.counts) == 32
    assert max(shares.counts) == shares.counts[1] > 8
    # Recomputed: 1 - cos(x, u) of either kind of token, with u the mean of the unit rows.
    unit = features.double() / 2
    mean = unit.mean(0)
    far = [1 - float(row @ mean / mean.norm()) for row in unit]
    expected = expected_counts(np.array(far).reshape(4, 4), (8, 8), 0.5, 0.1)
    assert list(shares.counts) == expected


def test_a_thumbnail_without_signal_gives_equal_budgets():
    thumbnail = VisualTokens(torch.ones(16, 4), (4, 4), kind="thumbnail", attention=torch.zeros(16))
    for signal in ("features", "attention"):
        (_, shares) = ThumbnailGuided(0.5, signal)([thumbnail, group("canvas", 8, 8)])
        assert list(shares.counts) == [8, 8, 8, 8]


@given(
    side=st.integers(1, 5),
    rows=st.integers(1, 11),
    columns=st.integers(1, 11),
    parts=st.integers(1, 1_000_000),
    temperature=st.floats(1e-3, 10),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_every_tile_is_within_its_size_and_the_sum_is_the_budget(
    side, rows, columns, parts, temperature, seed
):
    groups = [group("thumbnail", side, side, seed), group("canvas", rows, columns, seed + 1)]
    keep = parts / 1_000_000
    policy = ThumbnailGuided(keep, temperature=temperature)
    plain, shares = policy(groups)
    assert plain == keep
    assert sum(shares.counts) == kept_count(rows * columns, keep)
    seen = torch.cat([tile for tile, _ in shares.parts])
    assert sorted(seen.tolist()) == list(range(rows * columns))
    for (tile, grid), count in zip(shares.parts, shares.counts, strict=True):
        assert 0 <= count <= len(tile) == grid[0] * grid[1]
        assert grid[0] <= side
        assert grid[1] <= side
    assert list(policy(groups)[1].counts) == list(shares.counts)


@pytest.mark.parametrize("name", [name for name in group_methods() if not make(name, 1.0).signals])
@pytest.mark.parametrize("keep", [0.3, 1.0, 2])
def test_any_method_keeps_that_many_of_every_tile(name, keep):
    """It keeps of each tile what it would keep of the tile alone."""
    groups = [group("thumbnail", 4, 4), group("canvas", 8, 7, seed=1)]
    policy = ThumbnailGuided(keep, temperature=0.02)
    found = make(name, keep=policy).reduce_groups(groups)[1]
    kept, members, weights = found.kept, found.members, found.weights
    assert len(kept) == kept_count(56, keep)
    assert kept.tolist() == sorted(set(kept.tolist()))
    shares = policy(groups)[1]
    if keep == 2:
        assert 0 in shares.counts
    for (rows, grid), count in zip(shares.parts, shares.counts, strict=True):
        mine = [row for row in rows.tolist() if row in kept.tolist()]
        assert len(mine) == count
        if not count:
            assert weights is None or not weights[:, rows].any()
            assert members is None or members[rows].tolist() == [-1] * len(rows)
            continue
        alone = VisualTokens(groups[1].features[rows], grid=grid, kind="canvas")
        if name == "graph_cover":  # it reads positions, here those of the canvas
            alone = VisualTokens(
                alone.features, grid, positions=groups[1].coordinates()[rows], kind="canvas"
            )
        own = make(name, keep=count).reduce_groups([alone])[0]
        assert rows[own.kept].tolist() == mine
        assert (own.weights is None) == (weights is None)
        assert (own.members is None) == (members is None)
        if weights is not None:
            in_tile = torch.isin(kept, rows)
            expected = own.weights[torch.argsort(rows[own.kept])]
            assert torch.allclose(weights[in_tile][:, rows], expected)
        elif members is not None:
            assert kept[members[rows]].tolist() == rows[own.kept][own.members].tolist()


def test_protected_tokens_are_kept_on_top():
    protected = torch.zeros(64, dtype=torch.bool)
    protected[[0, 1, 63]] = True
    groups = [group("thumbnail", 4, 4), group("canvas", 8, 8, protected=protected)]
    for pruner in (GPrune(ThumbnailGuided(0.2)), ToMe(ThumbnailGuided(2, temperature=0.01))):
        found = pruner.reduce_groups(groups)[1]
        kept, members = found.kept, found.members
        assert {0, 1, 63} <= set(kept.tolist())
        assert len(kept) == 3 + kept_count(61, pruner.keep.keep)
        if members is not None:
            assert [kept[members[row]] for row in (0, 1, 63)] == [0, 1, 63]
    everything = group("canvas", 8, 8, protected=torch.ones(64, dtype=torch.bool))
    found = GPrune(ThumbnailGuided(0.2)).reduce_groups([groups[0], everything])[1]
    assert found.kept.tolist() == list(range(64))


def test_groups_without_a_canvas_get_the_plain_budget():
    policy = ThumbnailGuided({"thumbnail": 1.0, "frame": 0.5, "canvas": 0.25})
    thumbnail, canvas = group("thumbnail", 4, 4), group("canvas", 8, 8)
    assert budgets(policy, [thumbnail]) == [1.0]
    assert budgets(policy, [group("frame", 4, 4)] * 3) == [0.5] * 3
    whole, shares = budgets(policy, [thumbnail, canvas])
    assert whole == 1.0
    assert isinstance(shares, PartBudgets)
    assert sum(shares.counts) == 16


@pytest.mark.parametrize("kinds", [["image"], ["tile"], ["canvas"], ["canvas", "thumbnail"]])
def test_other_groups_are_refused(kinds):
    with pytest.raises(ValueError, match=f"got groups of kind {kinds[0]}"):
        GPrune(ThumbnailGuided(0.25)).reduce_groups([group(kind, 4, 4) for kind in kinds])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"keep": lambda groups: [1]}, TypeError, "is a function"),
        ({"keep": 1.5}, ValueError, "must lie in"),
        ({"keep": 0.5, "signal": "cls"}, ValueError, "signal='cls' must be one of"),
        ({"keep": 0.5, "temperature": 0.0}, ValueError, "temperature=0.0"),
        ({"keep": 0.5, "temperature": float("nan")}, ValueError, "temperature=nan"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ThumbnailGuided(**arguments)


def test_a_missing_signal_is_named():
    canvas = group("canvas", 8, 8)
    policy = ThumbnailGuided(0.5, signal="attention")
    with pytest.raises(ValueError, match="pass signal='features'"):
        policy([group("thumbnail", 4, 4), canvas])
    with pytest.raises(ValueError, match="must not be negative"):
        policy([group("thumbnail", 4, 4, attention=-torch.ones(16)), canvas])
    flat = VisualTokens(torch.ones(16, 4), kind="thumbnail")
    with pytest.raises(ValueError, match="grid is missing"):
        policy([flat, canvas])


@pytest.mark.parametrize(("parts", "counts"), [(2, [1]), (1, [-1]), (1, [0]), (0, [])])
def test_part_budgets_that_do_not_fit(parts, counts):
    with pytest.raises(ValueError, match="must be one number >= 0"):
        PartBudgets([(torch.arange(2), None)] * parts, counts)
