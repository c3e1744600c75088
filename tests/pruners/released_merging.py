"""The released forms of merging methods, written out with lists, in float64.

Each function returns the kept tokens, ascending, their new rows in that order, and the additional
row or None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Rows = tuple[list[int], list[np.ndarray], np.ndarray | None]


def ranked(values: Sequence[float]) -> list[int]:
    """Indices from the highest value, ties from the lowest index."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    norms = math.sqrt(float(one @ one)) * math.sqrt(float(other @ other))
    return float(one @ other) / norms if norms else 0.0


def outliers(values: Sequence[float]) -> int:
    """How many values lie above Q3 + 1.5 (Q3 - Q1), at least 1."""
    ordered = sorted(values)

    def quartile(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    first, third = quartile(0.25), quartile(0.75)
    return max(1, sum(value > third + 1.5 * (third - first) for value in values))


def prumerge(
    x: np.ndarray, attention: Sequence[float], keys: np.ndarray, kept: list[int], neighbours: int
) -> Rows:
    """Own row, plus the nearest others weighted by attention; and the sum of what is not kept."""
    n, rows = len(x), []
    for i in kept:
        others = [j for j in range(n) if j != i]
        near = sorted(others, key=lambda j: (-cosine(keys[i], keys[j]), j))[:neighbours]
        row = x[i].copy()
        for j in near:
            row += attention[j] * x[j]
        rows.append(row)
    rest = [j for j in range(n) if j not in kept]
    extra = sum((attention[j] * x[j] for j in rest), np.zeros(x.shape[1])) if rest else None
    return kept, rows, extra


def visionzip(
    x: np.ndarray, attention: Sequence[float], keys: np.ndarray, k: int, contextual: int
) -> Rows:
    """Keys by head, [n, heads, c]; their mean decides where a token goes."""
    n, mean = len(x), keys.mean(1)
    dominant = ranked(attention)[: k - contextual]
    rest = [i for i in range(n) if i not in dominant]
    step = max(1, len(rest) // max(contextual, 1))
    targets = [rest[place * step] for place in range(contextual)]
    came: dict[int, list[int]] = {i: [] for i in [*dominant, *targets]}
    for i in rest:
        if targets and i not in targets:
            came[max(targets, key=lambda t: (cosine(mean[i], mean[t]), -t))].append(i)
    kept = sorted(came)
    rows = [x[i] + (np.mean([x[j] for j in came[i]], axis=0) if came[i] else 0) for i in kept]
    return kept, rows, None


def trim(x: np.ndarray, score: Sequence[float], count: int) -> Rows:
    """The highest scores, and the mean of all others."""
    kept = sorted(ranked(score)[:count])
    rest = [x[i] for i in range(len(x)) if i not in kept]
    return kept, [x[i] for i in kept], np.mean(rest, axis=0) if rest else None


def evenly_added(best: list[int], n: int) -> list[int]:
    """What PruMerge+ keeps beside its outliers: 0, s, 2s... below n - 1."""
    spacing = max(int(1 / (len(best) / n)) // 3, 1)
    return [i for i in range(0, n - 1, spacing) if i not in best]
