"""VLM-Pruner: pivots, then the least redundant tokens, near ones before far ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import CosineRows, cosine_similarity, dense_fits
from gprune.pruners.decoder import DecoderTokens
from gprune.pruners.greedy import EuclideanDistance, farthest_first
from gprune.pruners.one_layer import OneLayerPruner, check_whole, key_norms, required
from gprune.pruners.reduction import Reduction
from gprune.pruners.registry import register
from gprune.pruners.validation import check_weight

# The threshold grows by this from pass to pass.
THRESHOLD_STEP = 0.1
# Tokens of this redundancy or more, or of none, join in the order of redundancy without a pass.
LARGEST_REDUNDANCY = 1e9
# The weight of a kept token's own feature if others are merged into it, and the guard of the
# division by the sum of their similarities.
OWN_WEIGHT, LEAST_SUM = 0.3, 1e-8
# Rows of the features that are converted to float64 at a time.
VARIANCE_ROWS = 96


@register
@dataclass(frozen=True)
class VLMPruner(OneLayerPruner):
    """Pivots far from each other, then the least redundant tokens, those near them first.

    Wu, Ma, Ni, Zhang, Shu, Jiang, Chen: "VLM-Pruner: Buffering for Spatial Sparsity in an Efficient
    VLM Centrifugal Token Pruning Paradigm", arXiv 2512.02700.

    Layers 0 to K - 1 process every token. Keys are those of layer K - 1 (after RoPE, heads side by
    side), hidden states those that enter layer K, not normalised.

    Pivots: the token with the largest L1 norm of its keys; then, three times, the one whose keys
    are farthest (L2) from those of the nearest pivot. Similarity S: the cosine of hidden states on
    the 256 channels that vary most over the visual tokens (unbiased variance). Distance D: L2 in
    the raster, as a share of its diagonal √(rows² + columns²). The redundancy of a token i against
    the chosen set is

        max over j of S(i, j)  ·  (1 + 0.5 · min over j of D(i, j))

    so far tokens count as more redundant and are chosen later. Tokens join in passes, with a
    threshold of 0.8 in the first one and 0.1 more in each next. A pass sorts the remaining tokens
    by redundancy, once, and takes them in batches of 16: those whose redundancy, computed anew, is
    below the threshold join. If more would join than the budget allows, the least redundant of the
    batch do. A pass in whose first batch nothing joins ends there.

    Merging: each dropped token goes to the kept one of the largest S. A kept token's new hidden
    state is 0.3 times its own plus 0.7 times the mean of those that came, weighted by S; if none
    came, or their S sum to 0 or less, it stays as it is.

    Source of the facts: the released code (Casey-bit/VLMPruner, commit 556a914, Apache-2.0) as
    described by its observed behaviour; 4 pivots and K = 2 are its scripts' settings, threshold
    and batch its README's. Its published reduction of 0.889 is ``keep=0.111``.

    One detail of that code is mended by default: there a pass that adds nothing ends everything,
    also where the budget is not met; of some images only the 4 pivots are left. Here the next pass
    follows, with its higher threshold, until the budget is met. ``fill=False`` reproduces the
    released end, which may keep fewer tokens. With it all golden vectors agree.

    The released code has one image. Tokens of different groups (images, tiles, frames) are one
    whole diagonal apart here, and the distance in a group without a raster is 0.

    ``layer=0`` chooses within a group before the language model, for engines without access to its
    layers: features stand for keys and hidden states.

    The passes read values on the host, so an accelerator synchronises once per batch of tokens.

    Attributes:
        keep: share of the visual tokens from layer K on, 1 - reduction, or a count.
        layer: K; 2 is the released setting, 0 is before the language model.
        pivots: number of pivots, >= 1; fewer where the budget is smaller.
        threshold: of the first pass, a finite number >= 0.
        batch: tokens whose redundancy is computed together, >= 1.
        channels: number of channels for S, >= 1; all where there are no more.
        buffering: weight of the distance in the raster, >= 0.
        fill: whether the budget is always met.
        fuse: whether to merge dropped tokens into kept ones.

    Raises:
        TypeError: a number of tokens is no whole number; or ``keep`` is not a number, and
            ``layer`` is not 0.
        ValueError: a parameter is out of range; or, when applied to a model, ``layer`` is not below
            its number of layers.
    """

    pivots: int = 4
    threshold: float = 0.8
    batch: int = 16
    channels: int = 256
    buffering: float = 0.5
    fill: bool = True
    fuse: bool = True

    name: ClassVar[str] = "vlm_pruner"
    reads: ClassVar[tuple[str, ...]] = ("keys", "coordinates", "rasters", "groups")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("pivots", self.pivots, 1)
        check_weight("threshold", self.threshold)
        check_whole("batch", self.batch, 1)
        check_whole("channels", self.channels, 1)
        check_weight("buffering", self.buffering)

    def needs_features_only(self) -> bool:
        return super().needs_features_only() and self.fill

    def reduce_states(self, tokens: DecoderTokens, k: int) -> Reduction:
        keys = required(tokens, "keys")
        first = key_norms(keys).argmax()
        pivots = farthest_first(EuclideanDistance(keys), first, min(self.pivots, k))
        varying = most_varying(tokens.hidden, self.channels)
        dense = dense_fits(len(tokens))
        similarity = cosine_similarity(varying) if dense else CosineRows(varying)
        kept = self._grow(ChosenSet(similarity, tokens, self.buffering, pivots), k)
        if not self.fuse:
            return Reduction(kept)
        return Reduction(kept, weights=fusion_weights(similarity[kept], kept))

    def _grow(self, chosen: ChosenSet, k: int) -> Tensor:
        """Adds tokens to the pivots in passes; returns those chosen, int64, ascending."""
        step = 0
        while len(chosen) < k:
            candidates, redundancy = chosen.candidates()
            if self.fill:
                step = self._next_step(step, float(redundancy[0]))
            threshold = self.threshold + THRESHOLD_STEP * step
            if not self._run_pass(chosen, candidates, threshold, k):
                if not self.fill:
                    break
                # Redundancies are NaN or too large for steps of the threshold.
                chosen.add(candidates[: k - len(chosen)])
            step += 1
        return chosen.indices()

    def _next_step(self, step: int, least: float) -> int:
        """Returns the first step, from ``step`` on, whose threshold is above ``least``."""
        if not least < LARGEST_REDUNDANCY:
            return step
        # Far below it, the passes that add nothing are not run one by one.
        step = max(step, math.floor((least - self.threshold) / THRESHOLD_STEP))
        while self.threshold + THRESHOLD_STEP * step <= least:
            step += 1
        return step

    def _run_pass(self, chosen: ChosenSet, candidates: Tensor, threshold: float, k: int) -> bool:
        """Runs one pass over candidates in their order; returns whether any token joined."""
        before = len(chosen)
        for batch in torch.split(candidates, self.batch):
            redundancy = chosen.redundancy(batch)
            below = redundancy < threshold
            joining, redundancy = batch[below], redundancy[below]
            if len(joining) > k - len(chosen):
                joining, index = joining.sort()
                least = torch.sort(redundancy[index], stable=True).indices
                joining = joining[least[: k - len(chosen)]]
            chosen.add(joining)
            if len(chosen) in (before, k):
                break
        return len(chosen) > before


class ChosenSet:
    """The tokens chosen so far, and the redundancy of the others against them."""

    def __init__(
        self,
        similarity: Tensor | CosineRows,
        tokens: DecoderTokens,
        buffering: float,
        pivots: Tensor,
    ) -> None:
        """Starts with the pivots, int64 [p].

        Args:
            similarity: cosines of every pair, or an object that computes rows of them, [n, n].
            tokens: with ``coordinates``, ``rasters`` and ``groups``.
            buffering: weight of the distance.
            pivots: int64 [p], p >= 1.
        """
        self._similarity, self._buffering = similarity, buffering
        self._raster = RasterDistance(tokens)
        n = len(tokens)
        self._free = torch.ones(n, dtype=torch.bool, device=pivots.device)
        self._largest = torch.full((n,), -torch.inf, device=pivots.device)
        self._nearest = self._raster.diagonal.square()
        self._count = 0
        self.add(pivots)

    def __len__(self) -> int:
        return self._count

    def indices(self) -> Tensor:
        """Returns the chosen tokens, int64, ascending."""
        return (~self._free).nonzero().squeeze(1)

    def add(self, tokens: Tensor) -> None:
        """Adds ``tokens``, int64 [r], none of which is chosen yet."""
        if not len(tokens):
            return
        self._count += len(tokens)
        self._free[tokens] = False
        self._largest = torch.maximum(self._largest, self._similarity[tokens].amax(0))
        if self._buffering:
            self._nearest = torch.minimum(self._nearest, self._raster.squares(tokens).amin(0))

    def redundancy(self, tokens: Tensor) -> Tensor:
        """Returns the redundancy of ``tokens``, int64 [r], float64 [r]."""
        distance = self._nearest[tokens].sqrt() / self._raster.diagonal[tokens]
        return self._largest[tokens] * (1 + self._buffering * distance)

    def candidates(self) -> tuple[Tensor, Tensor]:
        """Returns the other tokens and their redundancies, ascending; ties: lowest index first."""
        others = self._free.nonzero().squeeze(1)
        redundancy, order = torch.sort(self.redundancy(others), stable=True)
        return others[order], redundancy


class RasterDistance:
    """Distances of tokens in the raster of their group.

    Attributes:
        diagonal: of the raster of each token's group, 1 without a raster, float64 [n].
    """

    def __init__(self, tokens: DecoderTokens) -> None:
        self._groups = required(tokens, "groups")
        self._coordinates = required(tokens, "coordinates").double().unbind(1)
        sizes = required(tokens, "rasters").double()
        diagonal = sizes.square().sum(1).sqrt()
        # Without a raster all coordinates are equal, so that distances are 0.
        self.diagonal = torch.where(sizes[:, 0] < 0, torch.ones_like(diagonal), diagonal)

    def squares(self, rows: Tensor) -> Tensor:
        """Returns squared distances of tokens ``rows`` from every token, float64 [r, n].

        Tokens of another group are infinitely far.
        """
        down, across = (x[rows].unsqueeze(1) - x for x in self._coordinates)
        squares = down.square_().add_(across.square_())
        apart = self._groups[rows].unsqueeze(1) != self._groups
        return squares.masked_fill_(apart, torch.inf)


def most_varying(features: Tensor, count: int) -> Tensor:
    """Returns the ``count`` channels of largest variance over the rows, in their order.

    Args:
        features: [n, d].
        count: if it is d or more, all channels are returned; ties go to the lowest one.

    Returns:
        [n, min(count, d)].
    """
    n, d = features.shape
    if count >= d:
        return features
    # In blocks: converting all features at once takes three times as long.
    blocks = torch.split(features, VARIANCE_ROWS)
    total = torch.zeros(d, dtype=torch.float64, device=features.device)
    for block in blocks:
        total += block.double().sum(0)
    squares = torch.zeros_like(total)
    for block in blocks:
        squares += (block.double() - total / n).square_().sum(0)
    # All variances have the same divisor.
    order = torch.sort(squares, descending=True, stable=True).indices
    return features.index_select(1, order[:count].sort().values)


def fusion_weights(similarity: Tensor, kept: Tensor) -> Tensor:
    """Returns the weight of each token in each kept one, float32 [k, n].

    Args:
        similarity: of kept tokens with all tokens, [k, n].
        kept: int64 [k].
    """
    nearest = similarity.argmax(0, keepdim=True)  # ties to the first
    came = torch.zeros_like(similarity).scatter_(0, nearest, similarity.gather(0, nearest))
    came[:, kept] = 0
    total = came.sum(1, keepdim=True)
    merges = total > 0
    weights = (1 - OWN_WEIGHT) * came / total.clamp(min=LEAST_SUM)
    weights = weights.masked_fill(~merges, 0)
    own = torch.where(merges, OWN_WEIGHT, 1.0)
    return weights.scatter_(1, kept.unsqueeze(1), own.to(weights))
