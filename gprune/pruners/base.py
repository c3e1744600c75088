"""What every pruning method has in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gprune.budget import Budget, Keep, Shares, budgets, check_rule, kept_count
from gprune.graph import blocks
from gprune.tokens import SIGNALS, VisualTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from gprune.hf import PrunedModel


# Most entries of a matrix that merging makes at a time.
ENTRIES = 2**26


@dataclass(frozen=True)
class Pruner(ABC):
    """A training-free method that chooses which visual tokens of a group to keep.

    Attributes:
        keep: retention ratio in (0, 1] as a float, or a count >= 1 as an int; applied to each
            group. ``keep=1.0`` keeps everything, ``keep=1`` one token a group. Or a budget for each
            kind of group, ``{"thumbnail": 1.0, "canvas": 0.25}``, or a function that is given the
            groups of an image (`VisualTokens`) and returns a budget for each; `ThumbnailGuided` is
            such a function.

    Raises:
        TypeError, ValueError: ``keep`` is out of range (see `gprune.kept_count`).
    """

    keep: Keep

    # What `gprune.methods()` and the command line call it; unique, lower case.
    name: ClassVar[str]
    # What it chooses from: a ``group`` of tokens by itself, the frames of a ``video`` together, the
    # tokens inside the language model's ``decoder``, or the ``pixels`` before they are encoded.
    scope: ClassVar[str] = "group"

    # Whether attention to a kept token is multiplied by how many tokens went into it, inside the
    # language model (`gprune.hf.weighted`); for methods whose `partition` gives members.
    proportional: ClassVar[bool] = False

    # What the method reads beside the features, of `gprune.tokens.SIGNALS`; inside a model just
    # these are computed.
    signals: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", check_rule(self.keep))

    def select(self, tokens: VisualTokens) -> Tensor:
        """The indices of the tokens to keep.

        The same tokens give the same indices on every run, thread count and batch size; ties go to
        the lowest index. Protected tokens are kept on top of the budget, which is
        ``kept_count(number of unprotected tokens, keep)``.

        Args:
            tokens: one group.

        Returns:
            int64 [k], ascending and unique, on the device of the features.

        Raises:
            ValueError: NaN, infinite values or some beyond float32's range, or a signal is missing
                that the method needs. On an accelerator values are reported later, without
                stalling (see `gprune.device`).
        """
        return self.reduce_groups([tokens])[0][0]

    def reduce(self, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        """The tokens to keep with their features, into which a merging method puts the dropped.

        Returns:
            what `select` returns, int64 [k], and the features of those tokens, [k, d].

        Raises:
            ValueError: see `select`.
        """
        kept, members = self.reduce_groups([tokens])[0]
        if members is None:
            return kept, tokens.features[kept]
        return kept, merged(tokens.features, members, len(kept))

    @torch.no_grad()
    def reduce_groups(self, groups: Sequence[VisualTokens]) -> list[tuple[Tensor, Tensor | None]]:
        """`partition` for all groups of one image (or video), whose budgets may depend on others.

        Raises:
            TypeError, ValueError: see `select`; or ``keep`` gives no budget for a group.
        """
        self._check(groups)
        given = budgets(self.keep, groups)
        return [self._reduce(*pair) for pair in zip(groups, given, strict=True)]

    def reduce_images(
        self, images: Sequence[Sequence[VisualTokens]]
    ) -> list[list[tuple[Tensor, Tensor | None]]]:
        """`reduce_groups` for each of several images, which a method may look at in one go.

        Raises:
            TypeError, ValueError: see `select`; or ``keep`` gives no budget for a group.
        """
        return [self.reduce_groups(groups) for groups in images]

    def _check(self, groups: Sequence[VisualTokens]) -> None:
        for tokens in groups:
            self._check_signals(tokens)
            tokens.check_values()

    def _check_signals(self, tokens: VisualTokens) -> None:
        for signal in self.signals:
            field, what = SIGNALS[signal]
            if getattr(tokens, field) is None:
                raise ValueError(
                    f"{field} is missing: {self.name} needs {what}; pass "
                    f"VisualTokens(..., {field}=...) or take a method that needs features alone"
                )

    def _reduce(self, tokens: VisualTokens, keep: Budget | Shares) -> tuple[Tensor, Tensor | None]:
        if isinstance(keep, Shares):
            return self._reduce_parts(tokens, keep)
        if tokens.protected is None:
            return self.partition(tokens, kept_count(len(tokens), keep))
        candidates = (~tokens.protected).nonzero().squeeze(1)
        if not len(candidates):
            return tokens.protected.nonzero().squeeze(1), None
        rest = tokens.subset(candidates)
        chosen, members = self.partition(rest, kept_count(len(rest), keep))
        flags = tokens.protected.clone()
        flags[candidates[chosen]] = True
        kept = flags.nonzero().squeeze(1)
        if members is None:
            return kept, None
        # Protected tokens stay as they are.
        place = flags.long().cumsum(0) - 1
        if members.is_floating_point():
            weights = torch.eye(len(tokens), device=members.device)[kept]
            weights[place[candidates[chosen]][:, None], candidates] = members
            return kept, weights
        whole = place.clone()
        whole[candidates] = torch.where(members < 0, -1, place[candidates[chosen]][members])
        return kept, whole

    def _reduce_parts(self, tokens: VisualTokens, shares: Shares) -> tuple[Tensor, Tensor | None]:
        """Each part by itself; a merging method merges within parts."""
        # The row that each token goes into.
        into = torch.full((len(tokens),), -1, device=tokens.features.device)
        kept, merging = [], False
        weighted: list[tuple[Tensor, Tensor, Tensor]] = []
        for (rows, grid), count in zip(shares.parts, shares.counts, strict=True):
            part = tokens.subset(rows, grid)
            if tokens.protected is not None:
                part = replace(part, protected=tokens.protected[rows])
            if count:
                chosen, members = self._reduce(part, count)
            elif part.protected is not None:
                chosen, members = part.protected.nonzero().squeeze(1), None
            else:
                continue
            kept.append(rows[chosen])
            if members is None:
                into[rows[chosen]] = rows[chosen]
            elif members.is_floating_point():
                weighted.append((rows[chosen], rows, members))
            else:
                merging = True
                into[rows] = torch.where(members < 0, -1, rows[chosen][members])
        order = torch.cat(kept).sort().values
        place = torch.empty_like(into)
        place[order] = torch.arange(len(order), device=order.device)
        if weighted:
            weights = torch.eye(len(tokens), device=order.device)[order]
            for chosen, rows, members in weighted:
                weights[place[chosen][:, None], rows] = members
            return order, weights
        if not merging:
            return order, None
        return order, torch.where(into < 0, -1, place[into])

    def partition(self, tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor | None]:
        """The tokens to keep and, for a merging method, which of them each token goes into.

        Args:
            tokens: checked, without protected tokens.
            k: 1 to the number of tokens.

        Returns:
            kept: int64 [k], ascending.
            members: for each token a position in ``kept``, or -1 where it is dropped, int64 [n];
                the kept token's feature becomes the mean of its members'. Or, for a method with
                weights, what part each token has in each kept one, float [k, n], rows of sum 1.
                None where dropped tokens leave nothing behind, which is the default.
        """
        return self.choose(tokens, k), None

    @abstractmethod
    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        """The indices of exactly ``k`` tokens, int64 [k], ascending; ``1 <= k <= len(tokens)``.

        What a method implements. ``tokens`` has been checked and has no protected tokens.
        """

    def __call__(
        self, model: PreTrainedModel, positions: str = "original"
    ) -> AbstractContextManager[PrunedModel]:
        """Prunes a transformers model inside a ``with`` block; leaving it leaves no trace.

        Args:
            model: with its language-modelling head.
            positions: ``original`` numbers kept tokens and the text after them as if nothing had
                been removed; ``compact`` closes the gaps, as code with an older model inside does.

        >>> with GPrune(keep=0.36)(model) as pruned:  # doctest: +SKIP
        ...     model.generate(**inputs)

        Raises:
            ValueError: ``positions`` is neither, or cannot be compact for a model with M-RoPE.
            UnsupportedModelError: the model's family is not supported.
            UnsupportedVersionError: the installed transformers has not been tested.
            RuntimeError: the model is being pruned already.
        """
        # Imported here: the methods know torch alone, and selecting tokens needs no transformers.
        from gprune.hf import prune

        return prune(model, self, positions)


@dataclass(frozen=True)
class ScorePruner(Pruner):
    """A method that gives every token a score and keeps the highest."""

    @abstractmethod
    def score(self, tokens: VisualTokens) -> Tensor:
        """A score for every token, float32 [n]; higher is kept first."""

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        return highest(self.score(tokens), k)


class MergingPruner(Pruner):
    """A method whose kept tokens can be means; what it implements is `partition`."""

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        return self.partition(tokens, k)[0]


def check_share(name: str, value: float, interval: str = "[0, 1]") -> None:
    """Raises ValueError unless ``value`` is in an interval from 0 to 1; a round bracket is open."""
    above = value >= 0 if interval.startswith("[") else value > 0
    below = value <= 1 if interval.endswith("]") else value < 1
    if not (above and below):
        raise ValueError(f"{name}={value} must be a share in {interval}")


def check_weight(name: str, value: float) -> None:
    """Raises ValueError unless ``value`` is finite and not negative."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value} must be a finite number >= 0")


