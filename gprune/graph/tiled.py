"""The similarity graph in tiles: only where edges can be, and never as one n-by-n matrix.

Pairs that cannot have an edge are excluded in bfloat16 first (`gprune.graph.screening`), and only
the remaining tiles (`gprune.graph.tiling`) are computed in float32, as `SimilarityGraph` computes
them. An entry's value depends on its two tokens alone, so the graph is the same with and without
the screen, bit for bit. Of a tile with few edges only a list is held (`gprune.graph.edge_list`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gprune.graph.copies import COPY_SIMILARITY, confirm_copies
from gprune.graph.edge_list import (
    WEIGHTS_PER_EDGE,
    EdgeList,
    TileEdges,
    join_edges,
    sparse_positions,
    tile_edges,
)
from gprune.graph.half import vanishing_weights
from gprune.graph.parameters import check_iterations, check_temperature, check_threshold
from gprune.graph.rows import UnitRows
from gprune.graph.similarity_graph import edge_weights
from gprune.graph.tiling import plan_tiles

# Weights that are stored in all (1.25 GiB in float32); those beyond are computed at every step.
MAX_STORED = 5 * 2**26
# Weights that are stored in float64 (128 MB), in which they are summed; those beyond in float32.
MAX_FLOAT64 = 2**24


@dataclass(frozen=True, eq=False)
class WeightTile:
    """A block of the lower triangle of the graph's matrix, without the diagonal.

    Attributes:
        rows: tokens, int64 [r].
        columns: tokens, ascending, int64 [c]; each row's neighbours before it are among them.
        weights: `SimilarityGraph.weights` where column < row and 0 elsewhere, [r, c], float32
            values in float32 or float64; None if they are computed for every use.
    """

    rows: Tensor
    columns: Tensor
    weights: Tensor | None


@dataclass(frozen=True, eq=False)
class TiledGraph:
    """The graph of `SimilarityGraph` for one group, without its n-by-n matrix.

    Attributes:
        unit: the tokens at unit norm.
        threshold, temperature: see `SimilarityGraph.build`.
        tiles: every edge once, except for self-loops and listed edges.
        listed: the edges of tiles that have few.
        degree, first_copy: see `SimilarityGraph`; int64 [n].
        row_sums: sum of each token's weights, its self-loop's 1 included, float64 [n]; 1 where
            there is no edge.
    """

    unit: UnitRows
    threshold: float
    temperature: float
    tiles: Sequence[WeightTile]
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
        builder = _Builder(UnitRows(features), threshold, temperature)
        for rows, columns in plan_tiles(builder.unit, threshold):
            builder.add(rows, columns)
        return builder.finish()

    def propagate(self, information: Tensor, iterations: int) -> Tensor:
        """Returns ``information @ A**iterations``, see `SimilarityGraph.propagate`.

        Args:
            information: initial value of each token, [n].
            iterations: number of steps t, >= 0.

        Returns:
            float64 [n].

        Raises:
            ValueError: iterations is negative.
        """
        check_iterations(iterations)
        current = information.double() * (self.degree > 0)
        listed = self.listed
        for _ in range(iterations):
            share = current / self.row_sums
            current = share.clone()  # along the self-loops, whose weight is 1
            current.index_add_(0, listed.columns, share[listed.rows] * listed.weights)
            current.index_add_(0, listed.rows, share[listed.columns] * listed.weights)
            for tile in self.tiles:
                weights = self.tile_weights(tile).double()
                current.index_add_(0, tile.columns, share[tile.rows] @ weights)
                current.index_add_(0, tile.rows, weights @ share[tile.columns])
        return current * (self.degree > 0)

    def float16_degree(self) -> Tensor:
        """Counts the weights of each row that are above 0 in float16, see `SimilarityGraph`."""
        vanishing = vanishing_weights(self.row_sums)
        degree = ((vanishing < 1) & (self.degree > 0)).long()  # the self-loops, of weight 1
        listed = self.listed
        for end in (listed.rows, listed.columns):
            degree.index_add_(0, end, (listed.weights > vanishing[end]).long())
        for tile in self.tiles:
            weights = self.tile_weights(tile)
            in_rows = weights > vanishing[tile.rows].unsqueeze(1)
            degree.index_add_(0, tile.rows, in_rows.sum(1))
            degree.index_add_(0, tile.columns, (weights > vanishing[tile.columns]).sum(0))
        return degree

    def tile_weights(self, tile: WeightTile) -> Tensor:
        """Returns the stored weights of a tile, or computes them, [r, c]."""
        if tile.weights is not None:
            return tile.weights
        similarity = self.unit.similarity(tile.rows, tile.columns)
        before = tile.columns < tile.rows.unsqueeze(1)
        active = self.degree > 0
        edges = _tile_edge_mask(similarity, before, tile.rows, tile.columns, active, self.threshold)
        return edge_weights(similarity, self.temperature).mul_(edges)


class _Builder:
    """Computes a `TiledGraph` tile by tile.

    Attributes:
        stored: weights stored so far; a listed edge counts as `WEIGHTS_PER_EDGE`.
        suspected: the first token that may be a copy of each token so far, int64 [n].
    """

    def __init__(self, unit: UnitRows, threshold: float, temperature: float) -> None:
        self.unit = unit
        self.threshold = threshold
        self.temperature = temperature
        self.active = unit.norms > 0
        self.degree = self.active.long()  # the self-loops
        self.row_sums = torch.ones_like(unit.norms)
        own = torch.arange(len(unit), device=unit.norms.device)
        first_zero = (~self.active).to(torch.uint8).argmax()
        self.suspected = torch.where(self.active, own, first_zero)
        self.tiles: list[WeightTile] = []
        self.listed: list[TileEdges] = []
        self.stored = 0

    def add(self, rows: Tensor, columns: Tensor) -> None:
        """Adds the edges of a tile of tokens ``rows`` [r] and ``columns`` [c]."""
        similarity = self.unit.similarity(rows, columns)
        positions = None
        if self.stored <= MAX_STORED:
            positions = sparse_positions(similarity, self.threshold)
        if positions is None:
            self._add_tile(similarity, rows, columns)
        else:
            self.listed.append(tile_edges(similarity, positions, rows, columns))
            self.stored += WEIGHTS_PER_EDGE * len(self.listed[-1][0])

    def _add_tile(self, similarity: Tensor, rows: Tensor, columns: Tensor) -> None:
        before = columns < rows.unsqueeze(1)
        self._suspect_copies(similarity, before, rows, columns)
        edges = _tile_edge_mask(similarity, before, rows, columns, self.active, self.threshold)
        self.degree.index_add_(0, rows, edges.sum(1))
        self.degree.index_add_(0, columns, edges.sum(0))
        weights = edge_weights(similarity, self.temperature).mul_(edges)
        wide = weights.double()
        self.row_sums.index_add_(0, rows, wide.sum(1))
        self.row_sums.index_add_(0, columns, wide.sum(0))
        self.stored += weights.numel()
        narrow = weights if self.stored <= MAX_STORED else None
        self.tiles.append(WeightTile(rows, columns, wide if self.stored <= MAX_FLOAT64 else narrow))

    def _suspect_copies(
        self, similarity: Tensor, before: Tensor, rows: Tensor, columns: Tensor
    ) -> None:
        """Writes to `suspected` the first token of the tile that may be a copy of each row."""
        alike = (similarity >= COPY_SIMILARITY) & before
        # The usual case. An accelerator would have to synchronise with the host to look.
        if alike.device.type == "cpu" and not bool(alike.any()):
            return
        alike &= self.unit.norms[columns] == self.unit.norms[rows].unsqueeze(1)
        first = columns[alike.to(torch.uint8).argmax(1)]  # the first of equal maxima
        self.suspected[rows] = torch.where(alike.any(1), first, self.suspected[rows])

    def finish(self) -> TiledGraph:
        """Joins the listed edges and returns the graph."""
        listed = join_edges(self.listed, self.unit, self.temperature, self.suspected)
        for end in (listed.rows, listed.columns):
            self.degree.index_add_(0, end, self.degree.new_ones(()).expand(len(end)))
            self.row_sums.index_add_(0, end, listed.weights)
        return TiledGraph(
            self.unit,
            self.threshold,
            self.temperature,
            self.tiles,
            listed,
            self.degree,
            self.row_sums,
            confirm_copies(self.unit.features, self.suspected),
        )


def _tile_edge_mask(
    similarity: Tensor,
    before: Tensor,
    rows: Tensor,
    columns: Tensor,
    active: Tensor,
    threshold: float,
) -> Tensor:
    """Returns which pairs of a tile have an edge, bool [r, c]; overwrites ``before`` [r, c]."""
    edges = before.logical_and_(similarity >= threshold)
    if threshold <= 0:  # tokens of zero norm, whose cosines are 0, would reach it
        edges &= active[columns] & active[rows].unsqueeze(1)
    return edges
