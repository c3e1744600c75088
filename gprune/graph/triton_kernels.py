"""Triton kernels of G-Prune's graph, launched by `gprune.graph.triton`.

A tile is a block of BLOCK x BLOCK entries of the lower triangle of a group's n-by-n matrix. All
kernels take the same layout of the groups: ``starts``, the first token of each group; ``counts``,
its number of tokens; ``offsets``, where its weights begin; int64, one entry for each group.
"""

# Triton compiles these functions from their source; they are not Python by their types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def prepare_kernel(
    features,
    scaled,
    norms,
    inverse_norms,
    width: tl.constexpr,
    padded_width: tl.constexpr,
    PASS: tl.constexpr,
    EXPONENT: tl.constexpr,
):
    """Scales one token by a power of two to a norm of 2**EXPONENT or more; stores both norms."""
    token = tl.program_id(0).to(tl.int64)
    total = tl.zeros([PASS], tl.float64)
    for start in range(0, padded_width, PASS):
        channel = start + tl.arange(0, PASS)
        x = tl.load(features + token * width + channel, channel < width, 0.0).to(tl.float64)
        total += x * x
    norm = tl.sqrt(tl.sum(total))
    tl.store(norms + token, norm)
    factor = power_of_two_factor(norm, EXPONENT)
    for start in range(0, padded_width, PASS):
        channel = start + tl.arange(0, PASS)
        x = tl.load(features + token * width + channel, channel < width, 0.0).to(tl.float64)
        x = (x * factor).to(tl.float32).to(scaled.dtype.element_ty)
        tl.store(scaled + token * padded_width + channel, x, channel < padded_width)
    scaled_norm = tl.where(norm > 0, norm * factor, 1.0)
    tl.store(inverse_norms + token, (1.0 / scaled_norm).to(tl.float32))


@triton.jit
def power_of_two_factor(norm, EXPONENT: tl.constexpr):
    """Returns 2 to the power of EXPONENT - floor(log2(norm)), float64; 0 for a norm of 0."""
    # The bits of a float64 hold its exponent plus 1023; 0 for 0.
    biased = (norm.to(tl.int64, bitcast=True) >> 52) & 0x7FF
    biased = tl.minimum(tl.maximum(EXPONENT + 2046 - biased, 1), 2046)
    factor = (biased << 52).to(tl.float64, bitcast=True)
    return tl.where(norm > 0, factor, 0.0)


