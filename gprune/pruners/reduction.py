"""What a method returns for one group: which tokens stay and what becomes of the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gprune.graph import row_blocks
from gprune.pruners.ranking import unchosen

# Largest number of entries of the sharing matrix that `mean_by_product` builds at once (256 MB).
MATRIX_ENTRIES = 2**26


@dataclass(frozen=True, eq=False)
class Reduction:
    """The result of a method on one group of n tokens.

    Attributes:
        kept: indices of the kept tokens, int64 [k], ascending.
        members: for each token the position in ``kept`` of the token it is averaged into, or -1 if
            it is dropped, int64 [n]. A kept token's new feature is the mean of its members.
            None if the method does not merge by averaging.
        weights: the weight of each token in each kept one, float [k, n]: a kept token's new feature
            is the weighted sum. None if the method does not merge by weights.
        appended: the weight of each token in each of a additional rows that are no token's own,
            float [a, n]. They take the positions of the last a dropped tokens. None if there are
            none.

    Raises:
        ValueError: both ``members`` and ``weights`` are given.
    """

    kept: Tensor
    members: Tensor | None = None
    weights: Tensor | None = None
    appended: Tensor | None = None

    def __post_init__(self) -> None:
        if self.members is not None and self.weights is not None:
            raise ValueError(
                "members and weights are both given; a kept token is either the mean of its "
                "members or a weighted sum, pass one of them"
            )

    def __len__(self) -> int:
        """Number of tokens after pruning."""
        return len(self.kept) + (0 if self.appended is None else len(self.appended))

    @property
    def merges(self) -> bool:
        """Whether any resulting feature differs from the token's own."""
        return not (self.members is None and self.weights is None and self.appended is None)

    def positions(self, n: int) -> Tensor:
        """Returns the positions in the group of n tokens that stay, int64 [k + a], ascending."""
        if self.appended is None:
            return self.kept
        return self._unsorted_positions(n).sort().values

    def features(self, features: Tensor) -> Tensor:
        """Returns the features at `positions`, [k + a, d], in the dtype of ``features`` [n, d].

        A token that nothing is merged into keeps its feature exactly.
        """
        rows = self._kept_features(features)
        if self.appended is None:
            return rows
        order = self._unsorted_positions(len(features)).argsort()
        return torch.cat([rows, self.appended_features(features)])[order]

    def appended_features(self, features: Tensor) -> Tensor:
        """Returns the appended rows of ``features`` [n, d], [a, d], in their own order."""
        if self.appended is None:
            return features[:0]
        return weighted_sum(self.appended, features)

    def changed(self, n: int) -> Tensor:
        """Returns which rows at `positions` are no single token's own, bool [k + a].

        Args:
            n: number of tokens of the group.
        """
        if self.weights is not None:
            own = torch.zeros_like(self.weights).scatter_(1, self.kept[:, None], 1)
            rows = (self.weights != own).any(1)
        elif self.members is not None:
            counts = torch.zeros_like(self.kept)
            members = self.members
            rows = counts.index_add(0, members.clamp(min=0), (members >= 0).long()) > 1
        else:
            rows = torch.zeros_like(self.kept, dtype=torch.bool)
        if self.appended is None:
            return rows
        every = torch.cat([rows, rows.new_ones(len(self.appended))])
        return every[self._unsorted_positions(n).argsort()]

    def member_counts(self) -> Tensor:
        """Returns how many tokens are averaged into each kept one, itself included, float32 [k].

        Raises:
            ValueError: tokens are merged by weights, or some are appended.
        """
        if self.weights is not None or self.appended is not None:
            raise ValueError(
                "tokens merged by weights or appended stand for no whole number of tokens; "
                "take a method that averages members"
            )
        if self.members is None:
            return torch.ones_like(self.kept, dtype=torch.float32)
        counts = torch.zeros_like(self.kept, dtype=torch.float32)
        # Whole numbers: their sum is the same in any order.
        return counts.index_add(0, self.members.clamp(min=0), (self.members >= 0).float())

    def _unsorted_positions(self, n: int) -> Tensor:
        assert self.appended is not None
        dropped = unchosen(self.kept, n)
        if len(dropped) < len(self.appended):
            raise ValueError(
                f"appended has {len(self.appended)} rows, but only {len(dropped)} of {n} tokens "
                "are dropped; keep fewer tokens"
            )
        return torch.cat([self.kept, dropped[len(dropped) - len(self.appended) :]])

    def _kept_features(self, features: Tensor) -> Tensor:
        if self.weights is not None:
            return weighted_sum(self.weights, features)
        if self.members is not None:
            return mean_features(features, self.members, len(self.kept))
        return features[self.kept]


