"""The similarity graph in tiles: only where there can be edges, and never n by n at once.

Most pairs of tokens have no edge, and whether a pair has none can often be told in bfloat16, whose
products a CPU with such units computes four times as fast as float32's. So every pair is screened
in bfloat16 first, and only where the screen cannot exclude an edge is the product computed as
`gprune.graph` computes it, in float32. Rounding to bfloat16 moves a cosine by less than a bound
that holds for every input (`screen_error`), so no edge is missed, and an entry's value depends on
its two tokens alone: the graph is the same with and without the screen, bit for bit.

Tokens with the same neighbours are put into one tile, so that a tile is a small dense product. Of a
tile with few edges only these are held, so that memory and propagation go by the edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gprune.graph import (
    NEARLY_ONE,
    TILE,
    UnitRows,
    _chunks,
    check_iterations,
    check_temperature,
    check_threshold,
    confirmed_copies,
    padded,
)

# Rows of a tile: enough for a product to run at full speed, few enough to share neighbours.
ROWS = 2 * TILE
# Rows of a tile that has every token before them for columns.
BAND = 6 * TILE
# Fewest tokens worth screening, and the rows of the lower triangle that are screened at a time.
SCREENED = 128
# Tokens, at least, that tell how much a screen would exclude: at 2,304 tokens 0.1 % of the screen.
SAMPLE = 64
# Rows whose candidates are on hand at once: 4 kB of flags for each token of the graph.
PANEL = 4096
# Where the tiles of a screened panel hold more than this share of its triangle, plain blocks of
# rows are as fast: they need no gathering.
WORTHWHILE = 0.7
# Tiles that hold more than this many weights in all (1.25 GiB) are computed anew at every step.
STORED = 5 * 2**26
# As many (128 MB) are held as they are summed, in float64.
WIDE = 2**24
# Weights that take as much memory as a listed edge does while lists are joined or used.
LISTED = 8
# Edges of a tile are listed where at most this share of its entries is one, as long as at most that
# share of its entries by eights, which are looked at together, has any.
FEW, SOME = 1 / 16, 1 / 2


def screen_error(d: int) -> float:
    """How far the bfloat16 product of two unit vectors in d dimensions can lie from their cosine.

    Rounding a vector moves it by at most 2⁻⁸ of its length, so the product of two by at most twice
    that (and its square); sums of d products in float32 add d·2⁻²⁴, in the screen and in the
    float32 product alike, doubled here to be safe. The rounding of the result to bfloat16 keeps
    the order, so it needs no share when the bound that it is compared with is rounded too.
    """
    return 2**-7 + sum_error(d)


def sum_error(d: int) -> float:
    """`screen_error` of two vectors that are bfloat16 as they are, in units of their lengths.

    Their products are exact in float32; what remains is the summing, and 2⁻¹⁶ for the rounding of
    the lengths, of their product, and of the unit vectors of the float32 product.
    """
    return 2**-16 + d * 2**-22


@dataclass(frozen=True, eq=False)
class Tile:
    """A block of the graph's lower triangle, the diagonal left out.

    Attributes:
        rows: tokens, int64 [r].
        columns: tokens, ascending, int64 [c]; each row's neighbours before it are among them.
        weights: `SimilarityGraph.weights` where column < row and 0 elsewhere, [r, c], in float32 or
            exactly so in float64; None where they are computed anew for every use.
    """

    rows: Tensor
    columns: Tensor
    weights: Tensor | None


@dataclass(frozen=True, eq=False)
class EdgeList:
    """The edges of tiles that have few.

    Attributes:
        rows: tokens, int32 [m].
        columns: a token before each, int32 [m].
        weights: of each edge, exact in float32, float64 [m].
    """

    rows: Tensor
    columns: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)
class TiledGraph:
    """The graph of `SimilarityGraph` for one group, without its n-by-n matrix.

    Attributes:
        unit: the tokens at unit norm.
        threshold, temperature: see `SimilarityGraph.build`.
        tiles: which hold every edge once, but for the self-loops and those that are listed.
        listed: the others.
        degree, first_copy: see `SimilarityGraph`; int64 [n].
        row_sums: sum of each token's weights, its self-loop's 1 included, float64 [n]; 1 where
            there is no edge.
    """

    unit: UnitRows
    threshold: float
    temperature: float
    tiles: Sequence[Tile]
    listed: EdgeList
    degree: Tensor
    row_sums: Tensor
    first_copy: Tensor

    @property
    def norms(self) -> Tensor:
        """L2 norm of each token's features, float64 [n]."""
        return self.unit.norms

    @classmethod
    def build(cls, features: Tensor, threshold: float, temperature: float) -> TiledGraph:
        """Builds the graph.

        Args:
            features: [n, d].
            threshold: least cosine similarity of an edge, in [-1, 1].
            temperature: of the row softmax, > 0.

        Raises:
            ValueError: threshold or temperature is out of range.
        """
        check_threshold(threshold)
        check_temperature(temperature)
        unit = UnitRows(features)
        alive = unit.norms > 0
        degree = alive.long()
        sums = torch.ones_like(unit.norms)
        nearest = torch.arange(len(features), device=features.device)
        nearest = torch.where(alive, nearest, (~alive).to(torch.uint8).argmax())
        tiles: list[Tile] = []
        lists: list[tuple[Tensor, Tensor, Tensor]] = []
        held = 0
        for rows, columns in places(unit, threshold):
            similarity = unit.similarity(rows, columns)
            few = _few(similarity, threshold) if held <= STORED else None
            if few is not None:
                lists.append(_listed(similarity, few, rows, columns))
                held += LISTED * len(lists[-1][0])
                continue
            before = columns < rows.unsqueeze(1)
            _note_copies(similarity, before, rows, columns, unit.norms, nearest)
            edge = _edges(similarity, before, rows, columns, alive, threshold)
            degree.index_add_(0, rows, edge.sum(1))
            degree.index_add_(0, columns, edge.sum(0))
            weights = _weights(similarity, edge, temperature)
            wide = weights.double()
            sums.index_add_(0, rows, wide.sum(1))
            sums.index_add_(0, columns, wide.sum(0))
            held += weights.numel()
            kept = wide if held <= WIDE else weights if held <= STORED else None
            tiles.append(Tile(rows, columns, kept))
        listed = _joined(lists, unit, temperature, nearest)
        for end in (listed.rows, listed.columns):
            degree.index_add_(0, end, degree.new_ones(()).expand(len(end)))
            sums.index_add_(0, end, listed.weights)
        first_copy = confirmed_copies(features, nearest)
        return cls(unit, threshold, temperature, tiles, listed, degree, sums, first_copy)

    def propagate(self, information: Tensor, iterations: int) -> Tensor:
        """See `SimilarityGraph.propagate`.

        Args:
            information: what each token starts with, [n].
            iterations: number of steps t, >= 0.

        Returns:
            float64 [n].

        Raises:
            ValueError: iterations is negative.
        """
        check_iterations(iterations)
        current = information.double() * (self.degree > 0)
        few = self.listed
        for _ in range(iterations):
            share = current / self.row_sums
            current = share.clone()  # along the self-loops, whose weight is 1
            current.index_add_(0, few.columns, share[few.rows] * few.weights)
            current.index_add_(0, few.rows, share[few.columns] * few.weights)
            for tile in self.tiles:
                weights = self._weights_of(tile).double()
                current.index_add_(0, tile.columns, share[tile.rows] @ weights)
                current.index_add_(0, tile.rows, weights @ share[tile.columns])
        return current * (self.degree > 0)

    def _weights_of(self, tile: Tile) -> Tensor:
        if tile.weights is not None:
            return tile.weights
        similarity = self.unit.similarity(tile.rows, tile.columns)
        before = tile.columns < tile.rows.unsqueeze(1)
        alive = self.degree > 0
        edge = _edges(similarity, before, tile.rows, tile.columns, alive, self.threshold)
        return _weights(similarity, edge, self.temperature)


