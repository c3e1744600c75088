"""G-Prune: propagate information through the similarity graph, keep what gathers most."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gprune.budget import Keep, Shares, budgets, kept_count
from gprune.graph import (
    WHOLE,
    SimilarityGraph,
    check_iterations,
    check_temperature,
    check_threshold,
)
from gprune.graph.tiled import TiledGraph
from gprune.pruners.base import ScorePruner, highest
from gprune.tokens import VisualTokens

if TYPE_CHECKING:
    from gprune.graph.triton import KernelGraph

# What computes the graph; Triton is imported when it is asked for.
BACKENDS = ("torch", "triton")


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
        backend: ``torch``, or ``triton`` for kernels of our own on a GPU (`gprune.graph.triton`),
            which take all images of a batch in one launch sequence. They were run in Triton's
            interpreter and compiled for GPUs, but not yet timed on one, so ``torch`` is the
            default there too.

    Raises:
        TypeError, ValueError: a value is out of range, ``backend`` is neither, or Triton is not
            installed.

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
    backend: str = "torch"

    name: ClassVar[str] = "gprune"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        check_temperature(self.temperature)
        check_iterations(self.iterations)
        check_backend(self.backend)

    @classmethod
    def paper(cls, keep: Keep) -> GPrune:
        """The best setting of the paper's ablation: threshold 0.7, five iterations."""
        return cls(keep, threshold=0.7)

    def graph(self, tokens: VisualTokens) -> SimilarityGraph:
        """The graph that the scores are computed on."""
        return SimilarityGraph.build(tokens.features, self.threshold, self.temperature)

    def score(self, tokens: VisualTokens) -> Tensor:
        """Propagated information divided by degree, float32 [n]; -inf for tokens of zero norm."""
        if self.backend == "triton":
            return self._scores([tokens])[0]
        graph: SimilarityGraph | TiledGraph
        if tokens.features.device.type == "cpu" or len(tokens) > WHOLE:
            graph = TiledGraph.build(tokens.features, self.threshold, self.temperature)
        else:
            graph = self.graph(tokens)  # few large launches, which an accelerator likes better
        return self._of_graph(graph)

    def ranked(self, tokens: VisualTokens, scores: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
        """What `partition` returns, of tokens whose ``scores`` [n] are known."""
        return highest(scores, k), None

    def reduce_groups(self, groups: Sequence[VisualTokens]) -> list[tuple[Tensor, Tensor | None]]:
        if self.backend == "torch":
            return super().reduce_groups(groups)
        return self.reduce_images([groups])[0]

    @torch.no_grad()
    def reduce_images(
        self, images: Sequence[Sequence[VisualTokens]]
    ) -> list[list[tuple[Tensor, Tensor | None]]]:
        if self.backend == "torch":
            return super().reduce_images(images)
        for groups in images:
            self._check(groups)
        jobs = [
            pair
            for groups in images
            for pair in zip(groups, budgets(self.keep, groups), strict=True)
        ]
        # Groups with protected tokens or a budget for each part are divided first, by themselves.
        plain = [t for t, keep in jobs if t.protected is None and not isinstance(keep, Shares)]
        scores = iter(self._scores(plain))
        reduced = iter(
            [
                self._reduce(tokens, keep)
                if tokens.protected is not None or isinstance(keep, Shares)
                else self.ranked(tokens, next(scores), kept_count(len(tokens), keep))
                for tokens, keep in jobs
            ]
        )
        return [[next(reduced) for _ in groups] for groups in images]

    def _scores(self, groups: Sequence[VisualTokens]) -> list[Tensor]:
        """`score` of each group, by the kernels."""
        kernels = importlib.import_module("gprune.graph.triton")
        every: list[Tensor] = []
        for some in kernels.batches([tokens.features for tokens in groups]):
            counts = [len(features) for features in some]
            graph = kernels.KernelGraph.build(
                torch.cat(some), counts, self.threshold, self.temperature
            )
            every += torch.split(self._of_graph(graph), counts)
        return every

    def _of_graph(self, graph: SimilarityGraph | TiledGraph | KernelGraph) -> Tensor:
        information = graph.propagate(graph.norms, self.iterations)
        scores = information / graph.degree.clamp(min=1)
        scores = torch.where(graph.degree > 0, scores, -torch.inf)
        return scores[graph.first_copy].float()


def check_backend(backend: str) -> None:
    """Raises ValueError unless ``backend`` is known and installed."""
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} must be one of {', '.join(BACKENDS)}")
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        raise ValueError(
            "backend='triton' needs Triton, which comes with PyTorch for CUDA and is not "
            "installed; install it, or take backend='torch'"
        )
