"""GraphCover, TextCover and CoverBudget on pictures that nobody tuned them on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gprune import CoverBudget, GraphCover, TextCover, VisualTokens, graph

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
