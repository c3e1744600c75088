"""G-Prune's graph on a GPU, in Triton kernels: all groups of a batch in one launch sequence.

The dense form of `gprune.graph` passes over the n-by-n matrix many times on a GPU and computes its
product in float32. Here a tile's product stays in registers until its weights are known:

* `_prepare`: norms, and features scaled by a power of two, which is exact, to norms of 256 to 512;
* `_tiles`: one program for each pair of blocks of the lower triangle. Products of the features in
  their own dtype, summed in float32 (for 16-bit features on tensor cores, each product exact);
  cosines, edges, weights, and for each token of the two blocks the count and sum of its edges. The
  weights of a tile are written once, and not at all where it holds no edge;
* `_step`: one step of propagation, over the tiles that hold edges, once for each half of the
  triangle.

Nothing is added up by atomics in an order that changes: partial counts and sums have places of
their own. Sums over tokens are in float64, as in `gprune.graph`. Weights are stored in float32:
half precision would take half the room and decide near ties otherwise than `gprune.graph`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from gprune.device import uploaded
from gprune.graph import (
    NEARLY_ONE,
    check_iterations,
    check_temperature,
    check_threshold,
    confirmed_copies,
)

# Tokens of a block, and channels that a program multiplies at a time.
BLOCK, CHANNELS = 64, 64
# Channels that a program of `_prepare` reads at a time.
PASS = 1024
# Power of two that features are scaled to: high enough for a float16 channel of a millionth of the
# token's norm to keep its precision.
EXPONENT = 8
# Weights that one launch sequence may hold (1 GiB); more groups than that are taken in turn.
ENTRIES = 2**28


@triton.jit
def _prepare(
    features,
    scaled,
    norms,
    inverse,
    width: tl.constexpr,
    padded: tl.constexpr,
    PASS: tl.constexpr,
    EXPONENT: tl.constexpr,
):
    """A token's norm in float64, the token scaled to about 2**EXPONENT, and 1 / its norm then."""
    token = tl.program_id(0).to(tl.int64)
    total = tl.zeros([PASS], tl.float64)
    for start in range(0, padded, PASS):
        channel = start + tl.arange(0, PASS)
        x = tl.load(features + token * width + channel, channel < width, 0.0).to(tl.float64)
        total += x * x
    norm = tl.sqrt(tl.sum(total))
    tl.store(norms + token, norm)
    # 2 to the power of EXPONENT - floor(log2(norm)): the bits of a float64 hold its exponent.
    power = (norm.to(tl.int64, bitcast=True) >> 52) & 0x7FF  # the exponent plus 1023; 0 for 0
    power = tl.minimum(tl.maximum(EXPONENT + 2046 - power, 1), 2046)
    factor = (power << 52).to(tl.float64, bitcast=True)
    factor = tl.where(norm > 0, factor, 0.0)
    for start in range(0, padded, PASS):
        channel = start + tl.arange(0, PASS)
        x = tl.load(features + token * width + channel, channel < width, 0.0).to(tl.float64)
        kept = (x * factor).to(tl.float32).to(scaled.dtype.element_ty)
        tl.store(scaled + token * padded + channel, kept, channel < padded)
    length = tl.where(norm > 0, norm * factor, 1.0)
    tl.store(inverse + token, (1.0 / length).to(tl.float32))