def check_number(name: str, value: int, least: int) -> None:
    """Raises ValueError unless ``value`` is ``least`` or more."""
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}")


def highest(scores: Tensor, k: int) -> Tensor:
    """Indices of the ``k`` highest ``scores`` [n], ascending; ties go to the lowest index."""
    # `topk` leaves the order of ties to the device; a stable sort does not.
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[:k].sort().values


def unchosen(chosen: Tensor, n: int) -> Tensor:
    """The indices below ``n`` that are not among ``chosen``, ascending; nothing is read back."""
    flags = torch.zeros(n, dtype=torch.uint8, device=chosen.device).index_fill(0, chosen, 1)
    return torch.sort(flags, stable=True).indices[: n - len(chosen)]


def assembled(
    features: Tensor, rows: Sequence[Tensor], reduced: Sequence[tuple[Tensor, Tensor | None]]
) -> tuple[Tensor, Tensor]:
    """What stays of one image, put together from what was chosen of its groups.

    Args:
        features: of the image, [n, d].
        rows: of each group, int64 [m]; rows in no group stay.
        reduced: what `Pruner.reduce_groups` gives for each group.

    Returns:
        the rows that stay, int64 [k], ascending; and the features, [n, d], with what a merging
        method made of those that stay.
    """
    stays = torch.ones(len(features), dtype=torch.bool, device=features.device)
    whole, count = features, len(features)
    for own, (kept, members) in zip(rows, reduced, strict=True):
        stays[own] = False
        stays[own[kept]] = True
        if members is not None:
            means = merged(features[own], members, len(kept))
            whole = whole.index_copy(0, own[kept], means)
        count += len(kept) - len(own)
    # The number kept is known from the groups: reading it off the flags would stall a GPU.
    order = torch.sort(stays.to(torch.uint8), descending=True, stable=True).indices
    return order[:count], whole


