"""SparseVLM: text relevant to the image ranks its tokens, and some dropped ones are recycled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from gprune.budget import MILLION, kept_count, parts_per_million
from gprune.pruners.decoder import DecoderPruner, DecoderTokens, check_layers
from gprune.pruners.reduction import Reduction
from gprune.pruners.registry import register
from gprune.pruners.validation import check_share

# The layers of the paper and the released code, and the number of layers of their model.
PAPER_LAYERS, PAPER_DEPTH = (2, 6, 15), 32

# The visual tokens of that model, and how many of them stay at each stage for each published
# setting. The last row is a fixed point of this project's: all tokens stay.
PAPER_TOKENS = 576
TABLE = {
    0: (0, 0, 0),
    64: (66, 30, 17),
    96: (238, 48, 26),
    128: (303, 110, 36),
    192: (300, 200, 110),
    PAPER_TOKENS: (PAPER_TOKENS,) * 3,
}

FORMS = ("released", "paper")


@register
@dataclass(frozen=True)
class SparseVLM(DecoderPruner):
    """The visual tokens that relevant text attends to, fewer at each stage, some of them recycled.

    Zhang, Fan, Ma, Zheng, Huang, Cheng, Gudovskiy, Okuno, Nakata, Keutzer, Zhang: "SparseVLM:
    Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML 2025,
    arXiv 2410.04417. Released code: Gumpest/SparseVLMs, commit 26a5f48, Apache-2.0; this class
    follows the observed behaviour of its first version. (Its version 2.0, with another table, no
    recycling and chosen heads, is not implemented.)

    Raters: the text tokens after the image whose share of ``softmax(visual @ text.T)`` over the
    text, averaged over the visual tokens' embeddings, is above the mean of all shares. They are
    chosen once. A visual token's score is the attention of the raters to it, averaged over heads
    and raters, in a layer that still has all tokens; tokens are then dropped from that layer's
    output. So layers 3, 7 and 16 of 32 are the first with fewer.

    Number: the released code reads it off a table. Of 576 tokens, the settings named 192, 128, 96
    and 64 keep 300, 200, 110; 303, 110, 36; 238, 48, 26; and 66, 30, 17 after layers 2, 6 and 15,
    at most one less than there are. ``keep`` picks the row: ``keep=192`` of 576 tokens or
    ``keep=1 / 3``. The setting's name is about the average over the layers: with the clusters that
    are added, 192 stands for 207 tokens on average and 113 in the last layer, 128 for 145 and 39,
    96 for 114 and 27, 64 for 82 and 18. Between the rows, counts are interpolated linearly, below
    64 they shrink in proportion, and above 192 they grow linearly up to ``keep=1.0``, where nothing
    is dropped; for n tokens they are multiplied by n / 576. All are rounded down, and at least 1.
    A model with fewer stages takes the last entries of a row. `schedule` lists the counts.

    Recycling: of the g dropped tokens, the ``floor(recycle * g) + 1`` with the highest scores are
    clustered around their density peaks (DPC-KNN), into one cluster more than ``clusters`` times
    their number, rounded down. The mean of each cluster is a row of its own. These rows come on top
    of the table's count, stand after all kept image tokens and before the text, the largest product
    of density and distance first, and count as image tokens at the next stage. Positions are
    numbered anew without gaps (``positions="compact"``); for models with M-RoPE positions stay, and
    the rows take those of the last dropped tokens.

    Mended: where no share is above the mean, because all are equal, all text rates (the released
    code has no rater then). No noise is added to densities; ties go to the lowest index. A stage
    that would give as many rows as it gets does nothing.

    The paper sets the numbers by the rank of the attention matrix, raters by visual tokens:
    ``form="paper"`` keeps ``scale`` times the rank, but never less than ``keep``, and at the last
    stage exactly ``keep``, clusters included. So there the rank decides how early the budget is
    reached.

    Attributes:
        keep: the setting, as a share of the visual tokens or a count, see above. With
            ``form="paper"`` what reaches the last stage.
        layers: layers whose output is pruned, ascending from 0; None: 2, 6 and 15 of 32, scaled in
            proportion for models of another depth.
        scale: tokens that stay per rank with ``form="paper"``, > 0.
        recycle: share of the dropped tokens that is clustered, in [0, 1]; 0 recycles none.
        clusters: number of clusters per recycled token, in [0, 1].
        form: ``released`` or ``paper``, how numbers are set.

    Raises:
        ValueError: a number is out of range, or ``form`` is neither; or, when applied to a model,
            it does not have these layers, or they are more than the table has columns.
    """

    layers: tuple[int, ...] | None = None
    scale: float = 13.5
    recycle: float = 0.3
    clusters: float = 0.1
    form: str = "released"

    name: ClassVar[str] = "sparsevlm"
    default_positions: ClassVar[str] = "compact"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale={self.scale} must be a finite number > 0")
        check_share("recycle", self.recycle)
        check_share("clusters", self.clusters)
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r} must be one of {', '.join(FORMS)}")

    def stages(self, depth: int) -> tuple[int, ...]:
        layers = self.layers
        if layers is None:
            last = max(depth - 2, 0)
            scaled = {min(last, round(layer * depth / PAPER_DEPTH)) for layer in PAPER_LAYERS}
            layers = tuple(sorted(scaled))
        checked = check_layers(layers, depth, of_output=True)
        columns = len(PAPER_LAYERS)
        if self.form == "released" and len(checked) > columns:
            raise ValueError(
                f"layers={checked} are {len(checked)}, but the released table has {columns} "
                "counts; pass fewer layers, or form='paper'"
            )
        return tuple(layer + 1 for layer in checked)

    def raters(self, visual: Tensor, text: Tensor) -> Tensor:
        share = torch.softmax(visual.float() @ text.float().mT, 1).mean(0)  # [m]
        above = share > share.mean()
        return (above | ~above.any()).nonzero().squeeze(1)

    def final_count(self, total: int) -> int:
        if self.form == "paper":
            return super().final_count(total)
        stages = len(PAPER_LAYERS if self.layers is None else self.layers)
        return self.planned(stages - 1, stages, total)

    def planned(self, stage: int, stages: int, total: int) -> int:
        if self.form == "paper":
            raise ValueError(
                "how many tokens sparsevlm with form='paper' drops depends on the prompt's "
                "attention; run a prefill and read pruned.visual_by_layer"
            )
        n = total
        for earlier in range(stage + 1):
            n = self._rows(n, self.own_count(earlier, stages, n, total))
        return n

    def count(self, stage: int, stages: int, tokens: DecoderTokens) -> int:
        n = len(tokens)
        if self.form == "released":
            return self._rows(n, self.own_count(stage, stages, n, tokens.total))
        final = self.final_count(tokens.total)
        if stage == stages - 1:
            return min(final, n)
        assert tokens.attention is not None
        rank = int(torch.linalg.matrix_rank(tokens.attention))
        return min(n, max(final, int(self.scale * rank)))

    def own_count(self, stage: int, stages: int, n: int, total: int) -> int:
        """Returns the table's count: how many of n tokens stay at a stage, without clusters.

        Args:
            stage: number of the stage, from 0.
            stages: number of stages.
            n: number of visual tokens before the stage, >= 1.
            total: number of visual tokens in the first layer.
        """
        # As a fraction, so that a setting of the table gives its row exactly.
        share = Fraction(kept_count(total, self.keep), total)  # type: ignore[arg-type]
        if isinstance(self.keep, float):
            share = Fraction(parts_per_million(self.keep), MILLION)
        if share == 1:
            return n
        column = stage - stages + len(PAPER_LAYERS)
        wanted = interpolated(share * PAPER_TOKENS, column) * total / PAPER_TOKENS
        return max(1, min(math.floor(wanted), n - 1))

    def at_stage(self, stage: int, stages: int, tokens: DecoderTokens) -> Reduction | None:
        if self.form == "paper":
            return super().at_stage(stage, stages, tokens)
        n = len(tokens)
        own = self.own_count(stage, stages, n, tokens.total)
        return None if self._rows(n, own) >= n else self.keep_and_recycle(tokens, own)

    def drop(self, tokens: DecoderTokens, k: int) -> Reduction:
        n = len(tokens)
        own = next((own for own in range(k, 1, -1) if self._rows(n, own) <= k), 1)
        return self.keep_and_recycle(tokens, own, most=k - own)

    def keep_and_recycle(
        self, tokens: DecoderTokens, own: int, most: int | None = None
    ) -> Reduction:
        """Keeps the tokens of the highest scores, and appends the means of clusters of others.

        Args:
            tokens: n visual tokens.
            own: how many of them stay, 1 to n - 1.
            most: the largest number of clusters, if there is a limit.
        """
        order = torch.sort(tokens.scores(), descending=True, stable=True).indices
        kept, dropped = order[:own].sort().values, order[own:]
        recycled = dropped[: self._recycled(len(dropped))].sort().values
        k = self._clusters(len(dropped)) if most is None else most
        k = min(k, self._clusters(len(dropped)))
        if not k:
            return Reduction(kept)
        _, cluster = density_peaks(tokens.hidden[recycled], k)
        weights = torch.zeros(k, len(tokens), device=kept.device)
        weights[cluster, recycled] = 1
        return Reduction(kept, appended=weights / weights.sum(1, keepdim=True))

    def _rows(self, n: int, own: int) -> int:
        """Returns how many rows come out of n if ``own`` of them stay, 1 to n."""
        return own + self._clusters(n - own)

    def _recycled(self, dropped: int) -> int:
        """Returns how many dropped tokens are recycled."""
        if not (dropped and self.recycle):
            return 0
        return min(dropped, int(self.recycle * dropped) + 1)

    def _clusters(self, dropped: int) -> int:
        """Returns how many clusters the dropped tokens form."""
        recycled = self._recycled(dropped)
        return min(recycled, int(self.clusters * recycled) + 1)


def interpolated(setting: Fraction, column: int) -> Fraction:
    """Returns how many of 576 tokens stay at a stage, linear between the settings of the table.

    Args:
        setting: 0 to 576.
        column: number of the stage, from 0.
    """
    lower = max(row for row in TABLE if row <= setting)
    if lower == setting:
        return Fraction(TABLE[lower][column])
    upper = min(row for row in TABLE if row > setting)
    start, end = TABLE[lower][column], TABLE[upper][column]
    return start + (end - start) * (setting - lower) / (upper - lower)


def density_peaks(points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Clusters points around their density peaks (DPC-KNN).

    A point's density is ``exp(-mean d²)`` over its k nearest points, itself included; d is the
    Euclidean distance divided by the square root of the number of channels. The centres are the k
    points with the largest product of density and distance to the nearest denser point; for the
    densest that distance is the largest of all. Of points of equal density, the one with the lowest
    index counts as denser, and ties go to it.

    Args:
        points: [n, d].
        k: number of clusters, 1 to n.

    Returns:
        centres: int64 [k], by that product, descending.
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
    centres = torch.sort(density * to_denser, descending=True, stable=True).indices[:k]
    cluster = distance[:, centres].argmin(1)
    cluster[centres] = torch.arange(k, device=points.device)
    return centres, cluster
