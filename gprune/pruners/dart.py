"""DART: tokens that duplicate a few pivots least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import UnitRows
from gprune.pruners.base import Pruner
from gprune.pruners.ranking import highest
from gprune.pruners.registry import register
from gprune.pruners.validation import check_number
from gprune.tokens import VisualTokens


@register
@dataclass(frozen=True)
class DART(Pruner):
    """A few pivots of large norm and the tokens that duplicate them least, by features.

    Wen, Gao, Wang, Zhang, Zhang, Li, He, Zhang: "Stop Looking for Important Tokens in Multimodal
    Language Models: Duplication Matters More", EMNLP 2025, arXiv 2502.11494.

    The paper prunes inside the language model: pivots are the image (and text) tokens with the
    largest L1 norm of their keys. Here, before the language model, features replace keys and all
    pivots are visual. Each pivot in turn, the largest norm first, takes an equal share of the
    remaining budget: the tokens least similar to it, in cosine, that no pivot has taken.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        pivots: number of pivots, >= 1; 8 is the paper's setting (four of them text tokens there).

    Raises:
        ValueError: ``pivots`` is below 1.
    """

    pivots: int = 8

    name: ClassVar[str] = "dart"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("pivots", self.pivots, 1)

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        # In float64: float32 sums over many channels depend on the order of summation.
        norms = tokens.features.abs().sum(1, dtype=torch.float64)
        pivots = torch.sort(norms, descending=True, stable=True).indices[: min(self.pivots, k)]
        every = torch.arange(len(tokens), device=norms.device)
        dissimilarity = -UnitRows(tokens.features).similarity(pivots, every)  # [pivots, n]
        taken = torch.zeros(len(tokens), dtype=torch.bool, device=norms.device)
        taken[pivots] = True
        left = k - len(pivots)
        for turn, scores in enumerate(dissimilarity):
            share = -(-left // (len(pivots) - turn))
            if share:
                taken[highest(scores.masked_fill(taken, -torch.inf), share)] = True
            left -= share
        return highest(taken.float(), k)
