"""Edges as a list, for tiles that have few: memory and propagation then cost O(edges)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gprune.graph.copies import COPY_SIMILARITY
from gprune.graph.rows import UnitRows
from gprune.graph.similarity_graph import edge_weights

# A listed edge needs as much memory as this many weights while lists are joined or used.
WEIGHTS_PER_EDGE = 8
# A tile's edges are listed if at most this share of its entries are edges ...
MAX_EDGE_SHARE = 1 / 16
# ... and at most this share of its groups of 8 successive entries, which are tested as one int64,
# have an edge.
MAX_GROUP_SHARE = 1 / 2

# Edges of one tile: rows, int32 [m]; columns, int32 [m]; similarities, float32 [m].
TileEdges = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class EdgeList:
    """The edges of the tiles that have few.

    Attributes:
        rows: tokens, int32 [m].
        columns: for each row a token before it, int32 [m].
        weights: of each edge; float32 values in float64 [m].
    """

    rows: Tensor
    columns: Tensor
    weights: Tensor


def sparse_positions(similarity: Tensor, threshold: float) -> Tensor | None:
    """Returns where the similarities [r, c] of a tile reach a threshold, if few do.

    Returns:
        positions in the flattened tile, ascending, int64 [m]; None if there are many, or if the
        tile cannot be listed.
    """
    if similarity.device.type != "cpu" or not 0 < threshold <= COPY_SIMILARITY:
        # Counting would synchronise an accelerator with the host. At other thresholds tokens of
        # zero norm could have edges, or copies could have none.
        return None
    reached = (similarity >= threshold).view(-1)
    missing = -len(reached) % 8
    reached = F.pad(reached, (0, missing)) if missing else reached
    groups = reached.view(torch.int64)  # 8 flags of a byte each
    nonempty = groups.nonzero()
    if len(nonempty) > MAX_GROUP_SHARE * len(groups):
        return None
    positions = (8 * nonempty + torch.arange(8)).view(-1)
    positions = positions[reached[positions]]
    return positions if len(positions) <= MAX_EDGE_SHARE * len(reached) else None


def tile_edges(similarity: Tensor, positions: Tensor, rows: Tensor, columns: Tensor) -> TileEdges:
    """Returns a tile's edges whose column comes before their row.

    Args:
        similarity: of the tile, [r, c].
        positions: see `sparse_positions`, int64 [m].
        rows, columns: tokens of the tile, int64 [r] and [c].
    """
    row, column = positions // len(columns), positions % len(columns)
    before = columns[column] < rows[row]
    row, column = row[before], column[before]
    return rows[row].int(), columns[column].int(), similarity[row, column]


def join_edges(
    parts: Sequence[TileEdges], unit: UnitRows, temperature: float, suspected: Tensor
) -> EdgeList:
    """Joins the edges of several tiles and computes their weights.

    Also writes to ``suspected`` [n] the first token before each that may be a copy of it.
    """
    if not parts:
        none = torch.empty(0, dtype=torch.int, device=suspected.device)
        return EdgeList(none, none, none.double())
    rows, columns, similarity = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    alike = similarity >= COPY_SIMILARITY
    alike &= unit.norms[rows] == unit.norms[columns]
    suspected.scatter_reduce_(0, rows[alike].long(), columns[alike].long(), "amin")
    return EdgeList(rows, columns, edge_weights(similarity, temperature).double())
