"""SparseVLM: text relevant to the image ranks its tokens, and some dropped ones are merged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.pruners.decoder import DecoderPruner, DecoderTokens, check_layers
from gprune.pruners.ranking import highest
from gprune.pruners.reduction import Reduction
from gprune.pruners.registry import register
from gprune.pruners.validation import check_share

# The paper's layers, and the number of layers of its model.
PAPER_LAYERS, PAPER_DEPTH = (2, 6, 15), 32


@register
@dataclass(frozen=True)
class SparseVLM(DecoderPruner):
    """The visual tokens that relevant text attends to, fewer at each stage, some of them merged.

    Zhang, Fan, Ma, Zheng, Huang, Cheng, Gudovskiy, Okuno, Nakata, Keutzer, Zhang: "SparseVLM:
    Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML 2025,
    arXiv 2410.04417.

    Raters: the text tokens after the image whose share of ``softmax(visual @ text.T)``, averaged
    over the visual tokens' embeddings, is at least the mean of all shares. A visual token's score
    is the mean attention of the raters to it in the layer before the drop.

    Rank: the rank of that attention matrix, raters by visual tokens, measures redundancy. ``scale``
    times the rank stays, but never less than ``keep``, and at the last stage exactly ``keep``. So
    the rank decides how early the budget is reached, and the budget is always met.

    Recycling: of the dropped tokens, the share ``recycle`` with the highest scores is clustered
    around its density peaks (DPC-KNN), one cluster for each ``1 / clusters`` of them. The mean of a
    cluster takes the position of its centre and counts against the budget.

    Attributes:
        keep: share of the visual tokens that reaches the last stage, recycled ones included, or a
            count.
        layers: layers before which tokens are dropped, ascending from 1; None: 2, 6 and 15 of 32
            as in the paper, scaled in proportion for models of another depth.
        scale: tokens that stay per rank, > 0; the released code uses 13.5 for 192 of 576.
        recycle: share of the dropped tokens that is clustered and merged, in [0, 1].
        clusters: number of clusters per recycled token, in [0, 1].

    Raises:
        ValueError: a number is out of range; or, when applied to a model, it does not have these
            layers.
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
        scaled = {max(1, round(layer * depth / PAPER_DEPTH)) for layer in PAPER_LAYERS}
        return check_layers(sorted(scaled), depth)

    def raters(self, visual: Tensor, text: Tensor) -> Tensor:
        share = torch.softmax(visual.float() @ text.float().mT, 1).mean(0)  # [m]
        # By rounding, the mean of equal shares can exceed all of them.
        return (share >= share.mean().clamp(max=share.max())).nonzero().squeeze(1)

    def planned(self, stage: int, stages: int, total: int) -> int:
        raise ValueError(
            "how many tokens sparsevlm drops depends on the prompt's attention; run a prefill and "
            "read pruned.visual_by_layer"
        )

    def count(self, stage: int, stages: int, tokens: DecoderTokens) -> int:
        final = self.final_count(tokens.total)
        if stage == stages - 1:
            return min(final, len(tokens))
        rank = int(torch.linalg.matrix_rank(tokens.attention))
        return min(len(tokens), max(final, int(self.scale * rank)))

    def drop(self, tokens: DecoderTokens, k: int) -> Reduction:
        scores = tokens.attention.mean(0)
        n = len(tokens)
        means = min(k - 1, math.ceil(self.clusters * self.recycle * (n - k)))
        if means < 1:
            return Reduction(highest(scores, k))
        order = torch.sort(scores, descending=True, stable=True).indices
        staying, dropped = order[: k - means], order[k - means :]
        recycled = dropped[: max(means, round(self.recycle * len(dropped)))].sort().values
        centres, cluster = density_peaks(tokens.hidden[recycled], means)
        kept = torch.cat([staying, recycled[centres]]).sort().values
        members = torch.full((n,), -1, device=kept.device)
        members[kept] = torch.arange(k, device=kept.device)
        members[recycled] = members[recycled[centres[cluster]]]
        return Reduction(kept, members)


def density_peaks(points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Clusters points around their density peaks (DPC-KNN).

    A point's density is ``exp(-mean d²)`` over its k nearest points, itself included; d is the
    Euclidean distance divided by the square root of the number of channels. The centres are the k
    points with the largest product of density and distance to the nearest denser point. Of points
    of equal density, the one with the lowest index counts as denser, and ties go to it.

    Args:
        points: [n, d].
        k: number of clusters, 1 to n.

    Returns:
        centres: int64 [k], ascending.
        cluster: for each point the position of the nearest centre in ``centres``, int64 [n].
    """
    wide = points.double()
    distance = torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance / math.sqrt(points.shape[1])
    density = distance.topk(k, largest=False).values.square().mean(1).neg().exp()
    index = torch.arange(len(points), device=points.device)
    denser = density > density[:, None]  # [n, n], whether the column is denser than the row
    denser |= (density == density[:, None]) & (index < index[:, None])
    to_denser = distance.masked_fill(~denser, torch.inf).amin(1)
    to_denser = torch.where(to_denser.isinf(), distance.amax(), to_denser)
    centres = highest(density * to_denser, k)
    cluster = distance[:, centres].argmin(1)
    cluster[centres] = torch.arange(k, device=points.device)
    return centres, cluster