def into_kept(kept: Tensor, target: Tensor) -> Tensor:
    """The members (see `Pruner.partition`) where each token goes into a kept one.

    Args:
        kept: int64 [k], ascending; a kept token goes into itself.
        target: index of the kept token that each other one goes into, int64 [n].
    """
    place = torch.zeros_like(target)
    place[kept] = torch.arange(len(kept), device=kept.device)
    members = place[target]
    members[kept] = place[kept]
    return members


def standing_for(kept: Tensor, members: Tensor | None) -> Tensor:
    """How many tokens each kept one stands for, itself included, float32 [k].

    Args:
        kept: int64 [k].
        members: see `Pruner.partition`; None where dropped tokens leave nothing behind.

    Raises:
        ValueError: tokens go into several kept ones by weights.
    """
    if members is None:
        return torch.ones_like(kept, dtype=torch.float32)
    if members.is_floating_point():
        raise ValueError(
            "members are weights: a token that goes into several kept ones is in none's number"
        )
    counts = torch.zeros_like(kept, dtype=torch.float32)
    # Whole numbers: their sum is the same in any order.
    return counts.index_add(0, members.clamp(min=0), (members >= 0).float())


def merged(features: Tensor, members: Tensor, k: int) -> Tensor:
    """The mean of the features of each kept token's members.

    Args:
        features: [n, d].
        members: position among the kept tokens that each token goes into, -1 for none, int64 [n];
            or weights, float [k, n], see `Pruner.partition`.
        k: number of kept tokens, each of which has a member.

    Returns:
        [k, d] in the dtype of ``features``; a token that stays alone keeps its feature exactly.
    """
    if members.is_floating_point():
        return (members.float() @ features.float()).to(features.dtype)
    # Adding by index takes O(nd) in place of O(knd), but has no fixed order on a GPU. Shares come
    # before sums in both: the sum of a few huge features has no place in float32.
    means = added if features.device.type == "cpu" else multiplied
    return means(features.float(), members, k).to(features.dtype)


def multiplied(features: Tensor, members: Tensor, k: int) -> Tensor:
    """`merged` as a product with a matrix of shares; float32 [k, d]."""
    means = []
    # Some at a time, so that the matrix takes no more than 256 MB however many tokens there are.
    for some in torch.split(torch.arange(k, device=members.device), -(-ENTRIES // len(features))):
        matrix = (members == some[:, None]).float()  # [some of k, n]
        means.append((matrix / matrix.sum(1, keepdim=True)) @ features)
    return torch.cat(means)


def added(features: Tensor, members: Tensor, k: int) -> Tensor:
    """`merged` by adding each feature to its mean; float32 [k, d]."""
    into = members.clamp(min=0)
    alone = members < 0
    counts = into.bincount((~alone).double(), minlength=k)
    share = (1 / counts)[into].masked_fill_(alone, 0).float().unsqueeze(1)
    means = features.new_zeros(k, features.shape[1])
    for rows in blocks(len(features)):
        means.index_add_(0, into[rows], features[rows] * share[rows])
    return means
