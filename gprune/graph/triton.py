"""The similarity graph on a GPU, in Triton kernels: all groups of a batch in one launch sequence.

`SimilarityGraph` passes over the n-by-n matrix many times on a GPU and computes its product in
float32. Here the product of a tile stays in registers until its weights are known:

* `prepare_kernel`: norms, and features scaled by a power of two, which is exact, to norms of 256 to
  512;
* `tiles_kernel`: one program for each tile, a pair of blocks of the lower triangle. Products of the
  features in their own dtype, summed in float32 (16-bit features on tensor cores, each product
  exact); cosines, edges and weights; and for each token of the two blocks the number and the sum of
  its edges. The weights of a tile are written once, and only if it has an edge;
* `step_kernel`: one step of propagation over the tiles that have edges, which serve both halves of
  the matrix;
* `count_kernel`: number of weights of each row that float16 can hold, from the same tiles.

Results are deterministic: partial counts and sums are stored in separate slots, not added by
atomics. Sums over tokens are in float64. Weights are stored in float32: half precision would need
half the memory, but would decide near ties differently from `SimilarityGraph`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from gprune.device import to_device
from gprune.graph.copies import COPY_SIMILARITY, confirm_copies
from gprune.graph.half import vanishing_weights
from gprune.graph.parameters import check_iterations, check_temperature, check_threshold
from gprune.graph.triton_kernels import count_kernel, prepare_kernel, step_kernel, tiles_kernel

# Tokens of a block, and channels that a program multiplies at a time.
BLOCK, CHANNELS = 64, 64
# Channels that a program of `prepare_kernel` reads at a time.
PASS = 1024
# Features are scaled to norms of at least 2**EXPONENT: enough for a float16 channel of a millionth
# of the token's norm to keep its precision.
EXPONENT = 8
# Weights that one launch sequence may hold (1 GiB in float32).
MAX_WEIGHTS = 2**28


class GroupLayout(NamedTuple):
    """Where each group's tokens and weights lie; int64 [groups] each.

    Attributes:
        starts: first token.
        counts: number of tokens.
        offsets: first weight.
    """

    starts: Tensor
    counts: Tensor
    offsets: Tensor

    @classmethod
    def from_counts(cls, counts: Sequence[int], device: torch.device) -> GroupLayout:
        """Returns the layout of groups of these sizes, without stalling the device."""
        starts = _offsets(counts)
        offsets = _offsets([tile_count(count) * BLOCK**2 for count in counts])
        return cls(*(to_device(values, device) for values in (starts, counts, offsets)))


def _offsets(sizes: Sequence[int]) -> list[int]:
    """Returns where each of several parts of these sizes begins."""
    return [0, *itertools.accumulate(sizes)][:-1]


def tile_count(count: int) -> int:
    """Returns the number of tiles in the lower triangle, diagonal included, of ``count`` tokens."""
    blocks = -(-count // BLOCK)
    return blocks * (blocks + 1) // 2


def batches(groups: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yields successive groups of features [n, d] that fit in one launch sequence.

    Groups of one batch have the same width and dtype, and at most `MAX_WEIGHTS` weights, unless a
    single group has more.
    """
    batch: list[Tensor] = []
    batch_weights = 0
    for features in groups:
        weights = tile_count(len(features)) * BLOCK**2
        same = not batch or (features.shape[1], features.dtype) == (
            batch[0].shape[1],
            batch[0].dtype,
        )
        if batch and (batch_weights + weights > MAX_WEIGHTS or not same):
            yield batch
            batch, batch_weights = [], 0
        batch.append(features)
        batch_weights += weights
    if batch:
        yield batch


