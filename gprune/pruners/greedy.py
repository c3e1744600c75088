"""Greedy selection that reads one row of an n-by-n matrix for each token it chooses."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from gprune.graph import ROW_MULTIPLE, CosineRows
from gprune.graph.norms import cache_chunks


class MatrixRows(Protocol):
    """A matrix [n, n] that is indexed by int64 [r] and gives rows [r, n]; a tensor is one too."""

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


class RowReader:
    """Reads rows of a matrix, and prefetches those that are likely to be read next.

    Computing one row takes as long as computing `gprune.graph.ROW_MULTIPLE` of them: rows are
    computed in whole multiples, so that an entry is the same wherever it is computed. Among 9,000
    noisy copies of 450 directions, one product then serves 25 choices of `farthest_first`.

    Attributes:
        matrix: [n, n], or an object that computes its rows.
        prefetch: whether rows are computed when they are read, so that prefetching saves time.
    """

    def __init__(self, matrix: Tensor | MatrixRows, prefetch: bool) -> None:
        self.matrix = matrix
        self.prefetch = prefetch
        self._prefetched: dict[int, Tensor] = {}

    def row(self, token: Tensor, merit: Tensor) -> Tensor:
        """Returns a row [n] of the matrix.

        Args:
            token: index of the row, int64 [1].
            merit: rows of tokens with high merit are likely to be read next, [n].
        """
        if not self.prefetch or token.device.type != "cpu":
            # Indexing with a scalar tensor would synchronise; with a tensor [1] it does not. An
            # accelerator computes a row in the time that it takes to read the features once, and
            # reading which row is next would stall it.
            return self.matrix[token][0]
        index = int(token)
        if index not in self._prefetched:
            likely = merit.topk(min(ROW_MULTIPLE - 1, len(merit))).indices
            tokens = torch.cat([token, likely])
            self._prefetched = dict(zip(tokens.tolist(), self.matrix[tokens], strict=True))
        return self._prefetched[index]


def farthest_first(
    distance: Tensor | MatrixRows, first: Tensor, k: int, prefetch: bool = False
) -> Tensor:
    """Chooses tokens by greedy max-min: each next one is the farthest from those chosen before.

    In a metric, every token then has a chosen one within twice the radius that the best k centres
    could reach (Gonzalez, 1985), and the smallest distance between chosen tokens is at least half
    of the largest possible one.

    Args:
        distance: of every pair, [n, n], or an object that computes its rows. Any increasing
            function of a metric chooses the same tokens.
        first: index of the first token, int64 [].
        k: how many to choose, 1 to n.
        prefetch: whether rows are computed when they are read, see `RowReader`.

    Returns:
        int64 [k] in the order of choice; ties go to the lowest index.
    """
    rows = RowReader(distance, prefetch)
    chosen = [first.reshape(1)]
    nearest = distance[chosen[0]][0]  # [n], distance to the nearest chosen token
    nearest.index_fill_(0, chosen[0], -1)  # below every distance, so it is never chosen again
    for _ in range(k - 1):
        following = nearest.argmax(keepdim=True)  # the first of ties, on every device
        chosen.append(following)
        nearest = torch.minimum(nearest, rows.row(following, nearest))
        nearest.index_fill_(0, following, -1)
    return torch.cat(chosen)


class CosineDistance:
    """Rows of 1 − cosine similarity, float32 [r, n] (see `gprune.graph.CosineRows`)."""

    def __init__(self, features: Tensor) -> None:
        self.similarity = CosineRows(features)

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        return 1 - self.similarity[rows]


class EuclideanDistance:
    """Rows of the L2 distances of tokens, computed from their differences: float64 [r, n].

    Attributes:
        features: the tokens, [n, d].
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features
        self._chunks = cache_chunks(features)

    def __getitem__(self, rows: Tensor) -> Tensor:
        distance = torch.empty(
            len(rows), len(self.features), dtype=torch.float64, device=self.features.device
        )
        height = len(self.features[self._chunks[0]])
        buffer = distance.new_empty(height, self.features.shape[1])
        for row, own in zip(distance, self.features[rows].double(), strict=True):
            for chunk in self._chunks:
                difference = buffer.copy_(self.features[chunk]).sub_(own)
                row[chunk] = torch.linalg.vector_norm(difference, dim=1)
        return distance
