"""Methods made for these tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gprune.pruners.decoder import DecoderPruner, check_layers
from gprune.pruners.reduction import Reduction


@dataclass(frozen=True)
class AppendsAndMerges(DecoderPruner):
    """Keeps the most attended tokens at two layers, halves their rows, and appends two sums.

    The sums differ, and depend on the order of the tokens, so that rows in another place show.
    """

    name: ClassVar[str] = "appends_and_merges"
    default_positions: ClassVar[str] = "compact"

    def stages(self, depth):
        return check_layers((1, 2), depth)

    def planned(self, stage, stages, total):
        final = self.final_count(total)
        return final if stage else (final + total) // 2

    def drop(self, tokens, k):
        n = len(tokens)
        own = max(1, k - 2)
        kept = torch.sort(tokens.scores(), descending=True, stable=True).indices[:own].sort().values
        weights = torch.zeros(own, n)
        weights[torch.arange(own), kept] = 0.5
        weights[:, 0] += 0.25
        appended = torch.stack([torch.linspace(0, 1, n), torch.linspace(1, -1, n)])
        return Reduction(kept, weights=weights, appended=appended[: k - own])
