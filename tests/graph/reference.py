"""A second implementation of G-Prune, written from its description: float64 and O(n³)."""

from __future__ import annotations

import numpy as np


def scores(
    features: np.ndarray,
    threshold: float,
    temperature: float,
    steps: int,
    degree: type[np.floating] = np.float64,
) -> np.ndarray:
    """Returns propagated information over degree, [n]; features [n, d] of non-zero norm.

    The degree counts the weights that are above 0 in the dtype ``degree``.
    """
    x = features.astype(np.float64)
    norms = np.sqrt((x**2).sum(1))
    unit = x / norms[:, None]
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, 1.0)
    edges = similarity >= threshold
    logits = np.where(edges, similarity / temperature, -np.inf)
    logits -= logits.max(1, keepdims=True)
    transition = np.exp(logits)
    transition /= transition.sum(1, keepdims=True)
    information = norms @ np.linalg.matrix_power(transition, steps)
    counted = edges if degree is np.float64 else transition.astype(degree) > 0
    return information / counted.sum(1)


def margin(features: np.ndarray, threshold: float) -> float:
    """Returns the least distance of a pair's cosine from the threshold; 1 without pairs."""
    x = features.astype(np.float64)
    unit = x / np.sqrt((x**2).sum(1))[:, None]
    pairs = (unit @ unit.T)[~np.eye(len(x), dtype=bool)]
    return float(np.abs(pairs - threshold).min()) if pairs.size else 1.0


def top(values: np.ndarray, k: int) -> list[int]:
    """Returns the indices of the k highest values, ascending.

    Values that are equal to nine digits tie; the lowest index wins.
    """
    rounded = np.array([float(f"{value:.9g}") for value in values])
    return sorted(np.argsort(-rounded, kind="stable")[:k].tolist())


def gap_at(values: np.ndarray, k: int) -> float:
    """Returns the relative gap between the last kept value and the first dropped one.

    It is 1 if nothing is dropped.
    """
    order = np.sort(values)[::-1]
    return 1.0 if k >= len(order) else float((order[k - 1] - order[k]) / order[k - 1])
