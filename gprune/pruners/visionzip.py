"""VisionZip: the most attended tokens, and tokens with the mean of the others added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import CosineRows
from gprune.pruners.base import Pruner
from gprune.pruners.ranking import highest, unchosen
from gprune.pruners.reduction import Reduction, members_of
from gprune.pruners.registry import register
from gprune.pruners.validation import check_share
from gprune.tokens import VisualTokens

FORMS = ("released", "paper")


@register
@dataclass(frozen=True)
class VisionZip(Pruner):
    """The tokens with the most attention, and contextual tokens that carry the others.

    Yang, Chen, Tian, Wang, Li, Yu, Jia: "VisionZip: Longer is Better but Not Necessary in Vision
    Language Models", CVPR 2025, arXiv 2412.04467. Where paper and released code differ, this is the
    code (repository dvlab-research/VisionZip, commit 3151f6d), as its observed behaviour was
    described; selected tokens and merged rows are tested against what it gave.

    Dominant tokens are those with the most attention in the encoder's layer whose features the
    model takes: from its CLS token, averaged over heads, or if there is none the mean that a token
    receives from all. Of a budget of k, ⌊10k / 64⌋ are contextual and the others dominant. The
    remaining tokens, in raster order, have targets at the places 0, s, 2s…, as many as there are
    contextual tokens, with s the number of remaining tokens divided by theirs, rounded down. Each
    of the rest goes to the target whose key, the mean over heads of that layer, is most similar
    (cosine; the first of several). A contextual token is

        the target's own row + the mean of those that went to it,

    so it is about twice as long as another; its own row alone if none came. Dominant rows stay as
    they are. Rows are merged before the projector, where the model has one that works row by row;
    elsewhere projected features are merged.

    ``form="paper"`` averages a target and those that went to it, as the paper says.

    The released code keeps the CLS token's row as one more dominant token, so its 64 tokens are
    CLS, 53 and 10. The models here drop that row before the projector: all k rows are patches, 54
    and 10 of 64.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        contextual: share of the kept tokens that are contextual, in [0, 1), rounded down.
        form: ``released`` or ``paper``.

    Raises:
        ValueError: ``contextual`` is out of range, or ``form`` is unknown.
    """

    contextual: float = 10 / 64
    form: str = "released"

    name: ClassVar[str] = "visionzip"
    signals: ClassVar[tuple[str, ...]] = ("attention", "keys")
    optional_signals: ClassVar[tuple[str, ...]] = ("vision",)
    merges_before_projector: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("contextual", self.contextual, "[0, 1)")
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r} must be {' or '.join(FORMS)}")

    def choose(self, tokens: VisualTokens, k: int) -> Reduction:
        assert tokens.attention is not None  # by `signals`
        n, attention = len(tokens), tokens.attention.float()
        targets = int(k * self.contextual)
        dominant = highest(attention, k - targets)
        if targets == 0 or k == n:
            return Reduction(highest(attention, k))
        rest = unchosen(dominant, n)
        target = rest[:: len(rest) // targets][:targets]
        kept = torch.cat([dominant, target]).sort().values
        nearest = CosineRows(tokens.mean_keys())[target].argmax(0)  # ties to the first
        members = members_of(kept, target[nearest])  # those of dominant tokens are themselves
        if self.form == "paper":
            return Reduction(kept, members)
        return Reduction(kept, weights=own_and_mean(kept, members))


def own_and_mean(kept: Tensor, members: Tensor) -> Tensor:
    """Returns weights of each kept token's own row plus the mean of its other members.

    Args:
        kept: int64 [k].
        members: position in ``kept`` of the token that each token goes into, int64 [n].

    Returns:
        float32 [k, n].
    """
    came = torch.ones_like(members).index_fill(0, kept, 0)
    counts = torch.zeros_like(kept).index_add(0, members, came)
    share = 1 / counts[members].float()  # infinite where none came; kept tokens get 1 instead
    share = share.index_fill(0, kept, 1)
    weights = share.new_zeros(len(kept), len(members))
    return weights.scatter_(0, members[None], share[None])
