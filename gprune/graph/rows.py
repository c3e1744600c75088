"""Tokens at unit norm, and cosines of chosen tokens without an n-by-n matrix."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from gprune.graph.norms import divide_by_power_of_two, unit_scaling
from gprune.graph.products import (
    BLOCK_ROWS,
    CACHE_LINE,
    ROW_MULTIPLE,
    align,
    product,
    round_up,
    to_cosines,
)


class UnitRows:
    """Tokens at unit L2 norm, computed on demand.

    Indexed by a slice or by int64 [r], it gives float32 [r, d]; a token of zero norm stays zero.
    Cosines are computed without unit rows: as products of the tokens divided by their norms, so
    that float32 features need no copy.

    Attributes:
        features: the tokens as given, [n, d]; of a batch, the tokens of all groups.
        norms: L2 norm of each token's features, float64 [n].
        scaled_norms: norm of each token in `scaled`, float32 [n]; 1 for tokens of zero norm.
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features
        self.norms, self._exponents, self.scaled_norms = unit_scaling(features)

    @functools.cached_property
    def scaled(self) -> Tensor:
        """The tokens in float32, divided by powers of two where norms are extreme; [n, d]."""
        return align(divide_by_power_of_two(self.features, self._exponents).contiguous())

    @property
    def needs_no_scaling(self) -> bool:
        """Whether all norms are known to lie within `gprune.graph.norms.SAFE_NORMS`."""
        return self._exponents is None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        return self._pick(rows) / self.scaled_norms[rows].unsqueeze(-1)

    def _pick(self, rows: slice | Tensor) -> Tensor:
        """Returns rows of `scaled` without computing all of it."""
        if isinstance(rows, slice):
            picked = self.features[rows]
        else:
            picked = self.features.index_select(0, rows)  # much faster than indexing
        exponents = None if self._exponents is None else self._exponents[rows]
        return divide_by_power_of_two(picked, exponents)

    def similarity(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Returns cosine similarities of tokens ``rows`` with tokens ``columns``, float32 [r, c].

        They are the entries of `gprune.graph.cosine_similarity`, except for those of a token with
        itself, which are rounded.

        On a CPU it is faster if the columns ascend and contain the rows, and both have the same
        padded count: the tokens are then gathered once.

        Args:
            rows: int64 [r].
            columns: int64 [c].
        """
        positions = self._positions(rows, columns)
        if positions is not None:
            right = self.gather(columns)
            similarity = product(right, right.mT)[:, : len(columns)].index_select(0, positions)
        else:
            left = self.gather(rows)
            similarity = left.new_empty(len(left), round_up(len(columns)))
            start = 0
            for right in self.gather_parts(columns):
                product(left, right.mT, similarity[:, start : start + len(right)])
                start += len(right)
            similarity = similarity[: len(rows), : len(columns)]
        return to_cosines(similarity, self.scaled_norms[rows], self.scaled_norms[columns])

    @staticmethod
    def _positions(rows: Tensor, columns: Tensor) -> Tensor | None:
        """Returns the positions of the rows among ascending columns, if all rows are there.

        None too where both do not have the same padded count.
        """
        if rows.device.type != "cpu" or round_up(len(rows)) != round_up(len(columns)):
            return None  # comparing values would synchronise an accelerator with the host
        # `searchsorted` copies a non-contiguous tensor anyway, and warns.
        positions = torch.searchsorted(columns.contiguous(), rows.contiguous())
        positions = positions.clamp_(max=len(columns) - 1)
        return positions if torch.equal(columns[positions], rows) else None

    def gather(self, rows: Tensor) -> Tensor:
        """Returns rows of `scaled`, padded with arbitrary tokens to a multiple of `ROW_MULTIPLE`.

        On a CPU it is a view where the rows follow each other in memory as a copy's would.
        """
        view = self._view(rows)
        return self._pick(F.pad(rows, (0, -len(rows) % ROW_MULTIPLE))) if view is None else view

    def gather_parts(self, columns: Tensor) -> Iterator[Tensor]:
        """Yields what `gather` returns in parts, each a multiple of `ROW_MULTIPLE` high."""
        whole = len(columns) - len(columns) % ROW_MULTIPLE
        view = self._view(columns[:whole])
        if view is not None:
            yield view
            columns = columns[whole:]
        # In parts, so that gathered rows stay in cache.
        for part in torch.split(columns, BLOCK_ROWS):
            if len(part):
                yield self.gather(part)

    def _view(self, rows: Tensor) -> Tensor | None:
        """Returns `gather` as a view of `scaled`; None if a copy is needed."""
        count = round_up(len(rows))
        # At other widths only the first row of all begins at a cache line, as a copy's rows do.
        if rows.device.type != "cpu" or not count or self.features.shape[1] * 4 % CACHE_LINE:
            return None
        first, last = int(rows[0]), int(rows[-1])
        if last - first != len(rows) - 1 or first + count > len(self):
            return None
        if not torch.equal(rows, torch.arange(first, last + 1)):
            return None
        return self.scaled[first : first + count]
