"""DivPrune: max-min diversity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import cosine_similarity, dense_fits
from gprune.pruners.base import Pruner
from gprune.pruners.greedy import CosineDistance, farthest_first
from gprune.pruners.registry import register
from gprune.tokens import VisualTokens


@register
@dataclass(frozen=True)
class DivPrune(Pruner):
    """Tokens that are far from each other in cosine distance (max-min diversity).

    Alvar, Singh, Akbari, Zhang: "DivPrune: Diversity-based Visual Token Pruning for Large
    Multimodal Models", CVPR 2025, arXiv 2503.02175 (algorithm 1). Follows the released code
    (vbdi/divprune, commit 799e2d9, CC BY-NC 4.0), as described by its observed behaviour. Reads
    projected features only.

    Distance is 1 − cosine. The first token is the one whose nearest neighbour is farthest; each
    next one is the token that is farthest from its nearest chosen one, see `farthest_first`.

    Mended: the released code does not exclude chosen tokens, whose distance is about 0, so that it
    can choose a token again where only copies of chosen ones are left; here no token is chosen
    twice. It divides by norms without a floor, so that a token of zero norm has no distance; here
    it has distance 1 to every other. Of n tokens it keeps round(share · n); here a share is rounded
    down, as for every method.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
    """

    name: ClassVar[str] = "divprune"

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        if not dense_fits(len(tokens)):
            return self._choose_by_rows(tokens, k)
        distance = 1 - cosine_similarity(tokens.features)
        to_others = distance.clone()
        to_others.fill_diagonal_(torch.inf)
        return farthest_first(distance, to_others.amin(1).argmax(), k).sort().values

    @staticmethod
    def _choose_by_rows(tokens: VisualTokens, k: int) -> Tensor:
        """Chooses the same tokens without the n-by-n matrix.

        O(n²d) for the first token, O(nd) for each other.
        """
        distance = CosineDistance(tokens.features)
        nearest = [
            (1 - similarity).scatter_(1, rows.unsqueeze(1), torch.inf).amin(1)
            for rows, similarity in distance.similarity.blocks()
        ]
        first = torch.cat(nearest).argmax()
        return farthest_first(distance, first, k, prefetch=True).sort().values
