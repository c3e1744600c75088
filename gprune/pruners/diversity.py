"""Methods that keep tokens far from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from gprune import graph
from gprune.graph import CosineRows, UnitRows, cosine_similarity
from gprune.pruners.base import Pruner, check_number, highest
from gprune.tokens import VisualTokens


class Rows(Protocol):
    """A matrix [n, n] that is read some rows [r, n] at a time."""

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


class RowReader:
    """Rows of a matrix that are read in about the order of some merit.

    Computing a single row takes as long as computing `gprune.graph.TILE` (a product's entries are
    the same wherever they are computed, at the price of whole tiles), so the rows that are likely
    to be read next come along: among 9,000 noisy copies of 450 directions one product then serves
    25 choices of `farthest_first`.

    Attributes:
        matrix: [n, n], or what computes its rows.
        ahead: whether they are computed, and others should come along.
    """

    def __init__(self, matrix: Tensor | Rows, ahead: bool) -> None:
        self.matrix = matrix
        self.ahead = ahead
        self._held: dict[int, Tensor] = {}

    def row(self, token: Tensor, merit: Tensor) -> Tensor:
        """The row [n] of a token [1]; tokens of high ``merit`` [n] are likely to be read next."""
        if not self.ahead or token.device.type != "cpu":
            # One in a list: indexing with a scalar tensor would read it back each time. And an
            # accelerator, which has a row in the time that it takes to read the features once,
            # would stall if it were asked which one is next.
            return self.matrix[token][0]
        index = int(token)
        if index not in self._held:
            likely = merit.topk(min(graph.TILE - 1, len(merit))).indices
            tokens = torch.cat([token, likely])
            self._held = dict(zip(tokens.tolist(), self.matrix[tokens], strict=True))
        return self._held[index]


def farthest_first(distance: Tensor | Rows, first: Tensor, k: int, ahead: bool = False) -> Tensor:
    """Greedy max-min selection: each next token is the one farthest from those chosen before.

    In a metric, every token then has a chosen one within twice the radius that the best k centres
    could reach (Gonzalez, 1985), and the smallest distance between chosen tokens is at least half
    of the largest possible one.

    Args:
        distance: of every pair, [n, n], or what gives its rows; any increasing function of a metric
            chooses the same.
        first: index of the first token, int64 [].
        k: how many to choose, 1 to n.
        ahead: whether rows are computed when they are read, see `RowReader`.

    Returns:
        int64 [k] in the order of choice; ties go to the lowest index.
    """
    rows = RowReader(distance, ahead)
    chosen = [first.reshape(1)]
    nearest = distance[chosen[0]][0]  # distance of each to the nearest chosen one
    nearest.index_fill_(0, chosen[0], -1)  # below every distance: it is never chosen again
    for _ in range(k - 1):
        following = nearest.argmax(keepdim=True)  # the first of several, on every device
        chosen.append(following)
        nearest = torch.minimum(nearest, rows.row(following, nearest))
        nearest.index_fill_(0, following, -1)
    return torch.cat(chosen)


@dataclass(frozen=True)
class DivPrune(Pruner):
    """Max-min diversity in cosine distance.

    Alvar, Singh, Akbari, Zhang: "DivPrune: Diversity-based Visual Token Pruning for Large
    Multimodal Models", CVPR 2025, arXiv 2503.02175 (algorithm 1). Needs features only.

    The first token is the one whose nearest neighbour is farthest; then greedily, see
    `farthest_first`. A token of zero norm has distance 1 to every other.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
    """

    name: ClassVar[str] = "divprune"

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        if len(tokens) > graph.WHOLE:
            return self._choose_by_rows(tokens, k)
        distance = 1 - cosine_similarity(tokens.features)
        others = distance.clone()
        others.fill_diagonal_(torch.inf)
        return farthest_first(distance, others.amin(1).argmax(), k).sort().values

    @staticmethod
    def _choose_by_rows(tokens: VisualTokens, k: int) -> Tensor:
        """The same tokens without the n-by-n matrix: O(n²d) for the first, O(nd) for each other."""
        distance = CosineDistance(tokens.features)
        nearest = [
            (1 - similarity).scatter_(1, rows.unsqueeze(1), torch.inf).amin(1)
            for rows, similarity in distance.similarity.blocks()
        ]
        first = torch.cat(nearest).argmax()
        return farthest_first(distance, first, k, ahead=True).sort().values


class CosineDistance:
    """1 − cosine similarity, row by row (see `gprune.graph.CosineRows`)."""

    def __init__(self, features: Tensor) -> None:
        self.similarity = CosineRows(features)

    def __getitem__(self, row: Tensor, /) -> Tensor:
        return 1 - self.similarity[row]


@dataclass(frozen=True)
class DART(Pruner):
    """The tokens that duplicate a few pivots least; the form that looks at features.

    Wen, Gao, Wang, Zhang, Zhang, Li, He, Zhang: "Stop Looking for Important Tokens in Multimodal
    Language Models: Duplication Matters More", EMNLP 2025, arXiv 2502.11494.

    The paper prunes inside the language model: pivots are the image (and text) tokens with the
    largest L1 norm of their keys. Here, before the language model, features stand for keys and all
    pivots are visual. Each pivot in turn, the largest norm first, takes an equal share of the
    remaining budget: the tokens least similar to it, in cosine, that no pivot has taken.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        pivots: how many, >= 1; 8 is the paper's setting (four of them text tokens there).

    Raises:
        ValueError: ``pivots`` is below 1.
    """

    pivots: int = 8

    name: ClassVar[str] = "dart"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("pivots", self.pivots, 1)

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        # In float64: float32 sums of many channels depend on the order of summation.
        norms = tokens.features.abs().sum(1, dtype=torch.float64)
        pivots = torch.sort(norms, descending=True, stable=True).indices[: min(self.pivots, k)]
        every = torch.arange(len(tokens), device=norms.device)
        different = -UnitRows(tokens.features).similarity(pivots, every)  # [pivots, n]
        taken = torch.zeros(len(tokens), dtype=torch.bool, device=norms.device)
        taken[pivots] = True
        left = k - len(pivots)
        for turn, scores in enumerate(different):
            share = -(-left // (len(pivots) - turn))
            if share:
                taken[highest(scores.masked_fill(taken, -torch.inf), share)] = True
            left -= share
        return highest(taken.float(), k)
