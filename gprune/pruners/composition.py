"""Reductions of groups with protected tokens, and of groups with a budget for each part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gprune.budget import Budget, PartBudgets
from gprune.pruners.reduction import Reduction
from gprune.tokens import VisualTokens

# Reduces a group to a budget: `Pruner.reduce_within`.
Reduce = Callable[[VisualTokens, Budget], Reduction]


def reduce_unprotected(reduce: Reduce, tokens: VisualTokens, budget: Budget) -> Reduction:
    """Reduces the unprotected tokens of a group to a budget; protected ones stay unchanged."""
    assert tokens.protected is not None
    candidates = (~tokens.protected).nonzero().squeeze(1)
    if not len(candidates):
        return Reduction(tokens.protected.nonzero().squeeze(1))
    found = reduce(tokens.subset(candidates), budget)
    stays = tokens.protected.clone()
    stays[candidates[found.kept]] = True
    kept = stays.nonzero().squeeze(1)
    position = stays.long().cumsum(0) - 1  # of each kept token in `kept`
    chosen = position[candidates[found.kept]]
    appended = spread_columns(found.appended, candidates, len(tokens))
    if found.weights is not None:
        weights = torch.eye(len(tokens), device=kept.device)[kept]
        weights[chosen[:, None], candidates] = found.weights
        return Reduction(kept, weights=weights, appended=appended)
    if found.members is None:
        return Reduction(kept, appended=appended)
    members = position.clone()
    members[candidates] = torch.where(found.members < 0, -1, chosen[found.members])
    return Reduction(kept, members, appended=appended)


def reduce_parts(reduce: Reduce, tokens: VisualTokens, budget: PartBudgets) -> Reduction:
    """Reduces each part of a group to its own budget; tokens are merged within their part."""
    parts = [
        (rows, reduce_part(reduce, tokens, rows, grid, count))
        for (rows, grid), count in zip(budget.parts, budget.counts, strict=True)
    ]
    kept = torch.cat([rows[found.kept] for rows, found in parts]).sort().values
    position = torch.full((len(tokens),), -1, device=kept.device)
    position[kept] = torch.arange(len(kept), device=kept.device)
    spreads = [spread_columns(found.appended, rows, len(tokens)) for rows, found in parts]
    appended_rows = [spread for spread in spreads if spread is not None]
    appended = torch.cat(appended_rows) if appended_rows else None
    if any(found.weights is not None for _, found in parts):
        weights = torch.eye(len(tokens), device=kept.device)[kept]
        for rows, found in parts:
            if found.weights is not None:
                weights[position[rows[found.kept]][:, None], rows] = found.weights
        return Reduction(kept, weights=weights, appended=appended)
    if all(found.members is None for _, found in parts):
        return Reduction(kept, appended=appended)
    members = position.clone()
    for rows, found in parts:
        if found.members is not None:
            target = position[rows[found.kept]][found.members]
            members[rows] = torch.where(found.members < 0, -1, target)
    return Reduction(kept, members, appended=appended)


def spread_columns(weights: Tensor | None, rows: Tensor, n: int) -> Tensor | None:
    """Returns weights over the tokens at ``rows`` as weights over all n tokens, [a, n].

    Args:
        weights: [a, m], or None.
        rows: int64 [m].
        n: number of tokens.
    """
    if weights is None:
        return None
    return weights.new_zeros(len(weights), n).index_copy(1, rows, weights)


def reduce_part(
    reduce: Reduce,
    tokens: VisualTokens,
    rows: Tensor,
    grid: tuple[int, int] | None,
    count: int,
) -> Reduction:
    """Reduces the tokens at ``rows`` [m] to ``count``, not counting protected ones, which stay."""
    part = tokens.subset(rows, grid)
    if tokens.protected is not None:
        part = replace(part, protected=tokens.protected[rows])
    if count:
        return reduce(part, count)
    if part.protected is not None:
        return Reduction(part.protected.nonzero().squeeze(1))
    return Reduction(rows.new_empty(0))
