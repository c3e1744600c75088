"""Cosine similarity of every pair of tokens: the n-by-n matrix, its rows one by one, its mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gprune.graph.products import (
    BLOCK_ROWS,
    ROW_MULTIPLE,
    align,
    pad_rows,
    product,
    round_up,
    row_blocks,
    to_cosines,
)
from gprune.graph.rows import UnitRows

# Most tokens whose similarity matrix is held in memory (256 MB); beyond, rows are computed when
# they are read.
MAX_DENSE_TOKENS = 8192


def dense_fits(count: int) -> bool:
    """Returns whether the similarity matrix of ``count`` tokens may be held in memory."""
    return count <= MAX_DENSE_TOKENS


def cosine_similarity(features: Tensor) -> Tensor:
    """Returns the cosine similarity of every pair of tokens.

    Args:
        features: [..., n, d], floating point.

    Returns:
        float32 [..., n, n], symmetric, within [-1, 1], exactly 1 on the diagonal; a token of zero
        norm has similarity 0 with every token, itself included.
    """
    return similarity_matrix(UnitRows(features.reshape(-1, features.shape[-1])), features.shape)


def similarity_matrix(unit: UnitRows, shape: Sequence[int]) -> Tensor:
    """Returns `cosine_similarity` of tokens whose norms are already known.

    Args:
        unit: tokens of all groups of a batch.
        shape: of the batch's features, [..., n, d].

    Returns:
        float32 [..., n, n].
    """
    n = shape[-2]
    size = round_up(n)
    similarity = unit.features.new_empty(*shape[:-2], size, size, dtype=torch.float32)
    # One product per group: a batched kernel may sum in another order than a single one does.
    for start, out in enumerate(similarity.view(-1, size, size)):
        group = slice(n * start, n * (start + 1))
        rows = align(pad_rows(unit.scaled[group]))
        _write_cosines(rows, F.pad(unit.scaled_norms[group], (0, size - n), value=1.0), out)
    similarity = similarity[..., :n, :n]
    has_norm = (unit.norms > 0).view(*shape[:-1])
    similarity.diagonal(dim1=-2, dim2=-1).copy_(has_norm)
    return similarity


def _write_cosines(rows: Tensor, norms: Tensor, out: Tensor) -> None:
    """Writes the cosines of rows [n, d] to ``out`` [n, n]; computes one triangle by blocks."""
    for start in range(0, len(rows), BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, len(rows))
        block = product(rows[start:stop], rows[:stop].mT, out[start:stop, :stop])
        to_cosines(block, norms[start:stop], norms[:stop])
        out[:start, start:stop] = out[start:stop, :start].mT


def mean_similarity(unit: UnitRows) -> Tensor:
    """Returns the mean of `cosine_similarity` over all pairs of tokens, float64 [].

    It is the squared length of the mean unit row, so it costs O(nd) and no pair is computed.
    """
    total = unit.norms.new_zeros(unit.features.shape[1])
    for rows in row_blocks(len(unit)):
        total += unit[rows].double().sum(0)
    return (total / len(unit)).square().sum()


class CosineRows:
    """Rows of `cosine_similarity`, for more tokens than `dense_fits` allows.

    Indexed by a token [] or tokens [r], it gives float32 [n] or [r, n]: the matrix's own entries.

    Attributes:
        unit: the tokens at unit norm.
    """

    def __init__(self, features: Tensor) -> None:
        self.unit = unit = UnitRows(features)
        self._count = len(unit)
        self._diagonal = (unit.norms > 0).float()
        self._norms = unit.scaled_norms
        self._rows = pad_rows(unit.scaled)

    def __getitem__(self, rows: Tensor) -> Tensor:
        index = rows.reshape(-1)
        left = self._rows[F.pad(index, (0, -len(index) % ROW_MULTIPLE))]
        similarity = product(left, self._rows.mT)[: len(index), : self._count]
        to_cosines(similarity, self._norms[index], self._norms)
        own = index.unsqueeze(1)
        similarity.scatter_(1, own, self._diagonal[own])
        return similarity.view(*rows.shape, self._count)

    def diagonal(self) -> Tensor:
        """Returns each token's similarity with itself, float32 [n]: 1, or 0 for zero norm."""
        return self._diagonal

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the whole matrix in blocks: row indices, int64 [r], and those rows, [r, n]."""
        every = torch.arange(self._count, device=self._norms.device)
        for rows in torch.split(every, BLOCK_ROWS):
            yield rows, self[rows]