@triton.jit
def _place(tile):
    """Row and column of a tile: they are numbered row by row, row (row + 1) / 2 + column."""
    row = ((tl.sqrt(8.0 * tile.to(tl.float32) + 1) - 1) / 2).to(tl.int32)
    # The root is rounded.
    row = tl.where(row * (row + 1) // 2 > tile, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= tile, row + 1, row)
    return row, tile - row * (row + 1) // 2


@triton.jit
def _tiles(
    scaled,
    norms,
    inverse,
    starts,
    counts,
    places,
    weights,
    edges,
    parts,
    sums,
    nearest,
    total,
    threshold,
    temperature,
    padded: tl.constexpr,
    nearly: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One tile of one group's lower triangle."""
    group, tile = tl.program_id(1), tl.program_id(0)
    count = tl.load(counts + group)
    row, column = _place(tile)
    if row * BLOCK < count:
        start = tl.load(starts + group)
        one = row * BLOCK + tl.arange(0, BLOCK)
        other = column * BLOCK + tl.arange(0, BLOCK)
        here, there = one < count, other < count
        left = scaled + (start + one).to(tl.int64)[:, None] * padded
        right = scaled + (start + other).to(tl.int64)[None, :] * padded
        product = tl.zeros([BLOCK, BLOCK], tl.float32)
        for channel in range(0, padded, CHANNELS):
            step = channel + tl.arange(0, CHANNELS)
            a = tl.load(left + step[None, :], here[:, None], 0.0)
            b = tl.load(right + step[:, None], there[None, :], 0.0)
            if WIDE:
                a, b = a.to(tl.float32), b.to(tl.float32)
            product = tl.dot(a, b, product, input_precision="ieee")
        scale = tl.load(inverse + start + one, here, 0.0)[:, None]
        scale = scale * tl.load(inverse + start + other, there, 0.0)[None, :]
        similarity = tl.minimum(tl.maximum(product * scale, -1.0), 1.0)
        mine = tl.load(norms + start + one, here, 0.0)
        others = tl.load(norms + start + other, there, 0.0)
        # Padding has no norm, and neither a token of zero norm nor padding has edges.
        pair = (other[None, :] < one[:, None]) & (mine > 0)[:, None] & (others > 0)[None, :]
        edge = pair & (similarity >= threshold)
        weight = tl.where(edge, tl.exp((similarity - 1) / temperature), 0.0)
        copy = pair & (similarity >= nearly) & (mine[:, None] == others[None, :])
        first = tl.min(tl.where(copy, start + other[None, :], total), 1)
        tl.atomic_min(nearest + start + one, first.to(tl.int32), here)
        found = tl.max(tl.max(edge.to(tl.int32), 1), 0)
        place = tl.load(places + group)
        tl.store(edges + place // (BLOCK * BLOCK) + tile, found.to(tl.int8))
        cell = place + tile.to(tl.int64) * (BLOCK * BLOCK)
        inner = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        if found > 0:
            tl.store(weights + cell + inner, weight)
        # What the rows have in this tile and what the columns have, each in a place of its own.
        wide = weight.to(tl.float64)
        degree, mass = tl.sum(edge.to(tl.int32), 1), tl.sum(wide, 1)
        across, over = tl.sum(edge.to(tl.int32), 0), tl.sum(wide, 0)
        if row == column:
            degree, mass = degree + across, mass + over
        else:
            slot = row.to(tl.int64) * total + start + other
            tl.store(parts + slot, across, there)
            tl.store(sums + slot, over, there)
        slot = column.to(tl.int64) * total + start + one
        tl.store(parts + slot, degree, here)
        tl.store(sums + slot, mass, here)


@triton.jit
def _step(
    information,
    row_sums,
    starts,
    counts,
    places,
    weights,
    edges,
    out,
    BLOCK: tl.constexpr,
):
    """What the tokens of a block hold after a step of propagation."""
    group, block = tl.program_id(1), tl.program_id(0)
    count = tl.load(counts + group)
    if block * BLOCK < count:
        start, place = tl.load(starts + group), tl.load(places + group)
        inner = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        own = block * BLOCK + tl.arange(0, BLOCK)
        here = own < count
        share = tl.load(information + start + own, here, 0.0)
        share = share / tl.load(row_sums + start + own, here, 1.0)
        held = share  # along the self-loop, whose weight is 1
        blocks = (count + BLOCK - 1) // BLOCK
        for other in range(blocks):
            high, low = tl.maximum(block, other), tl.minimum(block, other)
            tile = high * (high + 1) // 2 + low
            if tl.load(edges + place // (BLOCK * BLOCK) + tile) > 0:
                cell = weights + place + tile.to(tl.int64) * (BLOCK * BLOCK)
                token = other * BLOCK + tl.arange(0, BLOCK)
                some = tl.load(information + start + token, token < count, 0.0)
                some = some / tl.load(row_sums + start + token, token < count, 1.0)
                weight = tl.load(cell + inner).to(tl.float64)
                if other <= block:
                    held += tl.sum(weight * some[None, :], 1)
                if other >= block:
                    held += tl.sum(weight * some[:, None], 0)
        tl.store(out + start + own, held, here)


def _layout(
    counts: Sequence[int], tiles: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each group the first token, the number of tokens, and the place of its weights."""
    starts = [0, *itertools.accumulate(counts)][:-1]
    places = [0, *itertools.accumulate(t * BLOCK**2 for t in tiles)][:-1]
    return uploaded(starts, device), uploaded(counts, device), uploaded(places, device)


def batches(groups: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Groups of features [n, d] in their order, as many at a time as one launch sequence takes."""
    batch: list[Tensor] = []
    held = 0
    for features in groups:
        entries = tile_count(len(features)) * BLOCK**2
        alike = not batch or (features.shape[1], features.dtype) == (
            batch[0].shape[1],
            batch[0].dtype,
        )
        if batch and (held + entries > ENTRIES or not alike):
            yield batch
            batch, held = [], 0
        batch.append(features)
        held += entries
    if batch:
        yield batch


def tile_count(count: int) -> int:
    """Tiles in the lower triangle of the graph of ``count`` tokens, the diagonal's included."""
    blocks = -(-count // BLOCK)
    return blocks * (blocks + 1) // 2


@dataclass(frozen=True, eq=False)
class KernelGraph:
    """The graphs of several groups, of N tokens in all; see `gprune.graph.SimilarityGraph`.

    Attributes:
        counts: tokens of each group.
        norms: L2 norm of each token's features, float64 [N].
        degree: number of edges of each token, its self-loop included, int64 [N].
        row_sums: sum of each token's weights, its self-loop's 1 included, float64 [N].
        first_copy: of each token the first one of its group with the same features, int64 [N].
    """

    counts: tuple[int, ...]
    norms: Tensor
    degree: Tensor
    row_sums: Tensor
    first_copy: Tensor
    _layout: tuple[Tensor, Tensor, Tensor]
    _weights: Tensor
    _edges: Tensor

    @classmethod
    def build(
        cls, features: Tensor, counts: Sequence[int], threshold: float, temperature: float
    ) -> KernelGraph:
        """Builds the graphs; nothing is read back from the device.

        Args:
            features: of all groups, one after the other, floating point [N, d].
            counts: tokens of each group, which sum to N.
            threshold: least cosine similarity of an edge, in [-1, 1].
            temperature: of the row softmax, > 0.

        Raises:
            ValueError: threshold or temperature is out of range, counts do not sum to N, or the
                features are on a CPU, where only Triton's interpreter runs.
        """
        check_threshold(threshold)
        check_temperature(temperature)
        total, width = features.shape
        if sum(counts) != total:
            raise ValueError(f"counts={list(counts)} must sum to the {total} tokens of features")
        device = features.device
        if device.type == "cpu" and not triton.knobs.runtime.interpret:
            raise ValueError(
                "backend='triton' is for features on a GPU, got some on the CPU; move the model "
                "there, or take backend='torch'"
            )
        padded = -(-width // CHANNELS) * CHANNELS
        kind = features.dtype if features.dtype != torch.float64 else torch.float32
        scaled = torch.empty(total, padded, dtype=kind, device=device)
        norms = torch.empty(total, dtype=torch.float64, device=device)
        inverse = torch.empty(total, dtype=torch.float32, device=device)
        _prepare[(total,)](
            features.contiguous(), scaled, norms, inverse, width, padded, PASS, EXPONENT
        )
        tiles = [tile_count(count) for count in counts]
        layout = _layout(counts, tiles, device)
        weights = torch.empty(sum(tiles) * BLOCK**2, dtype=torch.float32, device=device)
        edges = torch.empty(sum(tiles), dtype=torch.int8, device=device)
        most = -(-max(counts) // BLOCK)
        parts = torch.zeros(most, total, dtype=torch.int32, device=device)
        sums = torch.zeros(most, total, dtype=torch.float64, device=device)
        nearest = torch.arange(total, dtype=torch.int32, device=device)
        _tiles[(max(tiles), len(counts))](
            scaled,
            norms,
            inverse,
            *layout,
            weights,
            edges,
            parts,
            sums,
            nearest,
            total,
            threshold,
            temperature,
            padded,
            NEARLY_ONE,
            BLOCK,
            CHANNELS,
            # Triton's interpreter takes bfloat16 for whole numbers; products are exact either way.
            WIDE=device.type == "cpu",
        )
        alive = norms > 0
        degree = parts.sum(0) + alive
        return cls(
            tuple(counts),
            norms,
            degree,
            sums.sum(0) + 1,
            confirmed_copies(features, nearest.long()),
            layout,
            weights,
            edges,
        )

    def propagate(self, information: Tensor, iterations: int) -> Tensor:
        """See `SimilarityGraph.propagate`.

        Args:
            information: what each token starts with, [N].
            iterations: number of steps t, >= 0.

        Returns:
            float64 [N].

        Raises:
            ValueError: iterations is negative.
        """
        check_iterations(iterations)
        current = information.double() * (self.degree > 0)
        grid = (-(-max(self.counts) // BLOCK), len(self.counts))
        for _ in range(iterations):
            following = torch.empty_like(current)
            _step[grid](
                current,
                self.row_sums,
                *self._layout,
                self._weights,
                self._edges,
                following,
                BLOCK,
            )
            current = following
        return current
