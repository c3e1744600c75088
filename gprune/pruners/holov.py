"""HoloV: a budget for each run of the sequence, by its attention and variety."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.device import to_device
from gprune.graph import UnitRows
from gprune.pruners.base import Pruner
from gprune.pruners.raster import raster_cells
from gprune.pruners.reduction import Reduction
from gprune.pruners.registry import register
from gprune.pruners.validation import check_number, check_weight
from gprune.tokens import VisualTokens

FORMS = ("released", "paper")

# Constants of the released code: the factor of attention, and what is added to norms, to mean
# variances and to the sum of the runs' weights.
ATTENTION_FACTOR = 1000.0
EPSILON = 1e-6

# In the paper's form, a crop's sum of variances below this is rounding.
MIN_VARIANCE_SUM = 1e-9


@register
@dataclass(frozen=True)
class HoloV(Pruner):
    """The most attended tokens of sixteen runs of the sequence; more of runs with high scores.

    Zou, Lu, Wang, Yan, Lyu, Zheng, Zhang, Hu: "Don't Just Chase 'Highlighted Tokens' in MLLMs:
    Revisiting Visual Holistic Context Retention", NeurIPS 2025, arXiv 2510.02912. Source of the
    facts: the observed behaviour of the released code (obananas/HoloV, commit 1d2e65e, Apache-2.0).

    The default is that code. The sequence of n tokens is cut into ``crops`` runs of ⌊n/crops⌋
    tokens, one more for the first n mod crops; fewer tokens than runs are a run each. In a run of m
    tokens, with y = x / (‖x‖ + 10⁻⁶), S = y yᵀ with a diagonal of 0, and a the attention of the CLS
    token (mean over heads; where there is none, the mean that a token receives):

        μᵢ = Σⱼ Sᵢⱼ / (m − 1)        vᵢ = Σⱼ (Sᵢⱼ − μᵢ)² / (m − 1)        bᵢ = 1000 aᵢ
        scoreᵢ = bᵢ + context_weight · vᵢ · mean |b| / (mean |v| + 10⁻⁶)

    The sum over j includes the diagonal, which adds μᵢ² / (m − 1). The weight of a run is its mean
    score (of a run of one token, a itself), w = weight / (Σ weights + 10⁻⁶) is its share, and it
    gets ⌊w k⌋ tokens; what is left of k goes one each to the runs of the largest w. A run keeps the
    tokens of the highest **attention alone**: scores decide budgets only. Because of the two means,
    they change them little: wherever mean |v| is far above 10⁻⁶, a run's weight is its attention
    times 1 + context_weight.

    Mended: in the released code, tokens that a run is given beyond its size are lost, and zero rows
    stand at the end in their place. Here they go to the other runs, one each in the order of w,
    again and again until k is reached; all that the released code keeps stays. Pass
    ``lose_surplus=True`` for the released behaviour: the zero rows come out as appended rows, so
    that there are k rows.

    Differs on purpose: the released code passes the tokens on run by run, in the order of their
    attention; here they stay in the order of the sequence.

    ``form="paper"`` is the method as the paper states it: the crops are cells of the picture (of
    the sequence, without a grid), v leaves out the diagonal, there is no 10⁻⁶ under the context
    term, the highest **scores** of a crop are kept, and no token is lost. The paper's optional
    step, fetching back pruned context inside the language model, is not implemented.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        crops: number of runs or crops, >= 1.
        context_weight: weight of the variance against attention, >= 0.
        form: ``released`` or ``paper``.
        lose_surplus: whether tokens beyond the size of a run are lost and zero rows take their
            place. Synchronises an accelerator, because their number depends on values.

    Raises:
        ValueError: a parameter is out of range.
    """

    crops: int = 16
    context_weight: float = 0.09
    form: str = "released"
    lose_surplus: bool = False

    name: ClassVar[str] = "holov"
    signals: ClassVar[tuple[str, ...]] = ("attention",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("crops", self.crops, 1)
        check_weight("context_weight", self.context_weight)
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r} must be {' or '.join(FORMS)}")
        if self.form == "paper" and self.lose_surplus:
            raise ValueError(
                "lose_surplus=True needs form='released': the paper's form loses no tokens"
            )

    def crops_of(self, tokens: VisualTokens) -> list[Tensor]:
        """Returns the tokens of each run or crop, int64 [m], ascending, on the host."""
        n, index = len(tokens), torch.arange(len(tokens))
        count = min(self.crops, n)
        if self.form == "released":
            return list(index.tensor_split(count))
        rows, columns = tokens.grid or (1, n)
        raster = index.view(rows, columns)
        cells = raster_cells(rows, columns, count)
        return [raster[cell.rows, cell.columns].flatten() for cell in cells]

    def token_scores(
        self, tokens: VisualTokens, crops: Sequence[Tensor], membership: Tensor
    ) -> Tensor:
        """Returns attention plus weighted context of every token, float64 [n].

        Args:
            tokens: the group.
            crops: the tokens of each crop, int64 [m], ascending.
            membership: 1 where a crop contains a token, else 0, float64 [crops, n].
        """
        assert tokens.attention is not None  # by `signals`
        released = self.form == "released"
        unit = UnitRows(tokens.features)
        shrink = unit.norms / (unit.norms + EPSILON) if released else torch.ones_like(unit.norms)
        variance = torch.empty_like(shrink)
        for crop in crops:
            variance[crop] = variance_in_crop(unit.similarity(crop, crop), shrink[crop], released)
        size = membership.sum(1)
        # The released code forgets the factor in runs of one token.
        factor = torch.where((size > 1) | (not released), ATTENTION_FACTOR, 1.0).double()
        attention = tokens.attention.double() * (factor @ membership)
        attention_sum, variance_sum = membership @ attention.abs(), membership @ variance  # [crops]
        if released:
            scale = attention_sum / (variance_sum + EPSILON * size)
        else:
            scale = torch.where(variance_sum > MIN_VARIANCE_SUM, attention_sum / variance_sum, 0)
        return attention + self.context_weight * variance * (scale @ membership)

    def choose(self, tokens: VisualTokens, k: int) -> Reduction:
        assert tokens.attention is not None  # by `signals`
        device = tokens.features.device
        crops = self.crops_of(tokens)
        n, count = len(tokens), len(crops)
        sizes = [len(crop) for crop in crops]
        by_crop = to_device(torch.cat(crops), device)
        number = to_device([i for i, size in enumerate(sizes) for _ in range(size)], device)
        crop_of = torch.empty_like(number).index_copy_(0, by_crop, number)  # [n]
        membership = torch.zeros(count, n, dtype=torch.float64, device=device)
        membership[crop_of, torch.arange(n, device=device)] = 1
        scores = self.token_scores(tokens, torch.split(by_crop, sizes), membership)
        size = membership.sum(1)
        ranked = tokens.attention if self.form == "released" else scores
        rank = rank_in_crop(ranked.float(), crop_of, size)
        mean = membership @ scores / size
        # In float32, so that equal crops tie.
        weights = (mean / (mean.sum() + EPSILON)).float()
        if self.lose_surplus:
            return keep_released_counts(rank, crop_of, weights, k)
        return Reduction(keep_by_shares(rank, crop_of, weights, k))


def rank_in_crop(scores: Tensor, crop_of: Tensor, size: Tensor) -> Tensor:
    """Returns the rank of each token in its crop by descending score, from 0, int64 [n].

    Args:
        scores: [n].
        crop_of: crop of each token, int64 [n].
        size: number of tokens of each crop, [crops].
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    order = order[torch.sort(crop_of[order], stable=True).indices]  # by crop, then by score
    starts = (size.cumsum(0) - size).long()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - starts[crop_of[order]]
    return rank