@dataclass(frozen=True, eq=False)
class KernelGraph:
    """The graphs of several groups, of N tokens in all; see `SimilarityGraph`.

    Attributes:
        counts: tokens of each group.
        norms: L2 norm of each token's features, float64 [N].
        degree: number of edges of each token, its self-loop included, int64 [N].
        row_sums: sum of each token's weights, its self-loop's 1 included, float64 [N].
        first_copy: the first token of the same group with the same features, int64 [N].
        layout: where each group's tokens and weights lie.
        weights: of all tiles, float32 [tiles * BLOCK**2]; not written for tiles without edges.
        has_edges: of each tile, int8 [tiles].
    """

    counts: tuple[int, ...]
    norms: Tensor
    degree: Tensor
    row_sums: Tensor
    first_copy: Tensor
    layout: GroupLayout
    weights: Tensor
    has_edges: Tensor

    @classmethod
    def build(
        cls, features: Tensor, counts: Sequence[int], threshold: float, temperature: float
    ) -> KernelGraph:
        """Builds the graphs without synchronising the device with the host.

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
        _check_features(features, counts)
        scaled, norms, inverse_norms = _prepare(features)
        layout = GroupLayout.from_counts(counts, features.device)
        tiles = _compute_tiles(scaled, norms, inverse_norms, counts, layout, threshold, temperature)
        return cls(
            tuple(counts),
            norms,
            tiles.partial_degrees.sum(0) + (norms > 0),
            tiles.partial_sums.sum(0) + 1,
            confirm_copies(features, tiles.suspected.long()),
            layout,
            tiles.weights,
            tiles.has_edges,
        )

    def propagate(self, information: Tensor, iterations: int) -> Tensor:
        """Returns ``information @ A**iterations``, see `SimilarityGraph.propagate`.

        Args:
            information: initial value of each token, [N].
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
            step_kernel[grid](
                *(current, self.row_sums, *self.layout),
                *(self.weights, self.has_edges, following, BLOCK),
            )
            current = following
        return current

    def float16_degree(self) -> Tensor:
        """Counts the weights of each row that are above 0 in float16, see `SimilarityGraph`.

        Returns:
            int64 [N].
        """
        vanishing = vanishing_weights(self.row_sums)
        counted = torch.zeros_like(self.degree)
        count_kernel[(-(-max(self.counts) // BLOCK), len(self.counts))](
            *(vanishing, *self.layout, self.weights, self.has_edges, counted, BLOCK)
        )
        return counted + ((vanishing < 1) & (self.degree > 0))  # the self-loops, of weight 1


class _Tiles(NamedTuple):
    """What `tiles_kernel` writes.

    Attributes:
        weights, has_edges: see `KernelGraph`.
        partial_degrees: number of edges of each token with the tokens of each block, int32
            [blocks, N].
        partial_sums: sum of the weights of these edges, float64 [blocks, N].
        suspected: the first token that may be a copy of each token, int32 [N].
    """

    weights: Tensor
    has_edges: Tensor
    partial_degrees: Tensor
    partial_sums: Tensor
    suspected: Tensor


def _check_features(features: Tensor, counts: Sequence[int]) -> None:
    """Raises ValueError unless the kernels can run on these features; see `KernelGraph.build`."""
    if sum(counts) != len(features):
        raise ValueError(
            f"counts={list(counts)} must sum to the {len(features)} tokens of features"
        )
    if features.device.type == "cpu" and not triton.knobs.runtime.interpret:
        raise ValueError(
            "backend='triton' needs features on a GPU, got features on the CPU; move the model to "
            "a GPU or use backend='torch'"
        )


def _prepare(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Runs `prepare_kernel` on features [N, d].

    Returns:
        scaled: the features, scaled by powers of two, [N, padded d]; float64 becomes float32, other
            dtypes stay.
        norms: of the features, float64 [N].
        inverse_norms: 1 / the norms of ``scaled``, float32 [N]; 1 for tokens of zero norm.
    """
    total, width = features.shape
    device = features.device
    padded_width = -(-width // CHANNELS) * CHANNELS
    dtype = features.dtype if features.dtype != torch.float64 else torch.float32
    scaled = torch.empty(total, padded_width, dtype=dtype, device=device)
    norms = torch.empty(total, dtype=torch.float64, device=device)
    inverse_norms = torch.empty(total, dtype=torch.float32, device=device)
    prepare_kernel[(total,)](
        *(features.contiguous(), scaled, norms, inverse_norms),
        *(width, padded_width, PASS, EXPONENT),
    )
    return scaled, norms, inverse_norms


def _compute_tiles(
    scaled: Tensor,
    norms: Tensor,
    inverse_norms: Tensor,
    counts: Sequence[int],
    layout: GroupLayout,
    threshold: float,
    temperature: float,
) -> _Tiles:
    """Allocates and computes all tiles of all groups."""
    device = scaled.device
    total, padded_width = scaled.shape
    tiles = [tile_count(count) for count in counts]
    most_blocks = -(-max(counts) // BLOCK)
    result = _Tiles(
        weights=torch.empty(sum(tiles) * BLOCK**2, dtype=torch.float32, device=device),
        has_edges=torch.empty(sum(tiles), dtype=torch.int8, device=device),
        partial_degrees=torch.zeros(most_blocks, total, dtype=torch.int32, device=device),
        partial_sums=torch.zeros(most_blocks, total, dtype=torch.float64, device=device),
        suspected=torch.arange(total, dtype=torch.int32, device=device),
    )
    tiles_kernel[(max(tiles), len(counts))](
        *(scaled, norms, inverse_norms, *layout, *result),
        *(total, threshold, temperature, padded_width, COPY_SIMILARITY, BLOCK, CHANNELS),
        # Triton's interpreter takes bfloat16 for integers; products are exact either way.
        WIDE=device.type == "cpu",
    )
    return result