@triton.jit
def tile_position(tile):
    """Returns row and column of a tile; its number is row * (row + 1) / 2 + column."""
    row = ((tl.sqrt(8.0 * tile.to(tl.float32) + 1) - 1) / 2).to(tl.int32)
    # The square root is rounded.
    row = tl.where(row * (row + 1) // 2 > tile, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= tile, row + 1, row)
    return row, tile - row * (row + 1) // 2


# Over 40 lines: Triton takes tensors one by one, and they fill the first half.
@triton.jit
def tiles_kernel(
    scaled,
    norms,
    inverse_norms,
    starts,
    counts,
    offsets,
    weights,
    has_edges,
    partial_degrees,
    partial_sums,
    suspected,
    token_count,
    threshold,
    temperature,
    padded_width: tl.constexpr,
    copy_similarity: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Computes one tile of one group: weights, number and sum of edges, and suspected copies."""
    group, tile = tl.program_id(1), tl.program_id(0)
    count = tl.load(counts + group)
    row, column = tile_position(tile)
    if row * BLOCK < count:
        start = tl.load(starts + group)
        i = row * BLOCK + tl.arange(0, BLOCK)
        j = column * BLOCK + tl.arange(0, BLOCK)
        i_valid, j_valid = i < count, j < count
        similarity = tile_similarity(
            *(scaled, inverse_norms, start, i, j, i_valid, j_valid),
            *(padded_width, BLOCK, CHANNELS, WIDE),
        )
        i_norms = tl.load(norms + start + i, i_valid, 0.0)
        j_norms = tl.load(norms + start + j, j_valid, 0.0)
        # Padding loads a norm of 0, and tokens of zero norm have no edges.
        pair = (j[None, :] < i[:, None]) & (i_norms > 0)[:, None] & (j_norms > 0)[None, :]
        edge = pair & (similarity >= threshold)
        weight = tl.where(edge, tl.exp((similarity - 1) / temperature), 0.0)
        copy = pair & (similarity >= copy_similarity) & (i_norms[:, None] == j_norms[None, :])
        first = tl.min(tl.where(copy, start + j[None, :], token_count), 1)
        tl.atomic_min(suspected + start + i, first.to(tl.int32), i_valid)
        store_tile(weights, has_edges, tl.load(offsets + group), tile, weight, edge, BLOCK)
        # One slot per tile and token: atomic additions would have no fixed order.
        wide = weight.to(tl.float64)
        i_degrees, i_sums = tl.sum(edge.to(tl.int32), 1), tl.sum(wide, 1)
        j_degrees, j_sums = tl.sum(edge.to(tl.int32), 0), tl.sum(wide, 0)
        if row == column:
            i_degrees, i_sums = i_degrees + j_degrees, i_sums + j_sums
        else:
            slots = row.to(tl.int64) * token_count + start + j
            tl.store(partial_degrees + slots, j_degrees, j_valid)
            tl.store(partial_sums + slots, j_sums, j_valid)
        slots = column.to(tl.int64) * token_count + start + i
        tl.store(partial_degrees + slots, i_degrees, i_valid)
        tl.store(partial_sums + slots, i_sums, i_valid)


@triton.jit
def tile_similarity(
    scaled,
    inverse_norms,
    start,
    i,
    j,
    i_valid,
    j_valid,
    padded_width: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Returns cosines of tokens ``i`` and ``j`` [BLOCK] of a group, float32; 0 if not valid."""
    left = scaled + (start + i).to(tl.int64)[:, None] * padded_width
    right = scaled + (start + j).to(tl.int64)[None, :] * padded_width
    product = tl.zeros([BLOCK, BLOCK], tl.float32)
    for first in range(0, padded_width, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        a = tl.load(left + channel[None, :], i_valid[:, None], 0.0)
        b = tl.load(right + channel[:, None], j_valid[None, :], 0.0)
        if WIDE:
            a, b = a.to(tl.float32), b.to(tl.float32)
        product = tl.dot(a, b, product, input_precision="ieee")
    scale = tl.load(inverse_norms + start + i, i_valid, 0.0)[:, None]
    scale = scale * tl.load(inverse_norms + start + j, j_valid, 0.0)[None, :]
    return tl.minimum(tl.maximum(product * scale, -1.0), 1.0)


@triton.jit
def store_tile(weights, has_edges, offset, tile, weight, edge, BLOCK: tl.constexpr):
    """Stores whether a tile has edges, and its weights [BLOCK, BLOCK] if it has."""
    found = tl.max(tl.max(edge.to(tl.int32), 1), 0)
    tl.store(has_edges + offset // (BLOCK * BLOCK) + tile, found.to(tl.int8))
    cell = offset + tile.to(tl.int64) * (BLOCK * BLOCK)
    inner = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    if found > 0:
        tl.store(weights + cell + inner, weight)


@triton.jit
def step_kernel(
    information,
    row_sums,
    starts,
    counts,
    offsets,
    weights,
    has_edges,
    out,
    BLOCK: tl.constexpr,
):
    """Computes one step of propagation for a block of tokens of one group."""
    group, block = tl.program_id(1), tl.program_id(0)
    count = tl.load(counts + group)
    if block * BLOCK < count:
        start, offset = tl.load(starts + group), tl.load(offsets + group)
        inner = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        own = block * BLOCK + tl.arange(0, BLOCK)
        own_valid = own < count
        share = tl.load(information + start + own, own_valid, 0.0)
        # The self-loop, whose weight is 1.
        result = share / tl.load(row_sums + start + own, own_valid, 1.0)
        for other in range((count + BLOCK - 1) // BLOCK):
            high, low = tl.maximum(block, other), tl.minimum(block, other)
            tile = high * (high + 1) // 2 + low
            if tl.load(has_edges + offset // (BLOCK * BLOCK) + tile) > 0:
                cell = weights + offset + tile.to(tl.int64) * (BLOCK * BLOCK)
                token = other * BLOCK + tl.arange(0, BLOCK)
                share = tl.load(information + start + token, token < count, 0.0)
                share = share / tl.load(row_sums + start + token, token < count, 1.0)
                weight = tl.load(cell + inner).to(tl.float64)
                if other <= block:
                    result += tl.sum(weight * share[None, :], 1)
                if other >= block:
                    result += tl.sum(weight * share[:, None], 0)
        tl.store(out + start + own, result, own_valid)


@triton.jit
def count_kernel(
    vanishing,
    starts,
    counts,
    offsets,
    weights,
    has_edges,
    out,
    BLOCK: tl.constexpr,
):
    """Counts the weights of each row, its self-loop excepted, that exceed ``vanishing``."""
    group, block = tl.program_id(1), tl.program_id(0)
    count = tl.load(counts + group)
    if block * BLOCK < count:
        start, offset = tl.load(starts + group), tl.load(offsets + group)
        inner = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        own = block * BLOCK + tl.arange(0, BLOCK)
        own_valid = own < count
        least = tl.load(vanishing + start + own, own_valid, 1.0)
        result = tl.zeros([BLOCK], tl.int64)
        for other in range((count + BLOCK - 1) // BLOCK):
            high, low = tl.maximum(block, other), tl.minimum(block, other)
            tile = high * (high + 1) // 2 + low
            if tl.load(has_edges + offset // (BLOCK * BLOCK) + tile) > 0:
                weight = tl.load(weights + offset + tile.to(tl.int64) * (BLOCK * BLOCK) + inner)
                # A tile has its tokens' weights in rows, and those of later tokens in columns.
                if other <= block:
                    result += tl.sum((weight > least[:, None]).to(tl.int64), 1)
                if other >= block:
                    result += tl.sum((weight > least[None, :]).to(tl.int64), 0)
        tl.store(out + start + own, result, own_valid)
