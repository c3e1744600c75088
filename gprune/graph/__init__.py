"""The similarity graph over visual tokens, and information propagating through it.

The mathematics of G-Prune (Jiang et al., AAAI 2025, arXiv 2501.02268), free of model code:

* similarity: cosine of every pair of tokens, self-loops included;
* edges: pairs whose similarity reaches a threshold;
* transition: row softmax of similarity / temperature over the edges of the row;
* propagation: a row vector of information times the transition matrix, t times.

The self-loop is every row's largest logit (similarity 1), so the softmax needs no search for a
maximum: ``exp((S - 1) / T)`` divided by its sum over the row's edges. And a vector times a matrix
power is t vector-matrix products, O(t·n²) instead of O(n³).

Precision and determinism. Features of any dtype are compared in float32. Sums over tokens are taken
in float64, so that the order of summation, which differs between thread counts and devices, is far
below what a float32 score resolves.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Matrix libraries treat the last rows of a product whose height is no multiple of their tile by
# another kernel, with another order of summation. Whole tiles make an entry depend on its two
# tokens alone, not on where they stand or on what else is in the product.
TILE = 32
# Copies have a cosine similarity of 1 but for rounding.
NEARLY_ONE = 1 - 1e-5
# Rows of the similarity matrix computed at a time: a few MB, and a whole number of tiles.
BLOCK = 512
# Most tokens whose whole similarity matrix is held (256 MB); beyond, what is read is computed.
WHOLE = 8192
# Entries of the features that a CPU passes over at a time. Twice the second cache in float64: that
# costs less than more and shorter passes do (a seventh of them at d = 4,096, a third at 1,024).
PASS = 3 * 2**17
# Norms whose products, squares and tokens' channels float32 holds.
ORDINARY = (2.0**-40, 2.0**60)
# Bytes that matrix libraries read at a time: rows that begin elsewhere may be summed otherwise.
LINE = 64


def cosine_similarity(features: Tensor) -> Tensor:
    """Cosine similarity of every pair of tokens.

    Args:
        features: [..., n, d], floating point.

    Returns:
        float32 [..., n, n], symmetric, within [-1, 1], exactly 1 on the diagonal; a token of zero
        norm has similarity 0 with every token, itself included.
    """
    return _similarity(UnitRows(features.reshape(-1, features.shape[-1])), features.shape)


def mean_similarity(unit: UnitRows) -> Tensor:
    """The mean of `cosine_similarity` over all pairs of tokens, float64 [].

    It is the squared length of the mean of the tokens at unit norm, so that no pair is looked at.
    """
    total = unit.norms.new_zeros(unit.features.shape[1])
    for rows in blocks(len(unit)):
        total += unit[rows].double().sum(0)
    return (total / len(unit)).square().sum()


def _similarity(unit: UnitRows, shape: Sequence[int]) -> Tensor:
    """Similarity [..., n, n] of the tokens of every group of a batch of ``shape`` [..., n, d]."""
    n = shape[-2]
    size = padded(n)
    similarity = unit.features.new_empty(*shape[:-2], size, size, dtype=torch.float32)
    # One product a group: a batched kernel may sum in another order than a single one does.
    for start, out in enumerate(similarity.view(-1, size, size)):
        group = slice(n * start, n * (start + 1))
        rows = aligned(whole_tiles(unit.plain[group]))
        _cosines(rows, F.pad(unit.length[group], (0, size - n), value=1.0), out)
    similarity = similarity[..., :n, :n]
    alive = (unit.norms > 0).view(*shape[:-1])
    similarity.diagonal(dim1=-2, dim2=-1).copy_(alive)
    return similarity


def padded(count: int) -> int:
    """``count`` and as many more as make whole tiles."""
    return count + -count % TILE


def blocks(count: int) -> list[slice]:
    """All of ``count`` rows, `BLOCK` at a time."""
    return [slice(start, start + BLOCK) for start in range(0, count, BLOCK)]


def whole_tiles(rows: Tensor) -> Tensor:
    """``rows`` [r, d], and zeros where that is no whole number of tiles."""
    missing = -len(rows) % TILE
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows


def aligned(rows: Tensor) -> Tensor:
    """``rows`` [r, d] where they begin like a tensor of their own, else a copy that does."""
    if rows.device.type == "cpu" and rows.data_ptr() % LINE:
        return rows.clone()
    return rows


class UnitRows:
    """Tokens at unit L2 norm, computed where and when they are needed.

    Indexed by a slice or by int64 [r] it gives float32 [r, d]; a token of zero norm stays zero.
    Cosines do without: they are products of the tokens as they are, divided by their lengths, for
    which features in float32 need not be copied.

    Attributes:
        features: as given, [n, d]; of a batch, the tokens of all groups.
        norms: L2 norm of each token's features, float64 [n].
        length: norm of each token in `plain`, float32 [n]; 1 for zero.
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features
        self.norms, self._exponent, self.length = _lengths(features)

    @functools.cached_property
    def plain(self) -> Tensor:
        """Tokens in float32, as they are or, where norms are extreme, scaled; [n, d]."""
        scaled = _scaled(self.features, self._exponent)
        return aligned(scaled.contiguous())

    @property
    def ordinary(self) -> bool:
        """Whether all norms are known to lie within `ORDINARY`."""
        return self._exponent is None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        return self._picked(rows) / self.length[rows].unsqueeze(-1)

    def _picked(self, rows: slice | Tensor) -> Tensor:
        """The rows of `plain`, which need not have been computed."""
        if isinstance(rows, slice):
            picked = self.features[rows]
        else:
            picked = self.features.index_select(0, rows)  # much faster than indexing
        return _scaled(picked, None if self._exponent is None else self._exponent[rows])

    def similarity(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Cosine similarity of tokens ``rows`` [r] with tokens ``columns`` [c], float32 [r, c].

        The entries of `cosine_similarity`, but for those of a token with itself, which round.
        Faster where the columns ascend and hold the rows, and both fill as many tiles.
        """
        place = self._places(rows, columns)
        if place is not None:
            right = self._tiled(columns)
            similarity = product(right, right.mT)[:, : len(columns)].index_select(0, place)
        else:
            left = self._tiled(rows)
            similarity = left.new_empty(len(left), padded(len(columns)))
            start = 0
            for right in self._parts(columns):
                product(left, right.mT, similarity[:, start : start + len(right)])
                start += len(right)
            similarity = similarity[: len(rows), : len(columns)]
        return _normalised(similarity, self.length[rows], self.length[columns])

    def _parts(self, columns: Tensor) -> Iterator[Tensor]:
        """Rows of `plain` for columns, by parts of whole tiles."""
        whole = len(columns) - len(columns) % TILE
        run = self._run(columns[:whole])
        if run is not None:
            yield run
            columns = columns[whole:]
        # What is gathered stays in cache.
        for part in torch.split(columns, BLOCK):
            if len(part):
                yield self._tiled(part)

    @staticmethod
    def _places(rows: Tensor, columns: Tensor) -> Tensor | None:
        """Where the rows are among as many tiles of ascending columns, if all of them are."""
        if rows.device.type != "cpu" or padded(len(rows)) != padded(len(columns)):
            return None  # an accelerator would stall if it were asked for the values
        # Of a tensor with gaps it would make a copy too, and warn.
        place = torch.searchsorted(columns.contiguous(), rows.contiguous())
        place = place.clamp_(max=len(columns) - 1)
        return place if torch.equal(columns[place], rows) else None

    def _tiled(self, rows: Tensor) -> Tensor:
        """The rows of `plain` and, to make whole tiles, some more of any token."""
        run = self._run(rows)
        return self._picked(F.pad(rows, (0, -len(rows) % TILE))) if run is None else run

    def _run(self, rows: Tensor) -> Tensor | None:
        """`_tiled` without a copy, where tokens follow each other and lie as a copy would."""
        count = padded(len(rows))
        # Of another width only the first row of all begins as the first row of a copy would.
        if rows.device.type != "cpu" or not count or self.features.shape[1] * 4 % LINE:
            return None
        first, last = int(rows[0]), int(rows[-1])
        if last - first != len(rows) - 1 or first + count > len(self):
            return None
        if not torch.equal(rows, torch.arange(first, last + 1)):
            return None
        return self.plain[first : first + count]


class CosineRows:
    """`cosine_similarity` row by row, for more tokens than there is memory for the whole matrix.

    Indexed by a token [] or tokens [r] it gives float32 [n] or [r, n], the entries of the matrix.

    Attributes:
        unit: the tokens at unit norm.
    """

    def __init__(self, features: Tensor) -> None:
        self.unit = unit = UnitRows(features)
        self._count = len(unit)
        self._alive = (unit.norms > 0).float()
        self._length = unit.length
        self._rows = whole_tiles(unit.plain)

    def __getitem__(self, rows: Tensor) -> Tensor:
        index = rows.reshape(-1)
        left = self._rows[F.pad(index, (0, -len(index) % TILE))]
        similarity = product(left, self._rows.mT)[: len(index), : self._count]
        _normalised(similarity, self._length[index], self._length)
        own = index.unsqueeze(1)
        similarity.scatter_(1, own, self._alive[own])
        return similarity.view(*rows.shape, self._count)

    def diagonal(self) -> Tensor:
        """Similarity of every token with itself, float32 [n]: 1, or 0 where its norm is zero."""
        return self._alive

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole matrix, some rows at a time: which, int64 [r], and those rows, [r, n]."""
        every = torch.arange(self._count, device=self._length.device)
        for rows in torch.split(every, BLOCK):
            yield rows, self[rows]


def _scaled(features: Tensor, exponent: Tensor | None) -> Tensor:
    """Features [r, d] times 2 to the power of minus ``exponent`` [r], in float32."""
    if exponent is None:
        return features.float()
    wide = features if features.dtype == torch.float64 else features.float()
    return torch.ldexp(wide, -exponent.unsqueeze(-1)).float()


def _lengths(features: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """What scales tokens [n, d] to unit norm.

    Returns:
        their norms, float64 [n]; the power of two to divide each by first, int32 [n], or None
        where that is not needed; and the norm of what is left, float32 [n], 1 for zero.
    """
    norms = token_norms(features)
    exponent: Tensor | None = None
    left = norms
    on_cpu = features.device.type == "cpu"
    if not on_cpu or not bool(((norms > ORDINARY[0]) & (norms < ORDINARY[1])).all()):
        # Dividing by a power of two is exact: finite features can have a norm that float32 cannot
        # hold. (An accelerator would stall if it were asked whether they have.)
        least = -1000 if features.dtype == torch.float64 else -120
        exponent = torch.frexp(norms).exponent.clamp(min=least)
        left = torch.ldexp(norms, -exponent)
    length = left.float()
    return norms, exponent, length.masked_fill_(length == 0, 1)


def _chunks(features: Tensor) -> list[slice]:
    """Rows of ``features`` [n, d] to pass over at a time: on a CPU few enough to stay in cache."""
    n, d = features.shape
    rows = max(TILE, PASS // max(1, d))
    if features.device.type != "cpu" or n <= rows:
        return [slice(0, n)]
    # The last ends with the last row and is as long as the others: a kernel that is given a single
    # row sums it in another order.
    return [slice(min(start, n - rows), start + rows) for start in range(0, n, rows)]


def _cosines(rows: Tensor, length: Tensor, out: Tensor) -> None:
    """Writes the cosines of rows [n, d] to ``out`` [n, n], computing one triangle by blocks."""
    for start in range(0, len(rows), BLOCK):
        stop = min(start + BLOCK, len(rows))
        block = product(rows[start:stop], rows[:stop].mT, out[start:stop, :stop])
        _normalised(block, length[start:stop], length[:stop])
        out[:start, start:stop] = out[start:stop, :start].mT


def _normalised(products: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Cosines from products [r, c], which they overwrite, and from lengths [r] and [c]."""
    # By the product of both, so that a pair has the same cosine in either order.
    return products.div_(torch.outer(left, right)).clamp_(-1, 1)


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """``left @ right`` in true float32, whatever the caller allows for its own products."""
    if out is None:
        out = left.new_empty(left.shape[0], right.shape[1])  # autocast leaves a product into it be
    backends: Any = torch.backends
    matmul = backends.mkldnn.matmul if left.device.type == "cpu" else backends.cuda.matmul
    allowed = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        return torch.mm(left, right, out=out)
    finally:
        matmul.fp32_precision = allowed


def token_norms(features: Tensor) -> Tensor:
    """L2 norm of every token, float64 [..., n]; ``features`` [..., n, d]."""
    rows = features.reshape(-1, features.shape[-1])
    norms = torch.empty(len(rows), dtype=torch.float64, device=features.device)
    chunks = _chunks(rows)
    # Converted first: reading float32 and summing in float64 has no fast kernel on a CPU. All
    # chunks have the same length, and memory that was written to is faster than new memory.
    wide = norms.new_empty(len(rows[chunks[0]]), rows.shape[1])
    for chunk in chunks:
        norms[chunk] = torch.linalg.vector_norm(wide.copy_(rows[chunk]), dim=-1)
    return norms.view(features.shape[:-1])


@dataclass(frozen=True, eq=False)
class SimilarityGraph:
    """A graph over the tokens of one group, or of a batch of groups of equal (padded) length.

    Attributes:
        weights: ``exp((S - 1) / T)`` on edges and 0 elsewhere, float32 [..., n, n], symmetric.
        degree: number of edges of each token, its self-loop included, int64 [..., n]; 0 for padding
            and for tokens of zero norm.
        norms: L2 norm of each token's features, float64 [..., n].
        first_copy: the first token with exactly the same features, int64 [..., n]. Copies tie by
            right, but what is computed for them can differ by rounding: giving every copy the value
            of the first makes the tie exact on every device.
    """

    weights: Tensor
    degree: Tensor
    norms: Tensor
    first_copy: Tensor

    @classmethod
    def build(
        cls,
        features: Tensor,
        threshold: float,
        temperature: float,
        valid: Tensor | None = None,
    ) -> SimilarityGraph:
        """Builds the graph of arXiv 2501.02268.

        Args:
            features: [n, d], or [b, n, d] for a batch.
            threshold: least cosine similarity of an edge, in [-1, 1].
            temperature: of the row softmax, > 0.
            valid: bool [..., n]; false marks the padding of ragged groups. None: all are valid.

        Raises:
            ValueError: threshold or temperature is out of range.
        """
        check_threshold(threshold)
        check_temperature(temperature)
        unit = UnitRows(features.reshape(-1, features.shape[-1]))
        norms = unit.norms.view(features.shape[:-1])
        alive = norms > 0 if valid is None else (norms > 0) & valid
        weights = _similarity(unit, features.shape)
        degree = torch.empty_like(norms, dtype=torch.long)
        nearest = torch.empty_like(degree)
        # By blocks of rows and in place: passing over the n-by-n matrix is what costs.
        for rows in blocks(features.shape[-2]):
            block = weights[..., rows, :]
            alike = norms[..., rows].unsqueeze(-1) == norms.unsqueeze(-2)
            alike &= alive[..., rows].unsqueeze(-1) == alive.unsqueeze(-2)
            alike &= (block >= NEARLY_ONE) | ~alive.unsqueeze(-2)
            nearest[..., rows] = alike.to(torch.uint8).argmax(-1)  # the first of equal maxima
            edge = block >= threshold
            edge &= alive[..., rows].unsqueeze(-1) & alive.unsqueeze(-2)
            degree[..., rows] = edge.sum(-1)
            block.sub_(1).div_(temperature).exp_().mul_(edge)
        return cls(weights, degree, norms, confirmed_copies(features, nearest))

    def row_sums(self) -> Tensor:
        """Sum of each token's weights, float64 [..., n]; 1 where there is no edge."""
        sums = self.weights.sum(-1, dtype=torch.float64)
        return torch.where(self.degree > 0, sums, 1.0)

    def transition(self) -> Tensor:
        """The row-stochastic matrix A, float32 [..., n, n]; rows without edges are 0."""
        return (self.weights / self.row_sums().unsqueeze(-1)).float()

    def propagate(self, information: Tensor, iterations: int) -> Tensor:
        """``information @ A**iterations`` without forming a matrix power.

        Args:
            information: what each token starts with, [..., n].
            iterations: number of steps t, >= 0.

        Returns:
            float64 [..., n]. Mass is conserved: the sum over tokens with edges stays what it was.

        Raises:
            ValueError: iterations is negative.
        """
        check_iterations(iterations)
        scale = self.row_sums()
        weights = self.weights.double()
        current = information.double() * (self.degree > 0)
        for _ in range(iterations):
            current = ((current / scale).unsqueeze(-2) @ weights).squeeze(-2)  # [..., n]
        return current

    def neighbours(self, token: int, most: int) -> Tensor:
        """At most ``most`` strongest neighbours of a token of one group, strongest first, int64.

        The token itself is no neighbour; ties go to the lowest index.
        """
        weights = self.weights[token].clone()
        weights[token] = 0
        order = torch.sort(weights, descending=True, stable=True).indices[:most]
        return order[weights[order] > 0]


def confirmed_copies(features: Tensor, suspected: Tensor) -> Tensor:
    """``suspected`` [..., n] where it names a token of exactly the same features, else oneself."""
    own = torch.arange(features.shape[-2], device=features.device).expand_as(suspected)
    if features.device.type == "cpu" and torch.equal(own, suspected):
        return own  # the usual case; asking an accelerator would stall it
    same = features.gather(-2, suspected.unsqueeze(-1).expand_as(features)) == features
    return torch.where(same.all(-1), suspected, own)


def check_threshold(threshold: float) -> None:
    """Raises ValueError unless ``threshold`` is a cosine."""
    if not -1 <= threshold <= 1:
        raise ValueError(
            f"threshold={threshold} must be a cosine similarity in [-1, 1]; "
            "the released G-Prune takes 0.5, the paper's best setting 0.7"
        )


def check_temperature(temperature: float) -> None:
    """Raises ValueError unless ``temperature`` is finite and positive."""
    if not 0 < temperature < float("inf"):
        raise ValueError(
            f"temperature={temperature} must be a finite number > 0; G-Prune takes 0.03"
        )


def check_iterations(iterations: int) -> None:
    """Raises ValueError unless ``iterations`` is a whole number that is not negative."""
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations={iterations!r} must be a whole number >= 0; G-Prune takes 5")
