"""G-Prune's mathematics: the similarity graph of tokens and propagation on it.

Jiang et al., AAAI 2025, arXiv 2501.02268:

* similarity S: cosine of every pair of tokens, self-loops included;
* edges: pairs whose similarity reaches a threshold;
* transition A: row softmax of S / temperature over the edges of the row;
* propagation: a row vector of information times A, t times.

A self-loop is the largest logit of its row (similarity 1), so the softmax needs no search for a
maximum: it is ``exp((S - 1) / temperature)`` divided by its sum over the row's edges. A vector
times a matrix power is t vector-matrix products, O(t·n²) instead of O(n³).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gprune.graph.copies import COPY_SIMILARITY, confirm_copies
from gprune.graph.cosine import similarity_matrix
from gprune.graph.half import vanishing_weights
from gprune.graph.parameters import check_iterations, check_temperature, check_threshold
from gprune.graph.products import row_blocks
from gprune.graph.rows import UnitRows


@dataclass(frozen=True, eq=False)
class SimilarityGraph:
    """A graph over the tokens of one group, or of a batch of groups of equal (padded) length.

    Attributes:
        weights: ``exp((S - 1) / temperature)`` on edges and 0 elsewhere, float32 [..., n, n],
            symmetric.
        degree: number of edges of each token, its self-loop included, int64 [..., n]; 0 for padding
            and for tokens of zero norm.
        norms: L2 norm of each token's features, float64 [..., n].
        first_copy: the first token with exactly the same features, int64 [..., n]. Copies must tie,
            but what is computed for them can differ by rounding: giving every copy the value of the
            first one makes the tie exact on every device.
    """

    weights: Tensor
    degree: Tensor
    norms: Tensor
    first_copy: Tensor

    @classmethod
    def build(
        cls,
        features: Tensor,
        threshold: float,
        temperature: float,
        valid: Tensor | None = None,
    ) -> SimilarityGraph:
        """Builds the graph of arXiv 2501.02268.

        Args:
            features: [n, d], or [b, n, d] for a batch.
            threshold: least cosine similarity of an edge, in [-1, 1].
            temperature: of the row softmax, > 0.
            valid: bool [..., n]; false marks the padding of ragged groups. None: all are valid.

        Raises:
            ValueError: threshold or temperature is out of range.
        """
        check_threshold(threshold)
        check_temperature(temperature)
        unit = UnitRows(features.reshape(-1, features.shape[-1]))
        norms = unit.norms.view(features.shape[:-1])
        active = norms > 0 if valid is None else (norms > 0) & valid
        weights = similarity_matrix(unit, features.shape)
        degree = torch.empty_like(norms, dtype=torch.long)
        suspected = torch.empty_like(degree)
        # By blocks of rows and in place: the passes over the n-by-n matrix are what costs.
        for rows in row_blocks(features.shape[-2]):
            similarity = weights[..., rows, :]  # [..., r, n]
            suspected[..., rows] = _first_lookalikes(similarity, rows, norms, active)
            edges = similarity >= threshold
            edges &= active[..., rows].unsqueeze(-1) & active.unsqueeze(-2)
            degree[..., rows] = edges.sum(-1)
            edge_weights(similarity, temperature).mul_(edges)
        return cls(weights, degree, norms, confirm_copies(features, suspected))

    def row_sums(self) -> Tensor:
        """Returns the sum of each token's weights, float64 [..., n]; 1 where there is no edge."""
        sums = self.weights.sum(-1, dtype=torch.float64)
        return torch.where(self.degree > 0, sums, 1.0)

    def float16_degree(self) -> Tensor:
        """Counts the weights of each row that are above 0 in float16, int64 [..., n].

        That is, of `transition`, self-loops included; see `gprune.graph.half`.
        """
        vanishing = vanishing_weights(self.row_sums()).unsqueeze(-1)
        degree = torch.empty_like(self.degree)
        for rows in row_blocks(self.degree.shape[-1]):
            degree[..., rows] = (self.weights[..., rows, :] > vanishing[..., rows, :]).sum(-1)
        return degree

    def transition(self) -> Tensor:
        """Returns the row-stochastic A, float32 [..., n, n]; rows without edges are 0."""
        return (self.weights / self.row_sums().unsqueeze(-1)).float()

    def propagate(self, information: Tensor, iterations: int) -> Tensor:
        """Returns ``information @ A**iterations`` without forming a matrix power.

        Args:
            information: initial value of each token, [..., n].
            iterations: number of steps t, >= 0.

        Returns:
            float64 [..., n]. Its sum over the tokens that have edges is that of ``information``.

        Raises:
            ValueError: iterations is negative.
        """
        check_iterations(iterations)
        row_sums = self.row_sums()
        weights = self.weights.double()
        current = information.double() * (self.degree > 0)
        for _ in range(iterations):
            current = ((current / row_sums).unsqueeze(-2) @ weights).squeeze(-2)  # [..., n]
        return current

    def neighbours(self, token: int, most: int) -> Tensor:
        """Returns the strongest neighbours of a token of one group, strongest first, int64.

        At most ``most`` of them, without the token itself; ties go to the lowest index.
        """
        weights = self.weights[token].clone()
        weights[token] = 0
        order = torch.sort(weights, descending=True, stable=True).indices[:most]
        return order[weights[order] > 0]


def edge_weights(similarity: Tensor, temperature: float) -> Tensor:
    """Overwrites similarities S with the weights of edges, ``exp((S - 1) / temperature)``."""
    return similarity.sub_(1).div_(temperature).exp_()


def _first_lookalikes(similarity: Tensor, rows: slice, norms: Tensor, active: Tensor) -> Tensor:
    """Returns the first token that may be a copy of each of some tokens, int64 [..., r].

    Args:
        similarity: of these tokens with all, float32 [..., r, n].
        rows: which tokens they are.
        norms: float64 [..., n].
        active: bool [..., n]; others (padding and zero norms) only look like each other.
    """
    alike = norms[..., rows].unsqueeze(-1) == norms.unsqueeze(-2)
    alike &= active[..., rows].unsqueeze(-1) == active.unsqueeze(-2)
    alike &= (similarity >= COPY_SIMILARITY) | ~active.unsqueeze(-2)
    return alike.to(torch.uint8).argmax(-1)  # the first of equal maxima
