"""SparseVLM: text that looks at the image rates it, and part of what goes is recycled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.pruners.base import check_share, highest
from gprune.pruners.decoder import DecoderPruner, DecoderTokens, check_layers

# The paper's layers, of 32.
LAYERS, DEPTH = (2, 6, 15), 32


@dataclass(frozen=True)
class SparseVLM(DecoderPruner):
    """Visual tokens rated by the text that concerns them, dropped in stages, in part recycled.

    Zhang, Fan, Ma, Zheng, Huang, Cheng, Gudovskiy, Okuno, Nakata, Keutzer, Zhang: "SparseVLM:
    Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML 2025,
    arXiv 2410.04417.

    Raters: the text tokens after the image whose share of ``softmax(visual @ text.T)``, the mean
    over visual tokens' embeddings, is at least the mean of all. A visual token's score is the mean
    of the raters' attention in the layer before the drop.

    Rank: the rank of that attention, raters by visual tokens, tells how much is redundant.
    ``scale`` times the rank stays, but never less than ``keep`` allows, and at the last stage just
    that. So the rank decides how early the budget is reached, and the budget is always met.

    Recycling: of the tokens that go, the share ``recycle`` with the highest scores is clustered
    around its density peaks (DPC-KNN), one cluster for ``1 / clusters`` of them. A cluster's mean
    goes on in the place of its centre and counts against the budget.

    Attributes:
        keep: share of the visual tokens that reaches the last stage, recycled ones included, or a
            count.
        layers: before which layers tokens are dropped, ascending from 1; None: 2, 6 and 15 of 32
            as in the paper, in proportion in models of another depth.
        scale: tokens that stay for each rank, > 0; the authors' code takes 13.5 for 192 of 576.
        recycle: share of the tokens that go whose clusters' means stay, in [0, 1].
        clusters: clusters for each recycled token, in [0, 1].

    Raises:
        ValueError: a number is out of range; or, on a model, if it has no such layers.
    """

    layers: tuple[int, ...] | None = None
    scale: float = 13.5
    recycle: float = 0.3
    clusters: float = 0.1

    name: ClassVar[str] = "sparsevlm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale={self.scale} must be a finite number > 0")
        check_share("recycle", self.recycle)
        check_share("clusters", self.clusters)

    def stages(self, depth: int) -> tuple[int, ...]:
        if self.layers is not None:
            return check_layers(self.layers, depth)
        scaled = {max(1, round(layer * depth / DEPTH)) for layer in LAYERS}
        return check_layers(sorted(scaled), depth)

    def raters(self, visual: Tensor, text: Tensor) -> Tensor:
        share = torch.softmax(visual.float() @ text.float().mT, 1).mean(0)  # [m]
        # The mean of equal shares can come out above all of them by rounding.
        return (share >= share.mean().clamp(max=share.max())).nonzero().squeeze(1)

    def planned(self, stage: int, stages: int, total: int) -> int:
        raise ValueError(
            "sparsevlm drops as many tokens as a prompt's attention says; run a prefill and read "
            "pruned.visual_by_layer"
        )

    def count(self, stage: int, stages: int, tokens: DecoderTokens) -> int:
        final = self.final_count(tokens.total)
        if stage == stages - 1:
            return min(final, len(tokens))
        rank = int(torch.linalg.matrix_rank(tokens.attention))
        return min(len(tokens), max(final, int(self.scale * rank)))

    def drop(self, tokens: DecoderTokens, k: int) -> tuple[Tensor, Tensor | None]:
        scores = tokens.attention.mean(0)
        n = len(tokens)
        means = min(k - 1, math.ceil(self.clusters * self.recycle * (n - k)))
        if means < 1:
            return highest(scores, k), None
        order = torch.sort(scores, descending=True, stable=True).indices
        staying, going = order[: k - means], order[k - means :]
        recycled = going[: max(means, round(self.recycle * len(going)))].sort().values
        centres, cluster = density_peaks(tokens.hidden[recycled], means)
        kept = torch.cat([staying, recycled[centres]]).sort().values
        members = torch.full((n,), -1, device=kept.device)
        members[kept] = torch.arange(k, device=kept.device)
        members[recycled] = members[recycled[centres[cluster]]]
        return kept, members


def density_peaks(points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Clusters around the points that are densest for how far they are from denser ones (DPC-KNN).

    A point's density is ``exp(-mean d²)`` over its k nearest points, itself included; d is the
    Euclidean distance over the square root of the number of channels. The k points with the largest
    product of density and distance to the next denser point are centres. Of equal densities the
    lowest index is denser, and ties go to it.

    Args:
        points: [n, d].
        k: number of clusters, 1 to n.

    Returns:
        centres: int64 [k], ascending.
        cluster: for each point the cluster of the nearest centre, int64 [n].
    """
    wide = points.double()
    distance = torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance / math.sqrt(points.shape[1])
    density = distance.topk(k, largest=False).values.square().mean(1).neg().exp()
    index = torch.arange(len(points), device=points.device)
    denser = density > density[:, None]
    denser |= (density == density[:, None]) & (index < index[:, None])  # [n, n], column over row
    apart = distance.masked_fill(~denser, torch.inf).amin(1)
    apart = torch.where(apart.isinf(), distance.amax(), apart)
    centres = highest(density * apart, k)
    cluster = distance[:, centres].argmin(1)
    cluster[centres] = torch.arange(k, device=points.device)
    return centres, cluster