def shares_and_turns(weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns what each crop gets of ``k`` tokens at first, and its place in the order of weights.

    Args:
        weights: shares of the crops, float32 [crops].
        k: how many tokens to keep.

    Returns:
        share: ⌊weight · k⌋, at least 0, int64 [crops].
        turn: 0 for the largest weight, ties to the first, int64 [crops].
    """
    heaviest = torch.sort(weights, descending=True, stable=True).indices
    turn = torch.empty_like(heaviest)
    turn[heaviest] = torch.arange(len(weights), device=turn.device)
    return (weights * k).floor().long().clamp(min=0), turn


def keep_by_shares(rank: Tensor, crop_of: Tensor, weights: Tensor, k: int) -> Tensor:
    """Chooses ``k`` tokens, int64 [k], ascending, with each crop's share by its weight.

    Args:
        rank: of each token in its crop, int64 [n].
        crop_of: crop of each token, int64 [n].
        weights: of the crops, sum 1 or less, float32 [crops].
        k: 1 to n.
    """
    share, turn = shares_and_turns(weights, k)
    # First the shares; then, in rounds, one token of each crop, the heaviest crop first.
    excess = rank - share[crop_of]
    priority = torch.where(excess < 0, -1, excess * len(weights) + turn[crop_of])
    return torch.sort(priority, stable=True).indices[:k].sort().values


def keep_released_counts(rank: Tensor, crop_of: Tensor, weights: Tensor, k: int) -> Reduction:
    """Chooses as the released code does; arguments as `keep_by_shares`.

    Each crop gets its share, and of what is left the heaviest crops get one token each. Zero rows
    are appended for what is beyond the size of a crop.
    """
    share, turn = shares_and_turns(weights, k)
    count = share + (turn < k - share.sum())
    kept = (rank < count[crop_of]).nonzero().squeeze(1)
    lost = k - len(kept)
    if not lost:
        return Reduction(kept)
    return Reduction(kept, appended=rank.new_zeros(lost, len(rank), dtype=torch.float32))


def variance_in_crop(similarity: Tensor, shrink: Tensor, with_diagonal: bool) -> Tensor:
    """Returns the variance of each token's similarities with the others of its crop, float64 [m].

    Args:
        similarity: cosines, [m, m].
        shrink: length of each token as it is compared, float64 [m].
        with_diagonal: whether a similarity of 0 with itself is one more summand, as in the released
            code; the divisor is m - 1 either way.
    """
    others = max(1, len(similarity) - 1)
    wide = similarity.double() * torch.outer(shrink, shrink)
    wide.fill_diagonal_(0)  # which would be rounded
    mean = wide.sum(1, keepdim=True) / others
    squares = (wide - mean).square()
    if not with_diagonal:
        squares.fill_diagonal_(0)
    return squares.sum(1) / others
