"""The similarity graph over visual tokens, and information propagating through it.

The mathematics of G-Prune (Jiang et al., AAAI 2025, arXiv 2501.02268), free of model code:

* similarity: cosine of every pair of tokens, self-loops included;
* edges: pairs whose similarity reaches a threshold;
* transition: row softmax of similarity / temperature over the edges of the row;
* propagation: a row vector of information times the transition matrix, t times.

The self-loop is every row's largest logit (similarity 1), so the softmax needs no search for a
maximum: ``exp((S - 1) / T)`` divided by its sum over the row's edges. And a vector times a matrix
power is t vector-matrix products, O(t·n²) instead of O(n³).

Precision and determinism. Features of any dtype are compared in float32. Sums over tokens are taken
in float64, so that the order of summation, which differs between thread counts and devices, is far
below what a float32 score resolves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Matrix libraries treat the last rows of a product whose height is no multiple of their tile by
# another kernel, with another order of summation. Whole tiles make an entry depend on its two
# tokens alone, not on where they stand or on what else is in the product.
TILE = 32
# Copies have a cosine similarity of 1 but for rounding.
NEARLY_ONE = 1 - 1e-5
# Rows of the similarity matrix computed at a time: a few MB, and a whole number of tiles.
BLOCK = 512


def cosine_similarity(features: Tensor) -> Tensor:
    """Cosine similarity of every pair of tokens.

    Args:
        features: [..., n, d], floating point.

    Returns:
        float32 [..., n, n], symmetric, within [-1, 1], exactly 1 on the diagonal; a token of zero
        norm has similarity 0 with every token, itself included.
    """
    return _similarity(features, token_norms(features))


def _similarity(features: Tensor, norms: Tensor) -> Tensor:
    unit = _unit_rows(features, norms)
    n = features.shape[-2]
    padded = F.pad(unit, (0, 0, 0, -n % TILE)) if n % TILE else unit
    size = padded.shape[-2]
    similarity = padded.new_empty(*padded.shape[:-1], size)
    groups = padded.reshape(-1, *padded.shape[-2:])
    # One product a group: a batched kernel may sum in another order than a single one does.
    for group, out in zip(groups, similarity.view(-1, size, size), strict=True):
        _product_with_itself(group, out)
    similarity = similarity[..., :n, :n].clamp_(-1, 1)
    similarity.diagonal(dim1=-2, dim2=-1).copy_(unit.any(-1))
    return similarity


def _unit_rows(features: Tensor, norms: Tensor) -> Tensor:
    """Every token at unit L2 norm, float32 [..., n, d]; a token of zero norm stays zero."""
    wide = features if features.dtype == torch.float64 else features.float()
    # Scaled by a power of two first, which is exact: finite features can have a norm that float32
    # cannot hold.
    exponent = torch.frexp(norms).exponent.clamp(min=-120).unsqueeze(-1)
    scaled = torch.ldexp(wide, -exponent).float()
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled.div_(length.masked_fill_(length == 0, 1))


def _product_with_itself(unit: Tensor, out: Tensor) -> None:
    """Writes ``unit @ unit.T`` to ``out`` [n, n], computing one triangle by blocks of rows."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    # True float32 whatever the caller allows for its own products.
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        for start in range(0, len(unit), BLOCK):
            stop = min(start + BLOCK, len(unit))
            torch.mm(unit[start:stop], unit[:stop].mT, out=out[start:stop, :stop])
            out[:start, start:stop] = out[start:stop, :start].mT
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def token_norms(features: Tensor) -> Tensor:
    """L2 norm of every token, float64 [..., n]; ``features`` [..., n, d]."""
    return torch.linalg.vector_norm(features, dim=-1, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class SimilarityGraph:
    """A graph over the tokens of one group, or of a batch of groups of equal (padded) length.

    Attributes:
        weights: ``exp((S - 1) / T)`` on edges and 0 elsewhere, float32 [..., n, n], symmetric.
        degree: number of edges of each token, its self-loop included, int64 [..., n]; 0 for padding
            and for tokens of zero norm.
        norms: L2 norm of each token's features, float64 [..., n].
        first_copy: the first token with exactly the same features, int64 [..., n]. Copies tie by
            right, but what is computed for them can differ by rounding: giving every copy the value
            of the first makes the tie exact on every device.
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
        norms = token_norms(features)
        alive = norms > 0 if valid is None else (norms > 0) & valid
        weights = _similarity(features, norms)
        degree = torch.empty_like(norms, dtype=torch.long)
        nearest = torch.empty_like(degree)
        # By blocks of rows and in place: passing over the n-by-n matrix is what costs.
        for start in range(0, features.shape[-2], BLOCK):
            rows = slice(start, start + BLOCK)
            block = weights[..., rows, :]
            alike = norms[..., rows].unsqueeze(-1) == norms.unsqueeze(-2)
            alike &= alive[..., rows].unsqueeze(-1) == alive.unsqueeze(-2)
            alike &= (block >= NEARLY_ONE) | ~alive.unsqueeze(-2)
            nearest[..., rows] = alike.to(torch.uint8).argmax(-1)  # the first of equal maxima
            edge = block >= threshold
            edge &= alive[..., rows].unsqueeze(-1) & alive.unsqueeze(-2)
            degree[..., rows] = edge.sum(-1)
            block.sub_(1).div_(temperature).exp_().mul_(edge)
        return cls(weights, degree, norms, _confirmed_copies(features, nearest))

    def row_sums(self) -> Tensor:
        """Sum of each token's weights, float64 [..., n]; 1 where there is no edge."""
        sums = self.weights.sum(-1, dtype=torch.float64)
        return torch.where(self.degree > 0, sums, 1.0)

    def transition(self) -> Tensor:
        """The row-stochastic matrix A, float32 [..., n, n]; rows without edges are 0."""
        return (self.weights / self.row_sums().unsqueeze(-1)).float()

    def propagate(self, information: Tensor, iterations: int) -> Tensor:
        """``information @ A**iterations`` without forming a matrix power.

        Args:
            information: what each token starts with, [..., n].
            iterations: number of steps t, >= 0.

        Returns:
            float64 [..., n]. Mass is conserved: the sum over tokens with edges stays what it was.

        Raises:
            ValueError: iterations is negative.
        """
        check_iterations(iterations)
        scale = self.row_sums()
        weights = self.weights.double()
        current = information.double() * (self.degree > 0)
        for _ in range(iterations):
            current = ((current / scale).unsqueeze(-2) @ weights).squeeze(-2)  # [..., n]
        return current

    def neighbours(self, token: int, most: int) -> Tensor:
        """At most ``most`` strongest neighbours of a token of one group, strongest first, int64.

        The token itself is no neighbour; ties go to the lowest index.
        """
        weights = self.weights[token].clone()
        weights[token] = 0
        order = torch.sort(weights, descending=True, stable=True).indices[:most]
        return order[weights[order] > 0]


def _confirmed_copies(features: Tensor, suspected: Tensor) -> Tensor:
    """``suspected`` [..., n] where it names a token of exactly the same features, else oneself."""
    own = torch.arange(features.shape[-2], device=features.device).expand_as(suspected)
    if features.device.type == "cpu" and torch.equal(own, suspected):
        return own  # the usual case; asking an accelerator would stall it
    same = features.gather(-2, suspected.unsqueeze(-1).expand_as(features)) == features
    return torch.where(same.all(-1), suspected, own)


def check_threshold(threshold: float) -> None:
    """Raises ValueError unless ``threshold`` is a cosine."""
    if not -1 <= threshold <= 1:
        raise ValueError(
            f"threshold={threshold} must be a cosine similarity in [-1, 1]; "
            "the released G-Prune takes 0.5, the paper's best setting 0.7"
        )


def check_temperature(temperature: float) -> None:
    """Raises ValueError unless ``temperature`` is finite and positive."""
    if not 0 < temperature < float("inf"):
        raise ValueError(
            f"temperature={temperature} must be a finite number > 0; G-Prune takes 0.03"
        )


def check_iterations(iterations: int) -> None:
    """Raises ValueError unless ``iterations`` is a whole number that is not negative."""
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations={iterations!r} must be a whole number >= 0; G-Prune takes 5")
