"""DART and VLM-Pruner from their definitions, token by token in float64, and tokens to try them."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from gprune.pruners.decoder import DecoderTokens

Rows = NDArray[np.float64]


def decoder_tokens(
    n: int, m: int, seed: int, d: int = 12, rasters: list[tuple[int, int]] | None = None
) -> DecoderTokens:
    """Returns n random tokens and m of text with every field that the two methods read.

    Args:
        n: number of tokens; of ``rasters``, their cells.
        m: tokens of text.
        seed: of the values.
        d: width of the hidden states.
        rasters: rows and columns of each group; None for a group without a raster.
    """
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(random.standard_normal(shape)).float()

    places, sizes, groups = [], [], []
    for number, (rows, columns) in enumerate(rasters or []):
        places += [(row, column) for row in range(rows) for column in range(columns)]
        sizes += [(rows, columns)] * (rows * columns)
        groups += [number] * (rows * columns)
    if rasters is None:
        places, sizes, groups = [(-1, -1)] * n, [(-1, -1)] * n, [0] * n
    return DecoderTokens(
        normal(n, d),
        None,
        n,
        keys=normal(n, 8),
        text_keys=normal(m, 8),
        normed=normal(n, d),
        normed_text=normal(m, d),
        coordinates=torch.tensor(places),
        rasters=torch.tensor(sizes),
        groups=torch.tensor(groups),
        columns=torch.arange(n) + int(random.integers(0, 90)),
    )


def rows_of(values: torch.Tensor | None) -> Rows:
    assert values is not None
    return values.double().numpy()


def cosine(x: Rows, y: Rows) -> float:
    lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / lengths if lengths else 0.0


def largest(norms: list[float], count: int) -> list[int]:
    """Returns the indices of the largest, in descending order, ties to the lowest index."""
    return sorted(range(len(norms)), key=lambda i: (-norms[i], i))[:count]


def dart(
    tokens: DecoderTokens,
    k: int,
    pivots: int = 4,
    text_pivots: int = 4,
    overspend: bool = False,
    turns: list[int] | None = None,
) -> list[int]:
    """Returns what DART keeps.

    Args:
        tokens: the tokens.
        k: the budget.
        pivots: number of visual pivots.
        text_pivots: number of text pivots.
        overspend: whether each pivot takes a share of all of k.
        turns: order of the pivots, the text's after the n tokens; None for the largest norm first.
    """
    keys, text_keys = rows_of(tokens.keys), rows_of(tokens.text_keys)
    hidden = [*rows_of(tokens.normed), *rows_of(tokens.normed_text)]
    n = len(keys)
    norms = [round(float(np.abs(key).sum()), 9) for key in [*keys, *text_keys]]
    visual = largest(norms[:n], pivots if overspend else min(pivots, k))
    text = [n + i for i in largest(norms[n:], text_pivots)]
    if turns is None:
        turns = sorted([*visual, *text], key=lambda i: (-norms[i], i))
    kept = set(visual)
    budget = k if overspend else k - len(visual)
    for turn, pivot in enumerate(turns):
        share = budget // len(turns)
        if not overspend and turn < budget % len(turns):
            share += 1
        rest = sorted(set(range(n)) - kept, key=lambda i: (cosine(hidden[pivot], hidden[i]), i))
        kept |= set(rest[:share])
    return sorted(kept)


class VLMPrunerReference:
    """VLM-Pruner, which recomputes the redundancy of each token in each step."""

    def __init__(self, tokens: DecoderTokens, buffering: float = 0.5, channels: int = 256) -> None:
        """Computes the similarity and the distance of every pair."""
        self.tokens, self.buffering = tokens, buffering
        self.n = n = len(tokens)
        hidden = rows_of(tokens.hidden)
        variances = [float(np.var(channel, ddof=1)) if n > 1 else 0.0 for channel in hidden.T]
        own = sorted(largest(variances, channels))
        self.similarity = [[cosine(a[own], b[own]) for b in hidden] for a in hidden]
        self.distance = [[self.apart(i, j) for j in range(n)] for i in range(n)]

    def apart(self, i: int, j: int) -> float:
        """Returns the distance of two tokens as a share of the diagonal."""
        tokens = self.tokens
        assert tokens.groups is not None
        assert tokens.coordinates is not None
        assert tokens.rasters is not None
        if int(tokens.groups[i]) != int(tokens.groups[j]):
            return 1.0
        height, width = tokens.rasters[i].tolist()
        if height < 0:
            return 0.0
        down, across = (tokens.coordinates[i] - tokens.coordinates[j]).tolist()
        return math.hypot(down, across) / math.hypot(height, width)

    def find_pivots(self, count: int) -> list[int]:
        keys = rows_of(self.tokens.keys)
        chosen = largest([float(np.abs(key).sum()) for key in keys], 1)
        while len(chosen) < count:
            far = [
                -1.0
                if i in chosen
                else min(float(np.linalg.norm(keys[i] - keys[j])) for j in chosen)
                for i in range(self.n)
            ]
            chosen += largest(far, 1)
        return chosen

    def redundancy(self, i: int, chosen: list[int]) -> float:
        near = min(self.distance[i][j] for j in chosen)
        return max(self.similarity[i][j] for j in chosen) * (1 + self.buffering * near)

    def kept(
        self, k: int, pivots: int = 4, threshold: float = 0.8, batch: int = 16, fill: bool = True
    ) -> list[int]:
        """Returns what VLM-Pruner keeps."""
        chosen = self.find_pivots(min(pivots, k))
        while len(chosen) < k:
            before = len(chosen)
            rest = [i for i in range(self.n) if i not in chosen]
            rest.sort(key=lambda i: (self.redundancy(i, chosen), i))
            for start in range(0, len(rest), batch):
                own = {i: self.redundancy(i, chosen) for i in rest[start : start + batch]}
                joining = [i for i in own if own[i] < threshold]
                joining.sort(key=lambda i: (own[i], i))
                chosen = chosen + joining[: k - len(chosen)]
                if len(chosen) in (before, k):
                    break
            if len(chosen) == before and not fill:
                break
            threshold += 0.1
        return sorted(chosen)

    def merged(self, kept: list[int]) -> Rows:
        """Returns the hidden states of the kept tokens after merging."""
        hidden = rows_of(self.tokens.hidden)
        came: dict[int, list[int]] = {j: [] for j in kept}
        for i in set(range(self.n)) - set(kept):
            came[max(kept, key=lambda j: (self.similarity[i][j], -j))].append(i)
        rows = []
        for j in kept:
            total = sum(self.similarity[i][j] for i in came[j])
            row = hidden[j]
            if total > 0:
                others = sum(self.similarity[i][j] * hidden[i] for i in came[j])
                row = 0.3 * row + 0.7 * others / max(total, 1e-8)
            rows.append(row)
        return np.array(rows)
