"""G-Prune: propagate information through the similarity graph, keep what gathers most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.budget import Keep
from gprune.graph import (
    WHOLE,
    SimilarityGraph,
    check_iterations,
    check_temperature,
    check_threshold,
)
from gprune.pruners.base import ScorePruner
from gprune.tiles import TiledGraph
from gprune.tokens import VisualTokens


@dataclass(frozen=True)
class GPrune(ScorePruner):
    """Graph-based token pruning, as the authors' released code computes it.

    Jiang, Wu, Lin, Yu, Zhou: "What Kind of Visual Tokens Do We Need? Training-free Visual Token
    Pruning for Multi-modal Large Language Models from the Perspective of Graph", AAAI 2025,
    arXiv 2501.02268.

    Tokens are nodes, joined where their cosine similarity reaches ``threshold``. Each starts with
    its L2 norm as information, which a row softmax at ``temperature`` spreads over its edges,
    ``iterations`` times. The score is what a token holds in the end, divided by its number of
    edges; the ``keep`` highest are kept in their original order. Needs features only.

    A token of zero norm carries no information: it has no edges and ranks last.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        threshold: s, least cosine similarity of an edge, in [-1, 1].
        temperature: T of the row softmax, > 0.
        iterations: t, propagation steps, >= 0.

    The defaults are those of the released code; `GPrune.paper` is the setting that the paper's
    ablation reports as best.

    >>> import torch
    >>> from gprune import GPrune, VisualTokens
    >>> features = torch.tensor([[3.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    >>> GPrune(keep=2).select(VisualTokens(features))
    tensor([0, 1])
    """

    threshold: float = 0.5
    temperature: float = 0.03
    iterations: int = 5

    name: ClassVar[str] = "gprune"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        check_temperature(self.temperature)
        check_iterations(self.iterations)

    @classmethod
    def paper(cls, keep: Keep) -> GPrune:
        """The best setting of the paper's ablation: threshold 0.7, five iterations."""
        return cls(keep, threshold=0.7)

    def graph(self, tokens: VisualTokens) -> SimilarityGraph:
        """The graph that the scores are computed on."""
        return SimilarityGraph.build(tokens.features, self.threshold, self.temperature)

    def score(self, tokens: VisualTokens) -> Tensor:
        """Propagated information divided by degree, float32 [n]; -inf for tokens of zero norm."""
        graph: SimilarityGraph | TiledGraph
        if tokens.features.device.type == "cpu" or len(tokens) > WHOLE:
            graph = TiledGraph.build(tokens.features, self.threshold, self.temperature)
        else:
            graph = self.graph(tokens)  # few large launches, which an accelerator likes better
        information = graph.propagate(graph.norms, self.iterations)
        scores = information / graph.degree.clamp(min=1)
        scores = torch.where(graph.degree > 0, scores, -torch.inf)
        return scores[graph.first_copy].float()
