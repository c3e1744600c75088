"""GraphCover, TextCover and CoverBudget on pictures that nobody tuned them on.

What is right is said so that it can fail. Distances are computed here once more, in float64 and
from differences of vectors instead of cosines. How good a choice is shows in a certificate: if kept
tokens and the worst covered one are pairwise at least R apart, R being how far the worst covered
one is from a kept one, no choice of as many tokens gets below R / 2, since two of those k + 1 share
a centre.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gprune import CoverBudget, GraphCover, TextCover, VisualTokens, graph, kept_count

GRIDS = [(1, 1), (1, 40), (40, 1), (2, 33), (7, 40), (64, 3), (16, 16), (5, 48)]
SQUARE = (16, 16)


def random_tokens(grid: tuple[int, int], seed: int = 0, d: int = 24) -> VisualTokens:
    """Features like a picture's: some regions alike within, and single tokens that stand apart."""
    rng = np.random.default_rng(seed)
    rows, columns = grid
    regions = rng.standard_normal((6, d))
    row, column = np.divmod(np.arange(rows * columns), columns)
    region = 2 * (3 * row // rows) + 2 * column // columns
    x = regions[region] + 0.2 * rng.standard_normal((rows * columns, d))
    apart = rng.random(rows * columns) < 0.1
    x[apart] = rng.standard_normal((int(apart.sum()), d))
    text = torch.from_numpy(rng.standard_normal((3, d)))
    return VisualTokens(torch.from_numpy(x), grid=grid, text=text)


def like(tokens: VisualTokens, features: torch.Tensor) -> VisualTokens:
    """Tokens at the same places with other features."""
    return VisualTokens(features, grid=tokens.grid, text=tokens.text)


def plane(grid: tuple[int, int] | None) -> np.ndarray:
    """Distances of the cells of a raster, in cells."""
    rows, columns = grid
    places = np.stack(np.divmod(np.arange(rows * columns), columns), 1).astype(float)
    return np.sqrt(np.square(places[:, None] - places[None]).sum(-1))


def radius(distance: np.ndarray, kept: torch.Tensor) -> float:
    """How far the worst covered token is from a kept one."""
    return float(distance[:, kept.numpy()].min(1).max())


def within_twice_the_best(distance: np.ndarray, kept: torch.Tensor, slack: float = 0.0) -> bool:
    """Whether the certificate above holds."""
    worst = int(distance[:, kept.numpy()].min(1).argmax())
    points = [*kept.tolist(), worst]
    apart = distance[np.ix_(points, points)]
    pairs = apart[~np.eye(len(points), dtype=bool)]
    return bool(pairs.min() >= radius(distance, kept) - slack)


BLANKS = {
    "equal": lambda base, noise: base.expand_as(noise),
    "zero": lambda base, noise: torch.zeros_like(noise),
    "float32 rounding": lambda base, noise: base * (1 + 1e-7 * noise),
    "bf16 rounding": lambda base, noise: (base * (1 + 1e-3 * noise)).bfloat16(),
    # Just above one, where steps are largest, and half a step from two numbers in every channel.
    "bf16 at its worst": lambda base, noise: (1 + 2.0**-8 + 1e-6 * noise).bfloat16(),
}


@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("method", [GraphCover, TextCover])
def test_on_a_blank_picture_places_decide_alone(blank, grid, method):
    """The same tokens whatever rounding makes of equal features, and spread over the picture."""
    n = grid[0] * grid[1]
    generator = torch.Generator().manual_seed(1)
    base, noise, text = (torch.randn(rows, 64, generator=generator) for rows in (1, n, 2))
    tokens = VisualTokens(BLANKS[blank](base, noise), grid=grid, text=text)
    equal = VisualTokens(torch.ones(n, 64), grid=grid)
    for keep in (0.25, 0.1, 1):
        kept = method(keep).select(tokens)
        assert torch.equal(kept, GraphCover(keep).select(equal))
        assert len(kept) == kept_count(n, keep)
        assert within_twice_the_best(plane(grid), kept, 1e-6)


def test_features_fade_into_nothing_without_a_step():
    """Their part in D², from all of it at 1e-4 down to none where they can differ by rounding."""
    generator = torch.Generator().manual_seed(5)
    base, noise = torch.randn(64, generator=generator), torch.randn(48, 64, generator=generator)
    places = GraphCover(1.0).distance(VisualTokens(torch.ones(48, 64), grid=(6, 8)))
    part, mean = np.zeros(60), np.zeros(60)
    for step, scale in enumerate(np.geomspace(1e-3, 3e-2, 60)):
        x = base * (1 + scale * noise)
        tokens = VisualTokens(x, grid=(6, 8))
        part[step] = (GraphCover(1.0).distance(tokens) - places).mean()
        mean[step] = (1 - torch.cosine_similarity(x[:, None], x[None], dim=-1)).mean()
    assert np.allclose(part[mean < 1.5e-5], 0, atol=1e-6)
    assert np.allclose(part[mean > 1e-4], 1, atol=1e-3)
    steps = np.diff(part)
    assert steps.min() > -1e-3
    assert steps.max() < 0.2


def in_two_ways(method, tokens: VisualTokens, monkeypatch) -> torch.Tensor:
    """What is kept, with and without the whole matrix of distances."""
    whole = method.select(tokens)
    with monkeypatch.context() as patch:
        patch.setattr(graph, "WHOLE", 4)
        assert torch.equal(method.select(tokens), whole)
    return whole


@pytest.mark.parametrize("method", [GraphCover, TextCover])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_tokens_of_zero_norm_are_a_plain_region(method, share, monkeypatch):
    """As tokens would be that all show one thing, which nothing else has in common with them."""
    tokens = random_tokens((12, 14))
    x = tokens.features.float()
    dead = torch.arange(168) < 168 * share
    x[dead] = 0
    marked = torch.cat([x, 3 * dead[:, None].float()], 1)
    text = torch.cat([tokens.text.float(), torch.zeros(3, 1)], 1)
    for keep in (0.3, 0.1):
        kept = in_two_ways(method(keep), like(tokens, x), monkeypatch)
        region = VisualTokens(marked, grid=tokens.grid, text=text)
        assert torch.equal(kept, in_two_ways(method(keep), region, monkeypatch))


@pytest.mark.parametrize("radius_asked", [0.3, 0.7, 1.2])
def test_budgets_do_not_take_zeros_for_detail(radius_asked, monkeypatch):
    budget = CoverBudget(radius_asked)
    blank = [VisualTokens(x, grid=SQUARE) for x in (torch.zeros(256, 8), torch.ones(256, 8))]
    assert len(set(budget(blank))) == 1
    tokens = random_tokens((10, 10))
    x = tokens.features.float()
    x[40:] = 0
    counts = budget([like(tokens, x)])
    region = torch.cat([x, (x == 0).all(1, keepdim=True).float()], 1)
    assert counts == budget([VisualTokens(region, grid=(10, 10))])
    monkeypatch.setattr(graph, "WHOLE", 4)
    assert counts == budget([like(tokens, x)])