def weighted_sum(weights: Tensor, features: Tensor) -> Tensor:
    """Returns ``weights`` [k, n] times ``features`` [n, d], summed in float32, in their dtype.

    Sums beyond the range of the dtype become its limits.
    """
    sums = sum_by_product if features.device.type != "cpu" else sum_by_index
    limit = min(torch.finfo(features.dtype).max, torch.finfo(torch.float32).max)
    total = torch.nan_to_num(sums(weights.float(), features.float()), nan=0.0)
    return total.clamp(-limit, limit).to(features.dtype)


def sum_by_product(weights: Tensor, features: Tensor) -> Tensor:
    """Computes `weighted_sum` as a product; float32 [k, d]."""
    return weights @ features


def sum_by_index(weights: Tensor, features: Tensor) -> Tensor:
    """Computes `weighted_sum` in O(nd) where tokens have a weight in one row; float32 [k, d]."""
    if int(weights.count_nonzero()) > 2 * len(features):
        return sum_by_product(weights, features)
    rows, tokens = weights.nonzero(as_tuple=True)
    total = features.new_zeros(len(weights), features.shape[1])
    return total.index_add(0, rows, weights[rows, tokens, None] * features[tokens])


def members_of(kept: Tensor, target: Tensor) -> Tensor:
    """Returns `Reduction.members`, given the kept token that each token is averaged into.

    Args:
        kept: int64 [k], ascending; a kept token is always a member of itself.
        target: index of the kept token that each token is averaged into, int64 [n].
    """
    position = torch.zeros_like(target)
    position[kept] = torch.arange(len(kept), device=kept.device)
    members = position[target]
    members[kept] = position[kept]
    return members


def mean_features(features: Tensor, members: Tensor, k: int) -> Tensor:
    """Returns the mean feature of the members of each of k kept tokens, [k, d].

    Args:
        features: [n, d].
        members: see `Reduction`, int64 [n]; each kept token has a member.
        k: number of kept tokens.
    """
    # Adding by index takes O(nd) instead of O(knd), but has no fixed order on a GPU. Both multiply
    # by the share before they sum: the sum of a few huge features can overflow float32.
    mean = mean_by_index if features.device.type == "cpu" else mean_by_product
    return mean(features.float(), members, k).to(features.dtype)


def mean_by_product(features: Tensor, members: Tensor, k: int) -> Tensor:
    """Computes `mean_features` as a product with a matrix of shares; float32 [k, d]."""
    means = []
    rows = -(-MATRIX_ENTRIES // len(features))
    for block in torch.split(torch.arange(k, device=members.device), rows):
        matrix = (members == block[:, None]).float()  # [block, n]
        means.append((matrix / matrix.sum(1, keepdim=True)) @ features)
    return torch.cat(means)


def mean_by_index(features: Tensor, members: Tensor, k: int) -> Tensor:
    """Computes `mean_features` by adding each feature to its mean; float32 [k, d]."""
    target = members.clamp(min=0)
    dropped = members < 0
    counts = target.bincount((~dropped).double(), minlength=k)
    share = (1 / counts)[target].masked_fill_(dropped, 0).float().unsqueeze(1)
    means = features.new_zeros(k, features.shape[1])
    for rows in row_blocks(len(features)):
        means.index_add_(0, target[rows], features[rows] * share[rows])
    return means