def _few(similarity: Tensor, threshold: float) -> Tensor | None:
    """Where similarities [r, c] reach a threshold, if few do.

    Returns:
        their places among all r·c, ascending, int64 [m]; None where they are many, or where a tile
        as a whole is the better way.
    """
    if similarity.device.type != "cpu" or not 0 < threshold <= NEARLY_ONE:
        # An accelerator would stall if it were asked how many there are. Only between these
        # thresholds no token of zero norm has an edge and all copies do.
        return None
    reached = (similarity >= threshold).view(-1)
    missing = -len(reached) % 8
    reached = F.pad(reached, (0, missing)) if missing else reached
    eights = reached.view(torch.int64)  # of flags, which are a byte each
    some = eights.nonzero()
    if len(some) > SOME * len(eights):
        return None
    places = (8 * some + torch.arange(8)).view(-1)
    places = places[reached[places]]
    return places if len(places) <= FEW * len(reached) else None


def _listed(
    similarity: Tensor, places: Tensor, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Both tokens and the similarity of entries of a tile whose column comes before their row."""
    row, column = places // len(columns), places % len(columns)
    before = columns[column] < rows[row]
    row, column = row[before], column[before]
    return rows[row].int(), columns[column].int(), similarity[row, column]


def _joined(
    lists: Sequence[tuple[Tensor, Tensor, Tensor]],
    unit: UnitRows,
    temperature: float,
    nearest: Tensor,
) -> EdgeList:
    """The edges of several tiles; writes to ``nearest`` as `_note_copies` does."""
    if not lists:
        none = torch.empty(0, dtype=torch.int, device=nearest.device)
        return EdgeList(none, none, none.double())
    rows, columns, similarity = (torch.cat(parts) for parts in zip(*lists, strict=True))
    alike = similarity >= NEARLY_ONE
    alike &= unit.norms[rows] == unit.norms[columns]
    nearest.scatter_reduce_(0, rows[alike].long(), columns[alike].long(), "amin")
    weights = similarity.sub_(1).div_(temperature).exp_()
    return EdgeList(rows, columns, weights.double())


def _edges(
    similarity: Tensor,
    before: Tensor,
    rows: Tensor,
    columns: Tensor,
    alive: Tensor,
    threshold: float,
) -> Tensor:
    """Which pairs of a tile have an edge, bool [r, c]; overwrites ``before``."""
    edge = before.logical_and_(similarity >= threshold)
    if threshold <= 0:  # which a token of zero norm would reach
        edge &= alive[columns] & alive[rows].unsqueeze(1)
    return edge


def _weights(similarity: Tensor, edge: Tensor, temperature: float) -> Tensor:
    """Weights [r, c] from similarities, which they overwrite."""
    return similarity.sub_(1).div_(temperature).exp_().mul_(edge)


def _note_copies(
    similarity: Tensor, before: Tensor, rows: Tensor, columns: Tensor, norms: Tensor, out: Tensor
) -> None:
    """Writes to ``out[rows]`` the first token before each that looks like a copy of it."""
    alike = (similarity >= NEARLY_ONE) & before
    if alike.device.type == "cpu" and not bool(alike.any()):
        return  # the usual case; asking an accelerator would stall it
    alike &= norms[columns] == norms[rows].unsqueeze(1)
    first = columns[alike.to(torch.uint8).argmax(1)]  # the first of equal maxima
    out[rows] = torch.where(alike.any(1), first, out[rows])


def places(unit: UnitRows, threshold: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Where edges can be: rows and columns of tiles that hold the lower triangle's edges once.

    Yields:
        tokens, int64 [r], and the tokens before them that they can have edges with, ascending,
        int64 [c]; some others may be among these.
    """
    n = len(unit)
    on_screen = n >= SCREENED and has_bfloat16(unit.features.device)
    screen = Screen.of(unit, threshold) if on_screen else None
    if screen is not None and _share(screen, n) > WORTHWHILE / 2:
        screen = None
    for start in range(0, n, PANEL):
        stop = min(start + PANEL, n)
        blocks = list(_blocks(start, stop, unit.features.device))
        tiles = blocks if screen is None else _gathered(screen, start, stop)
        most = WORTHWHILE * _entries(blocks)
        yield from tiles if _entries(tiles) < most else blocks


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device is a CPU with units for bfloat16 products."""
    backends: Any = torch.backends
    on_cpu = device.type == "cpu" and backends.mkldnn.is_available()
    return on_cpu and torch.cpu._is_avx512_bf16_supported()


@dataclass(frozen=True, eq=False)
class Screen:
    """Tells in bfloat16 which pairs of tokens can reach a threshold.

    Attributes:
        rows: the tokens, bfloat16 [n, d].
        lengths: their L2 norms, float32 [n]; None where the rows are at unit norm.
        cutoff: least product, in units of the two lengths, that a pair at the threshold can have.
    """

    rows: Tensor
    lengths: Tensor | None
    cutoff: float

    @classmethod
    def of(cls, unit: UnitRows, threshold: float) -> Screen:
        """The screen of some tokens."""
        d = unit.features.shape[-1]
        if unit.features.dtype == torch.bfloat16 and unit.ordinary:
            # As they are: a copy at unit norm takes longer than a bound for every pair.
            return cls(unit.features, unit.norms.float(), threshold - sum_error(d))
        return cls(_half(unit), None, threshold - screen_error(d))

    def candidates(self, rows: slice, columns: slice) -> Tensor:
        """Which pairs the screen cannot exclude, bool [r, c]."""
        left, right = self.rows[rows], self.rows[columns]
        screen = left.new_empty(len(left), len(right))
        torch.mm(left, right.mT, out=screen)  # into a tensor, which autocast leaves be
        if self.lengths is None:
            return screen >= torch.tensor(self.cutoff).to(screen.dtype)
        least = torch.outer(self.cutoff * self.lengths[rows], self.lengths[columns])
        return screen >= least.to(screen.dtype)


def _half(unit: UnitRows) -> Tensor:
    """The unit rows in bfloat16, [n, d]."""
    half = torch.empty_like(unit.features, dtype=torch.bfloat16)
    for rows in _chunks(unit.features):
        half[rows] = unit[rows]
    return half


def _share(screen: Screen, n: int) -> float:
    """Which share of the pairs the screen lets through, as a few tokens tell."""
    some = slice(None, None, max(1, n // SAMPLE))
    return float(screen.candidates(some, some).float().mean())


def _blocks(start: int, stop: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Every pair of rows from ``start`` to ``stop`` with the tokens before them."""
    every = torch.arange(stop, device=device)
    for top in range(start, stop, BAND):
        bottom = min(top + BAND, stop)
        yield every[top:bottom], every[:bottom]


def _entries(tiles: Sequence[tuple[Tensor, Tensor]]) -> int:
    return sum(len(rows) * len(columns) for rows, columns in tiles)


def _gathered(screen: Screen, start: int, stop: int) -> list[tuple[Tensor, Tensor]]:
    """Tiles of the candidates among rows ``start`` to ``stop`` of the lower triangle."""
    flags = torch.zeros(stop - start, stop, dtype=torch.bool)
    for top in range(start, stop, SCREENED):
        bottom = min(top + SCREENED, stop)
        part = screen.candidates(slice(top, bottom), slice(0, bottom))
        flags[top - start : bottom - start, :bottom] = part
    flags.tril_(start - 1)
    found, first = flags.view(torch.uint8).max(1)
    rows = found.nonzero().squeeze(1)
    # Tokens whose first neighbour is the same have most neighbours in common.
    first = first[rows]
    sizes = first.bincount()
    parts = torch.split(rows[first.argsort(stable=True)], _packed(sizes[sizes > 0].tolist()))
    return [(part + start, _columns(flags[part], part + start)) for part in parts]


def _packed(sizes: Sequence[int]) -> list[int]:
    """Rows of each tile: whole groups, of ``sizes``, while there is room for them.

    A group that two tiles share would bring its columns into both.
    """
    packed: list[int] = []
    room = 0
    for size in sizes:
        if size <= room:
            packed[-1] += size
            room -= size
            continue
        packed += [ROWS] * (size // ROWS)
        rest = size % ROWS
        room = 0
        if rest:
            packed.append(rest)
            room = ROWS - rest
    return packed


def _columns(flags: Tensor, rows: Tensor) -> Tensor:
    """Columns of a tile of flags [r, n]: the neighbours, and the rows where that costs nothing."""
    neighbours = flags.view(torch.uint8).amax(0)  # a sixth of the time of `any`
    both = neighbours.index_fill(0, rows, 1).nonzero().squeeze(1)
    if padded(len(both)) == padded(len(rows)):
        return both  # `UnitRows.similarity` then computes their unit rows once
    return neighbours.nonzero().squeeze(1)
