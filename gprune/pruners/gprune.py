"""G-Prune: tokens that gather the most information in the similarity graph."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gprune.budget import Budget, Keep, PartBudgets, budgets, kept_count
from gprune.graph import (
    SimilarityGraph,
    check_iterations,
    check_temperature,
    check_threshold,
    dense_fits,
)
from gprune.graph.tiled import TiledGraph
from gprune.pruners.base import ScorePruner
from gprune.pruners.ranking import highest
from gprune.pruners.reduction import Reduction
from gprune.pruners.registry import register
from gprune.tokens import VisualTokens

if TYPE_CHECKING:
    from gprune.graph.triton import KernelGraph

# Implementations of the graph; Triton is imported on first use.
BACKENDS = ("torch", "triton")
# Precisions in which a weight must be above 0 for its edge to count in a token's degree.
DEGREES = ("float32", "float16")


@register
@dataclass(frozen=True)
class GPrune(ScorePruner):
    """The tokens that gather the most information in the similarity graph (graph-based pruning).

    Jiang, Wu, Lin, Yu, Zhou: "What Kind of Visual Tokens Do We Need? Training-free Visual Token
    Pruning for Multi-modal Large Language Models from the Perspective of Graph", AAAI 2025,
    arXiv 2501.02268. Follows what the released code (jytmelon/G-Prune, commit 762c637, no licence
    stated) computes in float32, as described by its observed behaviour.

    Tokens are nodes, joined where their cosine similarity reaches ``threshold``. Each starts with
    its L2 norm as information, which a row softmax at ``temperature`` spreads over its edges,
    ``iterations`` times. The score is a token's final information divided by its number of edges;
    the highest are kept in their original order. Reads features only. LLaVA-NeXT's thumbnail and
    its canvas of tiles are two graphs with a budget each, and row ends always stay, as released.

    A token of zero norm carries no information: it has no edges and ranks last.

    **Half precision.** The released code counts as a token's edges the weights of its row, after
    the softmax, that are above 0 in the dtype of the features. In float32 and bfloat16 these are
    all edges. In float16, in which LLaVA is usually run, a weight of 2⁻²⁵ or less is rounded to 0:
    an edge at similarity 0.5 vanishes as soon as the weights of its row add up to 1.94 times that
    of the self-loop, one at 0.6 at 54 times. A token in a cluster then has fewer edges, and a
    higher score, than in float32. ``degree="float16"`` counts so, whatever dtype the features
    have, on every backend. It changes the degree alone: similarities, weights and propagation stay
    in float32 and float64, where the released code rounds these too. On the shipped tiny model's
    features of 200 validation scenes (``python benchmarks/half_precision.py``), 77% of the tokens
    have another degree at threshold 0.5, and other tokens are kept in 94%, 90%, 68% and 45% of the
    scenes at keep 0.5, 0.36, 0.25 and 0.1; 96%, 95%, 96% and 97% of the kept tokens are the same.
    At threshold 0.7 nothing changes: a row would have to add up to 1,523. Selection takes up to
    half as long again.

    Attributes:
        keep: retention ratio in (0, 1], or a count >= 1 (see `Pruner`).
        threshold: s, least cosine similarity of an edge, in [-1, 1].
        temperature: T of the row softmax, > 0.
        iterations: t, propagation steps, >= 0.
        backend: ``torch``, or ``triton`` for this project's GPU kernels (`gprune.graph.triton`),
            which process all images of a batch in one launch sequence. They were run in Triton's
            interpreter and compiled for GPUs, but not yet timed on one, so ``torch`` is the
            default there too.
        degree: ``float32`` counts all edges; ``float16`` those whose weight float16 can hold, as
            the released code does in half precision.

    Raises:
        TypeError, ValueError: a value is out of range, ``backend`` or ``degree`` is unknown, or
            Triton is not installed.

    The defaults are those of the released code; `GPrune.paper` is the setting that the paper's
    ablation reports as best.

    Examples:
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
    degree: str = "float32"

    name: ClassVar[str] = "gprune"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        check_temperature(self.temperature)
        check_iterations(self.iterations)
        check_backend(self.backend)
        check_degree(self.degree)

    @classmethod
    def paper(cls, keep: Keep) -> GPrune:
        """Returns the best setting of the paper's ablation: threshold 0.7, five iterations."""
        return cls(keep, threshold=0.7)

    def graph(self, tokens: VisualTokens) -> SimilarityGraph:
        """Returns the graph that scores are computed on."""
        return SimilarityGraph.build(tokens.features, self.threshold, self.temperature)

    def score(self, tokens: VisualTokens) -> Tensor:
        """Returns propagated information divided by degree, float32 [n].

        It is -inf for tokens of zero norm.
        """
        if self.backend == "triton":
            return self.kernel_scores([tokens])[0]
        graph: SimilarityGraph | TiledGraph
        if tokens.features.device.type == "cpu" or not dense_fits(len(tokens)):
            graph = TiledGraph.build(tokens.features, self.threshold, self.temperature)
        else:
            graph = self.graph(tokens)  # few large launches, which are faster on an accelerator
        return self._scores_on(graph)

    def choose(self, tokens: VisualTokens, k: int) -> Reduction:
        return self.reduce_scored(tokens, self.score(tokens), k)

    def reduce_scored(self, tokens: VisualTokens, scores: Tensor, k: int) -> Reduction:
        """Reduces tokens whose ``scores`` [n] are known to ``k`` of them."""
        return Reduction(highest(scores, k))

    def reduce_groups(self, groups: Sequence[VisualTokens]) -> list[Reduction]:
        if self.backend == "torch":
            return super().reduce_groups(groups)
        return self.reduce_images([groups])[0]

    @torch.no_grad()
    def reduce_images(self, images: Sequence[Sequence[VisualTokens]]) -> list[list[Reduction]]:
        """Runs `reduce_groups` on several images; the kernels score them in batches."""
        if self.backend == "torch":
            return super().reduce_images(images)
        for groups in images:
            self.check(groups)
        keeps = [budgets(self.keep, groups) for groups in images]
        plain = [
            tokens
            for groups, given in zip(images, keeps, strict=True)
            for tokens, budget in zip(groups, given, strict=True)
            if not _is_divided(tokens, budget)
        ]
        scores = iter(self.kernel_scores(plain))

        def reduced(tokens: VisualTokens, budget: Budget | PartBudgets) -> Reduction:
            if _is_divided(tokens, budget):
                return self.reduce_within(tokens, budget)
            assert not isinstance(budget, str | PartBudgets)  # "adaptive" was refused
            return self.reduce_scored(tokens, next(scores), kept_count(len(tokens), budget))

        return [
            [reduced(*pair) for pair in zip(groups, given, strict=True)]
            for groups, given in zip(images, keeps, strict=True)
        ]

    def kernel_scores(self, groups: Sequence[VisualTokens]) -> list[Tensor]:
        """Returns `score` of each group, computed by the Triton kernels."""
        kernels = importlib.import_module("gprune.graph.triton")
        scores: list[Tensor] = []
        for batch in kernels.batches([tokens.features for tokens in groups]):
            counts = [len(features) for features in batch]
            graph = kernels.KernelGraph.build(
                torch.cat(batch), counts, self.threshold, self.temperature
            )
            scores += torch.split(self._scores_on(graph), counts)
        return scores

    def _scores_on(self, graph: SimilarityGraph | TiledGraph | KernelGraph) -> Tensor:
        """Returns `score` of the tokens of a graph, float32 [n]."""
        information = graph.propagate(graph.norms, self.iterations)
        degree = graph.float16_degree() if self.degree == "float16" else graph.degree
        scores = information / degree.clamp(min=1)
        scores = torch.where(graph.degree > 0, scores, -torch.inf)
        return scores[graph.first_copy].float()


def _is_divided(tokens: VisualTokens, budget: Budget | PartBudgets) -> bool:
    """Whether protected tokens or budgets for parts divide a group, which is then scored singly."""
    return tokens.protected is not None or isinstance(budget, PartBudgets)


def check_backend(backend: str) -> None:
    """Checks that ``backend`` is known and installed.

    Raises:
        ValueError: it is not.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} must be one of {', '.join(BACKENDS)}")
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        raise ValueError(
            "backend='triton' needs Triton, which comes with PyTorch for CUDA and is not "
            "installed; install it, or take backend='torch'"
        )


def check_degree(degree: str) -> None:
    """Checks that ``degree`` is known.

    Raises:
        ValueError: it is not.
    """
    if degree not in DEGREES:
        raise ValueError(
            f"degree={degree!r} must be one of {', '.join(DEGREES)}; in bfloat16 no weight "
            "vanishes, so float32 stands for it too"
        )
